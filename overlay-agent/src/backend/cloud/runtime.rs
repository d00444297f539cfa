//! Has the route of this node's subnet be in the cloud: at the start, when the lease changes hands, and now
//! and then, for others may change it.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, FutureExt as _};
use rand::Rng as _;
use tokio::{task::JoinHandle, time::timeout};
use tracing::info;

use super::{
    exchange::{Answer, Cloud, Request},
    helper::{self, PROGRAM},
};
use crate::{
    backend::{BackendError, LeaseData, Runtime, Scene, retry::Failures},
    model::PerFamily,
};

/// How long the program may take: a cloud takes seconds for a change, and some are asked for in turn.
const LIMIT: Duration = Duration::from_mins(2);
/// How long the rest of the node waits for it at a time.
const PATIENCE: Duration = Duration::from_secs(3);
/// In seconds, when the cloud is asked again though nothing has changed. Its API counts what all nodes ask.
const CHECK: std::ops::Range<u64> = 450..750;

/// The routes of a node in a cloud.
pub struct Routes {
    cloud: Cloud,
    backend: &'static str,
    route_tables: Vec<String>,
    program: Option<PathBuf>,
    /// What is being asked for.
    running: Option<Running>,
    /// What the cloud was last like, and when that is looked at again.
    done: Option<(Request, Instant)>,
    failures: Failures,
}

struct Running {
    wanted: Request,
    task: JoinHandle<Result<(), String>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Routes {
    pub fn new(cloud: Cloud, backend: &'static str, route_tables: Vec<String>) -> Self {
        Self {
            cloud,
            backend,
            route_tables,
            program: None,
            running: None,
            done: None,
            failures: Failures::default(),
        }
    }

    /// What is to be in the cloud. Whether a route to another node is taken over is decided when it is asked
    /// for.
    fn wanted(&self, scene: &Scene) -> Option<Request> {
        let local = &scene.node.ipv4.as_ref()?.local;
        Some(Request {
            cloud: self.cloud,
            network: local.network,
            subnet: scene.holds_lease.then_some(local.subnet),
            address: local.underlay.address,
            route_tables: self.route_tables.clone(),
            take_over: false,
        })
    }

    /// Whether nothing is to be asked for.
    fn is_done(&self, wanted: &Request) -> bool {
        let done = self.done.as_ref();
        done.is_some_and(|(done, until)| done == wanted && Instant::now() < *until)
    }

    /// Begins to ask. Another node's route is taken over once, when the subnet has come to this one: should it
    /// lead elsewhere later, another node may have the subnet, and this one not know it yet.
    fn start(&mut self, wanted: Request) -> Result<(), String> {
        let program = self.program.clone().ok_or("it was not prepared")?;
        let is_news = self.done.as_ref().is_none_or(|(done, _)| *done != wanted);
        let request = Request {
            take_over: is_news,
            ..wanted.clone()
        };
        let task = async move {
            let asked = helper::ask(&program, &request, LIMIT).await;
            asked
                .map_err(|error| error.to_string())
                .and_then(|answer| judge(&answer))
        };
        self.running = Some(Running {
            wanted,
            task: tokio::spawn(task),
        });
        Ok(())
    }

    /// Waits for what is being asked for, for a while. Returns what is not as it should be.
    async fn follow(&mut self) -> Option<String> {
        let running = self.running.as_mut()?;
        let Ok(joined) = timeout(PATIENCE, &mut running.task).await else {
            return Some(format!(
                "{}: the cloud has been asked for the route, and has not answered yet",
                self.backend
            ));
        };
        let wanted = running.wanted.clone();
        self.running = None;
        let result = joined.map_err(|error| error.to_string()).flatten();
        let result = result.map_err(|problem| format!("{}: {problem}", self.backend));
        if result.is_ok() {
            let pause = Duration::from_secs(rand::rng().random_range(CHECK));
            self.done = Some((wanted, Instant::now() + pause));
        } else if let Some((_, until)) = &mut self.done {
            *until = Instant::now();
        }
        self.failures.note(result)
    }
}

impl Runtime for Routes {
    fn prepare(&mut self, _: PerFamily<bool>) -> BoxFuture<'_, Result<LeaseData, BackendError>> {
        async move {
            self.program = helper::find();
            if self.program.is_none() {
                return Err(BackendError::Runtime(format!(
                    "the backend {} needs the program {PROGRAM}, which is neither beside the agent nor on the \
                     PATH: install the package {PROGRAM}",
                    self.backend
                )));
            }
            Ok(LeaseData::default())
        }
        .boxed()
    }

    fn keep<'a>(&'a mut self, scene: &'a Scene) -> BoxFuture<'a, Vec<String>> {
        async move {
            let Some(wanted) = self.wanted(scene) else {
                return Vec::new();
            };
            if self.running.is_none() {
                if self.is_done(&wanted) {
                    return Vec::new();
                }
                if let Some(problem) = self.failures.pending() {
                    return vec![problem.to_owned()];
                }
                if let Err(problem) = self.start(wanted.clone()) {
                    return vec![problem];
                }
            }
            let problem = self.follow().await;
            let is_behind = || problem.is_none() && !self.is_done(&wanted);
            let behind = is_behind().then(|| format!("{}: the lease has changed", self.backend));
            problem.into_iter().chain(behind).collect()
        }
        .boxed()
    }
}

