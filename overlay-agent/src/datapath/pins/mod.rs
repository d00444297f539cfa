//! The pin directory: what lies where below `--pin-dir`, and who may use it.
//!
//! ```text
//! <pin-dir>/                          locked (flock) by the running agent
//! <pin-dir>/v<ABI>/<MAP>              the maps, e.g. v1/OVL_ROUTES4
//! <pin-dir>/links/<ifindex>-<hook>    the tcx links, e.g. links/12-egress
//! <pin-dir>/links/<ifindex>-<hook>-filter    without tcx: programs that a tc filter runs
//! <pin-dir>/links/<ifindex>-clsact    their qdisc was made for them
//! <pin-dir>/kernel-tier               instead of them: why the agent has no programs
//! ```
//!
//! Links lie beside the version directories: an agent with other map layouts takes them over and
//! switches each to its own program atomically.

mod bpffs;
mod dir;
mod note;

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
};

pub use self::dir::{DEFAULT_PIN_DIR, PinDir, is_qdisc_mark, remove_pin};
use self::{
    bpffs::{ensure_bpffs, ensure_own_dir},
    dir::list,
};
use super::error::{DatapathError, pin_error};

impl PinDir {
    /// Creates the directories, mounting bpffs first where it belongs and is missing, and locks
    /// them for the life of the returned file.
    pub fn prepare(&self) -> Result<File, DatapathError> {
        ensure_bpffs(self.root())?;
        ensure_own_dir(self.root())?;
        for dir in [self.maps(), self.links()] {
            ensure_own_dir(&dir)?;
            fs::set_permissions(&dir, Permissions::from_mode(0o700))
                .map_err(pin_error("protect", &dir))?;
        }
        let root = File::open(self.root()).map_err(pin_error("open", self.root()))?;
        self.lock(&root)?;
        self.remove_note()?;
        Ok(root)
    }

    /// Tells a directory without maps from one that is closed to this user.
    pub fn require_maps(&self) -> Result<(), DatapathError> {
        let dir = self.maps();
        match fs::read_dir(&dir) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.not_pinned()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(DatapathError::Private { dir })
            }
            Err(error) => Err(pin_error("open", &dir)(error)),
        }
    }

    /// Why there are no maps.
    pub(in crate::datapath) fn not_pinned(&self) -> DatapathError {
        match self.absence() {
            Some(absence) => DatapathError::KernelTier { absence },
            None => DatapathError::NotPinned { dir: self.maps() },
        }
    }

    /// Everything pinned, links first.
    pub fn pins(&self) -> Result<Vec<PathBuf>, DatapathError> {
        let mut pins = self.attachments()?;
        pins.extend(self.pinned_maps()?);
        pins.extend(self.noted()?);
        Ok(pins)
    }

    /// Everything that holds an attachment, or tells of one.
    pub(in crate::datapath) fn attachments(&self) -> Result<Vec<PathBuf>, DatapathError> {
        list(&self.links())
    }

    /// Removes maps, note and directories.
    pub(in crate::datapath) fn clear(&self) -> Result<(), DatapathError> {
        for map in self.pinned_maps()? {
            remove_pin(&map)?;
        }
        self.remove_note()?;
        let root = self.root().to_owned();
        for dir in self.versions()?.into_iter().chain([self.links(), root]) {
            match fs::remove_dir(&dir) {
                Err(error) if !is_fine_to_keep(&error) => {
                    return Err(pin_error("remove", &dir)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the maps of other ABI versions, once no link runs a program that uses them.
    pub fn remove_other_versions(&self) -> Result<(), DatapathError> {
        for dir in self
            .versions()?
            .into_iter()
            .filter(|dir| *dir != self.maps())
        {
            for pin in list(&dir)? {
                remove_pin(&pin)?;
            }
            fs::remove_dir(&dir).map_err(pin_error("remove", &dir))?;
        }
        Ok(())
    }
}

/// A directory that holds something else, or is the mount point itself, stays.
fn is_fine_to_keep(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_on_another_file_system_is_refused_with_the_mount_command() {
        let dir = tempfile::tempdir().unwrap();
        let error = PinDir::new(&dir.path().join("overlay"))
            .prepare()
            .unwrap_err()
            .to_string();
        assert!(error.contains("mount -t bpf"), "{error}");
        assert!(error.contains("--pin-dir"), "{error}");
    }
}
