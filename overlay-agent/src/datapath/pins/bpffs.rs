//! The BPF file system below the pin directory, and directories that are this user's alone.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};

use crate::datapath::error::{DatapathError, pin_error};

/// Where bpffs is by convention.
const BPFFS: &str = "/sys/fs/bpf";

/// Makes sure `path`, which need not exist, is on bpffs.
pub fn ensure_bpffs(path: &Path) -> Result<(), DatapathError> {
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
pub fn ensure_own_dir(dir: &Path) -> Result<(), DatapathError> {
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
