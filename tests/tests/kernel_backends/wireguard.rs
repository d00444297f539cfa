//! The wireguard backend.

use std::{fs, net::Ipv6Addr, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{
    decode::{decode_ipv4, is_udp_to},
    lab::{
        Lab, Node,
        agent::{Launch, binary},
        ipv6, scenario,
    },
    skip,
    traffic::{Endpoint, ping, udp},
    wait::wait_for,
};
use serde_json::Value;

use crate::{
    PATIENCE, bring_up, check_restarts, check_traffic, devices, key_file, lacks, pod, pod_routes,
};

const WIREGUARD: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#;
const PSK: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const PORT: u16 = 51820;
const UDP: u8 = 17;

fn dual(backend: &str) -> String {
    format!(
        r#"{{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:10:5::/48","Backend":{{"Type":"wireguard"{backend}}}}}"#
    )
}

/// `wg` is what others make such devices with.
fn has_wg() -> bool {
    std::process::Command::new("wg")
        .arg("--version")
        .output()
        .is_ok()
}

#[test]
fn pods_talk_by_wireguard_and_nobody_on_the_wire_reads_it() {
    if let Some(reason) = lacks("wireguard") {
        skip!("no WireGuard devices: {reason}");
    }
    scenario(Lab::builder().nodes(3).config(WIREGUARD), |lab| {
        bring_up(lab)?;
        let node = lab.node(0);
        let mtu = node.subnet_env()?.mtu;
        ensure!(mtu == 1420, "MTU {mtu}");
        let capture = node.capture_wire()?;
        check_traffic(&pod(lab, 0), &pod(lab, 1), mtu)?;
        let frames = capture.stop()?;
        let ciphered = frames
            .iter()
            .filter(|frame| is_udp_to(&frame.bytes, PORT))
            .count();
        ensure!(ciphered > 100, "{ciphered} packets to the port");
        // Nobody else sends UDP, and etcd's TCP is with another node.
        let others = frames.iter().filter(|frame| {
            let peer = lab.node(1).address.octets();
            decode_ipv4(&frame.bytes).is_ok_and(|packet| {
                (packet.ip.source == peer || packet.ip.destination == peer)
                    && packet.ip.protocol.0 != UDP
            })
        });
        ensure!(others.count() == 0, "something of it in clear");

        ensure!(pod_routes(node)? == ["10.5.0.0/16 dev flannel-wg proto 241"]);
        let record = &lab.store().leases()?[0].value;
        let value: Value = serde_json::from_str(record)?;
        ensure!(value["BackendType"] == "wireguard", "{record}");
        ensure!(value["BackendData"]["Port"] == 51820, "{record}");
        let key = value["BackendData"]["PublicKey"]
            .as_str()
            .context("a key")?;
        ensure!(key.len() == 44, "{key}");
        check_restarts(lab, "flannel-wg")?;

        let file = key_file(lab, node);
        ensure!(fs::metadata(&file)?.permissions().mode() & 0o7777 == 0o600);
        let secret = fs::read_to_string(&file)?;
        let log = node.with_agent(|agent| Ok(agent.log()))?;
        ensure!(!log.contains(secret.trim()), "the log holds the key");
        Ok(())
    });
}

#[test]
fn wireguard_nodes_that_leave_lose_their_peer_and_those_with_another_key_are_found_again() {
    if let Some(reason) = lacks("wireguard") {
        skip!("no WireGuard devices: {reason}");
    }
    if !has_wg() {
        skip!("no wg (wireguard-tools)");
    }
    let config = format!(
        r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"wireguard","PSK":"{PSK}","PersistentKeepaliveInterval":25,"ListenPort":7000}}}}"#
    );
    scenario(Lab::builder().nodes(2).config(&config), |lab| {
        bring_up(lab)?;
        let (node, other) = (lab.node(0), lab.node(1));
        let peers = |node: &Node| node.cmd("wg", ["show", "flannel-wg", "dump"]);
        let dump = peers(node)?;
        let peer: Vec<&str> = dump.lines().nth(1).context("a peer")?.split('\t').collect();
        ensure!(
            peer[1] == PSK && peer[2] == format!("{}:7000", other.address),
            "{dump}"
        );
        ensure!(
            peer[3] == other.subnet_env()?.subnet()?.to_string(),
            "{dump}"
        );
        ensure!(peer[7] == "25", "{dump}");

        // Another key, as after a reboot: /run is empty then.
        let key = peer[0].to_owned();
        fs::remove_file(key_file(lab, other))?;
        crate::restart(lab, other, Signal::SIGTERM)?;
        wait_for("the other key to be known", PATIENCE, || {
            let dump = peers(node)?;
            ensure!(dump.lines().count() == 2 && !dump.contains(&key), "{dump}");
            lab.ping_matrix()
        })?;

        other.stop_agent()?;
        let subnet = other.subnet_env()?.subnet()?;
        lab.store()
            .delete_lease(&subnet.to_string().replace('/', "-"))?;
        wait_for("the peer to go", PATIENCE, || {
            let dump = peers(node)?;
            ensure!(dump.lines().count() == 1, "{dump}");
            Ok(())
        })?;

        // What somebody takes from the device comes back.
        node.cmd("wg", ["set", "flannel-wg", "listen-port", "9999"])?;
        node.cmd("ip", ["link", "set", "flannel-wg", "down"])?;
        wait_for("the device to be mended", PATIENCE, || {
            let port = node.cmd("wg", ["show", "flannel-wg", "listen-port"])?;
            ensure!(port.trim() == "7000", "{port}");
            let link = node.cmd("ip", ["link", "show", "flannel-wg"])?;
            ensure!(link.contains("UP"), "{link}");
            Ok(())
        })
    });
}

