//! Dual-stack clusters: IPv4 pods keep their fast path, IPv6 pods have a device of their own, and
//! leases and subnet files are flannel's.

use std::{net::Ipv6Addr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    lab::{Attachment, Lab, Node, Wire, ipv6::ping_matrix, scenario, underlay::router_address6},
    traffic::{Endpoint, flow::SteadyFlow, ping, ping6, tcp, udp},
    wait::wait_for,
};
use serde_json::Value;

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;

/// Agents on both nodes, and a pod of IPv6 on each, which reach each other.
fn two_pods(lab: &Lab) -> Result<[Endpoint<Ipv6Addr>; 2]> {
    lab.start_agents6(&[])?;
    let pods = [lab.node(0).add_pod6('a')?, lab.node(1).add_pod6('a')?];
    ping_matrix(&pods)?;
    Ok(pods)
}

#[test]
fn pods_of_both_families_talk_and_ipv4_stays_on_the_fast_path() {
    let builder = Lab::builder().nodes(2).routed_nodes(1).config(DUAL);
    scenario(builder, |lab| {
        lab.bring_up(1)?;
        lab.wait_converged6()?;
        let mut pods6 = Vec::new();
        for (node, pod) in lab.pods() {
            pods6.push(node.add_ipv6(&pod)?);
        }
        ping_matrix(&pods6)?;
        for to in &pods6[1..] {
            for (from, to) in [(&pods6[0], to), (to, &pods6[0])] {
                ping6::all(from, to.address, 10)?;
                tcp::transfer(from, to, tcp::Spec::bulk(8 << 20))?;
                tcp::transfer(from, to, tcp::Spec::small_writes(100_000, 100))?;
                // The last ones need fragments.
                udp::echo_each(from, to, &[8, 100, 1382, 1383, 3000], 10)?.ensure_lossless()?;
            }
        }
        lab.ping_matrix()?;
        let before = lab.node(0).counters()?;
        let pods: Vec<_> = lab.pods().iter().map(|(_, pod)| pod.endpoint()).collect();
        udp::echo_each(&pods[0], &pods[1], &[100], 200)?.ensure_lossless()?;
        let counted = lab.node(0).counters()?.since(&before);
        for hook in [Hook::Egress, Hook::Ingress] {
            ensure!(counted.fast(hook) >= 190, "of 200 datagrams:\n{counted}");
        }
        Ok(())
    });
}

#[test]
fn ipv6_payloads_arrive_unchanged_over_wires_without_offloads() {
    let builder = Lab::builder().nodes(2).config(DUAL).wire(Wire::Segmented);
    scenario(builder, |lab| {
        lab.start_agents6(&[])?;
        let (from, to) = (lab.node(0).add_pod6('a')?, lab.node(1).add_pod6('a')?);
        tcp::transfer(&from, &to, tcp::Spec::bulk(8 << 20))?;
        udp::echo_each(&from, &to, &[8, 1382, 3000], 10)?.ensure_lossless()?;
        udp::send_segmented(&from, &to, 1200, 40, 5)?.ensure_lossless()
    });
}

#[test]
fn lease_and_subnet_file_have_flannels_text_and_the_lease_one_key_more() {
    scenario(Lab::builder().nodes(1).config(DUAL), |lab| {
        lab.start_agents(&[])?;
        let node = lab.node(0);
        let [lease] = &lab.store().leases()?[..] else {
            bail!("not one lease")
        };
        let (subnet, subnet6) = (node.subnet_env()?.subnet()?, node.subnet_env6()?.subnet()?);
        let key = format!("{subnet}&{subnet6}").replace('/', "-");
        ensure!(lease.subnet_key == key, "{} is not {key}", lease.subnet_key);
        let (mac, mac6) = (node.mac("flannel.1")?, node.mac("flannel-v6.1")?);
        ensure!(mac != mac6, "both devices have {mac}");
        let exact = format!(
            r#"{{"PublicIP":"{}","PublicIPv6":"{}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"{mac6}","ZeroCsum6":true}}}}"#,
            node.address,
            node.address6()
        );
        ensure!(
            lease.value == exact,
            "expected\n{exact}\nthe agent wrote\n{}",
            lease.value
        );
        let text = std::fs::read_to_string(&node.subnet_file)?;
        let (gateway, gateway6) = (
            subnet.network().to_bits() + 1,
            subnet6.network().to_bits() + 1,
        );
        let exact = format!(
            "FLANNEL_NETWORK=10.5.0.0/16\n\
             FLANNEL_SUBNET={}/24\n\
             FLANNEL_IPV6_NETWORK=fd00:10:5::/48\n\
             FLANNEL_IPV6_SUBNET={}/64\n\
             FLANNEL_MTU=1430\n\
             FLANNEL_IPMASQ=false\n",
            std::net::Ipv4Addr::from_bits(gateway),
            Ipv6Addr::from_bits(gateway6),
        );
        ensure!(text == exact, "expected\n{exact}\nthe file says\n{text}");
        Ok(())
    });
}

