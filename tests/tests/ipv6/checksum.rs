//! Which nodes take IPv6 tunnel packets with UDP checksum 0, and that their leases say it: a node does
//! whose device the agent made; a device of flanneld does not and stays. And what pods receive has the
//! right checksums, with no card to compute any.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use etherparse::IpNumber;
use nix::sys::signal::Signal;
use overlay_common::outcome::Hook;
use overlay_tests::{
    capture::{Capture, Direction, Frame},
    decode6::{decode_ipv6, udp_checksum_to},
    differ::raw::POD_INTERFACE,
    lab::{Lab, Node, Wire, ipv6::ping_matrix, scenario, underlay::NODE_INTERFACE},
    traffic::{ping6, tcp, udp},
    wait::wait_for,
};
use serde_json::Value;

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const STOCK: &str = "10.5.200.0/24&fd00:10:5:200::/64";
const SOON: Duration = Duration::from_secs(5);

/// Whether the device of a node takes checksum 0.
fn takes_zero(node: &Node) -> Result<bool> {
    let text = node.cmd("ip", ["-d", "-j", "link", "show", "flannel-v6.1"])?;
    let links: Value = serde_json::from_str(&text)?;
    let setting = &links[0]["linkinfo"]["info_data"]["udp_zero_csum6_rx"];
    setting.as_bool().with_context(|| text.clone())
}