/// A node as flannel before v0.26.6 makes it, by the common tools.
#[test]
fn a_wireguard_node_of_stock_flannel_and_ours_talk_both_ways() {
    if let Some(reason) = lacks("wireguard") {
        skip!("no WireGuard devices: {reason}");
    }
    if !has_wg() {
        skip!("no wg (wireguard-tools)");
    }
    scenario(Lab::builder().nodes(2).config(WIREGUARD), |lab| {
        let (node, stock) = (lab.node(0), lab.node(1));
        crate::start(lab, node)?;
        let env = node.wait_ready()?;
        let ours: Value = serde_json::from_str(&lab.store().leases()?[0].value)?;
        let key = ours["BackendData"]["PublicKey"].as_str().context("a key")?;
        let file = lab.dir().join("stock.key");
        fs::write(&file, stock.cmd("wg", ["genkey"])?)?;
        let path = file.to_str().context("UTF-8")?;
        stock.namespace.ip_batch(
            "link add flannel-wg mtu 1420 type wireguard\n\
             addr add 10.5.77.0/32 dev flannel-wg\n",
        )?;
        stock.cmd(
            "wg",
            [
                "set",
                "flannel-wg",
                "listen-port",
                "51820",
                "private-key",
                path,
            ],
        )?;
        let (endpoint, subnet) = (format!("{}:51820", node.address), env.subnet()?.to_string());
        stock.cmd(
            "wg",
            [
                "set",
                "flannel-wg",
                "peer",
                key,
                "endpoint",
                &endpoint,
                "allowed-ips",
                &subnet,
            ],
        )?;
        stock.namespace.ip_batch(
            "link set flannel-wg up\n\
             route add 10.5.0.0/16 dev flannel-wg scope link\n",
        )?;
        let public = stock.cmd("wg", ["show", "flannel-wg", "public-key"])?;
        let (public, address) = (public.trim(), stock.address);
        lab.store().put_lease(
            "10.5.77.0-24",
            &format!(
                r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"wireguard","BackendData":{{"PublicKey":"{public}"}}}}"#
            ),
        )?;
        let own = node
            .add_pod("a", overlay_tests::lab::Attachment::Bridge)?
            .endpoint();
        let theirs = Endpoint {
            namespace: stock.namespace.clone(),
            address: [10, 5, 77, 0].into(),
        };
        wait_for("the stock node to answer", PATIENCE, || {
            ping::once(&own, theirs.address).map(drop)
        })?;
        check_traffic(&own, &theirs, 1420)?;
        check_traffic(&theirs, &own, 1420)
    });
}

/// What the agent's `init` prints on a node.
fn init(lab: &Lab, node: &Node, words: &[&str]) -> Result<String> {
    let file = format!("WIREGUARD_KEY_FILE={}", key_file(lab, node).display());
    let agent = binary()?;
    let agent = agent.to_str().context("the agent's path")?;
    node.cmd("env", [&[&file, agent, "init"], words].concat())
}