#[test]
fn a_restarted_node_keeps_both_subnets_and_both_devices() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let pods = two_pods(lab)?;
        let node = lab.node(0);
        let state = || -> Result<_> {
            Ok((
                node.subnet_env()?,
                node.subnet_env6()?,
                node.cmd("ip", ["-d", "link", "show", "flannel-v6.1"])?,
                node.cmd("ip", ["-6", "route", "show", "dev", "flannel-v6.1"])?,
                node.cmd("ip", ["-6", "neigh", "show", "dev", "flannel-v6.1"])?,
            ))
        };
        let before = state()?;
        node.kill_agent()?;
        // Without the agent forwarding goes on.
        ping6::all(&pods[0], pods[1].address, 5)?;
        std::fs::remove_file(&node.subnet_file)?;
        lab.start_agent(node, &[])?;
        node.wait_ready6()?;
        let after = state()?;
        ensure!(before == after, "before\n{before:?}\nafter\n{after:?}");
        ping6::all(&pods[0], pods[1].address, 5)
    });
}

#[test]
fn ipv6_traffic_goes_on_through_a_kill_and_a_restart_without_loss() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let pods = two_pods(lab)?;
        let flow = SteadyFlow::start(&pods[0], &pods[1], Duration::from_millis(5))?;
        let node = lab.node(0);
        for starts in 2..=3 {
            node.kill_agent()?;
            lab.start_agent(node, &[])?;
            wait_for("the next start", Duration::from_secs(20), || {
                let log = node.with_agent(|agent| Ok(agent.log()))?;
                ensure!(log.matches("INFO node started").count() == starts, "{log}");
                Ok(())
            })?;
        }
        let report = flow.stop()?;
        ensure!(report.datagrams.sent > 20, "{report:?}");
        report.datagrams.ensure_lossless()
    });
}

#[test]
fn pods_of_both_families_reach_the_outside_masqueraded_and_each_other_unchanged() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        lab.start_agents(&["--ip-masq"])?;
        lab.wait_converged6()?;
        let pods = [lab.node(0).add_pod6('a')?, lab.node(1).add_pod6('a')?];
        // The server sees the client's own address, or the transfer fails.
        tcp::transfer(&pods[0], &pods[1], tcp::Spec::bulk(1 << 20))?;
        // The router has no route to pods: only a masqueraded packet is answered.
        ping6::all(&pods[0], router_address6(0), 5)?;
        let rules = lab.node(0).cmd("ip6tables", ["-t", "nat", "-S"])?;
        ensure!(rules.contains("FLANNEL-POSTRTG"), "{rules}");
        let forward = lab.node(0).cmd("ip6tables", ["-S", "FLANNEL-FWD"])?;
        ensure!(forward.contains("-s fd00:10:5::/48"), "{forward}");
        Ok(())
    });
}

