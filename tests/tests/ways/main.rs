//! The ways in: what their pages in `docs` have people type is typed here, and prints what they say. Those by way of
//! Kubernetes are in `kubernetes::ways`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use overlay_tests::{
    lab::{Lab, scenario},
    page::{self, Hosts, Machine},
    wait::wait_for,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Hosts `a` and `b`, which are the first two nodes of the lab.
fn hosts(lab: &Lab) -> Result<Hosts> {
    let start = |index: usize| {
        let node = lab.node(index);
        let dir = node.subnet_file.parent().context("a folder")?;
        Machine::start(&node.namespace, dir)
    };
    let (mut a, mut b) = (start(0)?, start(1)?);
    a.know(&b)?;
    b.know(&a)?;
    Ok(Hosts::from([("a".to_owned(), a), ("b".to_owned(), b)]))
}

#[test]
fn two_hosts_with_a_file_get_in_as_their_page_says() {
    scenario(Lab::builder().nodes(2).without_config(), |lab| {
        let mut hosts = hosts(lab)?;
        page::follow("two-hosts.md", &mut hosts, |_| Ok(()))?;
        lab.add_pods(1)?;
        wait_for("pods to talk", PATIENCE, || lab.ping_matrix())
    });
}

#[test]
fn docker_hosts_with_etcd_get_in_as_their_page_says() {
    scenario(Lab::builder().nodes(2).without_config(), |lab| {
        let mut hosts = hosts(lab)?;
        page::follow("docker-hosts.md", &mut hosts, |_| Ok(()))
    });
}
