//! A node whose leases are in the Nodes of an imitated API server.

use std::{fs, time::Duration};

use tempfile::TempDir;
use tokio::time::timeout;

use super::{fake::Fake, *};
use crate::{
    config::network::NetworkConfig,
    model::{LeaseView, OwnState},
};

/// On the clock of a test, which goes on when nothing else does.
const PATIENCE: Duration = Duration::from_mins(2);
const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DATA: &str = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#;

fn attrs() -> LeaseAttrs {
    LeaseAttrs {
        backend_type: "vxlan".to_owned(),
        backend_data: Some(DATA.to_owned()),
        ..LeaseAttrs::alloc([192, 0, 2, 1].into())
    }
}

struct Run {
    api: Arc<Fake>,
    member: Member,
    stop: CancellationToken,
    _dir: TempDir,
}

impl Run {
    /// Node `a` joins a cluster of itself, `b` and what `more` adds.
    async fn start(more: impl FnOnce(&Fake)) -> Self {
        let api = Arc::new(Fake::new());
        api.put("a", "a", &["10.244.0.0/24"], &[]);
        api.flannel("b", "10.244.1.0/24", "192.0.2.2");
        more(&api);
        let listing = Listing::read(&*api).await.unwrap();
        let node = api.node("a").await.unwrap().unwrap();
        let network = NetworkConfig::parse(CONFIG.as_bytes())
            .unwrap()
            .config
            .pools;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net-conf.json");
        fs::write(&path, CONFIG).unwrap();
        let config_file = Arc::new(ConfigFile::new(&path));
        let in_force = config_file.read().await.unwrap().unwrap();
        let joined = Joined {
            api: Arc::clone(&api),
            prefix: Prefix::new(fake::PREFIX).unwrap(),
            config_file,
            own: node.own_key(&network).unwrap(),
            node,
            attrs: attrs(),
            network,
            in_force,
            set_condition: true,
        };
        let stop = CancellationToken::new();
        Self {
            member: Follower::spawn(joined, listing, stop.clone()),
            api,
            stop,
            _dir: dir,
        }
    }

    async fn until(&mut self, what: impl FnMut(&LeaseView) -> bool) -> LeaseView {
        let seen = timeout(PATIENCE, self.member.view.wait_for(what)).await;
        seen.expect("in time").expect("a view").clone()
    }

    async fn until_peers(&mut self, subnets: &[&str]) {
        self.until(|view| peers(view) == subnets).await;
    }

