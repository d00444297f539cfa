//! The note that an agent without programs leaves, so that `status` can tell why there are none.
//!
//! It is a symbolic link in the pin directory, `kernel-tier`, that leads nowhere: the one thing a BPF
//! file system holds besides pins and directories, and its target is a text.

use std::{
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    path::PathBuf,
};

use super::{
    bpffs::ensure_own_dir,
    dir::{PinDir, remove_pin},
};
use crate::datapath::{
    absence::Absence,
    error::{DatapathError, pin_error},
};

const NOTE: &str = "kernel-tier";

impl PinDir {
    fn note(&self) -> PathBuf {
        self.root().join(NOTE)
    }

    /// Says that the running agent has no programs, and why. The directory is locked, as by an agent
    /// that has some, for the life of the returned file.
    pub fn note_absence(&self, absence: &Absence) -> Result<File, DatapathError> {
        ensure_own_dir(self.root())?;
        let root = File::open(self.root()).map_err(pin_error("open", self.root()))?;
        self.lock(&root)?;
        self.remove_note()?;
        let note = self.note();
        symlink(absence.encode(), &note).map_err(pin_error("write", &note))?;
        Ok(root)
    }

    /// What the last agent noted, if it had no programs.
    pub fn absence(&self) -> Option<Absence> {
        let target = fs::read_link(self.note()).ok()?;
        Absence::decode(&String::from_utf8_lossy(target.as_os_str().as_bytes()))
    }

    pub(super) fn remove_note(&self) -> Result<(), DatapathError> {
        remove_pin(&self.note())
    }

    /// The note, as one of the things that are in the directory.
    pub(super) fn noted(&self) -> Result<Option<PathBuf>, DatapathError> {
        let note = self.note();
        match fs::symlink_metadata(&note) {
            Ok(_) => Ok(Some(note)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(pin_error("inspect", &note)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_why_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let pins = PinDir::new(&dir.path().join("overlay"));
        assert_eq!(pins.absence(), None);
        for absence in [Absence::Asked, Absence::Refused("no way; at all".into())] {
            let lock = pins.note_absence(&absence).unwrap();
            assert_eq!(pins.absence(), Some(absence));
            assert!(pins.is_in_use().unwrap());
            drop(lock);
        }
        assert!(!pins.is_in_use().unwrap());
        assert_eq!(pins.noted().unwrap(), Some(pins.note()));
        pins.remove_all().unwrap();
        assert_eq!(pins.absence(), None);
        assert!(!pins.root().exists());
    }
}
