//! `overlay-agent check`: it names each pitfall that a network namespace can have, and none that is not there.

use std::{fs, net::UdpSocket, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    lab::{Lab, Node, agent::Launch, scenario},
    seccomp::BpfDenial,
    skip,
    wait::wait_for,
};

use crate::support::{Judged, judge, run};

const PATIENCE: Duration = Duration::from_secs(10);
const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;

/// What `check` says, with the node's own subnet file.
fn check(node: &Node, more: &[&str]) -> Result<Judged> {
    let file = node.subnet_file_flag();
    let words = [&["check", &file], more].concat();
    let (code, said) = judge(node, &words)?;
    let findings = said["findings"].as_array().context("findings")?;
    let names = findings.iter().map(|finding| {
        let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        (text("name"), text("severity"))
    });
    Ok((code, names.collect(), said))
}

/// Waits until `check` finds this and nothing else; an empty name is nothing at all.
#[track_caller]
fn expect(node: &Node, name: &str, severity: &str, more: &[&str]) -> Result<()> {
    let (wanted, code) = match severity {
        "" => (Vec::new(), 0),
        "note" => (vec![(name.to_owned(), severity.to_owned())], 0),
        _ => (vec![(name.to_owned(), severity.to_owned())], 1),
    };
    wait_for(&format!("check to find {name:?}"), PATIENCE, || {
        let (status, found, said) = check(node, more)?;
        ensure!(
            found == wanted && status == Some(code),
            "{status:?} {said:#}"
        );
        Ok(())
    })
}

#[track_caller]
fn expect_nothing(node: &Node) -> Result<()> {
    expect(node, "", "", &[])
}

#[test]
fn nothing_is_found_on_healthy_nodes_of_either_family() {
    scenario(
        Lab::builder().nodes(2).routed_nodes(1).config(DUAL),
        |lab| {
            lab.bring_up(1)?;
            for node in lab.nodes() {
                let (code, found, said) = check(node, &[])?;
                ensure!(
                    code == Some(0) && found.is_empty(),
                    "{}: {said:#}",
                    node.name
                );
                ensure!(said["not_checked"] == serde_json::json!([]), "{said:#}");
                ensure!(said["health"] == "healthy", "{said:#}");
            }
            Ok(())
        },
    );
}

#[test]
fn a_host_without_an_overlay_cannot_be_judged() {
    scenario(Lab::builder().nodes(1), |lab| {
        let (code, found, said) = check(lab.node(0), &[])?;
        ensure!(code == Some(2) && found.is_empty(), "{said:#}");
        Ok(())
    });
}

#[test]
fn settings_rules_and_devices_of_others_are_named_and_no_longer_when_they_are_gone() {
    // What spoils the node, what puts it right, and what is found in between.
    const TROUBLES: &[(&[&str], &[&str], &str, &str)] = &[
        (
            &["sysctl -w net.ipv4.ip_forward=0"],
            &["sysctl -w net.ipv4.ip_forward=1"],
            "ip_forward",
            "error",
        ),
        (
            &["sysctl -w net.ipv4.conf.flannel/1.rp_filter=1"],
            &["sysctl -w net.ipv4.conf.flannel/1.rp_filter=0"],
            "rp_filter",
            "note",
        ),
        (
            &["sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=0"],
            &["sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1"],
            "tcp_be_liberal",
            "warning",
        ),
        (
            &["ethtool -K eth0 rx-udp-gro-forwarding on"],
            &["ethtool -K eth0 rx-udp-gro-forwarding off"],
            "udp_gro_forwarding",
            "warning",
        ),
        (
            &["ip link set vetha mtu 1500"],
            &["ip link set vetha mtu 1450"],
            "pod_mtu",
            "warning",
        ),
        (
            &["ip link add cilium_host type bridge"],
            &["ip link delete cilium_host"],
            "other_cni",
            "warning",
        ),
        (
            &[
                "nft add table inet fw",
                "nft add chain inet fw through { type filter hook forward priority 10; policy drop; }",
            ],
            &["nft delete table inet fw"],
            "forward_policy",
            "warning",
        ),
        (
            &["iptables -A INPUT -p udp --dport 8472 -j DROP"],
            &["iptables -D INPUT -p udp --dport 8472 -j DROP"],
            "port_blocked",
            "error",
        ),
    ];
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        for (spoil, mend, name, severity) in TROUBLES {
            spoil.iter().try_for_each(|line| run(node, line))?;
            expect(node, name, severity, &[])?;
            mend.iter().try_for_each(|line| run(node, line))?;
            expect_nothing(node)?;
        }
        Ok(())
    });
}

#[test]
fn services_beside_bridges_without_br_netfilter_are_named() {
    scenario(Lab::builder().nodes(1), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        run(node, "iptables -t nat -N KUBE-SERVICES")?;
        run(node, "iptables -t nat -A PREROUTING -j KUBE-SERVICES")?;
        let setting = "net/bridge/bridge-nf-call-iptables";
        if node.namespace.set_sysctl(setting, "1").is_ok() {
            expect_nothing(node)?;
            node.namespace.set_sysctl(setting, "0")?;
        }
        expect(node, "br_netfilter", "warning", &[])
    });
}