    /// Waits until so many writes were asked for.
    async fn until_written(&self, writes: usize) {
        let written = async {
            while self.api.cluster().patches.len() < writes {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, written).await.expect("in time");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn peers(view: &LeaseView) -> Vec<String> {
    view.peers.keys().map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn nodes_with_annotations_and_a_pod_cidr_are_peers_until_they_are_deleted() {
    let mut run = Run::start(|api| {
        api.put("new", "new", &[], &[]);
        api.put("kubelet-only", "k", &["10.244.7.0/24"], &[]);
    })
    .await;
    run.until_peers(&["10.244.1.0/24"]).await;
    run.api.flannel("new", "10.244.2.0/24", "192.0.2.3");
    run.until_peers(&["10.244.1.0/24", "10.244.2.0/24"]).await;
    // A word less, as when somebody removes it by hand: its agent will write it again.
    run.api.strip("b", "public-ip");
    run.api.strip("new", "kube-subnet-manager");
    run.api.flannel("c", "10.244.3.0/24", "192.0.2.4");
    let all = ["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"];
    run.until_peers(&all).await;
    run.api.delete("b");
    run.until_peers(&all[1..]).await;
    // The same name is another node now, without an agent yet.
    run.api.put("c", "another", &["10.244.3.0/24"], &[]);
    run.until_peers(&all[1..2]).await;
    run.api.flannel("new", "10.244.9.0/24", "192.0.2.3");
    run.until_peers(&["10.244.9.0/24"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_loses_a_word_about_its_backend_is_the_peer_it_was() {
    let mut run = Run::start(|api| api.flannel("c", "10.244.3.0/24", "192.0.2.4")).await;
    run.until_peers(&["10.244.1.0/24", "10.244.3.0/24"]).await;
    let subnet = "10.244.3.0/24".parse().unwrap();
    let before = run.member.view.borrow().peers.get(&subnet).cloned();
    assert!(before.is_some());
    run.api.strip("c", "backend-data");
    run.api.strip("c", "backend-type");
    run.api.flannel("d", "10.244.4.0/24", "192.0.2.5");
    let view = run.until(|view| view.peers.len() == 3).await;
    assert_eq!(view.peers.get(&subnet), before.as_ref());
}

#[tokio::test(start_paused = true)]
async fn nodes_that_claim_what_is_this_nodes_own_are_no_peers() {
    let mut run = Run::start(|api| {
        api.flannel("same-subnet", "10.244.0.0/25", "192.0.2.8");
        api.flannel("same-address", "10.244.8.0/24", "192.0.2.1");
    })
    .await;
    run.until_peers(&["10.244.1.0/24"]).await;
    let other = LeaseAttrs {
        public_ip: [192, 0, 2, 99].into(),
        ..attrs()
    };
    run.member.publish(other);
    run.until_peers(&["10.244.1.0/24", "10.244.8.0/24"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_changes_nothing_and_one_that_forgot_is_listed_again() {
    let mut run = Run::start(|api| api.flannel("c", "10.244.3.0/24", "192.0.2.4")).await;
    run.until_peers(&["10.244.1.0/24", "10.244.3.0/24"]).await;
    run.until_written(1).await;
    run.api.plug(false);
    let view = run.until(|view| !view.store.connected).await;
    assert_eq!(peers(&view), ["10.244.1.0/24", "10.244.3.0/24"]);
    assert_eq!(view.store.last_error.as_deref(), Some("connection refused"));
    run.api.delete("b");
    run.api.flannel("d", "10.244.4.0/24", "192.0.2.5");
    run.api.forget_history();
    run.api.plug(true);
    run.until_peers(&["10.244.3.0/24", "10.244.4.0/24"]).await;
    run.until(|view| view.store.connected).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lost_its_data_takes_no_peer_away() {
    let mut run = Run::start(|_| {}).await;
    run.until_written(1).await;
    run.api.plug(false);
    run.until(|view| !view.store.connected).await;
    run.api.delete("a");
    run.api.delete("b");
    run.api.flannel("c", "10.244.3.0/24", "192.0.2.4");
    run.api.forget_history();
    run.api.plug(true);
    run.until_peers(&["10.244.1.0/24", "10.244.3.0/24"]).await;
    run.until(|view| view.own.state == OwnState::Lost).await;
    // The kubelet registers this node again: now the list is believed.
    run.api.put("a", "again", &["10.244.0.0/24"], &[]);
    run.until_peers(&["10.244.3.0/24"]).await;
    run.until(|view| view.own.state == OwnState::Held).await;
}

#[tokio::test(start_paused = true)]
async fn the_own_annotations_are_written_when_they_differ_and_only_then() {
    let mut run = Run::start(|_| {}).await;
    run.until_written(1).await;
    run.until(|view| view.own.state == OwnState::Held).await;
    run.api.strip("a", "backend-data");
    run.until_written(2).await;
    {
        let cluster = run.api.cluster();
        let patch = annotate(&[(format!("{}/backend-data", fake::PREFIX), DATA.to_owned())].into());
        assert_eq!(cluster.patches[1], patch);
    }
    run.until(|view| view.own.state == OwnState::Held).await;
    run.api.delete("a");
    run.until(|view| view.own.state == OwnState::Lost).await;
    run.api.put("a", "again", &["10.244.0.0/24"], &[]);
    run.until(|view| view.own.state == OwnState::Held).await;
    run.api.put("a", "third", &["10.244.5.0/24"], &[]);
    let reassigned =
        |view: &LeaseView| matches!(view.own.state, OwnState::Reassigned { to: Some(_) });
    run.until(reassigned).await;
}

#[tokio::test(start_paused = true)]
async fn the_condition_is_cleared_once_the_node_has_started() {
    let run = Run::start(|_| {}).await;
    run.until_written(1).await;
    run.member.started();
    run.until_written(2).await;
    tokio::time::sleep(PATIENCE).await;
    let cluster = run.api.cluster();
    assert_eq!(cluster.patches.len(), 2);
    let condition = &cluster.patches[1]["status"]["conditions"][0];
    assert_eq!(condition["type"], "NetworkUnavailable");
    assert_eq!(condition["status"], "False");
    assert_eq!(condition["reason"], "FlannelIsUp");
    assert_eq!(condition["message"], "Flannel is running on this node");
    let time = condition["lastTransitionTime"].as_str().unwrap();
    assert!(time.len() == 20 && time.ends_with('Z'), "{time}");
}

#[tokio::test]
async fn a_long_list_comes_in_pages() {
    let api = Fake::new();
    for number in 0..600 {
        api.put(&format!("n{number}"), "u", &[], &[]);
    }
    let listing = Listing::read(&api).await.unwrap();
    assert_eq!(listing.nodes.len(), 600);
    assert_eq!(api.cluster().pages, 3);
}

#[tokio::test]
async fn a_pod_cidr_that_does_not_fit_the_network_is_named() {
    let api = Fake::new();
    let pools = |text: &str| NetworkConfig::parse(text.as_bytes()).unwrap().config.pools;
    let dual = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}"#;
    for (cidrs, config, said) in [
        (&[][..], CONFIG, "not assigned"),
        (
            &["10.9.0.0/24"],
            CONFIG,
            "doesn't contain \"10.9.0.0/24\" PodCIDR",
        ),
        (&["10.244.1.0/24"], dual, "not assigned"),
        (
            &["10.244.1.0/24", "fd00:9::/64"],
            dual,
            "doesn't contain \"fd00:9::/64\" PodCIDR",
        ),
        (&["nonsense"], CONFIG, "has the podCIDR \"nonsense\""),
        (
            &["10.244.1.0/24", "fd00::/64", "fd01::/64"],
            CONFIG,
            "IPv4/IPv6 only or dualstack",
        ),
    ] {
        api.put("a", "a", cidrs, &[]);
        let node = api.node("a").await.unwrap().unwrap();
        let problem = node.own_key(&pools(config)).unwrap_err();
        assert!(problem.contains(said), "{problem}");
    }
    for (cidrs, config, key) in [
        (&["10.244.1.7/24"][..], CONFIG, "10.244.1.0-24"),
        (
            &["fd00:244:0:1::/64", "10.244.1.0/24"],
            CONFIG,
            "10.244.1.0-24",
        ),
        (
            &["fd00:244:0:1::/64", "10.244.1.0/24"],
            dual,
            "10.244.1.0-24&fd00:244:0:1::-64",
        ),
    ] {
        api.put("a", "a", cidrs, &[]);
        let node = api.node("a").await.unwrap().unwrap();
        assert_eq!(node.own_key(&pools(config)).unwrap().to_string(), key);
    }
}
