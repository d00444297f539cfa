//! Pods that the plugin makes itself.

use std::{
    net::{Ipv6Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    lab::{Lab, Node, scenario},
    netkit,
    rules::Protocol,
    services::{Connection, Server},
    skip,
    traffic::{Endpoint, ping, ping6, udp},
};
use serde_json::{Value, json};

use crate::{
    DEADLINE,
    container::{Container, fails_with},
};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const SERVICE: &str = "10.96.0.7";
const PORT: u16 = 9000;
const TABLE: [&str; 4] = ["list", "table", "inet", "overlay-cni"];

/// Two pods on the first node and one on the second.
fn create<'lab>(lab: &'lab Lab, delegate: &Value) -> Result<[Container<'lab>; 3]> {
    let pod = |node, name| Container::create(lab, node, name, delegate.clone());
    let (one, two) = (lab.node(0), lab.node(1));
    Ok([pod(one, "a")?, pod(one, "b")?, pod(two, "a")?])
}

/// The name of a pod's interface on its node.
fn on_host(result: &Value) -> Result<&str> {
    let name = result["interfaces"][0]["name"].as_str();
    name.with_context(|| format!("no interface in {result}"))
}

fn has_table(node: &Node) -> bool {
    node.cmd("nft", TABLE).is_ok()
}

fn with_result(container: &Container<'_>, result: &Value) -> Value {
    let mut network = container.network();
    network["prevResult"] = result.clone();
    network
}

fn talk_fast_and_go(device: &str) {
    let delegate = json!({ "type": "overlay", "device": device });
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agents(&["--ip-masq"])?;
        lab.wait_converged()?;
        let containers = create(lab, &delegate)?;
        let (first, from) = containers[0].add()?;
        let (_, beside) = containers[1].add()?;
        let (_, to) = containers[2].add()?;
        let (one, two) = (lab.node(0), lab.node(1));
        let kind = one.cmd("ip", ["-d", "link", "show", on_host(&first)?])?;
        ensure!(kind.contains(device), "{kind}");
        let mtu = one.subnet_env()?.mtu;
        ensure!(kind.contains(&format!("mtu {mtu} ")), "{kind}");
        let address = format!("{}/32", from.address);
        ensure!(first["ips"][0]["address"] == json!(address), "{first}");

        one.wait_fast_echoes(&from, two, &to)?;
        ping::all(&from, beside.address, 5)?;
        ping::all(&beside, one.subnet_env()?.gateway.ip(), 5)?;
        ping::all(&from, one.address, 5)?;
        ping::all(&one.endpoint(), from.address, 5)?;
        ping::once(&from, lab.outside().address)?;
        ask_a_service(one, &from, &to)?;

        lab.start_agent(one, &["--ip-masq"])?;
        one.wait_ready()?;
        one.wait_fast_echoes(&from, two, &to)?;

        let checked = with_result(&containers[0], &first);
        containers[0].call("CHECK", &checked)?;
        let flush = ["address", "flush", "dev", "eth0"];
        containers[0].namespace.run("ip", flush)?;
        fails_with(containers[0].call("CHECK", &checked), 100)?;
        fails_with(containers[0].call("ADD", &containers[0].network()), 7)?;

        for (container, pod) in containers.iter().zip([&from, &beside, &to]) {
            ensure!(has_table(container.node), "the rules went with another pod");
            let kept = container.kept(pod);
            ensure!(kept.exists(), "no {}", kept.display());
            container.call("DEL", &container.network())?;
            container.call("DEL", &container.network())?;
            let gone = container.namespace.run("ip", ["link", "show", "eth0"]);
            ensure!(gone.is_err(), "{gone:?}");
            ensure!(!kept.exists(), "{} stays", kept.display());
        }
        for node in lab.nodes() {
            let links = node.cmd("ip", ["-o", "link"])?;
            ensure!(!links.contains("ovp") && !has_table(node), "{links}");
        }
        Ok(())
    });
}

/// One that netfilter translates on the client's node, as kube-proxy has it: fast at both ends.
fn ask_a_service(node: &Node, from: &Endpoint, to: &Endpoint) -> Result<()> {
    let _server = Server::start(to, Protocol::Udp, PORT)?;
    let (port, backend) = (PORT.to_string(), format!("{}:{PORT}", to.address));
    let rule = "-t nat -A PREROUTING -p udp -d";
    let rule = rule.split(' ').chain([SERVICE, "--dport", &port]);
    node.cmd("iptables-nft", rule.chain(["-j", "DNAT", "--to", &backend]))?;
    let target = (SERVICE.parse::<std::net::Ipv4Addr>()?, PORT);
    let mut connection = Connection::open(from, Protocol::Udp, target, 0)?;
    connection.exchange(2000, 100)?;
    let before = node.counters()?;
    connection.exchange(5000, 100)?;
    let counted = node.counters()?.since(&before);
    let fast = [Hook::Egress, Hook::Ingress].map(|hook| counted.fast(hook));
    ensure!(fast.iter().all(|packets| *packets >= 25), "{counted}");
    Ok(())
}

#[test]
fn pods_on_veths_talk_fast_and_go_without_a_trace() {
    talk_fast_and_go("veth");
}

#[test]
fn pods_on_netkits_talk_fast_and_go_without_a_trace() {
    if let Some(reason) = netkit::missing() {
        skip!("{reason}");
    }
    talk_fast_and_go("netkit");
}