#[test]
fn the_rules_of_both_families_are_there_in_nftables_mode() {
    let config = DUAL.replace(r#"{"Network""#, r#"{"EnableNFTables":true,"Network""#);
    scenario(Lab::builder().nodes(2).config(&config), |lab| {
        lab.start_agents(&["--ip-masq"])?;
        lab.wait_converged6()?;
        let pods = [lab.node(0).add_pod6('a')?, lab.node(1).add_pod6('a')?];
        tcp::transfer(&pods[0], &pods[1], tcp::Spec::bulk(1 << 20))?;
        ping6::all(&pods[0], router_address6(0), 5)?;
        let rules = lab
            .node(0)
            .cmd("nft", ["list", "table", "ip6", "flannel-ipv6"])?;
        ensure!(rules.contains("fd00:10:5::/48"), "{rules}");
        Ok(())
    });
}

#[test]
fn a_node_reaches_ipv6_pods_and_vtep_addresses_of_other_nodes() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        lab.start_agents6(&[])?;
        let peer = lab.node(1);
        let pod = peer.add_pod6('a')?;
        let vtep = |node: &Node| -> Result<_> { Ok(node.subnet_env6()?.subnet()?.network()) };
        let from = Endpoint {
            address: vtep(lab.node(0))?,
            ..lab.node(0).endpoint6()
        };
        ping6::all(&from, vtep(peer)?, 3)?;
        ping6::all(&from, pod.address, 3)
    });
}

#[test]
fn a_cluster_that_gets_ipv6_keeps_its_ipv4_subnets_and_one_that_loses_it_is_swept() {
    let ipv4 = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        lab.bring_up(1)?;
        lab.wait_converged6()?;
        let before = lab.node(0).subnet_env()?.subnet()?;
        lab.store().set_config(ipv4)?;
        restart(lab)?;
        lab.wait_converged()?;
        for node in lab.nodes() {
            ensure!(
                !node.has_interface("flannel-v6.1"),
                "the device stays on {}",
                node.name
            );
            let routes = node.cmd("ip", ["-6", "route", "show", "proto", "241"])?;
            ensure!(routes.is_empty(), "routes stay on {}:\n{routes}", node.name);
        }
        lab.ping_matrix()?;
        let now = lab.node(0).subnet_env()?.subnet()?;
        ensure!(now == before, "{before} became {now}");

        lab.store().set_config(DUAL)?;
        restart(lab)?;
        lab.wait_converged()?;
        lab.wait_converged6()?;
        let now = lab.node(0).subnet_env()?.subnet()?;
        ensure!(now == before, "{before} became {now}");
        let pods = [lab.node(0).add_pod6('b')?, lab.node(1).add_pod6('b')?];
        ping_matrix(&pods)
    });
}

/// Restarts the agents of all nodes with nothing but their IPv4 subnet in the subnet file, and waits
/// until each has written it.
fn restart(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        node.stop_agent()?;
        let gateway = node.subnet_env()?.gateway;
        std::fs::write(&node.subnet_file, format!("FLANNEL_SUBNET={gateway}\n"))?;
        node.start_agent(lab.store(), &[])?;
        wait_for("a whole subnet file", Duration::from_secs(30), || {
            node.check_running()?;
            node.subnet_env()
        })?;
    }
    Ok(())
}

#[test]
fn cleanup_removes_both_families() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        lab.start_agents(&["--ip-blackhole-route"])?;
        lab.wait_converged6()?;
        let node = lab.node(0);
        let blackhole = node.cmd("ip", ["-6", "route", "show", "type", "blackhole"])?;
        ensure!(
            blackhole.contains(&node.subnet_env6()?.subnet()?.to_string()),
            "no blackhole route in\n{blackhole}"
        );
        node.stop_agent()?;
        node.operator(&["cleanup"])?;
        for device in ["flannel.1", "flannel-v6.1"] {
            ensure!(!node.has_interface(device), "{device} stays");
        }
        for family in ["-4", "-6"] {
            let routes = node.cmd("ip", [family, "route", "show", "proto", "241"])?;
            ensure!(routes.is_empty(), "routes stay:\n{routes}");
        }
        let rules = node.cmd("ip6tables", ["-S"])?;
        ensure!(!rules.contains("FLANNEL"), "{rules}");
        Ok(())
    });
}

