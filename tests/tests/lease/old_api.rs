//! A network config that was written with etcd's API v2, and is looked for with v3.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use overlay_agent::{
    config::network::NetworkConfig,
    core::Renewal,
    membership::{await_config, etcd},
};
use overlay_tests::{
    etcd::{ClientCert, Etcd, EtcdBuilder},
    lease_node::{Node, PREFIX, eventually, shell},
};
use tokio_util::sync::CancellationToken;

/// As guides have it, and with what a shell would take apart.
const OLD: &str = "{\n  \"Network\": \"10.7.0.0/16\",\n  \"Backend\": { \"Type\": \"vxlan\" },\n  \"//\": \"it's $HOME's\"\n}\n";
const SAME: &str = r#"{"Network":"10.7.0.0/16","Backend":{"Type":"vxlan"},"//":"it's $HOME's"}"#;

fn with_both_apis() -> EtcdBuilder {
    Etcd::builder().arg("--enable-v2=true")
}

fn set(etcd: &Etcd, value: &str) -> Result<()> {
    etcd.etcdctl_v2(&["set", &format!("{PREFIX}/config"), value])
        .map(drop)
}

/// The command of a message.
fn command(message: &str) -> Result<&str> {
    let (_, command) = message
        .split_once("copy it with: ")
        .with_context(|| format!("no command in: {message}"))?;
    Ok(command)
}

/// Waits as an agent does for a config that only v2 has, and runs what it is told to.
async fn is_told_of_and_copied(etcd: Etcd) -> Result<()> {
    let renewal = Renewal {
        ttl: Renewal::TTL,
        margin: Duration::from_hours(1),
    };
    let store = etcd::Etcd::new(Node::new(&etcd, 1).store()?, renewal);
    let told = Arc::new(Mutex::new(Vec::new()));
    let of_agent = Arc::clone(&told);
    let waiting = tokio::spawn(async move {
        let parse = |text: &str| NetworkConfig::parse(text.as_bytes());
        let tell = |problem: &str| of_agent.lock().unwrap().push(problem.to_owned());
        let found = await_config(&store, &CancellationToken::new(), parse, tell).await;
        found.map(|(_, config)| config.text)
    });
    eventually("it is said that there is none", || {
        Ok(told.lock().unwrap().len() == 1)
    })
    .await?;
    set(&etcd, OLD)?;
    eventually("it is said that v2 has one", || {
        Ok(told.lock().unwrap().len() == 2)
    })
    .await?;
    // Longer than some looks at it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let messages = told.lock().unwrap().clone();
    let [first, second] = &messages[..] else {
        panic!("{messages:#?}")
    };
    ensure!(first.contains("create it with: "), "{first}");
    shell(command(second)?)?;
    let found = waiting.await?.context("a config")?;
    assert_eq!(found, SAME);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_only_the_api_v2_has_is_told_of_once_with_the_command_that_copies_it()
-> Result<()> {
    is_told_of_and_copied(with_both_apis().start()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_of_the_api_v2_is_found_and_copied_with_the_certificates_of_v3() -> Result<()> {
    is_told_of_and_copied(with_both_apis().tls(ClientCert::Required).start()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_json_is_named_and_not_copied() -> Result<()> {
    let etcd = with_both_apis().start()?;
    set(&etcd, "10.7.0.0/16")?;
    let remedy = etcd_remedy(&etcd).await?;
    ensure!(remedy.ends_with("it is no JSON"), "{remedy}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_the_api_v2_is_not_spoken_of() -> Result<()> {
    let remedy = etcd_remedy(&Etcd::start()?).await?;
    ensure!(remedy.starts_with("create it with: "), "{remedy}");
    ensure!(!remedy.contains("v2"), "{remedy}");
    Ok(())
}

async fn etcd_remedy(etcd: &Etcd) -> Result<String> {
    use overlay_agent::membership::etcd::LeaseStore as _;
    Ok(Node::new(etcd, 1).store()?.config_remedy().await)
}
