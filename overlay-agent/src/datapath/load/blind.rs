//! Running something that reads files as if there were none.
//!
//! By Landlock (Linux 5.13), on a thread that ends with it. On a kernel without, files are there.
#![expect(unsafe_code, reason = "landlock(7) has no safe binding")]

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    panic, thread,
};

/// `struct landlock_ruleset_attr`, as far as its first version goes.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
}

const LANDLOCK_ACCESS_FS_READ_FILE: u64 = 1 << 2;

/// What `make` makes where no file can be opened for reading.
pub fn run<T: Send>(make: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Err(error) = close_eyes() {
                tracing::debug!(%error, "no Landlock: the type information of the kernel is read");
            }
            make()
        });
        thread
            .join()
            .unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

/// Denies the calling thread to open files for reading, for good.
fn close_eyes() -> io::Result<()> {
    let ruleset = Ruleset {
        handled_access_fs: LANDLOCK_ACCESS_FS_READ_FILE,
    };
    // SAFETY: the kernel reads as many bytes of the struct as it is told that there are.
    let created = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const ruleset,
            size_of::<Ruleset>(),
            0,
        )
    };
    let fd = i32::try_from(created).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us, and nobody else knows of it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: two system calls on the calling thread, which take numbers only.
    let denied = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_landlock_restrict_self, fd.as_raw_fd(), 0) == 0
    };
    if denied {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn no_file_is_read_meanwhile_and_all_are_again_afterwards() {
        let read = || fs::read("/proc/self/stat").map(drop);
        let (has_landlock, result) = run(|| (close_eyes().is_ok(), read()));
        assert!(!has_landlock || result.is_err());
        assert!(read().is_ok());
    }
}
