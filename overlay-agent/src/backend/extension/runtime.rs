//! Runs the commands when flannel does: one at a time, each within a time limit. What fails is tried
//! again, which flannel does not do.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, FutureExt as _};
use tracing::{info, warn};

use super::{
    command::{CommandError, CommandLine, Variables},
    options::{Extension, POST_STARTUP, PRE_STARTUP, SHUTDOWN, SUBNET_ADD, SUBNET_REMOVE},
};
use crate::{
    backend::{BackendError, LeaseData, Runtime, Scene, retry::Failures},
    go::marshal,
    model::{DesiredNode, LeaseKey, PeerLease, PerFamily},
};

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(30);
/// After this long no further command is begun before the rest of the node had its turn: with the
/// command under way, less than a job of the settler may take.
const ROUND: Duration = Duration::from_secs(20);

/// The commands of a node.
pub struct Commands {
    options: Extension,
    limit: Duration,
    /// [`POST_STARTUP`] has succeeded.
    started: bool,
    startup: Failures,
    peers: BTreeMap<LeaseKey, Known>,
    /// What the last commands were told of this node.
    own: Variables,
}

/// A node for which commands were run.
struct Known {
    /// Its lease when [`SUBNET_ADD`] last succeeded.
    added: Option<PeerLease>,
    failures: Failures,
}

impl Commands {
    pub fn new(options: Extension) -> Self {
        Self {
            options,
            limit: LIMIT,
            started: false,
            startup: Failures::default(),
            peers: BTreeMap::new(),
            own: Variables::new(),
        }
    }

    async fn post_startup(&mut self) -> Option<String> {
        if self.started {
            return None;
        }
        if let Some(problem) = self.startup.pending() {
            return Some(problem.to_owned());
        }
        let line = self.options.post_startup.as_ref();
        let ran = run(POST_STARTUP, line, &self.own, "", self.limit).await;
        let ran = ran.map_err(|error| format!("{POST_STARTUP} failed: {error}"));
        self.started = ran.is_ok();
        self.startup.note(ran.map(drop))
    }

    /// Runs what is due about nodes. Returns what failed, and how much there was no time for.
    async fn follow(&mut self, leases: &[PeerLease]) -> Vec<String> {
        let until = Instant::now() + ROUND;
        let wanted: BTreeMap<LeaseKey, &PeerLease> =
            leases.iter().map(|lease| (lease.key, lease)).collect();
        let (mut problems, mut left) = (Vec::new(), 0_usize);
        // Nodes that are gone first: a subnet may have another node now, under another key.
        let gone = self.peers.keys().filter(|key| !wanted.contains_key(key));
        let gone: Vec<LeaseKey> = gone.copied().collect();
        for key in gone.into_iter().chain(wanted.keys().copied()) {
            let wanted = wanted.get(&key).copied();
            let known = self.peers.entry(key).or_insert_with(|| Known {
                added: None,
                failures: Failures::default(),
            });
            if known.added.as_ref() == wanted {
                if wanted.is_none() {
                    self.peers.remove(&key);
                }
                continue;
            }
            if let Some(problem) = known.failures.pending() {
                problems.push(problem.to_owned());
                continue;
            }
            if Instant::now() >= until {
                left += 1;
                continue;
            }
            let result = match (wanted, &known.added) {
                (Some(lease), _) => {
                    let line = self.options.subnet_add.as_ref();
                    about(SUBNET_ADD, line, lease, self.limit).await
                }
                (None, Some(lease)) => {
                    let line = self.options.subnet_remove.as_ref();
                    about(SUBNET_REMOVE, line, lease, self.limit).await
                }
                (None, None) => Ok(()),
            };
            if result.is_ok() {
                known.added = wanted.cloned();
            }
            problems.extend(known.failures.note(result));
            if wanted.is_none() && known.added.is_none() {
                self.peers.remove(&key);
            }
        }
        if left > 0 {
            problems.push(format!("commands about {left} nodes are still to be run"));
        }
        problems
    }
}

