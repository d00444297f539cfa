//! A node whose leases are in a file.

use std::{fs, time::Duration};

use tokio::time::timeout;

use super::*;
use crate::{
    config::network::NetworkConfig,
    model::{LeaseView, OwnState},
};

const PATIENCE: Duration = Duration::from_secs(10);

fn file(nodes: &[(&str, &str)]) -> String {
    let network = "[network]\nNetwork = \"10.5.0.0/16\"\nBackend = { Type = \"vxlan\" }\n";
    let nodes = nodes.iter().map(|(address, subnet)| {
        format!("[[node]]\naddress = \"{address}\"\nsubnet = \"{subnet}\"\n")
    });
    std::iter::once(network.to_owned()).chain(nodes).collect()
}

const A: (&str, &str) = ("192.0.2.11", "10.5.1.0/24");
const B: (&str, &str) = ("192.0.2.12", "10.5.2.0/24");
const C: (&str, &str) = ("192.0.2.13", "10.5.3.0/24");

/// The wish of node A, as it would be after its device was made as the file says.
async fn wish(store: &PeersFile) -> (Wish, ConfigText) {
    let config = store.config().await.unwrap().unwrap();
    let network = NetworkConfig::parse(config.text.as_bytes()).unwrap().config;
    let attrs = store.known().await.unwrap().swap_remove(0);
    let wish = Wish {
        attrs,
        allocation: network.pools,
        previous: None,
        previous6: None,
    };
    (wish, config)
}

async fn until(member: &mut Member, what: impl FnMut(&LeaseView) -> bool) -> LeaseView {
    let seen = timeout(PATIENCE, member.view.wait_for(what)).await;
    seen.expect("in time").expect("a view").clone()
}

#[tokio::test]
async fn peers_come_and_go_as_the_file_says_and_stay_while_it_makes_no_sense() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("peers.toml");
    fs::write(&path, file(&[A, B])).unwrap();
    let store = PeersFile::new(&path);
    let stop = CancellationToken::new();
    let (wish, config) = wish(&store).await;
    let member = store.join(wish, config, stop.clone()).await.unwrap();
    let mut member = member.unwrap();
    let view = until(&mut member, |view| view.peers.len() == 1).await;
    assert_eq!(view.own.key.to_string(), "10.5.1.0-24");
    assert_eq!(view.own.state, OwnState::Held);

    fs::write(&path, file(&[A, B, C])).unwrap();
    until(&mut member, |view| view.peers.len() == 2).await;
    fs::write(&path, "[network").unwrap();
    let view = until(&mut member, |view| !view.store.connected).await;
    assert_eq!(view.peers.len(), 2, "kept");
    assert!(view.store.last_error.unwrap().contains("line 1: "));
    fs::remove_file(&path).unwrap();
    let gone = |view: &LeaseView| {
        let error = view.store.last_error.as_ref();
        error.is_some_and(|error| error.contains("does not exist"))
    };
    assert_eq!(until(&mut member, gone).await.peers.len(), 2);

    fs::write(&path, file(&[A, C])).unwrap();
    let view = until(&mut member, |view| view.peers.len() == 1).await;
    assert!(view.store.connected);

    fs::write(&path, file(&[("192.0.2.11", "10.5.9.0/24"), C])).unwrap();
    let reassigned =
        |view: &LeaseView| matches!(view.own.state, OwnState::Reassigned { to: Some(_) });
    until(&mut member, reassigned).await;
    stop.cancel();
}

#[tokio::test]
async fn a_node_that_is_not_in_the_file_waits_until_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("peers.toml");
    fs::write(&path, file(&[A, B])).unwrap();
    let store = PeersFile::new(&path);
    let (wish, config) = wish(&store).await;
    fs::write(&path, file(&[B, C])).unwrap();
    let problem = store.0.own(wish.attrs.node_ip()).await.unwrap_err();
    assert!(
        problem.contains("192.0.2.11") && problem.contains("--public-ip"),
        "{problem}"
    );
    let joined = tokio::spawn(async move {
        let joined = store.join(wish, config, CancellationToken::new()).await;
        joined.unwrap().unwrap().view.borrow().own.key
    });
    fs::write(&path, file(&[A, B])).unwrap();
    let key = timeout(PATIENCE, joined).await.unwrap().unwrap();
    assert_eq!(key.to_string(), "10.5.1.0-24");
}

#[tokio::test]
async fn a_file_that_is_not_there_yet_is_no_config_and_says_what_writes_it() {
    let store = PeersFile::new(Path::new("/nonexistent/peers.toml"));
    assert_eq!(store.config().await, Ok(None));
    assert!(store.config_missing().await.contains("overlay-agent init"));
    assert!(store.known().await.is_err());
}