#[test]
fn a_changed_ipv6_address_of_a_node_is_republished_and_followed() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let pods = two_pods(lab)?;
        let node = lab.node(0);
        let old = node.address6().to_string();
        node.cmd(
            "ip",
            ["addr", "add", "fd00:172:30::99/64", "dev", "eth0", "nodad"],
        )?;
        node.cmd("ip", ["addr", "del", &format!("{old}/64"), "dev", "eth0"])?;
        wait_for(
            "the new address in the lease",
            Duration::from_secs(5),
            || {
                let leases = lab.store().leases()?;
                let own = leases
                    .iter()
                    .find(|lease| lease.value.contains(&node.address.to_string()));
                let value: Value = serde_json::from_str(&own.context("no lease")?.value)?;
                ensure!(value["PublicIPv6"] == "fd00:172:30::99", "{value}");
                ping6::all(&pods[1], pods[0].address, 3)
            },
        )
    });
}

#[test]
fn dual_stack_pods_of_the_bridge_keep_both_addresses() {
    scenario(Lab::builder().nodes(1).config(DUAL), |lab| {
        lab.start_agents(&[])?;
        let node = lab.node(0);
        let pod = node.add_pod("a", Attachment::Bridge)?;
        let other = node.add_pod("b", Attachment::Bridge)?;
        let (pod6, other6) = (node.add_ipv6(&pod)?, node.add_ipv6(&other)?);
        ping6::all(&pod6, other6.address, 3)?;
        lab.ping_matrix()
    });
}

#[test]
fn operator_commands_show_both_families_where_there_are_no_maps() {
    let builder = Lab::builder().nodes(1).routed_nodes(1).config(DUAL);
    scenario(builder, |lab| {
        lab.start_agents(&["--datapath=kernel"])?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let subnets = [
            peer.subnet_env()?.subnet()?.to_string(),
            peer.subnet_env6()?.subnet()?.to_string(),
        ];
        let vteps = [peer.address.to_string(), peer.address6().to_string()];
        let devices = ["flannel.1", "flannel-v6.1"];
        wait_for("both subnets of the peer", Duration::from_secs(10), || {
            let table = node.operator(&["routes"])?;
            ensure!(
                subnets.iter().all(|subnet| table.contains(subnet)),
                "{table}"
            );
            Ok(())
        })?;
        let routes = node.operator_json(&["routes"])?;
        let status = node.operator_json(&["status"])?;
        ensure!(status["health"] == "healthy", "{status}");
        ensure!(rows(&routes, "routes")?.is_empty(), "{routes}");
        for (index, family) in ["ipv4", "ipv6"].into_iter().enumerate() {
            let [row] = rows(&routes, &format!("{family}_routes"))? else {
                bail!("not one row for the peer: {routes}")
            };
            let mac = peer.mac(devices[index])?.to_string();
            ensure!(row["subnet"] == subnets[index].as_str(), "{row}");
            ensure!(row["vtep"] == vteps[index].as_str(), "{row}");
            ensure!(row["vtep_mac"] == mac.as_str(), "{row}");
            ensure!(row["mode"] == "tunnel", "{row}");
            ensure!(row["ifname"] == devices[index], "{row}");
            let tier = &status[family];
            ensure!(tier["device"]["ifname"] == devices[index], "{status}");
            ensure!(
                tier["routes"] == routes[format!("{family}_routes")],
                "{status}"
            );
        }
        let (code, text) = node.status()?;
        ensure!(code == Some(0), "{code:?}: {text}");
        for line in [
            "\nvtep: ",
            "\nroutes:      1, in the kernel",
            "\nipv6 routes: 1, in the kernel",
        ] {
            ensure!(text.contains(line), "no {line:?} in\n{text}");
        }
        Ok(())
    });
}

