//! The choice of the underlay against a real kernel's links, addresses and routes; and the Docker
//! helper's look at the routing table.

use std::{fs, process::ExitCode};

use overlay_agent::{
    config::InterfaceOptions,
    docker_opts,
    underlay::{Families, Held, select, snapshot},
};
use overlay_tests::private_netns::{in_private_netns, run};

/// Two wires: `eth0` towards the default route, `eth1` with a second IPv4 address and both families.
fn two_wires() {
    for (name, peer) in [("eth0", "wire0"), ("eth1", "wire1")] {
        run(&format!("ip link add {name} type veth peer name {peer}"));
        run(&format!("ip link set {peer} up"));
        run(&format!("ip link set {name} up"));
    }
    run("ip addr add 10.0.2.15/24 dev eth0");
    run("ip addr add 192.168.50.7/24 dev eth1");
    run("ip addr add 192.168.50.8/24 dev eth1");
    run("ip addr add 2001:db8:50::7/64 dev eth1 nodad");
    run("ip link set eth1 mtu 1400");
    run("ip route add default via 10.0.2.2");
    run("ip route add 203.0.113.0/24 via 192.168.50.1 src 192.168.50.8");
}

async fn chosen(options: InterfaceOptions, families: Families) -> Result<String, String> {
    let host = snapshot(options.iface_can_reach)
        .await
        .map_err(|error| error.to_string())?;
    let selection =
        select(&host, &options, families, &Held::default()).map_err(|error| error.to_string())?;
    let ipv4 = selection
        .addresses
        .ipv4
        .map_or("-".to_owned(), |ipv4| ipv4.local.to_string());
    let ipv6 = selection
        .addresses
        .ipv6
        .map_or("-".to_owned(), |ipv6| ipv6.local.to_string());
    Ok(format!(
        "{} {ipv4} {ipv6} mtu {}",
        selection.name, selection.mtu
    ))
}

fn iface(text: &str) -> InterfaceOptions {
    InterfaceOptions {
        iface: vec![text.to_owned()],
        ..InterfaceOptions::default()
    }
}

fn can_reach(text: &str) -> InterfaceOptions {
    let ip = text.parse().expect("an address");
    InterfaceOptions {
        iface_can_reach: Some(ip),
        ..InterfaceOptions::default()
    }
}

#[test]
fn default_route_name_address_and_reachability_choose_the_interface() {
    in_private_netns(|| async {
        two_wires();
        assert_eq!(
            chosen(InterfaceOptions::default(), Families::Ipv4)
                .await
                .as_deref(),
            Ok("eth0 10.0.2.15 - mtu 1500")
        );
        assert_eq!(
            chosen(iface("eth1"), Families::Dual).await.as_deref(),
            Ok("eth1 192.168.50.7 2001:db8:50::7 mtu 1400")
        );
        assert_eq!(
            chosen(iface("192.168.50.8"), Families::Ipv4)
                .await
                .as_deref(),
            Ok("eth1 192.168.50.8 - mtu 1400")
        );
        assert_eq!(
            chosen(can_reach("203.0.113.9"), Families::Ipv4)
                .await
                .as_deref(),
            Ok("eth1 192.168.50.8 - mtu 1400")
        );
        assert_eq!(
            chosen(can_reach("2001:db8:50::1"), Families::Ipv6)
                .await
                .as_deref(),
            Ok("eth1 - 2001:db8:50::7 mtu 1400")
        );
    });
}

#[test]
fn a_default_route_with_several_next_hops_counts_if_they_share_an_interface() {
    in_private_netns(|| async {
        two_wires();
        run("ip route replace default nexthop via 10.0.2.2 nexthop via 10.0.2.3");
        assert_eq!(
            chosen(InterfaceOptions::default(), Families::Ipv4)
                .await
                .as_deref(),
            Ok("eth0 10.0.2.15 - mtu 1500")
        );
        run("ip route replace default nexthop via 10.0.2.2 nexthop via 192.168.50.1");
        let error = chosen(InterfaceOptions::default(), Families::Ipv4)
            .await
            .expect_err("vague");
        assert!(
            error.contains("found default route but could not determine interface"),
            "{error}"
        );
    });
}

#[test]
fn default_routes_of_other_tables_do_not_count() {
    in_private_netns(|| async {
        two_wires();
        run("ip route del default");
        run("ip route add default via 10.0.2.2 table 100");
        let error = chosen(InterfaceOptions::default(), Families::Ipv4)
            .await
            .expect_err("no route");
        assert!(error.contains("unable to find default route"), "{error}");
        let error = chosen(can_reach("198.51.100.1"), Families::Ipv4)
            .await
            .expect_err("no route");
        assert!(
            error.contains("couldn't lookup route to 198.51.100.1: "),
            "{error}"
        );
        assert!(error.contains("Network is unreachable"), "{error}");
    });
}

#[test]
fn permanent_addresses_come_before_dynamic_ones_and_deprecated_ones_are_left_out() {
    in_private_netns(|| async {
        two_wires();
        run("ip addr flush dev eth1");
        run("ip addr add 192.168.50.1/24 dev eth1 valid_lft 600 preferred_lft 600");
        run("ip addr add 192.168.51.1/24 dev eth1");
        run("ip addr add 2001:db8:50::1/64 dev eth1 nodad preferred_lft 0");
        run("ip addr add 2001:db8:50::2/64 dev eth1 nodad");
        assert_eq!(
            chosen(iface("eth1"), Families::Dual).await.as_deref(),
            Ok("eth1 192.168.51.1 2001:db8:50::2 mtu 1400")
        );
    });
}

#[test]
fn a_point_to_point_interface_counts_by_its_own_address() {
    in_private_netns(|| async {
        two_wires();
        run("ip addr add 172.31.0.1 peer 172.31.0.2 dev eth1");
        assert_eq!(
            chosen(iface("172.31.0.1"), Families::Ipv4).await.as_deref(),
            Ok("eth1 172.31.0.1 - mtu 1400")
        );
        let error = chosen(iface("172.31.0.2"), Families::Ipv4)
            .await
            .expect_err("the peer's");
        assert!(
            error.contains("no interface with given IP found"),
            "{error}"
        );
    });
}

#[test]
fn docker_options_are_written_but_fail_when_the_subnet_is_routed_elsewhere() {
    in_private_netns(|| async {
        two_wires();
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
        fs::write(path("subnet.env"), "FLANNEL_SUBNET=10.1.74.1/24\n").expect("a file");
        let args = ["-c", "-f", &path("subnet.env"), "-d", &path("docker")].map(str::to_owned);

        run("ip route add 10.1.74.0/24 via 10.0.2.9");
        assert_eq!(docker_opts::main("test", &args).await, ExitCode::FAILURE);
        assert_eq!(
            fs::read_to_string(path("docker")).expect("it is written all the same"),
            "DOCKER_OPTS=\" --bip=10.1.74.1/24\"\n"
        );

        run("ip route replace 10.1.74.0/24 dev eth1");
        assert_eq!(docker_opts::main("test", &args).await, ExitCode::SUCCESS);
    });
}
