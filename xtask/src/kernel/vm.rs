//! A virtual machine that runs on this machine's files. By emulation: `/dev/kvm`, where it exists,
//! is of no use inside most machines that build software.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::fetch::Kernel;
use crate::process::command;

const GUEST: &str = include_str!("guest.sh");
const MEMORY_MIB: u32 = 3072;

/// What `guest.sh` says after the last command.
pub const END: &str = "guest: end";

/// The status of a program that `timeout` had to kill.
pub const TIMED_OUT: &str = "137";

/// Status and command of the line that `guest.sh` says after each.
pub fn ended(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("guest: status ")?.split_once(" of ")
}

/// What the machine's time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// This machine's.
    Real,
    /// A nanosecond is an instruction of either processor: what else this machine does is not measured.
    Instructions,
}

/// How a kernel is emulated.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub clock: Clock,
    /// One thread emulates all of them where instructions are counted. Linux 6.1 does not find a second one there.
    pub cpus: u32,
}

impl Clock {
    /// By how much what tests wait for takes longer than on the machines their deadlines are meant for.
    const fn scale(self) -> u32 {
        match self {
            Self::Real => 10,
            Self::Instructions => 4,
        }
    }
}

/// One command to run in the machine. Its words have no blanks in them.
#[derive(Debug)]
pub struct Task {
    pub seconds: u32,
    pub words: Vec<String>,
}

/// Prepares `out`, the one directory of this machine that the virtual one writes to, and returns the
/// command that boots `kernel`, runs the tasks, and prints what they print.
pub fn prepare(kernel: &Kernel, tasks: &[Task], machine: Machine, out: &Path) -> Result<Command> {
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    fs::write(out.join("guest.sh"), GUEST)?;
    fs::write(out.join("scale"), format!("{}\n", machine.clock.scale()))?;
    fs::write(out.join("plan"), plan(tasks))?;
    let limit = tasks.iter().map(|task| task.seconds).sum::<u32>() + BOOT_SECONDS;
    let mut command = command("timeout");
    command
        .args(["--signal=KILL", &limit.to_string()])
        .arg("qemu-system-x86_64")
        .args(match machine.clock {
            Clock::Real => &["-accel", "tcg,thread=multi,tb-size=512"][..],
            Clock::Instructions => &[
                "-accel",
                "tcg,thread=single,tb-size=512",
                "-icount",
                "shift=0",
            ],
        })
        // Five-level page tables cost time, and nothing here needs them.
        .args(["-cpu", "max,la57=off"])
        .args([
            "-smp",
            &machine.cpus.to_string(),
            "-m",
            &MEMORY_MIB.to_string(),
        ])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-nic", "none"])
        .args(["-device", "virtio-rng-pci"])
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(kernel.initramfs())
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
        .args(["-serial", &format!("file:{}", console(out).display())])
        .args(["-serial", "stdio"]);
    for (tag, path, access) in [
        ("root", Path::new("/"), ",readonly=on"),
        ("modules", &kernel.modules(), ",readonly=on"),
        ("out", out, ""),
    ] {
        let path = path.display();
        command.args([
            "-virtfs",
            &format!(
                "local,path={path},mount_tag={tag},security_model=none,multidevs=remap{access}"
            ),
        ]);
    }
    Ok(command)
}

/// What booting may take on a busy machine.
const BOOT_SECONDS: u32 = 120;

/// The last words of the kernel and of `init.sh`.
pub fn last_words(out: &Path) -> String {
    let text = fs::read(console(out)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

fn console(out: &Path) -> PathBuf {
    out.join("console")
}

fn plan(tasks: &[Task]) -> String {
    let mut text = String::new();
    for task in tasks {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {}", task.seconds, task.words.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_has_a_line_for_each_task() {
        let task = |seconds, words: &[&str]| Task {
            seconds,
            words: words.iter().map(|&word| word.to_owned()).collect(),
        };
        assert_eq!(
            plan(&[task(5, &["/t/smoke"]), task(60, &["/t/pins", "a_test"])]),
            "5 /t/smoke\n60 /t/pins a_test\n"
        );
    }
}