#[test]
fn rules_in_the_old_tables_beside_those_in_nf_tables_are_named() {
    let tried = Command::new("unshare")
        .args(["--net", "iptables-legacy", "-L"])
        .output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        skip!("no iptables-legacy, or a kernel without ip_tables");
    }
    scenario(Lab::builder().nodes(1), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        run(node, "iptables-legacy -A INPUT -s 192.0.2.1 -j DROP")?;
        expect(node, "mixed_rules", "warning", &[])?;
        run(node, "iptables-legacy -F INPUT")?;
        expect_nothing(node)
    });
}

#[test]
fn docker_that_drops_and_hides_is_named_where_the_agent_may_not_help() {
    scenario(Lab::builder().nodes(1), |lab| {
        let flags = ["--iptables-forward-rules=false", "--pod-source-keep=false"];
        lab.start_agents(&flags)?;
        let node = lab.node(0);
        expect_nothing(node)?;
        run(node, "iptables -P FORWARD DROP")?;
        expect(node, "forward_policy", "error", &[])?;
        run(node, "iptables -P FORWARD ACCEPT")?;
        let subnet = node.subnet_env()?.subnet()?;
        run(
            node,
            &format!("iptables -t nat -A POSTROUTING -s {subnet} ! -o docker0 -j MASQUERADE"),
        )?;
        expect(node, "docker_masquerade", "warning", &[])
    });
}

#[test]
fn files_of_others_are_named() {
    scenario(Lab::builder().nodes(1), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        let root = lab.dir().join("host");
        let cni = root.join("etc/cni/net.d");
        fs::create_dir_all(&cni)?;
        fs::write(
            cni.join("10-flannel.conflist"),
            r#"{"plugins":[{"type":"flannel"}]}"#,
        )?;
        let place = format!("--root={}", root.display());
        expect(node, "", "", &[&place])?;
        fs::write(cni.join("05-cilium.conf"), r#"{"type":"cilium-cni"}"#)?;
        expect(node, "other_cni", "warning", &[&place])?;
        let file = lab.dir().join("other.env");
        let text = fs::read_to_string(&node.subnet_file)?;
        fs::write(&file, text.replace("FLANNEL_MTU=1450", "FLANNEL_MTU=1500"))?;
        let file = format!("--subnet-file={}", file.display());
        let (code, said) = judge(node, &["check", &file])?;
        ensure!(
            code == Some(1) && said["findings"][0]["name"] == "subnet_file",
            "{said:#}"
        );
        Ok(())
    });
}

#[test]
fn damage_to_the_device_that_no_agent_repairs_is_named() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        node.stop_agent()?;
        let mac = node.mac("flannel.1")?;
        run(node, "ip link set flannel.1 address 02:00:00:00:00:99")?;
        expect(node, "mac_address", "error", &[])?;
        run(node, &format!("ip link set flannel.1 address {mac}"))?;
        expect_nothing(node)?;
        run(node, "ip link set eth0 mtu 1400")?;
        expect(node, "tunnel_mtu", "error", &[])?;
        run(node, "ip link set eth0 mtu 1500")?;
        expect_nothing(node)?;
        run(node, "ip link delete flannel.1")?;
        let taken = node.enter(|| UdpSocket::bind("0.0.0.0:8472"))?;
        expect(node, "port_taken", "error", &[])?;
        drop(taken);
        run(node, "ip link add vx0 type vxlan external dstport 8472")?;
        run(node, "ip link set vx0 up")?;
        expect(node, "port_taken", "error", &[])?;
        run(node, "ip link delete vx0")?;
        lab.start_agent(node, &[])?;
        expect_nothing(node)
    });
}

#[test]
fn two_nodes_with_one_address_are_named_whoever_they_are() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let record = |address| {
            format!(
                r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}}}"#
            )
        };
        let (one, other) = (lab.node(0), lab.node(1));
        lab.store()
            .put_lease("10.5.250.0-24", &record(other.address))?;
        expect(one, "duplicate_public_ip", "error", &[])?;
        // The node itself makes no route of such a lease, and its agent tells.
        expect(other, "duplicate_public_ip", "error", &[])?;
        lab.store().delete_lease("10.5.250.0-24")?;
        expect_nothing(one)?;
        expect_nothing(other)
    });
}

#[test]
fn a_kernel_that_refuses_programs_is_named() {
    scenario(Lab::builder().nodes(1), |lab| {
        let launch = Launch {
            denial: Some(BpfDenial::Everything),
            ..Launch::new(lab.store(), &[])
        };
        let node = lab.node(0);
        node.launch(&launch)?;
        node.wait_ready()?;
        expect(node, "no_programs", "warning", &[])
    });
}

#[test]
fn a_clock_that_is_not_etcds_is_named() {
    scenario(Lab::builder().nodes(2), |lab| {
        let words = [
            "env",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "faketime",
            "-f",
            "+1h",
        ];
        let launch = Launch {
            wrapper: words.map(str::to_owned).to_vec(),
            ..Launch::new(lab.store(), &[])
        };
        let (wrong, right) = (lab.node(0), lab.node(1));
        wrong.launch(&launch)?;
        lab.start_agent(right, &[])?;
        for node in lab.nodes() {
            node.wait_ready()?;
        }
        expect(wrong, "clock", "warning", &[])?;
        expect_nothing(right)
    });
}
