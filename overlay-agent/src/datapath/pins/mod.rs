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

use std::{
    fs::{self, DirBuilder, File, Permissions, TryLockError},
    io,
    os::fd::AsFd as _,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};
use overlay_common::{ABI_VERSION, outcome::Hook};

use super::{DatapathError, attach::tc, sys};

/// Where bpffs is by convention.
const BPFFS: &str = "/sys/fs/bpf";

/// How long to wait for an agent that is about to exit, for a command that looks whether one runs,
/// or for a child that an agent is starting: until it executes its program it shares the lock.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Default of `--pin-dir`.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/overlay";

/// Paths below one `--pin-dir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDir {
    root: PathBuf,
}

impl PinDir {
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directory of the maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join(version_name())
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub fn link(&self, hook: Hook, ifindex: u32) -> PathBuf {
        self.links().join(format!("{ifindex}-{}", hook.name()))
    }

    /// The record of a program that a tc filter runs.
    pub fn filter(&self, hook: Hook, ifindex: u32) -> PathBuf {
        self.links()
            .join(format!("{ifindex}-{}{FILTER}", hook.name()))
    }

    /// The mark of an interface whose clsact qdisc is ours.
    pub fn qdisc(&self, ifindex: u32) -> PathBuf {
        self.links().join(format!("{ifindex}{CLSACT}"))
    }

    /// The pinned links, in the order of their interface indexes. Files of other names are not
    /// links.
    pub fn pinned_links(&self) -> Result<Vec<(Hook, u32)>, DatapathError> {
        self.named_links(parse_link)
    }

    /// The recorded filters, likewise.
    pub fn pinned_filters(&self) -> Result<Vec<(Hook, u32)>, DatapathError> {
        self.named_links(parse_filter)
    }

    fn named_links(
        &self,
        parse: fn(&str) -> Option<(Hook, u32)>,
    ) -> Result<Vec<(Hook, u32)>, DatapathError> {
        let mut links: Vec<_> = list(&self.links())?
            .iter()
            .filter_map(|path| parse(path.file_name()?.to_str()?))
            .collect();
        links.sort_by_key(|&(hook, ifindex)| (ifindex, hook));
        Ok(links)
    }

    /// Creates the directories, mounting bpffs first where it belongs and is missing, and locks
    /// them for the life of the returned file.
    pub fn prepare(&self) -> Result<File, DatapathError> {
        ensure_bpffs(&self.root)?;
        ensure_own_dir(&self.root)?;
        for dir in [self.maps(), self.links()] {
            ensure_own_dir(&dir)?;
            fs::set_permissions(&dir, Permissions::from_mode(0o700))
                .map_err(pin_error("protect", &dir))?;
        }
        let root = File::open(&self.root).map_err(pin_error("open", &self.root))?;
        self.lock(&root)?;
        self.remove_note()?;
        Ok(root)
    }

    /// Takes the lock that the running agent holds.
    pub(in crate::datapath) fn lock(&self, root: &File) -> Result<(), DatapathError> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match root.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    sleep(LOCK_RETRY);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(DatapathError::InUse {
                        pin_dir: self.root.clone(),
                    });
                }
                Err(TryLockError::Error(source)) => {
                    return Err(pin_error("lock", &self.root)(source));
                }
            }
        }
    }

    /// True while an agent owns the directory.
    pub fn is_in_use(&self) -> Result<bool, DatapathError> {
        let root = File::open(&self.root).map_err(pin_error("open", &self.root))?;
        match root.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(pin_error("lock", &self.root)(source)),
        }
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
        let mut pins = list(&self.links())?;
        pins.extend(self.pinned_maps()?);
        pins.extend(self.noted()?);
        Ok(pins)
    }

    /// Removes everything pinned, the note and the directories. Refuses while an agent runs.
    pub fn remove_all(&self) -> Result<Vec<PathBuf>, DatapathError> {
        let root = match File::open(&self.root) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(pin_error("open", &self.root)(error)),
        };
        self.lock(&root)?;
        let (links, maps) = (list(&self.links())?, self.pinned_maps()?);
        let note = self.noted()?;
        for (hook, ifindex) in self.pinned_filters()? {
            tc::detach(self, hook, ifindex)?;
        }
        for path in list(&self.links())? {
            let name = path.file_name().unwrap_or_default();
            if name.as_encoded_bytes().ends_with(CLSACT.as_bytes()) {
                remove_pin(&path)?;
            } else {
                remove_link(&path)?;
            }
        }
        maps.iter().try_for_each(|map| remove_pin(map))?;
        self.remove_note()?;
        for dir in self
            .versions()?
            .into_iter()
            .chain([self.links(), self.root.clone()])
        {
            match fs::remove_dir(&dir) {
                Err(error) if !is_fine_to_keep(&error) => {
                    return Err(pin_error("remove", &dir)(error));
                }
                _ => {}
            }
        }
        Ok(links.into_iter().chain(maps).chain(note).collect())
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

    /// The maps of every version.
    fn pinned_maps(&self) -> Result<Vec<PathBuf>, DatapathError> {
        let mut maps = Vec::new();
        for dir in self.versions()? {
            maps.extend(list(&dir)?);
        }
        Ok(maps)
    }

    /// The `v<ABI>` directories.
    fn versions(&self) -> Result<Vec<PathBuf>, DatapathError> {
        let is_version = |path: &PathBuf| {
            path.file_name()
                .and_then(|name| name.to_str()?.strip_prefix('v')?.parse::<u32>().ok())
                .is_some()
        };
        Ok(list(&self.root)?.into_iter().filter(is_version).collect())
    }
}