impl Runtime for Commands {
    fn prepare(&mut self, _: PerFamily<bool>) -> BoxFuture<'_, Result<LeaseData, BackendError>> {
        async move {
            let Some(line) = &self.options.pre_startup else {
                return Ok(LeaseData::default());
            };
            let ran = run(PRE_STARTUP, Some(line), &Variables::new(), "", self.limit).await;
            let output = ran
                .map_err(|error| BackendError::Runtime(format!("{PRE_STARTUP} failed: {error}")))?;
            // flannel says it in BackendData alone; a node without IPv4 has no such part here.
            let said = Some(marshal::to_string(&output));
            Ok(LeaseData {
                ipv4: said.clone(),
                ipv6: said,
            })
        }
        .boxed()
    }

    fn keep<'a>(&'a mut self, scene: &'a Scene) -> BoxFuture<'a, Vec<String>> {
        async move {
            self.own = variables_of_node(&scene.node);
            if let Some(problem) = self.post_startup().await {
                return vec![problem];
            }
            self.follow(&scene.leases).await
        }
        .boxed()
    }

    fn end(&mut self) -> BoxFuture<'_, ()> {
        async move {
            let line = self.options.shutdown.as_ref();
            if let Err(error) = run(SHUTDOWN, line, &self.own, "", self.limit).await {
                warn!("{SHUTDOWN} failed: {error}");
            }
        }
        .boxed()
    }
}

/// Runs a command about a node, which gets what the node says for the backend.
async fn about(
    what: &str,
    line: Option<&CommandLine>,
    lease: &PeerLease,
    limit: Duration,
) -> Result<(), String> {
    let key = lease.key;
    let said = said(lease).ok_or_else(|| {
        format!("{what} for {key} was not run: the BackendData of its lease is no JSON string")
    })?;
    let ran = run(what, line, &variables_of_peer(lease), &said, limit).await;
    ran.map(drop)
        .map_err(|error| format!("{what} for {key} failed: {error}"))
}

/// Runs a command, if there is one, and logs what it wrote.
async fn run(
    what: &str,
    line: Option<&CommandLine>,
    variables: &Variables,
    input: &str,
    limit: Duration,
) -> Result<String, CommandError> {
    let Some(line) = line else {
        return Ok(String::new());
    };
    let output = line.run(variables, input, limit).await?;
    let subnet = variables.iter().find(|(key, _)| *key == "SUBNET");
    let subnet = subnet.and_then(|(_, value)| value.as_deref());
    info!(command = what, subnet, ?output, "command ran");
    Ok(output)
}

/// What a node says for the backend: the text of a JSON string. Empty if it says nothing.
fn said(lease: &PeerLease) -> Option<String> {
    let attrs = &lease.attrs;
    let json = attrs
        .backend_data
        .as_ref()
        .or(attrs.backend_v6_data.as_ref());
    json.map_or_else(
        || Some(String::new()),
        |json| serde_json::from_str(json).ok(),
    )
}

fn variables_of_node(node: &DesiredNode) -> Variables {
    let ipv4 = node.ipv4.as_ref().map(|side| &side.local);
    let ipv6 = node.ipv6.as_ref().map(|side| &side.local);
    vec![
        ("NETWORK", ipv4.map(|local| local.network.to_string())),
        ("SUBNET", ipv4.map(|local| local.subnet.to_string())),
        ("IPV6SUBNET", ipv6.map(|local| local.subnet.to_string())),
        (
            "PUBLIC_IP",
            ipv4.map(|local| local.underlay.public_ip.to_string()),
        ),
        (
            "PUBLIC_IPV6",
            ipv6.map(|local| local.underlay.public_ip.to_string()),
        ),
    ]
}

