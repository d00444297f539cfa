//! `/healthz` and `/readyz` of a running daemon.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    lab::{Lab, agent::Launch, scenario},
    wait::wait_for,
};

use crate::support::{HEALTH, PATIENCE, get, one_node};

fn wait_answer(lab: &Lab, path: &str, status: u16, body: &str) -> Result<()> {
    wait_for(
        &format!("{path} to answer {status} {body}"),
        PATIENCE,
        || {
            let answer = get(lab.node(0), path)?;
            ensure!(answer.0 == status && answer.1.contains(body), "{answer:?}");
            Ok(())
        },
    )
}

#[test]
fn a_daemon_without_config_is_alive_and_not_ready_until_there_is_one() {
    scenario(one_node().without_config(), |lab| {
        lab.node(0).start_agent(lab.store(), &HEALTH)?;
        wait_answer(lab, "/healthz", 200, "flanneld is running")?;
        let (status, body) = get(lab.node(0), "/readyz")?;
        ensure!(status == 503, "{status}");
        ensure!(
            body.starts_with("flanneld is not ready yet\nlease: "),
            "{body}"
        );
        lab.store()
            .set_config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#)?;
        wait_answer(lab, "/readyz", 200, "flanneld is ready")
    });
}

#[test]
fn a_node_whose_subnet_is_claimed_by_another_one_is_not_ready() {
    scenario(one_node(), |lab| {
        lab.node(0).start_agent(lab.store(), &HEALTH)?;
        wait_answer(lab, "/readyz", 200, "flanneld is ready")?;
        let leases = lab.store().leases()?;
        let mine = leases.first().context("no lease")?;
        let theirs = mine
            .value
            .replace(&lab.node(0).address.to_string(), "192.0.2.99");
        ensure!(theirs != mine.value, "{}", mine.value);
        lab.store().put_lease(&mine.subnet_key, &theirs)?;
        wait_answer(lab, "/readyz", 503, "lease: ")?;
        wait_answer(lab, "/healthz", 200, "flanneld is running")
    });
}

#[test]
fn a_health_port_that_is_taken_is_an_error_and_exit_1() {
    scenario(one_node(), |lab| {
        let node = lab.node(0);
        let _taken = node.enter(|| std::net::TcpListener::bind("127.0.0.1:2401"))?;
        let launch = Launch::new(lab.store(), &HEALTH);
        let (status, text) = node.run_to_end(&launch, Duration::from_secs(10))?;
        ensure!(status.code() == Some(1), "{status}: {text}");
        ensure!(text.contains("cannot listen on 127.0.0.1:2401"), "{text}");
        ensure!(!text.contains("panicked"), "{text}");
        Ok(())
    });
}
