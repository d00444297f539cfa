//! Clusters without IPv4: nodes are told apart by their IPv6 address.

use anyhow::{Context as _, ensure};
use overlay_tests::{
    lab::{Lab, ipv6::ping_matrix, scenario},
    traffic::{ping6, tcp, udp},
};

const IPV6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;

#[test]
fn pods_without_ipv4_talk_near_and_far() {
    let builder = Lab::builder().nodes(2).routed_nodes(1).config(IPV6);
    scenario(builder, |lab| {
        lab.start_agents6(&[])?;
        let mut pods = Vec::new();
        for node in lab.nodes() {
            pods.push(node.add_pod6('a')?);
            pods.push(node.add_pod6('b')?);
        }
        ping_matrix(&pods)?;
        for to in [&pods[2], &pods[4]] {
            tcp::transfer(&pods[0], to, tcp::Spec::bulk(8 << 20))?;
            udp::echo_each(to, &pods[0], &[8, 100, 1382, 3000], 10)?.ensure_lossless()?;
        }
        for node in lab.nodes() {
            ensure!(
                !node.has_interface("flannel.1"),
                "{} has flannel.1",
                node.name
            );
        }
        Ok(())
    });
}

#[test]
fn each_node_has_a_lease_of_its_own_in_flannels_form_and_finds_it_again() {
    scenario(Lab::builder().nodes(3).config(IPV6), |lab| {
        lab.start_agents6(&[])?;
        let leases = lab.store().leases()?;
        ensure!(leases.len() == 3, "{leases:?}");
        for node in lab.nodes() {
            let subnet = node.subnet_env6()?.subnet()?;
            let key = format!("0.0.0.0-0&{}", subnet.to_string().replace('/', "-"));
            let lease = leases.iter().find(|lease| lease.subnet_key == key);
            let lease = lease.with_context(|| format!("no {key} in {leases:?}"))?;
            let (address, mac) = (node.address6(), node.mac("flannel-v6.1")?);
            let exact = format!(
                r#"{{"PublicIP":"0.0.0.0","PublicIPv6":"{address}","BackendType":"vxlan","BackendV6Data":{{"VNI":1,"VtepMAC":"{mac}","ZeroCsum6":true}}}}"#
            );
            ensure!(
                lease.value == exact,
                "expected\n{exact}\ngot\n{}",
                lease.value
            );
            let text = std::fs::read_to_string(&node.subnet_file)?;
            let gateway = std::net::Ipv6Addr::from_bits(subnet.network().to_bits() + 1);
            let exact = format!(
                "FLANNEL_IPV6_NETWORK=fd00:10:5::/48\n\
                 FLANNEL_IPV6_SUBNET={gateway}/64\n\
                 FLANNEL_MTU=1430\n\
                 FLANNEL_IPMASQ=false\n"
            );
            ensure!(text == exact, "expected\n{exact}\nthe file says\n{text}");
        }
        // Without its subnet file a node finds its lease by its address alone.
        let node = lab.node(1);
        let before = node.subnet_env6()?;
        node.kill_agent()?;
        std::fs::remove_file(&node.subnet_file)?;
        node.start_agent(lab.store(), &[])?;
        ensure!(
            node.wait_ready6()? == before,
            "another subnet than {before:?}"
        );
        ensure!(lab.store().leases()? == leases, "the leases changed");
        Ok(())
    });
}

#[test]
fn a_subnet_another_node_claims_is_reported_and_not_taken_back() {
    scenario(Lab::builder().nodes(2).config(IPV6), |lab| {
        lab.start_agents6(&[])?;
        let pods = [lab.node(0).add_pod6('a')?, lab.node(1).add_pod6('a')?];
        let leases = lab.store().leases()?;
        let own = lab.node(0).address6().to_string();
        let lease = leases.iter().find(|lease| lease.value.contains(&own));
        let lease = lease.context("no lease of n1")?;
        // What a stock node in such a cluster does: all of them have PublicIP 0.0.0.0.
        let claim = lease.value.replace(&own, "fd00:172:30::77");
        lab.store().put_lease(&lease.subnet_key, &claim)?;
        overlay_tests::wait::wait_for(
            "a complaint about the claim",
            std::time::Duration::from_secs(5),
            || {
                let log = std::fs::read_to_string(lab.node(0).log_file())?;
                ensure!(log.contains("is claimed by fd00:172:30::77"), "{log}");
                Ok(())
            },
        )?;
        let leases = lab.store().leases()?;
        ensure!(
            leases.iter().any(|lease| lease.value == claim),
            "{leases:?}"
        );
        // Pods that are there go on sending.
        ping6::answered(&pods[0], lab.node(1).address6(), 1).map(drop)
    });
}

#[test]
fn routes_are_shown_where_there_are_no_maps() {
    scenario(Lab::builder().nodes(2).config(IPV6), |lab| {
        lab.start_agents6(&["--datapath=kernel"])?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let subnet = peer.subnet_env6()?.subnet()?.to_string();
        let routes = node.operator(&["routes"])?;
        ensure!(routes.contains(&subnet), "no {subnet} in\n{routes}");
        let (code, text) = node.status()?;
        ensure!(code == Some(0), "{code:?}: {text}");
        ensure!(
            text.contains("kernel tier alone, as --datapath=kernel asks"),
            "{text}"
        );
        ensure!(text.contains("on flannel-v6.1"), "{text}");
        Ok(())
    });
}

#[test]
fn cleanup_finds_the_vni_of_a_node_alone_in_its_maps() {
    let config = IPV6.replace(r#""vxlan"}"#, r#""vxlan","VNI":7}"#);
    scenario(Lab::builder().nodes(1).config(&config), |lab| {
        lab.start_agents6(&[])?;
        let node = lab.node(0);
        ensure!(node.has_interface("flannel-v6.7"), "no device");
        // Without peers no route tells.
        let routes = node.cmd("ip", ["-6", "route", "show", "proto", "241"])?;
        ensure!(routes.is_empty(), "{routes}");
        node.stop_agent()?;
        node.operator(&["cleanup", &node.subnet_file_flag()])?;
        ensure!(!node.has_interface("flannel-v6.7"), "the device stays");
        Ok(())
    });
}