/// `BackendV6Data` of a node's lease.
fn data6(lab: &Lab, node: &Node) -> Result<String> {
    let address = format!(r#""PublicIP":"{}""#, node.address);
    let leases = lab.store().leases()?;
    let lease = leases.iter().find(|lease| lease.value.contains(&address));
    let lease = lease.with_context(|| format!("no {address} in {leases:?}"))?;
    let data = lease.value.split_once(r#""BackendV6Data":"#);
    Ok(data.with_context(|| lease.value.clone())?.1.to_owned())
}

/// An error unless device and lease of a node say the same about checksum 0.
fn ensure_says(lab: &Lab, node: &Node, zero: bool) -> Result<()> {
    let (mac, word) = (
        node.mac("flannel-v6.1")?,
        if zero { r#","ZeroCsum6":true"# } else { "" },
    );
    let (taken, data) = (takes_zero(node)?, data6(lab, node)?);
    let status = node.operator_json(&["status"])?;
    ensure!(
        status["ipv6"]["device"]["zero_checksum"] == taken,
        "{status}"
    );
    ensure!(taken == zero, "{}: the device takes it: {taken}", node.name);
    ensure!(
        data == format!(r#"{{"VNI":1,"VtepMAC":"{mac}"{word}}}}}"#),
        "the lease of {} says {data}",
        node.name
    );
    Ok(())
}

/// UDP checksums of the IPv6 tunnel packets that a node sent.
fn sent_checksums(frames: &[Frame]) -> Vec<u16> {
    let sent = frames
        .iter()
        .filter(|frame| frame.direction == Direction::Received);
    sent.filter_map(|frame| udp_checksum_to(&frame.bytes, 8472))
        .collect()
}

#[test]
fn a_node_whose_device_the_agent_made_takes_checksum_0_and_says_so_and_sends_checksums() {
    let builder = Lab::builder().nodes(2).config(DUAL).wire(Wire::Segmented);
    scenario(builder, |lab| {
        let (node, sender) = (lab.node(0), lab.node(1));
        lab.start_agent(node, &[])?;
        ensure_says(lab, node, true)?;
        // A node whose kernel sends what the agent's node says it takes.
        sender.namespace.ip_batch(&format!(
            "link add flannel-v6.1 address 02:00:00:00:06:02 mtu 1430 type vxlan id 1 \
             dev {NODE_INTERFACE} local {} dstport 8472 nolearning udp6zerocsumtx udp6zerocsumrx\n",
            sender.address6()
        ))?;
        lab.start_stock(sender, STOCK)?;
        lab.wait_converged6()?;
        let pods = [node.add_pod6('a')?, sender.add_pod6('a')?];
        let captures = [node.capture_wire()?, sender.capture_wire()?];
        udp::echo_each(&pods[0], &pods[1], &[8, 100, 1382], 20)?.ensure_lossless()?;
        tcp::transfer(&pods[1], &pods[0], tcp::Spec::bulk(1 << 20))?;
        let [ours, theirs] = captures.map(Capture::stop);
        let (ours, theirs) = (sent_checksums(&ours?), sent_checksums(&theirs?));
        ensure!(
            theirs.len() >= 60 && theirs.iter().all(|checksum| *checksum == 0),
            "{theirs:x?}"
        );
        ensure!(ours.len() >= 60 && !ours.contains(&0), "{ours:x?}");
        Ok(())
    });
}

#[test]
fn a_device_of_flanneld_stays_as_it_is_until_it_is_deleted_and_the_lease_follows_it() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let (node, peer) = (lab.node(0), lab.node(1));
        lab.start_agent(peer, &[])?;
        lab.start_stock(node, STOCK)?;
        let made_by_flanneld = node.namespace.ifindex("flannel-v6.1")?;
        lab.start_agent(node, &[])?;
        lab.wait_converged6()?;
        let pods = [node.add_pod6('a')?, peer.add_pod6('a')?];
        let talk = || -> Result<()> {
            ping_matrix(&pods)?;
            tcp::transfer(&pods[0], &pods[1], tcp::Spec::bulk(1 << 20))?;
            tcp::transfer(&pods[1], &pods[0], tcp::Spec::bulk(1 << 20)).map(drop)
        };
        let ifindex = node.namespace.ifindex("flannel-v6.1")?;
        ensure!(ifindex == made_by_flanneld, "another device");
        ensure_says(lab, node, false)?;
        ensure_says(lab, peer, true)?;
        talk()?;
        let log = std::fs::read_to_string(node.log_file())?;
        let told = log.lines().filter(|line| line.contains("udp6zerocsumrx"));
        let told: Vec<_> = told.collect();
        ensure!(
            matches!(told[..], [line] if line.contains("`ip link delete flannel-v6.1`")),
            "{log}"
        );

        node.cmd("ip", ["link", "delete", "flannel-v6.1"])?;
        wait_for("the lease to say what the device takes", SOON, || {
            ensure_says(lab, node, true)
        })?;
        wait_for("the new device to have its peer", SOON, || {
            ping6::once(&pods[0], pods[1].address)
        })?;
        talk()?;

        // Somebody puts another one in its place while the agent does not look.
        node.signal_agent(Signal::SIGSTOP)?;
        node.namespace.ip_batch(&format!(
            "link delete flannel-v6.1\n\
             link add flannel-v6.1 mtu 1430 type vxlan id 1 dev {NODE_INTERFACE} local {} \
             dstport 8472 nolearning\n",
            node.address6()
        ))?;
        node.signal_agent(Signal::SIGCONT)?;
        wait_for("the lease to take its word back", SOON, || {
            ensure_says(lab, node, false)
        })?;
        wait_for("the other device to have its peer", SOON, || {
            ping6::once(&pods[0], pods[1].address)
        })?;
        talk()
    });
}

/// Nothing on the way leaves a checksum to a card: each must be right at the receiver.
#[test]
fn checksums_of_ipv6_packets_are_right_without_any_offload() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let pods = lab.bring_up6(&[])?;
        for (node, pod) in lab.nodes().iter().zip(&pods) {
            for interface in ["eth0", "vetha"] {
                node.cmd("ethtool", ["-K", interface, "tx", "off", "gro", "off"])?;
            }
            // Merging leaves checksums open that were right before.
            node.cmd("ethtool", ["-K", "flannel-v6.1", "gro", "off"])?;
            pod.namespace
                .run("ethtool", ["-K", POD_INTERFACE, "tx", "off"])?;
        }
        let captures = [
            Capture::start(&pods[0].namespace, POD_INTERFACE)?,
            Capture::start(&pods[1].namespace, POD_INTERFACE)?,
        ];
        for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
            tcp::transfer(from, to, tcp::Spec::bulk(300_000))?;
            tcp::transfer(from, to, tcp::Spec::small_writes(10_000, 100))?;
            udp::echo_each(from, to, &[8, 9, 100, 1_381, 1_382], 10)?.ensure_lossless()?;
            ping6::all(from, to.address, 10)?;
        }
        let mut count = 0;
        for capture in captures {
            let frames = capture.stop()?;
            let received = frames
                .iter()
                .filter(|frame| frame.direction == Direction::Received)
                .filter_map(|frame| decode_ipv6(&frame.bytes).ok());
            for packet in received {
                if let IpNumber::UDP | IpNumber::TCP | IpNumber::IPV6_ICMP = packet.ip.next_header {
                    ensure!(packet.has_valid_payload_checksum()?, "{packet:?}");
                    count += 1;
                }
            }
        }
        ensure!(count > 1_000, "{count} packets arrived");
        let fast = lab.node(1).counters()?.fast(Hook::Ingress);
        ensure!(fast > 300, "{fast} packets were fast");
        Ok(())
    });
}
