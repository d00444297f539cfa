//! Who may write the configuration: the agent's reconciler and its flusher, and `overlay-agent flush`.
//!
//! Each reads the entry, changes it and writes it back. Processes exclude each other by a lock on the
//! directory of the maps, threads of one by a mutex that nobody holds while he waits for the other.

use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::MetadataExt as _,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::sys::stat::{major, minor};

use crate::datapath::{
    error::{DatapathError, pin_error},
    pins::PinDir,
};

const RETRY: Duration = Duration::from_millis(5);

static WRITERS: Mutex<()> = Mutex::new(());

/// The right to write the configuration, until it is dropped.
#[derive(Debug)]
pub struct ConfigLock {
    _thread: MutexGuard<'static, ()>,
    _process: Option<File>,
}

impl ConfigLock {
    /// Waits for whoever has the right, but not longer than `patience`.
    pub fn acquire(pins: &PinDir, patience: Duration) -> Result<Self, DatapathError> {
        let dir = pins.maps();
        let file = File::open(&dir).map_err(pin_error("open", &dir))?;
        let deadline = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(RETRY),
                Err(TryLockError::WouldBlock) => {
                    let holder = holder_of(&file);
                    return Err(DatapathError::ConfigLocked { dir, holder });
                }
                Err(TryLockError::Error(source)) => return Err(pin_error("lock", &dir)(source)),
            }
        }
        Ok(Self {
            _thread: exclude_threads(),
            _process: Some(file),
        })
    }

    /// Excludes only the threads of this process. Another one, which was stopped while it had the
    /// right, may then write back what it read before.
    pub fn without_other_processes() -> Self {
        Self {
            _thread: exclude_threads(),
            _process: None,
        }
    }
}

fn exclude_threads() -> MutexGuard<'static, ()> {
    WRITERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For people: who has the file locked.
fn holder_of(file: &File) -> String {
    let (Ok(metadata), Ok(locks)) = (file.metadata(), fs::read_to_string("/proc/locks")) else {
        return "another process".to_owned();
    };
    let (dev, inode) = (metadata.dev(), metadata.ino());
    match lock_owner(&locks, (major(dev), minor(dev)), inode) {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

/// The owner of a flock in the text of `/proc/locks`:
/// `1: FLOCK  ADVISORY  WRITE 4711 00:2a:1234 0 EOF`.
fn lock_owner(locks: &str, device: (u64, u64), inode: u64) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", device.0, device.1);
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, _, pid, of, ..] if of == file => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_lock_is_found_and_those_who_wait_are_not_taken_for_it() {
        let locks = "1: POSIX  ADVISORY  WRITE 9 00:2a:1234 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4711 00:2a:1234 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 4712 00:2a:1234 0 EOF\n";
        assert_eq!(lock_owner(locks, (0, 0x2a), 1234), Some(4711));
        assert_eq!(lock_owner(locks, (0, 0x2a), 123), None);
    }
}
