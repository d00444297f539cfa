//! What a test needs from the machine. A test that cannot run says so in a line that the runner
//! counts; it never passes silently.

use std::io::Write as _;

use nix::unistd::Uid;

/// Start of the line each skipped test prints to standard output. `cargo xtask test` counts them.
pub const SKIP_MARK: &str = "skipped: ";

/// Panics unless the process is root.
pub fn require_root() {
    assert!(
        Uid::effective().is_root(),
        "this test builds network namespaces and needs root: run `cargo xtask test` as root"
    );
}

/// Prints the line that counts a skipped test.
pub fn announce_skip(test: &str, reason: &str) {
    // Written to the stream itself: the test harness hides what passing tests print with macros.
    let line = format!("\n{SKIP_MARK}{test}: {reason}\n");
    if let Err(error) = std::io::stdout().write_all(line.as_bytes()) {
        panic!("cannot announce a skipped test: {error}");
    }
}

/// Ends the test as skipped, visibly. The reason is formatted like `println!`.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        let thread = ::std::thread::current();
        let test = thread.name().unwrap_or(module_path!());
        $crate::requirements::announce_skip(test, &::std::format!($($reason)+));
        return;
    }};
}
