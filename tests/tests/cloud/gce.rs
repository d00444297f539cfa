//! The backend gce.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use overlay_tests::{
    cloud::{gce::Gce, restart},
    lab::{Builder, Lab},
    wait::wait_for,
};

use crate::{PATIENCE, check_pods, wait_in_sync, wait_said, with_programs};

/// The only subnet there is.
const CONFIG: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.7.0","Backend":{"Type":"gce"}}"#;
const NAME: &str = "flannel-10-5-7-0-24";
const SUBNET: &str = "10.5.7.0/24";

fn builder() -> Builder {
    Lab::builder().nodes(1).config(CONFIG)
}

fn wait_routes(gce: &Gce, expected: &[(&str, &str)]) -> Result<()> {
    let expected = expected.iter();
    let expected: BTreeMap<String, String> = expected
        .map(|(name, instance)| ((*name).to_owned(), (*instance).to_owned()))
        .collect();
    wait_for("the routes of the network", PATIENCE, || {
        let routes = gce.routes();
        ensure!(routes == expected, "{routes:?} and not {expected:?}");
        Ok(())
    })
}

#[test]
fn a_node_has_a_route_of_flannels_name_and_a_restart_changes_nothing() {
    with_programs("a_node_has_a_route_of_gce", builder(), |lab, programs| {
        let gce = Gce::start(lab)?;
        // What the node left behind when it had another subnet, and what is not its own.
        gce.put("flannel-10-5-9-0-24", "10.5.9.0/24", "n1");
        gce.put("flannel-10-5-8-0-24", "10.5.8.0/24", "n2");
        let (node, launch) = (lab.node(0), gce.launch(lab, programs)?);
        node.launch(&launch)?;
        ensure!(node.wait_ready()?.mtu == 1500);
        let expected = [("flannel-10-5-8-0-24", "n2"), (NAME, "n1")];
        wait_routes(&gce, &expected)?;
        wait_in_sync(node)?;
        let changes = ["delete flannel-10-5-9-0-24", &format!("insert {NAME}")];
        ensure!(gce.changes() == changes);
        restart(node, &launch)?;
        wait_routes(&gce, &expected)?;
        let changes = gce.changes();
        ensure!(changes.is_empty(), "{changes:?}");

        let claim = r#"{"PublicIP":"172.30.0.99","PublicIPv6":null}"#;
        lab.store().put_lease("10.5.7.0-24", claim)?;
        wait_routes(&gce, &[("flannel-10-5-8-0-24", "n2")])
    });
}

#[test]
fn a_route_of_its_subnet_to_another_instance_is_replaced() {
    with_programs("a_route_of_gce_is_replaced", builder(), |lab, programs| {
        let gce = Gce::start(lab)?;
        gce.put(NAME, SUBNET, "n2");
        lab.node(0).launch(&gce.launch(lab, programs)?)?;
        wait_routes(&gce, &[(NAME, "n1")])
    });
}

#[test]
fn what_compute_engine_refuses_is_told_with_what_is_missing() {
    with_programs("what_compute_engine_refuses", builder(), |lab, programs| {
        let gce = Gce::start(lab)?;
        let node = lab.node(0);
        let scopes = "Request had insufficient authentication scopes.";
        gce.forbid(Some(scopes));
        node.launch(&gce.launch(lab, programs)?)?;
        wait_said(
            node,
            &[&format!(
                "gce: compute.routes.insert for {NAME} failed: {scopes}; the node's credentials lack the access \
                 scope https://www.googleapis.com/auth/compute"
            )],
        )?;
        gce.forbid(Some(
            "Required 'compute.routes.create' permission for 'projects/lab/global/routes/x'",
        ));
        wait_said(
            node,
            &["the node's credentials lack the permission compute.routes.create"],
        )?;
        gce.forbid(None);
        gce.fail_operations(Some("Quota 'ROUTES' exceeded."));
        wait_said(
            node,
            &[&format!(
                "gce: compute.routes.insert for {NAME} failed: QUOTA_EXCEEDED: Quota 'ROUTES' exceeded."
            )],
        )?;
        gce.fail_operations(None);
        wait_routes(&gce, &[(NAME, "n1")])?;
        wait_in_sync(node)
    });
}

#[test]
fn pods_talk_by_the_routes_of_the_network_and_nobody_notices_a_kill_or_another_backend() {
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"gce"}}"#;
    let builder = Lab::builder().nodes(2).config(config);
    let name = "pods_talk_by_the_routes_of_the_network";
    with_programs(name, builder, |lab, programs| {
        let gce = Gce::start(lab)?;
        let launch = gce.launch(lab, programs)?;
        check_pods(lab, &launch, "gce", |subnets| {
            let names = subnets.map(|subnet| {
                let subnet = subnet.to_string().replace(['.', '/'], "-");
                format!("flannel-{subnet}")
            });
            wait_routes(&gce, &[(&names[0], "n1"), (&names[1], "n2")])
        })
    });
}
