//! A host on which the commands of a page are run: a namespace of the lab with a shell, and with files of its own where
//! the commands write. systemd and ssh are stood in for.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use crate::{document::root, lab::agent::binary, netns::Namespace, wait::scaled};
use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

const PATIENCE: Duration = Duration::from_mins(2);
const END: &str = "== end of the command ==";

/// `/etc` is that of the machine with changes of its own, `/run` and the BPF file system are empty, and
/// `/run/flannel` is where the lab looks for the subnet file.
const SETUP: &str = r#"
set -e
mount -t tmpfs none /mnt
mkdir /mnt/etc /mnt/work /mnt/flannel /mnt/bin
mount -t overlay none -o lowerdir=/etc,upperdir=/mnt/etc,workdir=/mnt/work /etc
mount --bind "$FLANNEL" /mnt/flannel
mount -t tmpfs none /run
mkdir /run/flannel /run/lock
mount --move /mnt/flannel /run/flannel
mount -t bpf none /sys/fs/bpf
mount -t tmpfs none /var/lib
cp "$DEPLOY/default/overlay-agent" /etc/default/overlay-agent
ln -s "$AGENT" /mnt/bin/overlay-agent
PATH=/mnt/bin:$PATH
cp -r "$DEPLOY" /mnt/deploy
cd /mnt
set +e
# As overlay-agent.service does: variables of /etc/default, ready when the node has started.
systemctl() {
    case "$*" in
    "stop overlay-agent") kill "$agent"; wait "$agent" ;;
    "start overlay-agent")
        : >/run/overlay-agent.log
        ( set -a; . /etc/default/overlay-agent; exec overlay-agent ) >>/run/overlay-agent.log 2>&1 &
        agent=$!
        until grep -q 'node started' /run/overlay-agent.log; do
            kill -0 "$agent" || { cat /run/overlay-agent.log; return 1; }
            sleep 0.1
        done ;;
    # The agent's drop-in has written the options that Docker's reads.
    "restart docker")
        . /run/flannel/docker
        dockerd --storage-driver vfs --log-level warn $DOCKER_NETWORK_OPTIONS >>/run/docker.log 2>&1 &
        docker=$!
        until docker version >/dev/null 2>&1; do
            kill -0 "$docker" || { cat /run/docker.log; return 1; }
            sleep 0.1
        done
        mkdir -p /run/busybox/bin && cp /bin/busybox /run/busybox/bin/ &&
            ln -s busybox /run/busybox/bin/httpd && ln -s busybox /run/busybox/bin/ping &&
            tar -C /run/busybox -c . | docker import - busybox:latest >/dev/null ;;
    *) echo "systemctl $*: not here"; return 1 ;;
    esac
}
finish() {
    [ -z "$docker" ] || { docker ps -aq | xargs -r docker rm -f; kill "$docker"; wait "$docker"; }
}
# To the other host, which is named in the target.
scp() { cp "$1" "/proc/$OTHER/root/${2#*:}"; }
"#;

pub struct Machine {
    shell: Child,
    input: ChildStdin,
    output: Receiver<String>,
}

impl Machine {
    /// `flannel`: what it has for `/run/flannel`.
    pub fn start(namespace: &Namespace, flannel: &Path) -> Result<Self> {
        let mut command = namespace.command("unshare");
        command
            .args(["--mount", "--propagation", "private"])
            .args(["bash", "--noprofile", "--norc"])
            .env("AGENT", fs::canonicalize(binary()?)?)
            .env("DEPLOY", root().join("deploy"))
            .env("FLANNEL", flannel)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        let mut shell = command.spawn().context("start a shell")?;
        let input = shell.stdin.take().context("its input")?;
        let printed = BufReader::new(shell.stdout.take().context("its output")?);
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            for line in printed.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut machine = Self {
            shell,
            input,
            output,
        };
        machine.run(SETUP).context("set up a machine")?;
        Ok(machine)
    }

    /// Names the machine that `scp` copies to.
    pub fn know(&mut self, other: &Self) -> Result<()> {
        self.run(&format!("OTHER={}", other.shell.id())).map(drop)
    }

    /// Runs a command in the shell, and returns what it printed.
    pub fn run(&mut self, command: &str) -> Result<String> {
        writeln!(
            self.input,
            "{{\n{command}\n}} </dev/null 2>&1\nprintf '\\n{END} %s\\n' $?"
        )?;
        let deadline = Instant::now() + scaled(PATIENCE);
        let mut lines = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.output.recv_timeout(left);
            let line = line.with_context(|| format!("no end after\n{}", lines.join("\n")))?;
            if let Some(code) = line.strip_prefix(END) {
                // The line before it is empty, or ends one that had no end.
                if lines.last().is_some_and(String::is_empty) {
                    lines.pop();
                }
                let printed = lines.join("\n");
                ensure!(code.trim() == "0", "exit code{code}:\n{printed}");
                return Ok(printed);
            }
            lines.push(line);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.run("finish") {
            eprintln!("containers may be left: {error:#}");
        }
        // What it has started is of the same group.
        if let Ok(id) = i32::try_from(self.shell.id()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
        let _ = self.shell.wait();
    }
}
