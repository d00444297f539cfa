//! Leases in an etcd behind TLS and logins: what works, and what is said when it does not.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result};
use overlay_agent::{
    config::options::{Credentials, Secret},
    core::{Expect, Put, PutOutcome},
    membership::etcd::{EtcdError, LeaseStore},
    model::{LeaseAttrs, LeaseKey},
};
use overlay_tests::{
    etcd::{ClientCert, Etcd},
    lease_node::{CONFIG, Node, PREFIX, eventually, key},
    pki::Authority,
};

const PASSWORD: &str = "correct horse";

fn tls_etcd(members: usize, mode: ClientCert) -> Result<Etcd> {
    let etcd = Etcd::builder().members(members).tls(mode).start()?;
    etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
    Ok(etcd)
}

/// An etcd with authentication: `root`, and `flannel` with the rights flannel needs.
fn etcd_with_login() -> Result<Etcd> {
    // A token nobody uses for two seconds is forgotten.
    let mut etcd = Etcd::builder()
        .arg("--auth-token-ttl=2")
        .arg("--bcrypt-cost=4")
        .start()?;
    etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
    let password = format!("flannel:{PASSWORD}");
    let (config, subnets) = (format!("{PREFIX}/config"), format!("{PREFIX}/subnets/"));
    for command in [
        vec!["user", "add", "root:toor"],
        vec!["user", "grant-role", "root", "root"],
        vec!["role", "add", "net"],
        vec!["role", "grant-permission", "net", "read", &config],
        vec![
            "role",
            "grant-permission",
            "net",
            "--prefix=true",
            "readwrite",
            &subnets,
        ],
        vec!["user", "add", &password],
        vec!["user", "grant-role", "flannel", "net"],
        vec!["user", "add", "nobody:pw"],
        vec!["auth", "enable"],
    ] {
        etcd.etcdctl(&command)?;
    }
    etcd.set_credentials("root:toor");
    Ok(etcd)
}