/// Removes a link and detaches its program before returning; the kernel lets go of an unpinned link
/// only some time later (`bpf_free_inode` runs after an RCU grace period).
pub fn remove_link(path: &Path) -> Result<(), DatapathError> {
    match sys::object_get(path) {
        Ok(link) => sys::link_detach(link.as_fd()).map_err(pin_error("detach", path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(pin_error("open", path)(error)),
    }
    remove_pin(path)
}

/// Removes a pin. One that is gone already is fine.
pub fn remove_pin(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(pin_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// A directory that holds something else, or is the mount point itself, stays.
fn is_fine_to_keep(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
    )
}

pub fn pin_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DatapathError {
    let path = path.to_owned();
    move |source| DatapathError::Pin {
        action,
        path,
        source,
    }
}

fn version_name() -> String {
    format!("v{ABI_VERSION}")
}

/// Ends of the names of a filter's record, and of a qdisc's mark.
const FILTER: &str = "-filter";
const CLSACT: &str = "-clsact";

/// `<ifindex>-<hook>-filter`.
fn parse_filter(name: &str) -> Option<(Hook, u32)> {
    parse_link(name.strip_suffix(FILTER)?)
}

/// `<ifindex>-<hook>`.
fn parse_link(name: &str) -> Option<(Hook, u32)> {
    let (ifindex, hook) = name.split_once('-')?;
    let hook = Hook::ALL
        .iter()
        .copied()
        .find(|candidate| candidate.name() == hook)?;
    Some((hook, ifindex.parse().ok()?))
}

/// The entries of a directory, sorted; none if it does not exist.
fn list(dir: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(pin_error("list", dir)(error)),
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(pin_error("list", dir))?;
    paths.sort();
    Ok(paths)
}

/// Makes sure `path`, which need not exist, is on bpffs.
fn ensure_bpffs(path: &Path) -> Result<(), DatapathError> {
    let existing = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(path);
    if is_bpffs(existing)? {
        return Ok(());
    }
    let mount_point = Path::new(BPFFS);
    if !path.starts_with(mount_point) || !mount_point.exists() {
        return Err(DatapathError::NoBpffs {
            path: path.to_owned(),
        });
    }
    // Agents that start together must not mount over each other.
    let lock = File::open(mount_point).map_err(pin_error("open", mount_point))?;
    lock.lock().map_err(pin_error("lock", mount_point))?;
    if is_bpffs(mount_point)? {
        return Ok(());
    }
    mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .map_err(|errno| DatapathError::Mount {
        path: mount_point.into(),
        source: errno.into(),
    })
}

fn is_bpffs(path: &Path) -> Result<bool, DatapathError> {
    let stat = statfs(path).map_err(|errno| pin_error("inspect", path)(errno.into()))?;
    Ok(stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Creates `dir`, for this user alone. One that another user made could hold maps of their choice.
pub(in crate::datapath) fn ensure_own_dir(dir: &Path) -> Result<(), DatapathError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(pin_error("create", dir))?;
    let owner = fs::symlink_metadata(dir)
        .map_err(pin_error("inspect", dir))?
        .uid();
    if owner != geteuid().as_raw() {
        return Err(DatapathError::ForeignDirectory {
            path: dir.to_owned(),
            owner,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_found_again_by_its_file_name() {
        let dir = PinDir::new(Path::new("/pins"));
        for &hook in Hook::ALL {
            let (link, filter) = (dir.link(hook, 12), dir.filter(hook, 12));
            let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
            assert_eq!(parse_link(&name(&link)), Some((hook, 12)));
            assert_eq!(parse_filter(&name(&filter)), Some((hook, 12)));
            assert_eq!(parse_filter(&name(&link)), None);
            assert_eq!(parse_link(&name(&filter)), None);
        }
        for other in ["12", "x-egress", "12-nowhere", "-egress", "12-clsact"] {
            assert_eq!(parse_link(other), None, "{other}");
        }
    }

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
