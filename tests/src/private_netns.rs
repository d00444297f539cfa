//! A network namespace for the duration of one closure, without a name that could be left behind.

use std::{future::Future, panic::resume_unwind, process::Command, thread};

use nix::sched::{CloneFlags, unshare};

/// Runs a future on a thread, and a current-thread runtime, inside a network namespace of its own
/// with loopback up. A panic in the future is a panic of the caller.
pub fn in_private_netns<F>(body: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace (needs root)");
        run("ip link set lo up");
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a tokio runtime")
            .block_on(body());
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

/// Runs a command line, split at blanks, in the calling thread's network namespace and returns its
/// standard output. A failure panics with what the command said.
pub fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a command");
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("cannot start `{line}`: {error}"));
    assert!(
        output.status.success(),
        "`{line}` failed with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
