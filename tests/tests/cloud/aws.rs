//! The backend aws-vpc.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};
use ipnetwork::Ipv4Network;
use overlay_tests::{
    cloud::{aws::Vpc, launch, restart},
    lab::{Builder, Lab, Node, subnet_env::SubnetEnv},
    wait::wait_for,
};

use crate::{PATIENCE, check_pods, wait_in_sync, wait_said, with_programs};

/// What docs/clouds.md says.
const ALL: [&str; 6] = [
    "ec2:CreateRoute",
    "ec2:DeleteRoute",
    "ec2:DescribeInstances",
    "ec2:DescribeRouteTables",
    "ec2:ModifyNetworkInterfaceAttribute",
    "ec2:ReplaceRoute",
];

fn builder(nodes: u8, options: &str) -> Builder {
    let config = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"aws-vpc"{options}}}}}"#);
    Lab::builder().nodes(nodes).config(&config)
}

fn subnet(node: &Node) -> Result<Ipv4Network> {
    node.subnet_env()?.subnet()
}

/// Waits until a table has these routes of pods and no others.
fn wait_routes(vpc: &Vpc, table: &str, expected: &[(Ipv4Network, usize)]) -> Result<()> {
    let expected = expected.iter();
    let expected: BTreeMap<String, String> = expected
        .map(|(subnet, node)| (subnet.to_string(), vpc.nodes[*node].interface.clone()))
        .collect();
    wait_for(&format!("the routes of {table}"), PATIENCE, || {
        let mut routes = vpc.routes(table)?;
        routes.retain(|destination, _| destination.starts_with("10.5."));
        ensure!(routes == expected, "{routes:?} and not {expected:?}");
        Ok(())
    })
}

#[test]
fn each_node_has_a_route_in_the_table_of_its_subnet_and_takes_packets_of_pods() {
    with_programs("each_node_has_a_route", builder(2, ""), |lab, programs| {
        let vpc = Vpc::start(lab, programs, &ALL)?;
        let launch = vpc.launch(lab)?;
        for node in lab.nodes() {
            node.launch(&launch)?;
            ensure!(node.wait_ready()?.mtu == 1500);
        }
        let (one, other) = (lab.node(0), lab.node(1));
        let (own, theirs) = (subnet(one)?, subnet(other)?);
        wait_routes(&vpc, &vpc.main, &[(own, 0), (theirs, 1)])?;
        for table in &vpc.tables {
            wait_routes(&vpc, table, &[])?;
        }
        for instance in &vpc.nodes {
            let is_on = || vpc.checks_addresses(&instance.interface);
            ensure!(!is_on()?, "{instance:?} drops packets of pods");
        }
        // The VPC has the routes, the kernel has none; the lease is as flannel's.
        let kernel = one.cmd("ip", ["route"])?;
        ensure!(!kernel.contains(&theirs.to_string()), "{kernel}");
        let leases = lab.store().leases()?;
        let said = format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, one.address);
        ensure!(leases.iter().any(|lease| lease.value == said), "{leases:?}");
        // What the metadata service is asked, it is asked within a session.
        ensure!(vpc.sessionless().is_empty(), "{:?}", vpc.sessionless());

        wait_said(one, &["the cloud: added the route of"])?;
        let before = vpc.routes(&vpc.main)?;
        let changes = log_of_changes(one)?;
        restart(one, &launch)?;
        ensure!(vpc.routes(&vpc.main)? == before);
        ensure!(log_of_changes(one)? == changes, "a restart changes nothing");
        Ok(())
    });
}

fn log_of_changes(node: &Node) -> Result<usize> {
    let log = fs::read_to_string(node.log_file())?;
    Ok(log.matches("the cloud: ").count())
}

#[test]
fn the_route_is_in_all_tables_that_are_named_and_one_that_does_not_exist_is_told() {
    let name = "the_route_is_in_all_tables";
    with_programs(
        name,
        Lab::builder().nodes(1).without_config(),
        |lab, programs| {
            let vpc = Vpc::start(lab, programs, &ALL)?;
            let tables = [
                vpc.tables[0].as_str(),
                vpc.tables[1].as_str(),
                "rtb-0123456789abcdef0",
            ];
            let config = serde_json::json!({
                "Network": "10.5.0.0/16",
                "Backend": { "Type": "aws-vpc", "RouteTableID": tables },
            });
            lab.store().set_config(&config.to_string())?;
            let node = lab.node(0);
            node.launch(&vpc.launch(lab)?)?;
            wait_said(
                node,
                &[
                    "aws-vpc: ec2:DescribeRouteTables for rtb-0123456789abcdef0 failed: InvalidRouteTableID.NotFound",
                ],
            )?;
            let own = subnet_of_lease(lab)?;
            for table in &vpc.tables {
                wait_routes(&vpc, table, &[(own, 0)])?;
            }
            wait_routes(&vpc, &vpc.main, &[])
        },
    );
}

