//! The names below one pin directory, what is there, and its lock.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use overlay_common::{ABI_VERSION, outcome::Hook};

use crate::datapath::error::{DatapathError, pin_error};

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

    /// When a program was last attached or detached.
    pub fn attached_at(&self) -> Result<SystemTime, DatapathError> {
        let links = self.links();
        let modified = fs::metadata(&links).and_then(|links| links.modified());
        modified.map_err(pin_error("look at", &links))
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

    /// The maps of every version.
    pub(super) fn pinned_maps(&self) -> Result<Vec<PathBuf>, DatapathError> {
        let mut maps = Vec::new();
        for dir in self.versions()? {
            maps.extend(list(&dir)?);
        }
        Ok(maps)
    }

    /// The `v<ABI>` directories.
    pub(super) fn versions(&self) -> Result<Vec<PathBuf>, DatapathError> {
        let is_version = |path: &PathBuf| {
            path.file_name()
                .and_then(|name| name.to_str()?.strip_prefix('v')?.parse::<u32>().ok())
                .is_some()
        };
        Ok(list(&self.root)?.into_iter().filter(is_version).collect())
    }
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

fn version_name() -> String {
    format!("v{ABI_VERSION}")
}

/// Ends of the names of a filter's record, and of a qdisc's mark.
const FILTER: &str = "-filter";
const CLSACT: &str = "-clsact";

/// Whether a file is the mark of an interface whose clsact qdisc is ours.
pub fn is_qdisc_mark(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().ends_with(CLSACT.as_bytes())
}

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
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, DatapathError> {
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
}
