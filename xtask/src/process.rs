//! Child processes: one way to start them, one way to report that they failed.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Where Debian keeps bpftool, nft and iptables; a root shell's `PATH` may lack them.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A command without standard input, whose `PATH` reaches the administrator's tools.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path()).stdin(Stdio::null());
    command
}

/// The cargo that started xtask.
pub fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs with the terminal's output; an error names the command line.
pub fn run(command: &mut Command) -> Result<()> {
    let line = display(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs and returns standard output; an error carries standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let line = display(command);
    let output = command
        .output()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!(
            "`{line}` failed: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs with the terminal's standard error and returns standard output.
pub fn answer(command: &mut Command) -> Result<String> {
    let line = display(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Hands out each line of standard output as it comes; returns whether the command succeeded.
pub fn stream(command: &mut Command, mut each: impl FnMut(&str)) -> Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", display(command)))?;
    let output = child.stdout.take().context("the child has no output")?;
    let mut reader = BufReader::new(output);
    let mut bytes = Vec::new();
    while reader
        .read_until(b'\n', &mut bytes)
        .context("cannot read its output")?
        > 0
    {
        let line = String::from_utf8_lossy(&bytes);
        each(line.trim_end());
        bytes.clear();
    }
    let status = child.wait().context("cannot wait for it")?;
    Ok(status.success())
}

/// The command line as a person would type it: the cargo that started xtask is just `cargo`.
pub fn display(command: &Command) -> String {
    let program = command.get_program();
    let is_own_cargo = env::var_os("CARGO").is_some_and(|cargo| cargo == program);
    let name = if is_own_cargo {
        "cargo".into()
    } else {
        program.to_string_lossy()
    };
    let mut words = vec![name.into_owned()];
    words.extend(
        command
            .get_args()
            .map(|arg| arg.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

/// The first executable of that name on the extended `PATH`.
pub fn find_on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path())
        .map(|dir| dir.join(name))
        .find(|path| is_executable(path))
}

pub fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
}

/// Whether the effective user is root, read from the owner of the process's own proc directory.
pub fn is_root() -> bool {
    Path::new("/proc/self")
        .metadata()
        .is_ok_and(|meta| meta.uid() == 0)
}

fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    for dir in SBIN {
        if !env::split_paths(&path).any(|present| present == Path::new(dir)) {
            path.push(":");
            path.push(dir);
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_named_with_its_arguments_and_its_last_words() {
        let error = output(command("sh").args(["-c", "echo no such bridge >&2; exit 3"]))
            .expect_err("exit status 3 is a failure");
        let text = format!("{error:#}");
        assert!(text.contains("sh -c"), "{text}");
        assert!(text.contains("no such bridge"), "{text}");
    }

    #[test]
    fn an_absent_command_is_named() {
        let error = run(&mut command("overlay-no-such-command")).expect_err("it does not exist");
        assert!(
            format!("{error:#}").contains("overlay-no-such-command"),
            "{error:#}"
        );
    }

    #[test]
    fn administrator_directories_are_searched_once() {
        let path = search_path();
        let dirs: Vec<PathBuf> = env::split_paths(&path).collect();
        for dir in SBIN {
            assert_eq!(
                dirs.iter().filter(|d| *d == Path::new(dir)).count(),
                1,
                "{dir} in {dirs:?}"
            );
        }
    }
}