/// The subnet of the only lease.
fn subnet_of_lease(lab: &Lab) -> Result<Ipv4Network> {
    let leases = lab.store().leases()?;
    let lease = leases.first().context("no lease")?;
    Ok(lease.subnet_key.replacen('-', "/", 1).parse()?)
}

#[test]
fn a_permission_that_is_missing_is_named_and_the_route_comes_once_it_is_granted() {
    let name = "a_permission_that_is_missing_is_named";
    with_programs(name, builder(1, ""), |lab, programs| {
        let without = |action: &str| -> Vec<&str> {
            ALL.into_iter().filter(|each| *each != action).collect()
        };
        let vpc = Vpc::start(lab, programs, &without("ec2:DescribeInstances"))?;
        let node = lab.node(0);
        node.launch(&vpc.launch(lab)?)?;
        for action in [
            "ec2:DescribeInstances",
            "ec2:DescribeRouteTables",
            "ec2:CreateRoute",
        ] {
            vpc.allow(&without(action))?;
            let lacking = format!("the node's credentials lack the permission {action}");
            wait_said(node, &[&format!("aws-vpc: {action} for "), &lacking])?;
        }
        vpc.allow(&ALL)?;
        wait_routes(&vpc, &vpc.main, &[(subnet_of_lease(lab)?, 0)])?;
        wait_in_sync(node)
    });
}

#[test]
fn the_route_goes_to_the_node_that_has_the_lease_and_leaves_with_it() {
    let name = "the_route_goes_to_the_node_that_has_the_lease";
    with_programs(name, builder(2, ""), |lab, programs| {
        let vpc = Vpc::start(lab, programs, &ALL)?;
        let launch = vpc.launch(lab)?;
        let (one, other) = (lab.node(0), lab.node(1));
        one.launch(&launch)?;
        one.wait_ready()?;
        let own = subnet(one)?;
        wait_routes(&vpc, &vpc.main, &[(own, 0)])?;

        // The first node is gone; the second gets its subnet.
        one.kill_agent()?;
        let key = own.to_string().replace('/', "-");
        lab.store().delete_lease(&key)?;
        let env = SubnetEnv {
            gateway: Ipv4Network::new(own.nth(1).context("an address")?, own.prefix())?,
            ..one.subnet_env()?
        };
        let file = other.subnet_file_flag();
        let file = file.split_once('=').context("a flag")?.1;
        fs::write(file, env.to_text())?;
        other.launch(&launch)?;
        wait_routes(&vpc, &vpc.main, &[(own, 1)])?;

        // The first one comes back, and gets another.
        fs::remove_file(one.subnet_file_flag().split_once('=').context("a flag")?.1)?;
        one.launch(&launch)?;
        one.wait_ready()?;
        let new = subnet(one)?;
        wait_routes(&vpc, &vpc.main, &[(own, 1), (new, 0)])?;

        // Somebody else claims the subnet of the second while it runs: it takes its route away.
        let claim = r#"{"PublicIP":"172.30.0.99","PublicIPv6":null}"#;
        lab.store().put_lease(&key, claim)?;
        wait_routes(&vpc, &vpc.main, &[(new, 0)])
    });
}

#[test]
fn without_its_program_the_backend_says_what_to_install() {
    with_programs("without_its_program", builder(1, ""), |lab, programs| {
        let mut launch = launch(lab, programs, &[])?;
        launch.wrapper[1] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
        let (status, log) = lab.node(0).run_to_end(&launch, PATIENCE)?;
        ensure!(!status.success(), "{log}");
        let said = "the backend aws-vpc needs the program overlay-cloud, which is neither beside the agent nor on \
                    the PATH: install the package overlay-cloud";
        ensure!(log.contains(said), "{log}");
        Ok(())
    });
}

#[test]
fn pods_talk_by_the_routes_of_the_vpc_and_nobody_notices_a_kill_or_another_backend() {
    let name = "pods_talk_by_the_routes_of_the_vpc";
    with_programs(name, builder(2, ""), |lab, programs| {
        let vpc = Vpc::start(lab, programs, &ALL)?;
        let launch = vpc.launch(lab)?;
        check_pods(lab, &launch, "aws-vpc", |subnets| {
            let routes = [(subnets[0], 0), (subnets[1], 1)];
            wait_routes(&vpc, &vpc.main, &routes)
        })
    });
}