fn login(node: Node, username: &str, password: &str) -> Node {
    node.options(|options| {
        options.credentials = Some(Credentials {
            username: username.to_owned(),
            password: Secret::new(password),
        });
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_client_certificates_may_lose_the_member_in_use() -> Result<()> {
    let mut etcd = tls_etcd(3, ClientCert::Required)?;
    let node = Node::new(&etcd, 1).start().await?;
    node.until("the watch stands", |view| view.store.connected)
        .await?;
    etcd.stop(0)?;
    etcd.put(&key("10.5.200.0-24"), r#"{"PublicIP":"192.168.0.9"}"#)?;
    node.until("the peer is seen through another member", |view| {
        view.store.connected && view.peers.len() == 1
    })
    .await?;
    let moved = LeaseAttrs::host_gw([192, 168, 0, 77].into());
    node.handle.publish(moved.clone());
    let own = key(&node.view().own.key.to_string());
    eventually("the own lease is written through another member", || {
        Ok(etcd.get(&own)? == Some(moved.encode()))
    })
    .await?;

    let second = Node::new(&etcd, 2).start().await?;
    assert_eq!(second.view().peers.len(), 2, "a start with a member down");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_member_is_left_for_another_one() -> Result<()> {
    let etcd = tls_etcd(3, ClientCert::Required)?;
    let node = Node::new(&etcd, 1).start().await?;
    node.until("the watch stands", |view| view.store.connected)
        .await?;
    etcd.freeze(0)?;
    let moved = LeaseAttrs::host_gw([192, 168, 0, 77].into());
    node.handle.publish(moved.clone());
    let own = format!("{PREFIX}/subnets/{}", node.view().own.key);
    let others = format!("{},{}", etcd.url(1), etcd.url(2));
    let store = Node::new(&etcd, 9)
        .endpoints(others.split(',').map(str::to_owned))
        .store()?;
    let key = node.view().own.key;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let entry = store.get(&key).await;
        if entry.is_ok_and(|o| o.entry.is_some_and(|e| e.value.as_ref() == Ok(&moved))) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{own} not written");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    etcd.thaw(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_alone_is_enough_when_etcd_asks_for_no_client_certificate() -> Result<()> {
    let etcd = tls_etcd(1, ClientCert::NotAsked)?;
    let node = Node::new(&etcd, 1).options(|options| options.client_identity = None);
    let node = node.start().await?;
    node.until("the watch stands", |view| view.store.connected)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_ca_is_named_as_the_cause() -> Result<()> {
    let etcd = tls_etcd(1, ClientCert::NotAsked)?;
    let dir = tempfile::tempdir()?;
    let stranger = Authority::create(dir.path(), "stranger")?;
    let node = Node::new(&etcd, 1).options(|options| options.ca_file = Some(stranger.ca.clone()));
    let error = node.store()?.config().await.err().context("refused")?;
    assert!(matches!(error, EtcdError::Tls { .. }), "{error:?}");
    let text = error.to_string();
    for part in ["UnknownIssuer", "--etcd-cafile", &etcd.url(0)] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ca_file_the_systems_authorities_decide() -> Result<()> {
    let etcd = tls_etcd(1, ClientCert::NotAsked)?;
    let node = Node::new(&etcd, 1).options(|options| options.ca_file = None);
    let error = node.store()?.config().await.err().context("refused")?;
    assert!(matches!(error, EtcdError::Tls { .. }), "{error:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_client_certificate_is_named_as_the_cause() -> Result<()> {
    let etcd = tls_etcd(1, ClientCert::Required)?;
    let node = Node::new(&etcd, 1).options(|options| options.client_identity = None);
    let error = node.store()?.config().await.err().context("refused")?;
    assert!(error.to_string().contains("--etcd-certfile"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_scheme_is_hinted_at() -> Result<()> {
    let secure = tls_etcd(1, ClientCert::NotAsked)?;
    let plain = Etcd::start()?;
    for (etcd, wrong) in [
        (&secure, secure.url(0).replace("https", "http")),
        (&plain, plain.url(0).replace("http", "https")),
    ] {
        let node = Node::new(etcd, 1).endpoints([wrong.clone()]);
        let error = node.store()?.config().await.err().context("refused")?;
        let text = error.to_string();
        assert!(text.contains("the scheme must be http"), "{wrong}: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_works_and_is_renewed_when_etcd_forgets_it() -> Result<()> {
    let mut etcd = etcd_with_login()?;
    let node = login(Node::new(&etcd, 1), "flannel", PASSWORD);
    let node = node.ttl(6, 3).start().await?;
    node.until("the watch stands", |view| view.store.connected)
        .await?;
    // The renewal comes three seconds later, when the token is forgotten.
    let first = node.view().own.expires;
    node.until("the lease is renewed", |view| view.own.expires > first)
        .await?;
    // A restart forgets all tokens; a change of users outdates them.
    etcd.kill(0)?;
    etcd.restart(0)?;
    etcd.etcdctl(&["user", "add", "somebody:pw"])?;
    let moved = LeaseAttrs::host_gw([192, 168, 0, 77].into());
    node.handle.publish(moved.clone());
    let own = key(&node.view().own.key.to_string());
    eventually("the own lease is written", || {
        Ok(etcd.get(&own)? == Some(moved.encode()))
    })
    .await?;
    etcd.put(&key("10.5.200.0-24"), r#"{"PublicIP":"192.168.0.2"}"#)?;
    node.until("the watch goes on", |view| {
        view.store.connected && view.peers.len() == 1
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_outdated_by_a_change_of_users_is_replaced() -> Result<()> {
    let etcd = etcd_with_login()?;
    let store = login(Node::new(&etcd, 1), "flannel", PASSWORD).store()?;
    assert!(store.config().await?.is_some());
    etcd.etcdctl(&["user", "add", "somebody:pw"])?;
    assert!(store.config().await?.is_some());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_says_so_without_the_password() -> Result<()> {
    let etcd = etcd_with_login()?;
    let wrong = login(Node::new(&etcd, 1), "flannel", "wrong secret");
    let absent = Node::new(&etcd, 1);
    for node in [wrong, absent] {
        let error = node.store()?.config().await.err().context("refused")?;
        assert!(matches!(error, EtcdError::Login { .. }), "{error:?}");
        let text = format!("{error} {error:?}");
        assert!(text.contains("--etcd-password"), "{text}");
        assert!(!text.contains("wrong secret"), "{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_rights_is_told_which_are_needed() -> Result<()> {
    let etcd = etcd_with_login()?;
    let store = login(Node::new(&etcd, 1), "nobody", "pw").store()?;
    let error = store.config().await.err().context("denied")?;
    assert!(matches!(error, EtcdError::Denied { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&format!("{PREFIX}/subnets/")), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_refused_leaves_no_lease_behind() -> Result<()> {
    let etcd = etcd_with_login()?;
    let subnets = format!("{PREFIX}/subnets/");
    for command in [
        vec!["role", "add", "reader"],
        vec![
            "role",
            "grant-permission",
            "reader",
            "--prefix=true",
            "read",
            &subnets,
        ],
        vec!["user", "add", "reader:pw"],
        vec!["user", "grant-role", "reader", "reader"],
    ] {
        etcd.etcdctl(&command)?;
    }
    let reader = login(Node::new(&etcd, 1), "reader", "pw").store()?;
    let put = Put {
        key: LeaseKey::parse("10.5.1.0-24").context("a key")?,
        attrs: LeaseAttrs::alloc(Ipv4Addr::new(192, 168, 0, 1)),
        expect: Expect::Absent,
        ttl: Some(Duration::from_hours(24)),
    };
    for _ in 0..3 {
        let error = reader.put(&put).await.err().context("denied")?;
        assert!(matches!(error, EtcdError::Denied { .. }), "{error:?}");
    }
    let leases = || etcd.etcdctl(&["lease", "list"]);
    assert!(leases()?.starts_with("found 0 leases"), "{}", leases()?);
    // Neither does one that comes too late.
    let writer = login(Node::new(&etcd, 1), "flannel", PASSWORD).store()?;
    let written = writer.put(&put).await?;
    assert!(matches!(written, PutOutcome::Written { .. }), "{written:?}");
    let late = writer.put(&put).await?;
    assert!(matches!(late, PutOutcome::Conflict(_)), "{late:?}");
    assert!(leases()?.starts_with("found 1 leases"), "{}", leases()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_refuses_the_login_is_passed_over_for_one_that_does_not() -> Result<()> {
    let (stranger, etcd) = (etcd_with_login()?, etcd_with_login()?);
    // The first endpoint is a server of another cluster, where the user has another password.
    stranger.etcdctl(&["user", "delete", "flannel"])?;
    stranger.etcdctl(&["user", "add", "flannel:other"])?;
    let urls = [stranger.url(0), etcd.url(0)];
    let node = login(Node::new(&etcd, 1), "flannel", PASSWORD).endpoints(urls.clone());
    assert!(node.store()?.config().await?.is_some());
    let wrong = login(Node::new(&etcd, 1), "flannel", "wrong").endpoints(urls.clone());
    let error = wrong.store()?.config().await.err().context("refused")?;
    assert!(matches!(error, EtcdError::Login { .. }), "{error:?}");
    let text = error.to_string();
    assert!(urls.iter().all(|url| text.contains(url)), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_not_in_the_way_of_an_etcd_without_authentication() -> Result<()> {
    let etcd = Etcd::start()?;
    let store = login(Node::new(&etcd, 1), "flannel", PASSWORD).store()?;
    assert_eq!(store.config().await?, None);
    Ok(())
}