/// Logs what was changed. Returns what could not be done.
fn judge(answer: &Answer) -> Result<(), String> {
    for change in &answer.changes {
        info!("the cloud: {change}");
    }
    let problems: Vec<String> = answer.problems.iter().map(ToString::to_string).collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(problems.join("; "))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use ipnetwork::Ipv4Network;
    use overlay_common::addr::MacAddr;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::{Desired, DesiredNode, Forwarding, LocalNode, Underlay};

    /// A program that notes each request as a line of `asked`, and answers with what is in `answer`.
    fn routes(dir: &Path) -> Routes {
        let program = dir.join("program");
        let text = format!(
            "#!/bin/sh\ncd {}\ncat >>asked\necho >>asked\ncat answer\n",
            dir.display()
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        answer(dir, &json!({"changes": [], "problems": []}));
        let mut routes = Routes::new(Cloud::AwsVpc, "aws-vpc", vec!["rtb-1".to_owned()]);
        routes.program = Some(program);
        routes
    }

    fn answer(dir: &Path, answer: &Value) {
        fs::write(dir.join("answer"), answer.to_string()).unwrap();
    }

    fn asked(dir: &Path) -> Vec<Value> {
        let text = fs::read_to_string(dir.join("asked")).unwrap_or_default();
        let _ = fs::remove_file(dir.join("asked"));
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn scene(subnet: &str, holds_lease: bool) -> Scene {
        let local = LocalNode {
            network: net("10.20.0.0/16"),
            subnet: net(subnet),
            underlay: Underlay {
                ifindex: 2,
                name: "eth0".to_owned(),
                mtu: 9001,
                hardware: true,
                ethernet: true,
                address: [172, 31, 0, 5].into(),
                public_ip: [192, 0, 2, 5].into(),
            },
            forwarding: Forwarding::NONE,
            device: None,
            vtep_mac: MacAddr::ZERO,
            lease_data: None,
        };
        Scene {
            node: DesiredNode {
                ipv4: Some(Desired {
                    local,
                    peers: std::collections::BTreeMap::new(),
                }),
                ipv6: None,
            },
            holds_lease,
            leases: Vec::new(),
        }
    }

    fn request(subnet: Option<&str>, take_over: bool) -> Value {
        json!({
            "cloud": "aws-vpc",
            "network": "10.20.0.0/16",
            "subnet": subnet,
            "address": "172.31.0.5",
            "route_tables": ["rtb-1"],
            "take_over": take_over,
        })
    }

    #[tokio::test]
    async fn the_route_is_asked_for_once_and_again_when_the_lease_has_changed_hands() {
        let dir = tempfile::tempdir().unwrap();
        let mut routes = routes(dir.path());
        let own = scene("10.20.3.0/24", true);
        assert_eq!(routes.keep(&own).await, Vec::<String>::new());
        assert_eq!(asked(dir.path()), [request(Some("10.20.3.0/24"), true)]);
        assert_eq!(routes.keep(&own).await, Vec::<String>::new());
        assert!(asked(dir.path()).is_empty());
        let lost = scene("10.20.3.0/24", false);
        assert_eq!(routes.keep(&lost).await, Vec::<String>::new());
        assert_eq!(asked(dir.path()), [request(None, true)]);
    }

    #[tokio::test]
    async fn a_later_look_takes_no_route_over_even_after_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let mut routes = routes(dir.path());
        let own = scene("10.20.3.0/24", true);
        routes.keep(&own).await;
        asked(dir.path());
        let due = |routes: &mut Routes| {
            routes.done.as_mut().unwrap().1 = Instant::now();
            routes.failures = Failures::default();
        };
        due(&mut routes);
        fs::remove_file(dir.path().join("answer")).unwrap();
        assert_eq!(routes.keep(&own).await.len(), 1);
        assert_eq!(asked(dir.path()), [request(Some("10.20.3.0/24"), false)]);
        due(&mut routes);
        routes.keep(&own).await;
        assert_eq!(asked(dir.path()), [request(Some("10.20.3.0/24"), false)]);
    }

    #[tokio::test]
    async fn what_the_cloud_refuses_is_told_with_the_permission_and_asked_for_again_after_a_pause()
    {
        let dir = tempfile::tempdir().unwrap();
        let mut routes = routes(dir.path());
        let refused = json!({
            "action": "ec2:CreateRoute",
            "object": "10.20.3.0/24 in rtb-1",
            "reason": "UnauthorizedOperation: no",
            "permission": "the permission ec2:CreateRoute",
        });
        answer(dir.path(), &json!({"changes": [], "problems": [refused]}));
        let own = scene("10.20.3.0/24", true);
        let problem = "aws-vpc: ec2:CreateRoute for 10.20.3.0/24 in rtb-1 failed: UnauthorizedOperation: no; the \
                       node's credentials lack the permission ec2:CreateRoute";
        assert_eq!(routes.keep(&own).await, [problem]);
        assert_eq!(routes.keep(&own).await, [problem], "not yet");
        assert_eq!(asked(dir.path()).len(), 1);
    }

    #[tokio::test]
    async fn a_program_that_fails_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let mut routes = routes(dir.path());
        fs::remove_file(dir.path().join("answer")).unwrap();
        let problems = routes.keep(&scene("10.20.3.0/24", true)).await;
        assert!(
            problems[0].starts_with("aws-vpc: overlay-cloud ended with exit status: 1: cat: "),
            "{problems:?}"
        );
    }
}
