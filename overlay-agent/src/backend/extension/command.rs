//! A command of the network config: what flannel makes of its text, and running it within a time limit.
//!
//! As flannel since v0.28.2 does it, there is no shell: the text is cut at blanks, then variables are
//! put in, so that no value can become a second word, let alone a command.

use std::{
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe::Receiver,
    process::{Child, Command},
    time::timeout,
};

/// What of a command's output is kept.
const OUTPUT: usize = 64 << 10;
/// What was written before a command ended is there at once; what it left running may hold the pipe open.
const DRAIN: Duration = Duration::from_millis(50);
/// How much of the output errors quote.
const QUOTED: usize = 400;
/// What only a shell understands.
const SHELL_SIGNS: [&str; 9] = [";", "|", "&", "<", ">", "`", "\"", "'", "$("];

/// The text of a command, with at least one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine(String);

/// Variables beside the agent's own; those without a value are not set.
pub type Variables = Vec<(&'static str, Option<String>)>;

/// Why a command did not do its work.
#[derive(Debug, Error)]
pub enum CommandError {
    #[error("it cannot be started: {0}")]
    Start(#[from] io::Error),
    #[error("its first word is empty, with the variables put in")]
    Empty,
    #[error("{status}, output: {}", quoted(output))]
    Failed { status: ExitStatus, output: String },
    #[error("it took longer than {} s and was killed, output: {}", limit.as_secs(), quoted(output))]
    TimedOut { limit: Duration, output: String },
}

impl CommandLine {
    /// `None` for a text without words.
    pub fn new(text: &str) -> Option<Self> {
        (!text.trim().is_empty()).then(|| Self(text.to_owned()))
    }

    /// What in the text would mean something to a shell.
    pub fn shell_sign(&self) -> Option<&'static str> {
        SHELL_SIGNS.into_iter().find(|sign| self.0.contains(sign))
    }

    /// The words, with variables put in.
    fn words(&self, value: impl Fn(&str) -> OsString) -> Vec<OsString> {
        let words = self.0.split_whitespace();
        words.map(|word| expand(word, &value)).collect()
    }

    /// Runs it: `input` and a line end on its standard input, the rest of the environment the agent's.
    /// Returns what it wrote, to standard output and standard error, without blanks around it.
    pub async fn run(
        &self,
        variables: &Variables,
        input: &str,
        limit: Duration,
    ) -> Result<String, CommandError> {
        let value = |name: &str| {
            let set = variables.iter().find(|(key, _)| *key == name);
            set.map_or_else(
                || std::env::var_os(name).unwrap_or_default(),
                |(_, value)| value.clone().unwrap_or_default().into(),
            )
        };
        let mut words = self.words(value).into_iter();
        let program = words.next().filter(|program| !program.is_empty());
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(program.ok_or(CommandError::Empty)?);
        command
            .args(words)
            .stdin(Stdio::piped())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0)
            .kill_on_drop(true);
        for (key, value) in variables {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        let mut child = command.spawn()?;
        // It holds the writing end.
        drop(command);
        let mut output = Output::new(reader.into())?;
        let Ok(status) = timeout(limit, converse(&mut child, &mut output, input)).await else {
            kill(&mut child).await;
            output.drain().await;
            let output = output.text();
            return Err(CommandError::TimedOut { limit, output });
        };
        let status = status?;
        output.drain().await;
        let output = output.text();
        if status.success() {
            Ok(output)
        } else {
            Err(CommandError::Failed { status, output })
        }
    }
}

/// Feeds and hears a command until it ends.
async fn converse(child: &mut Child, output: &mut Output, input: &str) -> io::Result<ExitStatus> {
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A command may read nothing.
            let _ = stdin.write_all(format!("{input}\n").as_bytes()).await;
        }
    };
    let talk = async {
        tokio::join!(feed, output.read());
        std::future::pending().await
    };
    tokio::select! {
        status = child.wait() => status,
        never = talk => never,
    }
}

/// Kills a command and what it started.
async fn kill(child: &mut Child) {
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(group) = group {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait().await;
}

/// What a command writes.
struct Output {
    pipe: Receiver,
    bytes: Vec<u8>,
}

impl Output {
    fn new(pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            pipe: Receiver::from_owned_fd(pipe)?,
            bytes: Vec::new(),
        })
    }

    /// Reads to the end, or to an error, which ends it as well.
    async fn read(&mut self) {
        let mut part = [0; 4096];
        while let Ok(length @ 1..) = self.pipe.read(&mut part).await {
            let room = OUTPUT.saturating_sub(self.bytes.len());
            self.bytes.extend(part.iter().take(length.min(room)));
        }
    }

    async fn drain(&mut self) {
        let _ = timeout(DRAIN, self.read()).await;
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim().to_owned()
    }
}

fn quoted(output: &str) -> String {
    let start: String = output.chars().take(QUOTED).collect();
    format!("{start:?}")
}

/// Go's `os.Expand`: `$NAME` and `${NAME}`.
fn expand(word: &str, value: &impl Fn(&str) -> OsString) -> OsString {
    let mut expanded = OsString::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push(before);
        let (name, length) = name(after);
        match name {
            Some(name) => expanded.push(value(name)),
            // Go leaves a lone sign and takes broken braces away.
            None if length == 0 => expanded.push("$"),
            None => {}
        }
        rest = after.get(length..).unwrap_or_default();
    }
    expanded.push(rest);
    expanded
}