fn variables_of_peer(lease: &PeerLease) -> Variables {
    let attrs = &lease.attrs;
    let ipv6 = lease.key.ipv6().and(attrs.public_ipv6);
    vec![
        ("SUBNET", lease.key.ipv4().map(|subnet| subnet.to_string())),
        (
            "IPV6SUBNET",
            lease.key.ipv6().map(|subnet| subnet.to_string()),
        ),
        (
            "PUBLIC_IP",
            lease.key.ipv4().map(|_| attrs.public_ip.to_string()),
        ),
        ("PUBLIC_IPV6", ipv6.map(|address| address.to_string())),
    ]
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::model::LeaseAttrs;

    fn lease(key: &str, said: Option<&str>) -> PeerLease {
        PeerLease {
            key: LeaseKey::parse(key).unwrap(),
            attrs: LeaseAttrs {
                backend_type: "extension".to_owned(),
                backend_data: said.map(str::to_owned),
                ..LeaseAttrs::alloc([192, 0, 2, 7].into())
            }
            .into(),
        }
    }

    /// Commands that note in a file what they are called with, and fail while `fail` exists.
    fn commands(dir: &Path) -> Commands {
        let script = dir.join("script");
        let text = "cd $(dirname $0)\nread said\n\
                    echo \"$1 $SUBNET $IPV6SUBNET $PUBLIC_IP $said\" >>ran\n\
                    test ! -e fail\n";
        fs::write(&script, text).unwrap();
        let line = |what| CommandLine::new(&format!("sh {} {what}", script.display()));
        Commands::new(Extension {
            pre_startup: line("pre"),
            post_startup: line("post"),
            shutdown: line("end"),
            subnet_add: line("add"),
            subnet_remove: line("remove"),
        })
    }

    fn ran(dir: &Path) -> Vec<String> {
        let text = fs::read_to_string(dir.join("ran")).unwrap_or_default();
        let _ = fs::remove_file(dir.join("ran"));
        text.lines().map(str::to_owned).collect()
    }

    fn scene(leases: &[PeerLease]) -> Scene {
        Scene {
            node: DesiredNode::default(),
            holds_lease: true,
            leases: leases.to_vec(),
        }
    }

    #[tokio::test]
    async fn a_node_is_added_once_and_again_when_it_says_something_else_and_removed_when_it_is_gone()
     {
        let dir = tempfile::tempdir().unwrap();
        let mut commands = commands(dir.path());
        let one = lease("10.5.2.0-24", Some(r#""key \u003c1>""#));
        let two = lease("10.5.3.0-24&fd00:3::-64", None);
        let both = scene(&[one.clone(), two.clone()]);
        assert!(commands.keep(&both).await.is_empty());
        let dual = "add 10.5.3.0/24 fd00:3::/64 192.0.2.7 ";
        assert_eq!(
            ran(dir.path()),
            ["post    ", "add 10.5.2.0/24  192.0.2.7 key <1>", dual]
        );
        assert!(commands.keep(&both).await.is_empty());
        assert!(ran(dir.path()).is_empty());
        let changed = lease("10.5.2.0-24", Some(r#""key 2""#));
        assert!(commands.keep(&scene(&[changed, two])).await.is_empty());
        assert_eq!(ran(dir.path()), ["add 10.5.2.0/24  192.0.2.7 key 2"]);
        assert!(commands.keep(&scene(&[])).await.is_empty());
        let removed = ran(dir.path());
        assert_eq!(removed[0], "remove 10.5.2.0/24  192.0.2.7 key 2");
        assert_eq!(removed.len(), 2, "{removed:?}");
        commands.end().await;
        assert_eq!(ran(dir.path()), ["end    "]);
    }

    #[tokio::test]
    async fn what_fails_is_reported_by_node_and_tried_again_after_a_pause() {
        let dir = tempfile::tempdir().unwrap();
        let mut commands = commands(dir.path());
        let scene = scene(&[lease("10.5.2.0-24", None)]);
        let fail = dir.path().join("fail");
        commands.started = true;
        fs::write(&fail, "").unwrap();
        let problem = "SubnetAddCommand for 10.5.2.0-24 failed: exit status: 1, output: \"\"";
        assert_eq!(commands.keep(&scene).await, [problem]);
        assert_eq!(commands.keep(&scene).await, [problem], "not yet");
        assert_eq!(ran(dir.path()).len(), 1);
        fs::remove_file(fail).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(commands.keep(&scene).await.is_empty());
        assert_eq!(ran(dir.path()).len(), 1);
    }

    #[tokio::test]
    async fn nobody_is_added_before_the_node_itself_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let mut commands = commands(dir.path());
        fs::write(dir.path().join("fail"), "").unwrap();
        let problems = commands.keep(&scene(&[lease("10.5.2.0-24", None)])).await;
        assert!(
            problems[0].starts_with("PostStartupCommand failed: "),
            "{problems:?}"
        );
        assert_eq!(ran(dir.path()), ["post    "]);
        let failed = commands.prepare(PerFamily::default()).await;
        assert!(
            failed
                .unwrap_err()
                .to_string()
                .starts_with("PreStartupCommand failed: ")
        );
    }

    #[tokio::test]
    async fn what_a_node_says_has_to_be_a_json_string() {
        let dir = tempfile::tempdir().unwrap();
        let mut commands = commands(dir.path());
        commands.started = true;
        let problems = commands
            .keep(&scene(&[lease("10.5.2.0-24", Some("{}"))]))
            .await;
        assert!(problems[0].contains("no JSON string"), "{problems:?}");
        assert!(ran(dir.path()).is_empty());
    }

    #[tokio::test]
    async fn the_output_of_the_first_command_is_what_the_lease_says() {
        let dir = tempfile::tempdir().unwrap();
        let mut commands = commands(dir.path());
        commands.options.pre_startup = CommandLine::new("echo a <b>");
        let said = commands.prepare(PerFamily::default()).await.unwrap();
        assert_eq!(said.ipv4.as_deref(), Some(r#""a \u003cb\u003e""#));
    }
}
