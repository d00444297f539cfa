//! What a lab leaves outside its own process, and how it is removed: by the lab when it ends, by
//! the next lab when the process that owned it died.
//!
//! Everything carries the lab's id: the namespaces `ovl-<id>-…`, the pins below
//! `/sys/fs/bpf/overlay-lab-<id>`, and the directory `/run/overlay-lab/<id>` with logs and
//! files. A lock on a file in that directory tells whether the owner lives; the kernel releases it
//! with the process. Whatever runs in a namespace of the lab is the lab's.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::{
    netns::{Namespace, RUN_NETNS, checked},
    process::kill_and_wait,
    wait::scaled,
};

const ROOT: &str = "/run/overlay-lab";
const BPFFS: &str = "/sys/fs/bpf";
/// Serialises the creation and the removal of labs between processes.
const REGISTRY_LOCK: &str = "registry.lock";
/// Held by the owner.
const OWNER_LOCK: &str = "owner.lock";
/// Present in a lab that stays when its owner ends.
const KEPT: &str = "kept";
/// Etcd's data.
const ETCD: &str = "etcd";
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// The lab's place on this machine. Dropping it removes the lab, unless it is kept.
#[derive(Debug)]
pub struct State {
    id: String,
    dir: PathBuf,
    kept: bool,
    _owner: File,
}

impl State {
    /// Claims a place; `kept` names a lab that outlives its process. Labs of dead processes are
    /// removed on the way.
    pub fn claim(kept: Option<&str>) -> Result<Self> {
        fs::create_dir_all(ROOT).with_context(|| format!("create {ROOT}"))?;
        let _registry = lock_registry()?;
        remove_orphans()?;
        mount_bpffs()?;
        let id = match kept {
            Some(name) => name.to_owned(),
            None => unique_id(),
        };
        let dir = dir_of(&id);
        if dir.exists() {
            bail!("lab `{id}` exists already ({})", dir.display());
        }
        fs::create_dir_all(dir.join("logs"))?;
        if kept.is_some() {
            File::create(dir.join(KEPT))?;
        }
        let owner = File::create(dir.join(OWNER_LOCK))?;
        owner.try_lock().context("lock a lab that was just made")?;
        Ok(Self {
            id,
            dir,
            kept: kept.is_some(),
            _owner: owner,
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// Where etcd keeps its data.
    pub fn etcd_dir(&self) -> PathBuf {
        self.dir.join(ETCD)
    }

    /// Has etcd keep its data in memory, wherever the rest of the lab is.
    pub fn hold_etcd_in_memory(&self) -> Result<()> {
        let dir = self.etcd_dir();
        fs::create_dir_all(&dir)?;
        mount(
            Some("etcd"),
            &dir,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mount tmpfs on {}", dir.display()))
    }

    pub fn log_file(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Where the agent of `node` pins. Created by the agent.
    pub fn pin_dir(&self, node: &str) -> PathBuf {
        pins_of(&self.id).join(node)
    }

    pub fn create_namespace(&self, name: &str) -> Result<Namespace> {
        Namespace::create(&format!("{}{name}", namespace_prefix(&self.id)))
    }

    /// Makes the namespace of process `pid` one of the lab's, with all that runs in it.
    pub fn attach_namespace(&self, name: &str, pid: u32) -> Result<Namespace> {
        Namespace::attach(&format!("{}{name}", namespace_prefix(&self.id)), pid)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let removed = lock_registry().and_then(|_registry| remove(&self.id));
        if let Err(error) = removed {
            eprintln!("lab {} is not wholly removed: {error:#}", self.id);
        }
    }
}

/// Removes lab `id`, if it exists. Says whether it did.
pub fn remove_by_id(id: &str) -> Result<bool> {
    if !dir_of(id).exists() {
        return Ok(false);
    }
    let _registry = lock_registry()?;
    remove(id)?;
    Ok(true)
}

fn unique_id() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(1);
    format!(
        "{}-{}",
        process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    )
}

fn dir_of(id: &str) -> PathBuf {
    Path::new(ROOT).join(id)
}

fn pins_of(id: &str) -> PathBuf {
    Path::new(BPFFS).join(format!("overlay-lab-{id}"))
}

fn namespace_prefix(id: &str) -> String {
    format!("ovl-{id}-")
}

fn lock_registry() -> Result<File> {
    let path = Path::new(ROOT).join(REGISTRY_LOCK);
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    file.lock()
        .with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

/// Removes labs whose owner is gone and that are not kept.
fn remove_orphans() -> Result<()> {
    for entry in fs::read_dir(ROOT)? {
        let dir = entry?.path();
        if !dir.is_dir() || dir.join(KEPT).exists() || is_owned(&dir)? {
            continue;
        }
        let Some(id) = dir.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        eprintln!("removing lab {id}: its process is gone");
        remove(id)?;
    }
    Ok(())
}

fn is_owned(dir: &Path) -> Result<bool> {
    // A directory without a lock file is half made or half removed: nobody owns it.
    let Ok(owner) = File::open(dir.join(OWNER_LOCK)) else {
        return Ok(false);
    };
    match owner.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error).context("probe the owner of a lab"),
    }
}

fn remove(id: &str) -> Result<()> {
    let names = namespaces(id)?;
    for name in &names {
        let pids = checked(Command::new("ip").args(["netns", "pids", name]))?;
        for pid in pids.lines() {
            kill_and_wait(pid.parse()?, scaled(KILL_DEADLINE))?;
        }
    }
    let pins = pins_of(id);
    if pins.exists() {
        fs::remove_dir_all(&pins).with_context(|| format!("remove {}", pins.display()))?;
    }
    for name in &names {
        Namespace::delete(name)?;
    }
    let dir = dir_of(id);
    if dir.exists() {
        // Most labs have nothing mounted there.
        let _ = umount2(&dir.join(ETCD), MntFlags::MNT_DETACH);
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    Ok(())
}

fn namespaces(id: &str) -> Result<Vec<String>> {
    let prefix = namespace_prefix(id);
    let Ok(entries) = fs::read_dir(RUN_NETNS) else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Pins need a bpffs; machines without systemd have none mounted.
fn mount_bpffs() -> Result<()> {
    let mounted = statfs(BPFFS).with_context(|| format!("statfs {BPFFS}"))?;
    if mounted.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("mount bpffs on {BPFFS}"))
}