/// The keys are made before there is a file, each on its own node, and only public parts leave it.
#[test]
fn nodes_of_a_file_talk_by_the_wireguard_keys_in_it() {
    if let Some(reason) = lacks("wireguard") {
        skip!("no WireGuard devices: {reason}");
    }
    scenario(Lab::builder().nodes(2).without_config(), |lab| {
        let mut hosts = Vec::new();
        for node in lab.nodes() {
            let key = init(lab, node, &["--public-key"])?;
            hosts.push(format!("{}={},{}", node.name, node.address, key.trim()));
        }
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let network = ["--network=10.5.0.0/16", "--backend=wireguard"];
        let file = init(lab, lab.node(0), &[&network, &hosts[..]].concat())?;
        let psk = format!(r#"Type = "wireguard", PSK = "{PSK}""#);
        let path = lab.dir().join("peers.toml");
        fs::write(&path, file.replace(r#"Type = "wireguard""#, &psk))?;
        let flag = format!("--peers={}", path.display());
        for node in lab.nodes() {
            crate::launch(lab, node, &["--datapath=kernel", &flag])?;
        }
        for node in lab.nodes() {
            node.wait_ready()?;
        }
        lab.add_pods(1)?;
        wait_for("pods to talk", PATIENCE, || lab.ping_matrix())?;
        check_traffic(&pod(lab, 0), &pod(lab, 1), 1420)?;

        // A key that is lost is another one, and the others cannot know it.
        let node = lab.node(1);
        node.stop_agent()?;
        fs::remove_file(key_file(lab, node))?;
        crate::launch(lab, node, &["--datapath=kernel", &flag])?;
        wait_for("the other key to be noticed", PATIENCE, || {
            let log = node.with_agent(|agent| Ok(agent.log()))?;
            ensure!(
                log.contains("others go by the file: correct it there"),
                "{log}"
            );
            Ok(())
        })?;
        let key = init(lab, node, &["--public-key"])?;
        let text = fs::read_to_string(&path)?;
        let lost = hosts[1].rsplit(',').next().context("a key")?;
        fs::write(&path, text.replace(lost, key.trim()))?;
        wait_for("pods to talk again", PATIENCE, || lab.ping_matrix())
    });
}

fn check_dual(lab: &Lab, wanted: &[&str]) -> Result<()> {
    bring_up(lab)?;
    let mut pods: Vec<Endpoint<Ipv6Addr>> = Vec::new();
    for (node, pod) in lab.pods() {
        pods.push(node.add_ipv6(&pod)?);
    }
    wait_for("IPv6 pods to talk", PATIENCE, || ipv6::ping_matrix(&pods))?;
    let mtu = lab.node(0).subnet_env()?.mtu;
    check_traffic(&pod(lab, 0), &pod(lab, 1), mtu)?;
    udp::echo_each(&pods[0], &pods[1], &[100, usize::try_from(mtu)? - 48], 2)?.ensure_lossless()?;
    for node in lab.nodes() {
        let found = devices(node)?;
        ensure!(found == wanted, "{found:?}");
    }
    check_restarts(lab, "flannel-wg")?;
    ipv6::ping_matrix(&pods)
}

#[test]
fn each_family_has_a_wireguard_device_of_its_own() {
    if let Some(reason) = lacks("wireguard") {
        skip!("no WireGuard devices: {reason}");
    }
    scenario(Lab::builder().nodes(2).config(&dual("")), |lab| {
        check_dual(lab, &["flannel-wg", "flannel-wg-v6"])?;
        let record: Value = serde_json::from_str(&lab.store().leases()?[0].value)?;
        ensure!(record["BackendV6Data"]["Port"] == 51821, "{record}");
        ensure!(record["BackendV6Data"]["PublicKey"] == record["BackendData"]["PublicKey"]);
        Ok(())
    });
}

#[test]
fn one_wireguard_device_carries_both_families_and_modes_follow_each_other() {
    if let Some(reason) = lacks("wireguard") {
        skip!("no WireGuard devices: {reason}");
    }
    scenario(
        Lab::builder().nodes(2).config(&dual(r#","Mode":"ipv6""#)),
        |lab| {
            check_dual(lab, &["flannel-wg"])?;
            for (mode, wanted) in [
                (
                    r#","Mode":"separate""#,
                    &["flannel-wg", "flannel-wg-v6"][..],
                ),
                (r#","Mode":"auto""#, &["flannel-wg"]),
            ] {
                lab.store().set_config(&dual(mode))?;
                for node in lab.nodes() {
                    crate::restart(lab, node, Signal::SIGTERM)?;
                }
                wait_for(mode, PATIENCE, || {
                    for node in lab.nodes() {
                        let mut found = devices(node)?;
                        // In the order in which they were made, one of them earlier.
                        found.sort_unstable();
                        ensure!(found == wanted, "{found:?}");
                    }
                    lab.ping_matrix()
                })?;
            }
            Ok(())
        },
    );
}

/// The other side of the tests above: every kernel runs one or the other.
#[test]
fn without_wireguard_in_the_kernel_one_error_says_what_to_do() {
    if lacks("wireguard").is_none() {
        skip!("this kernel has WireGuard devices");
    }
    scenario(Lab::builder().nodes(1).config(WIREGUARD), |lab| {
        let node = lab.node(0);
        let file = key_file(lab, node);
        let launch = Launch {
            wrapper: vec![
                "env".to_owned(),
                format!("WIREGUARD_KEY_FILE={}", file.display()),
            ],
            ..Launch::new(lab.store(), &[])
        };
        let (status, log) = node.run_to_end(&launch, Duration::from_secs(20))?;
        ensure!(status.code() == Some(1), "{status}");
        let error = "cannot create flannel-wg: this kernel has no wireguard devices; load their module \
                     (modprobe wireguard)";
        ensure!(log.contains(error), "{log}");
        ensure!(devices(node)?.is_empty());
        Ok(())
    });
}