#[test]
fn without_a_word_pods_are_on_netkits_where_the_kernel_has_them() {
    let device = netkit::missing().map_or("netkit", |_| "veth");
    scenario(Lab::builder().nodes(1), |lab| {
        lab.start_agents(&[])?;
        let node = lab.node(0);
        let delegate = json!({ "type": "overlay" });
        let (result, pod) = Container::create(lab, node, "a", delegate)?.add()?;
        let kind = node.cmd("ip", ["-d", "link", "show", on_host(&result)?])?;
        ensure!(kind.contains(device), "{kind}");
        ping::all(&pod, node.address, 5).map(drop)
    });
}

#[test]
fn the_first_packet_of_a_pod_arrives() {
    const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    scenario(Lab::builder().nodes(1), |lab| {
        lab.start_agents(&[])?;
        let node = lab.node(0);
        for name in NAMES {
            let delegate = json!({ "type": "overlay" });
            let container = Container::create(lab, node, name, delegate)?;
            let (_, pod) = container.add()?;
            ping::all(&pod, node.address, 1)?;
        }
        Ok(())
    });
}

#[test]
fn pods_of_both_families_talk_fast() {
    let delegate = json!({ "type": "overlay" });
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        lab.start_agents6(&[])?;
        let containers = create(lab, &delegate)?;
        let mut pods = Vec::new();
        for container in &containers {
            let (result, endpoint) = container.add()?;
            let address = result["ips"][1]["address"].as_str();
            let address = address.and_then(|text| text.strip_suffix("/128"));
            let address: Ipv6Addr = address.with_context(|| result.to_string())?.parse()?;
            let namespace = container.namespace.clone();
            let over_ipv6 = Endpoint { namespace, address };
            container.call("CHECK", &with_result(container, &result))?;
            pods.push((endpoint, over_ipv6));
        }
        let [(from, from6), (_, beside6), (to, to6)] = &pods[..] else {
            bail!("three pods");
        };
        let (one, two) = (lab.node(0), lab.node(1));
        ping6::all(from6, beside6.address, 5)?;
        ping6::all(from6, one.subnet_env6()?.gateway.ip(), 5)?;
        ping6::all(&one.endpoint6(), from6.address, 5)?;
        one.wait_fast_echoes(from, two, to)?;
        overlay_tests::wait::wait_for("fast packets of IPv6", DEADLINE, || {
            let before = one.counters()?;
            udp::echo_each(from6, to6, &[100], 50)?.ensure_lossless()?;
            let counted = one.counters()?.since(&before);
            ensure!(counted.fast(Hook::Egress) >= 25, "{counted}");
            Ok(())
        })
    });
}

#[test]
fn a_pod_cannot_send_from_the_address_of_another() {
    let delegate = json!({ "type": "overlay" });
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agents(&[])?;
        lab.wait_converged()?;
        let containers = create(lab, &delegate)?;
        let (_, forger) = containers[0].add()?;
        let (_, victim) = containers[1].add()?;
        let (_, target) = containers[2].add()?;
        let stolen = format!("{}/32", victim.address);
        forger
            .namespace
            .run("ip", ["address", "add", &stolen, "dev", "eth0"])?;
        let receiver = udp::bind(&target)?;
        receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
        let to = receiver.local_addr()?;
        let send = |from: &Endpoint, text: &str| -> Result<()> {
            let (namespace, address) = (&forger.namespace, from.address);
            let socket = namespace.enter(|| UdpSocket::bind((address, 0)))?;
            Ok(socket.send_to(text.as_bytes(), to).map(drop)?)
        };
        let receive = || -> Result<String> {
            let mut buffer = [0; 16];
            let length = receiver.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        for _ in 0..3 {
            send(&victim, "forged")?;
            send(&forger, "honest")?;
            let came = receive()?;
            ensure!(came == "honest", "{came}");
        }
        // It is the plugin's rule that does it.
        let delete = ["delete", "table", "inet", "overlay-cni"];
        lab.node(0).cmd("nft", delete)?;
        send(&victim, "forged")?;
        let came = receive()?;
        ensure!(came == "forged", "{came}");
        Ok(())
    });
}

#[test]
fn the_plugin_masquerades_where_the_agent_does_not_and_forgets_pods_that_are_gone() {
    let delegate = json!({ "type": "overlay" });
    scenario(Lab::builder().nodes(1), |lab| {
        let node = lab.node(0);
        let pod = |name| Container::create(lab, node, name, delegate.clone());
        let (first, second) = (pod("a")?, pod("b")?);
        fails_with(first.call("STATUS", &first.network()), 50)?;
        lab.start_agents(&[])?;
        first.call("STATUS", &first.network())?;
        let (_, from) = first.add()?;
        // What it cannot reach but by masquerading.
        ping::once(&from, lab.outside().address)?;
        let rules = || node.cmd("nft", ["-a", "list", "table", "inet", "overlay-cni"]);
        let before = rules()?;
        ensure!(before.contains("masquerade"), "{before}");
        let (result, pod) = second.add()?;
        ensure!(rules()? == before, "the rules were made anew");

        let mut network = first.network();
        network["cni.dev/valid-attachments"] = json!([{ "containerID": "a", "ifname": "eth0" }]);
        first.call("GC", &network)?;
        ensure!(!node.has_interface(on_host(&result)?), "{result}");
        let kept = second.kept(&pod);
        ensure!(!kept.exists(), "{} stays", kept.display());
        ping::once(&from, lab.outside().address)?;
        first.call("DEL", &first.network())?;
        ensure!(!has_table(node), "the rules outlive the last pod");
        Ok(())
    });
}