/// The variable's name behind a `$`, and how many bytes it takes there.
fn name(text: &str) -> (Option<&str>, usize) {
    if let Some(inner) = text.strip_prefix('{') {
        return match inner.split_once('}') {
            Some(("", _)) => (None, 2),
            Some((name, _)) => (Some(name), name.len() + 2),
            None => (None, 1),
        };
    }
    let is_special = |c: char| "*#$@!?-".contains(c) || c.is_ascii_digit();
    if text.starts_with(is_special) {
        return (text.get(..1), 1);
    }
    let is_other = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let length = text.find(is_other).unwrap_or(text.len());
    (text.get(..length).filter(|name| !name.is_empty()), length)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, time::Instant};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn words(text: &str) -> Vec<String> {
        let value = |name: &str| match name {
            "SUBNET" => "10.5.2.0/24".into(),
            "EVIL" => "; reboot".into(),
            _ => OsString::new(),
        };
        let words = CommandLine::new(text).unwrap().words(value);
        words
            .iter()
            .map(|word| word.to_string_lossy().into())
            .collect()
    }

    #[test]
    fn variables_are_put_into_words_and_make_no_new_ones() {
        for (text, expected) in [
            (
                "ip route  add\t$SUBNET",
                vec!["ip", "route", "add", "10.5.2.0/24"],
            ),
            ("a ${SUBNET}x $SUBNETx", vec!["a", "10.5.2.0/24x", ""]),
            ("a $EVIL", vec!["a", "; reboot"]),
            (
                "a $ x$ $/ ${} ${SUBNET $$ $1",
                vec!["a", "$", "x$", "$/", "", "SUBNET", "", ""],
            ),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
    }

    /// A script, and the command that calls it.
    fn script(text: &str) -> (tempfile::TempDir, CommandLine) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let line = CommandLine::new(&format!("/bin/sh {} $SUBNET", path.display()));
        (dir, line.unwrap())
    }

    fn variables() -> Variables {
        vec![("SUBNET", Some("10.5.2.0/24".to_owned())), ("HOME", None)]
    }

    #[tokio::test]
    async fn it_reads_its_input_and_what_it_writes_anywhere_is_its_output() {
        let (_dir, line) = script("read said; echo \" $1 $SUBNET $said\"; echo ${HOME-none} >&2");
        let output = line.run(&variables(), "from the peer; x", LIMIT).await;
        assert_eq!(
            output.unwrap(),
            "10.5.2.0/24 10.5.2.0/24 from the peer; x\nnone"
        );
    }

    #[tokio::test]
    async fn a_failure_tells_its_status_and_output() {
        let (_dir, line) = script("echo no such device; exit 3");
        let error = line.run(&variables(), "", LIMIT).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "exit status: 3, output: \"no such device\""
        );
        let missing = CommandLine::new("/nonexistent/command").unwrap();
        let error = missing.run(&variables(), "", LIMIT).await.unwrap_err();
        assert!(
            error.to_string().starts_with("it cannot be started: "),
            "{error}"
        );
    }

    /// Looks until `found` has something, at most for [`LIMIT`].
    fn wait_for<T>(what: &str, found: impl Fn() -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = found() {
                return found;
            }
            assert!(begin.elapsed() < LIMIT, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The clock stands still until the script has come to its `wait`, then jumps to the limit.
    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_is_killed_with_what_it_started() {
        let (dir, line) =
            script("echo begun; sleep 1000 & cd $(dirname $0); echo $! >p; mv p pid; wait");
        let path = dir.path().join("pid");
        let begun = tokio::task::spawn_blocking(move || {
            wait_for("the script writes no pid", || {
                fs::read_to_string(&path).ok()
            })
        });
        let error = line.run(&variables(), "", LIMIT).await;
        let error = error.unwrap_err().to_string();
        assert_eq!(
            error,
            "it took longer than 20 s and was killed, output: \"begun\""
        );
        let id = begun.await.unwrap();
        // A signal that was sent is not yet one that was acted upon.
        wait_for(&format!("{id} lives on"), || {
            let status = fs::read_to_string(format!("/proc/{}/status", id.trim()));
            let is_dead =
                |status: String| status.contains("State:\tZ") || status.contains("State:\tX");
            status.map_or(true, is_dead).then_some(())
        });
    }

    #[tokio::test]
    async fn what_it_leaves_running_with_its_output_open_is_not_waited_for() {
        let (_dir, line) = script("echo done; sleep 30 &");
        let output = line.run(&variables(), "", Duration::from_secs(10)).await;
        assert_eq!(output.unwrap(), "done");
    }

    #[tokio::test]
    async fn neither_much_output_nor_much_input_holds_it_up() {
        let (_dir, line) = script("head -c 1000000 /dev/zero | tr '\\0' x");
        let input = "y".repeat(1 << 20);
        let output = line.run(&variables(), &input, LIMIT).await.unwrap();
        assert_eq!(output.len(), OUTPUT);
    }
}
