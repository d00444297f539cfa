//! Leases while etcd or the network to it misbehaves.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use overlay_agent::{
    core::{Expect, GRACE, Put},
    membership::etcd::{Deadlines, EtcdError, LeaseStore},
    model::{LeaseAttrs, LeaseKey, OwnState},
};
use overlay_tests::{
    etcd::Etcd,
    lease_node::{CONFIG, Node, PREFIX, etcd_with_config, eventually, key, shell},
    tcp_proxy::{Mode, Proxy},
};

const PEER: &str = r#"{"PublicIP":"192.168.0.2","PublicIPv6":null}"#;

async fn proxy(etcd: &Etcd) -> Result<Proxy> {
    let url = etcd.url(0);
    let address = url.strip_prefix("http://").context("plain etcd")?;
    Proxy::start(address.parse()?).await
}

fn url(proxy: &Proxy) -> String {
    format!("http://{}", proxy.address)
}

/// Compacts the whole history.
fn compact(etcd: &Etcd) -> Result<()> {
    let status: serde_json::Value =
        serde_json::from_str(&etcd.etcdctl(&["endpoint", "status", "-w", "json"])?)?;
    let revision = &status[0]["Status"]["header"]["revision"];
    etcd.etcdctl(&["compact", &revision.to_string()]).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_does_not_disturb_a_standing_watch() -> Result<()> {
    let etcd = etcd_with_config()?;
    let node = Node::new(&etcd, 1).start().await?;
    node.until("the watch stands", |view| view.store.connected)
        .await?;
    for n in 0..10 {
        etcd.put("/padding", &n.to_string())?;
    }
    compact(&etcd)?;
    etcd.put(&key("10.5.200.0-24"), PEER)?;
    node.until("the peer is seen", |view| view.peers.len() == 1)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_compacted_while_away_is_learned_from_a_list() -> Result<()> {
    let etcd = etcd_with_config()?;
    for (subnet, ip) in [("10.5.200.0-24", 2), ("10.5.201.0-24", 3)] {
        let value = format!(r#"{{"PublicIP":"192.168.0.{ip}"}}"#);
        etcd.put(&key(subnet), &value)?;
    }
    let proxy = proxy(&etcd).await?;
    let node = Node::new(&etcd, 1).endpoints([url(&proxy)]).start().await?;
    node.until("the watch stands", |view| {
        view.store.connected && view.peers.len() == 2
    })
    .await?;
    proxy.set(Mode::Cut);
    node.until("the cut is noticed", |view| !view.store.connected)
        .await?;
    etcd.delete(&key("10.5.200.0-24"))?;
    etcd.put(&key("10.5.201.0-24"), r#"{"PublicIP":"192.168.0.33"}"#)?;
    etcd.put(&key("10.5.202.0-24"), r#"{"PublicIP":"192.168.0.4"}"#)?;
    let changed = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
    etcd.put(&format!("{PREFIX}/config"), changed)?;
    compact(&etcd)?;
    assert_eq!(node.view().peers.len(), 2);
    proxy.set(Mode::Forward);
    node.until("the peers are right", |view| {
        let peers: Vec<_> = view
            .peers
            .values()
            .map(|p| (p.key.to_string(), p.attrs.public_ip.octets()[3]))
            .collect();
        peers
            == [
                ("10.5.201.0-24".to_owned(), 33),
                ("10.5.202.0-24".to_owned(), 4),
            ]
    })
    .await?;
    node.until("the network config is right", |view| {
        view.config
            .as_ref()
            .is_some_and(|config| config.text == changed)
    })
    .await?;
    etcd.delete(&key("10.5.202.0-24"))?;
    node.until("the watch goes on", |view| view.peers.len() == 1)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ran_out_while_cut_off_is_written_again_under_the_same_key() -> Result<()> {
    let etcd = etcd_with_config()?;
    let proxy = proxy(&etcd).await?;
    let node = Node::new(&etcd, 1)
        .ttl(3, 1)
        .endpoints([url(&proxy)])
        .start()
        .await?;
    let own = key(&node.view().own.key.to_string());
    proxy.set(Mode::Cut);
    eventually("the lease runs out", || Ok(etcd.get(&own)?.is_none())).await?;
    node.until("it is reported", |view| !view.alarms.is_empty())
        .await?;
    assert_eq!(key(&node.view().own.key.to_string()), own);
    proxy.set(Mode::Forward);
    eventually("the lease is back", || Ok(etcd.get(&own)?.is_some())).await?;
    node.until("all is well", |view| {
        view.own.state == OwnState::Held && view.alarms.is_empty()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_all_ran_out_take_nobodys_peers_away() -> Result<()> {
    let etcd = etcd_with_config()?;
    let proxies = [proxy(&etcd).await?, proxy(&etcd).await?];
    let start = |n: u8| {
        let proxy = &proxies[usize::from(n) - 1];
        Node::new(&etcd, n)
            .ttl(3, 1)
            .endpoints([url(proxy)])
            .start()
    };
    let (first, second) = (start(1).await?, start(2).await?);
    for node in [&first, &second] {
        node.until("the other is a peer", |view| {
            view.store.connected && view.peers.len() == 1
        })
        .await?;
    }
    let mut seen = first.handle.view.clone();
    let ever_alone = tokio::spawn(async move {
        let alone = seen.wait_for(|view| view.peers.is_empty()).await;
        alone.is_ok()
    });
    for proxy in &proxies {
        proxy.set(Mode::Cut);
    }
    let records = || etcd.list(&format!("{PREFIX}/subnets"));
    eventually("both leases run out", || Ok(records()?.is_empty())).await?;
    // The second one comes back later than any absent peer stays otherwise.
    proxies[0].set(Mode::Forward);
    eventually("one is back", || Ok(records()?.len() == 1)).await?;
    first
        .until("it has its lease", |view| view.own.state == OwnState::Held)
        .await?;
    tokio::time::sleep(3 * GRACE).await;
    proxies[1].set(Mode::Forward);
    eventually("both are back", || Ok(records()?.len() == 2)).await?;
    second
        .until("all is well", |view| {
            view.store.connected && view.peers.len() == 1 && view.alarms.is_empty()
        })
        .await?;
    assert!(!ever_alone.is_finished(), "the peer was let go");
    ever_alone.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_etcd_is_fast_enough() -> Result<()> {
    let etcd = etcd_with_config()?;
    let proxy = proxy(&etcd).await?;
    proxy.set(Mode::Delay(Duration::from_millis(200)));
    let node = Node::new(&etcd, 1).endpoints([url(&proxy)]).start().await?;
    etcd.put(&key("10.5.200.0-24"), PEER)?;
    node.until("the peer is seen", |view| view.peers.len() == 1)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_etcd_is_noticed_and_forgotten_when_it_answers_again() -> Result<()> {
    let etcd = etcd_with_config()?;
    let proxy = proxy(&etcd).await?;
    let node = Node::new(&etcd, 1).endpoints([url(&proxy)]).start().await?;
    node.until("the watch stands", |view| view.store.connected)
        .await?;
    proxy.set(Mode::Stall);
    node.until("the stall is noticed", |view| !view.store.connected)
        .await?;
    etcd.put(&key("10.5.200.0-24"), PEER)?;
    proxy.set(Mode::Forward);
    node.until("the peer is seen", |view| {
        view.store.connected && view.peers.len() == 1
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_to_a_stalled_etcd_ends_at_its_deadline() -> Result<()> {
    let etcd = etcd_with_config()?;
    let proxy = proxy(&etcd).await?;
    proxy.set(Mode::Stall);
    let store = Node::new(&etcd, 1)
        .endpoints([url(&proxy)])
        .deadlines(Deadlines {
            connect: Duration::from_millis(300),
            request: Duration::from_millis(300),
        })
        .store()?;
    let subnet = LeaseKey::parse("10.5.1.0-24").context("a key")?;
    let put = Put {
        key: subnet,
        attrs: LeaseAttrs::alloc(Ipv4Addr::LOCALHOST),
        expect: Expect::Absent,
        ttl: Some(Duration::from_mins(1)),
    };
    let start = Instant::now();
    let errors = [
        store.config().await.err(),
        store.list().await.err(),
        store.get(&subnet).await.err(),
        store.put(&put).await.err(),
        store.delete(&subnet, 1).await.err(),
        store.time_to_live(1).await.err(),
    ];
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    for error in errors {
        assert!(
            matches!(&error, Some(EtcdError::Unreachable { failures }) if failures.contains("no answer within 300ms")),
            "{error:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_etcd_is_reported_while_the_watch_stands() -> Result<()> {
    let etcd = Etcd::builder()
        .arg("--quota-backend-bytes=300000")
        .start()?;
    etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
    let node = Node::new(&etcd, 1).start().await?;
    let padding = "x".repeat(50_000);
    while etcd.put("/padding", &padding).is_ok() {}
    let moved = LeaseAttrs::host_gw([192, 168, 0, 77].into());
    node.handle.publish(moved.clone());
    node.until("the refusal is shown", |view| {
        let error = view.store.last_error.as_deref().unwrap_or_default();
        view.store.connected && error.contains("space exceeded")
    })
    .await?;
    compact(&etcd)?;
    etcd.etcdctl(&["defrag"])?;
    etcd.etcdctl(&["alarm", "disarm"])?;
    let own = key(&node.view().own.key.to_string());
    eventually("the own lease is written", || {
        Ok(etcd.get(&own)? == Some(moved.encode()))
    })
    .await?;
    node.until("the error is gone", |view| view.store.last_error.is_none())
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_that_is_listed_first_is_passed_over() -> Result<()> {
    let mut etcd = Etcd::start()?;
    etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
    let learner = etcd.add_learner()?;
    let urls = [etcd.url(learner), etcd.url(0)];
    let node = Node::new(&etcd, 1).endpoints(urls.clone()).start().await?;
    node.until("the watch stands", |view| view.store.connected)
        .await?;
    // Alone it is named with what it says.
    let alone = Node::new(&etcd, 1).endpoints([etcd.url(learner)]).store()?;
    let error = alone.config().await.err().context("refused")?;
    let text = error.to_string();
    assert!(
        text.contains(&urls[0]) && text.contains("not supported for learner"),
        "{text}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_and_silent_endpoints_are_passed_over() -> Result<()> {
    let etcd = etcd_with_config()?;
    // A port nobody listens on, and one that takes connections and says nothing.
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let endpoints = [
        format!("http://{closed}"),
        format!("http://{}", silent.local_addr()?),
        etcd.url(0),
    ];
    let node = Node::new(&etcd, 1).endpoints(endpoints).start().await?;
    node.until("the watch stands", |view| view.store.connected)
        .await?;
    etcd.put(&key("10.5.200.0-24"), PEER)?;
    node.until("the peer is seen", |view| view.peers.len() == 1)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_every_endpoint_and_its_cause() -> Result<()> {
    let etcd = etcd_with_config()?;
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let store = Node::new(&etcd, 1)
        .endpoints([format!("http://{closed}"), format!("http://{closed}/")])
        .store()?;
    let error = store.config().await.err().context("nobody listens")?;
    let text = error.to_string();
    assert_eq!(text.matches("Connection refused").count(), 2, "{text}");
    assert!(text.contains(&format!("http://{closed}:")), "{text}");
    assert!(text.contains("--etcd-endpoints"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_and_values_are_passed_over() -> Result<()> {
    let etcd = etcd_with_config()?;
    for foreign in ["subnets-x", "subnets/junk", "subnets/10.5.9.7-24", "x"] {
        etcd.put(&format!("{PREFIX}/{foreign}"), PEER)?;
    }
    etcd.put(&key("10.5.8.0-24"), "junk")?;
    let node = Node::new(&etcd, 1).start().await?;
    etcd.put(&key("more-junk"), PEER)?;
    etcd.put(&key("10.5.200.0-24"), PEER)?;
    node.until("the peer is seen", |view| !view.peers.is_empty())
        .await?;
    assert_eq!(node.view().peers.len(), 1, "{:?}", node.view().peers);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_config_names_key_api_and_servers() -> Result<()> {
    let etcd = Etcd::start()?;
    let store = Node::new(&etcd, 1).store()?;
    assert_eq!(store.config().await?, None);
    assert_eq!(
        store.config_place(),
        format!("{PREFIX}/config with the etcd v3 API at {}", etcd.url(0))
    );
    let remedy = store.config_remedy().await;
    let command = remedy
        .strip_prefix("create it with: ")
        .context("a command")?;
    shell(command)?;
    let config = store.config().await?.context("the hint works")?;
    assert!(config.text.contains("vxlan"), "{config:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_thousands_is_listed_and_watched() -> Result<()> {
    let etcd = etcd_with_config()?;
    let store = Node::new(&etcd, 1).store()?;
    let (store, count) = (&store, 5000_u32);
    stream::iter(0..count)
        .map(|n| async move {
            let base = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 6, 0, 0)) + (n << 8));
            let put = Put {
                key: LeaseKey::parse(&format!("{base}-24")).context("a key")?,
                attrs: LeaseAttrs::alloc(Ipv4Addr::from(0xac10_0000 + n)),
                expect: Expect::Absent,
                ttl: None,
            };
            anyhow::Ok(store.put(&put).await?)
        })
        .buffer_unordered(200)
        .try_collect::<Vec<_>>()
        .await?;
    let node = Node::new(&etcd, 1).start().await?;
    assert_eq!(node.view().peers.len(), count as usize);
    etcd.put(&key("10.5.200.0-24"), PEER)?;
    node.until("one more is seen", |view| view.peers.len() == 5001)
        .await
}