#[test]
fn operator_commands_show_both_families() {
    let builder = Lab::builder().nodes(1).routed_nodes(1).config(DUAL);
    scenario(builder, |lab| {
        lab.bring_up(1)?;
        lab.wait_converged6()?;
        let mut pods6 = Vec::new();
        for (node, pod) in lab.pods() {
            pods6.push(node.add_ipv6(&pod)?);
        }
        let [from, to] = &pods6[..] else {
            bail!("not one pod on each node: {pods6:?}")
        };
        lab.ping_matrix()?;
        ping_matrix(&pods6)?;
        // The second packet of a flow earns its permit.
        let [near, far] = [0, 1].map(|index| lab.node(index).pods()[0].endpoint());
        ping::all(&near, far.address, 5)?;
        ping6::all(from, to.address, 5)?;
        let (node, peer) = (lab.node(0), lab.node(1));

        let routes = node.operator_json(&["routes"])?;
        let [ipv4, ipv6] = rows(&routes, "routes")? else {
            bail!("not one row for each subnet of the peer: {routes}")
        };
        let subnets = [
            peer.subnet_env()?.subnet()?.to_string(),
            peer.subnet_env6()?.subnet()?.to_string(),
        ];
        let vteps = [peer.address.to_string(), peer.address6().to_string()];
        let devices = ["flannel.1", "flannel-v6.1"];
        for (index, row) in [ipv4, ipv6].into_iter().enumerate() {
            let mac = peer.mac(devices[index])?.to_string();
            ensure!(row["subnet"] == subnets[index].as_str(), "{row}");
            ensure!(row["vtep"] == vteps[index].as_str(), "{row}");
            ensure!(row["vtep_mac"] == mac.as_str(), "{row}");
            ensure!(row["tunnel_allowed"] == true, "{row}");
            ensure!(row["next_hop"]["mode"] == "tunnel", "{row}");
        }
        for left in ["ipv4_routes", "ipv6_routes"] {
            ensure!(rows(&routes, left)?.is_empty(), "{routes}");
        }

        let status = node.operator_json(&["status"])?;
        ensure!(status["health"] == "healthy", "{status}");
        let datapath = &status["datapath"];
        for (family, subnet, device, mtu) in [
            (
                datapath,
                node.subnet_env()?.subnet()?.to_string(),
                devices[0],
                1450,
            ),
            (
                &datapath["ipv6"],
                node.subnet_env6()?.subnet()?.to_string(),
                devices[1],
                1430,
            ),
        ] {
            let own = &family["node"];
            ensure!(own["subnet"] == subnet.as_str(), "{status}");
            ensure!(
                own["vtep_ifname"] == device && own["pod_mtu"] == mtu,
                "{status}"
            );
            ensure!(family["peers"] == 1 && family["routes"] == 1, "{status}");
        }
        ensure!(datapath["ipv6"]["zero_checksum_peers"] == 1, "{status}");
        for (family, device) in ["ipv4", "ipv6"].into_iter().zip(devices) {
            ensure!(status[family]["device"]["ifname"] == device, "{status}");
        }

        // What the host's own changes flush, the next packets earn again.
        let flows = wait_for(
            "live flows of both families",
            Duration::from_secs(10),
            || {
                lab.ping_matrix()?;
                ping_matrix(&pods6)?;
                let flows = node.operator_json(&["flows"])?;
                for protocol in ["icmp", "icmpv6"] {
                    let found = rows(&flows, "flows")?
                        .iter()
                        .any(|flow| flow["protocol"] == protocol);
                    ensure!(found, "no {protocol} in {flows}");
                }
                Ok(flows)
            },
        )?;
        let flushed = node.operator_json(&["flush"])?;
        for generation in ["generation", "ipv6_generation"] {
            let [before, after] = [&flows, &flushed].map(|report| report[generation].as_u64());
            ensure!(
                before.is_some() && before < after,
                "{generation}: {before:?}, {after:?}"
            );
        }
        let flows = node.operator_json(&["flows"])?;
        ensure!(flows["live"] == 0, "live after the flush: {flows}");
        Ok(())
    });
}

/// The list under a key of a report.
fn rows<'a>(report: &'a Value, key: &str) -> Result<&'a [Value]> {
    let rows = report[key].as_array();
    Ok(rows.with_context(|| format!("no {key} in {report}"))?)
}
