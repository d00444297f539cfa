//! A network namespace with its own packet filter, and the agent's filter code running in it.

use std::{
    fs,
    future::Future,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::Result;
use overlay_agent::filter::{
    Filter, Masquerade, Mode, PodNetwork, Settings, exec::Executor, iptables::Variant,
};
use overlay_tests::{netns::Namespace, requirements::require_root};
use tempfile::TempDir;
use tokio::runtime::Builder;

/// A namespace of this test, deleted at its end.
pub struct Host {
    namespace: Namespace,
}

impl Host {
    pub fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(1);
        require_root();
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ovl-filter-{}-{count}", process::id());
        Self {
            namespace: Namespace::create(&name).unwrap(),
        }
    }

    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Runs a command line, words separated by blanks.
    pub fn run(&self, line: &str) -> String {
        self.try_run(line)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    pub fn try_run(&self, line: &str) -> Result<String> {
        let mut words = line.split(' ');
        let program = words.next().unwrap_or_default();
        self.namespace.run(program, words)
    }

    /// Everything iptables of a variant holds in both families: what `-S` lists, table by table.
    pub fn iptables_rules(&self, variant: Variant) -> String {
        let mut rules = String::new();
        for family in ["iptables", "ip6tables"] {
            for table in ["nat", "filter"] {
                let listed = self.run(&format!("{family}-{variant} -t {table} -S"));
                rules.extend([family, " ", table, "\n", &listed]);
            }
        }
        rules
    }

    /// Runs the agent's code in the namespace, on a thread of its own.
    pub fn block_on<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        self.namespace.enter(|| {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(future)
        })
    }

    /// Runs the agent's code in the namespace in the background.
    pub fn spawn(
        &self,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> thread::JoinHandle<()> {
        self.namespace.spawn(|| {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(future);
        })
    }

    /// Runs lines of `ip` commands.
    pub fn batch(&self, lines: &str) {
        self.namespace
            .ip_batch(lines)
            .unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Opens the filter, brings the rules about, and returns what that took.
    pub fn apply(&self, tools: &Tools, settings: Settings) -> Vec<String> {
        self.block_on(async {
            let mut filter = Filter::open(settings, tools.executor()).await.unwrap();
            let changes = filter.ensure().await.unwrap();
            filter.remove_strays(&[]).await;
            changes.iter().map(ToString::to_string).collect()
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = Namespace::delete(self.namespace.name()) {
            eprintln!("{error:#}");
        }
    }
}

/// A directory of packet filter commands, as another machine might have them.
pub struct Tools {
    dir: TempDir,
}

impl Tools {
    pub fn none() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// iptables and ip6tables of both variants, `default` under the plain name too, and nft.
    pub fn all(default: Variant) -> Self {
        Self::iptables(default).with_nft()
    }

    /// Both variants of iptables, but no nft.
    pub fn iptables(default: Variant) -> Self {
        let tools = Self::none();
        for family in ["iptables", "ip6tables"] {
            for command in ["", "-restore", "-save"] {
                for (name, variant) in [
                    ("", default),
                    ("-nft", Variant::Nft),
                    ("-legacy", Variant::Legacy),
                ] {
                    let target = installed(&format!("iptables-{variant}"));
                    tools.link(&target, &format!("{family}{name}{command}"));
                }
            }
        }
        tools
    }

    pub fn with_nft(self) -> Self {
        self.link(&installed("nft"), "nft");
        self
    }

    /// Puts a script in the place of a command.
    pub fn replace(&self, name: &str, script: &str) {
        let path = self.dir.path().join(name);
        fs::remove_file(&path).unwrap();
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The directory they are in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn link(&self, target: &Path, name: &str) {
        symlink(target, self.dir.path().join(name)).unwrap();
    }

    pub fn executor(&self) -> Executor {
        Executor::in_dirs([self.dir.path().to_owned()])
    }
}

/// The real file of a command: the xtables programs look at the name they are called by.
fn installed(command: &str) -> PathBuf {
    fs::canonicalize(format!("/usr/sbin/{command}"))
        .unwrap_or_else(|error| panic!("{command} is needed for this test: {error}"))
}

pub fn v4() -> PodNetwork {
    PodNetwork::v4(
        "172.7.0.0/16".parse().unwrap(),
        "172.7.21.0/24".parse().unwrap(),
    )
}

pub fn v6() -> PodNetwork {
    PodNetwork::v6(
        "fd07::/32".parse().unwrap(),
        "fd07:0:21::/64".parse().unwrap(),
    )
}

/// Everything switched on, for IPv4.
pub fn settings(mode: Mode) -> Settings {
    Settings {
        mode,
        masquerade: Masquerade::On { fully_random: true },
        forward: true,
        keep_pod_source: true,
        networks: vec![v4()],
    }
}
