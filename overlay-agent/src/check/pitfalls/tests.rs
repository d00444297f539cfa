use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;
use overlay_common::addr::MacAddr;

use crate::{
    check::{
        examine,
        facts::{
            BaseChain, Ethtool, Facts, Overlay, Saved, SubnetFile, UdpSocket, Underlay, Version,
        },
        finding::{Finding, Severity},
        told::Duplicate,
    },
    netlink::{Link, LinkKind, VxlanLink},
    subnet_env::Previous,
    view::{Device, PeerRoute, Tier},
};

const VTEP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 0, 1));
const DEVICE: u32 = 7;

fn network(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// A vxlan node with a pod on a bridge and two peers, as it should be.
fn healthy() -> Facts {
    let route = |subnet, vtep: [u8; 4]| PeerRoute {
        subnet: network(subnet),
        vtep: Some(vtep.into()),
        vtep_mac: None,
        mode: "tunnel",
        ifindex: Some(DEVICE),
        ifname: Some("flannel.1".to_owned()),
        mtu: Some(1450),
    };
    let device = Device {
        ifindex: DEVICE,
        ifname: "flannel.1".to_owned(),
        up: true,
        vtep: Some(VTEP),
        vtep_mac: Some("02:00:00:00:00:01".to_owned()),
        vni: Some(1),
        port: Some(8472),
        mtu: 1450,
        zero_checksum: true,
        in_agent: false,
    };
    let overlay = Overlay {
        subnet: Some(network("10.1.1.0/24")),
        network: Some(network("10.1.0.0/16")),
        vtep: VTEP,
        underlay: Some(Underlay {
            name: "eth0".to_owned(),
            mtu: 1500,
        }),
        vtep_mac: Some("02:00:00:00:00:01".to_owned()),
        vni: Some(1),
        port: Some(8472),
        pod_mtu: Some(1450),
        tier: Tier {
            device: Some(device),
            routes: vec![
                route("10.1.2.0/24", [192, 168, 0, 2]),
                route("10.1.3.0/24", [192, 168, 0, 3]),
            ],
        },
    };
    let vxlan = VxlanLink {
        vni: 1,
        port: 8472,
        local: Some(VTEP),
        ..VxlanLink::default()
    };
    let settings = [
        ("net.ipv4.ip_forward", "1"),
        ("net.bridge.bridge-nf-call-iptables", "1"),
        ("net.netfilter.nf_conntrack_tcp_be_liberal", "1"),
        ("net.ipv4.conf.all.rp_filter", "2"),
        ("net.ipv4.conf.flannel.1.rp_filter", "1"),
    ];
    let text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j FLANNEL-FWD\n-A FORWARD -j DROP\n";
    let ethtool = Ethtool {
        driver: "vmxnet3".to_owned(),
        on: ["tx-checksum-ip-generic".to_owned()].into(),
    };
    Facts {
        overlays: vec![overlay],
        is_fast: true,
        kernel: Version(6, 18, 0),
        settings: { settings.into_iter() }
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        conntrack: Some((10, 262_144)),
        links: vec![
            link(DEVICE, "flannel.1", 1450, LinkKind::Vxlan(vxlan)),
            link(8, "cni0", 1450, LinkKind::Bridge),
        ],
        ethtool: BTreeMap::from([
            ("eth0".to_owned(), ethtool.clone()),
            ("flannel.1".to_owned(), ethtool),
        ]),
        pods: vec!["cni0".to_owned()],
        bridged: true,
        rules: crate::check::facts::Rules {
            iptables: vec![saved(text)],
            tables: ["ip overlay-agent".to_owned()].into(),
            ..Default::default()
        },
        ..Facts::default()
    }
}

fn link(ifindex: u32, name: &str, mtu: u32, kind: LinkKind) -> Link {
    Link {
        ifindex,
        name: name.to_owned(),
        kind,
        mac: Some(MacAddr::new([2, 0, 0, 0, 0, 1])),
        mtu,
        up: true,
        master: None,
    }
}

fn socket(address: [u8; 4]) -> UdpSocket {
    UdpSocket {
        address: address.into(),
        port: 8472,
        process: "named (7)".to_owned(),
    }
}

fn saved(text: &str) -> Saved {
    Saved::parse("iptables-nft".to_owned(), false, false, text)
}

/// What is found after `spoil` has been done to a healthy node.
fn found(spoil: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = healthy();
    spoil(&mut facts);
    examine(&facts)
}

#[track_caller]
fn finds(name: &str, severity: Severity, spoil: impl FnOnce(&mut Facts)) -> Finding {
    let mut findings = found(spoil);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    let finding = findings.remove(0);
    assert_eq!((finding.name, finding.severity), (name, severity));
    finding
}

fn set(facts: &mut Facts, name: &str, value: &str) {
    facts.settings.insert(name.to_owned(), value.to_owned());
}

#[test]
fn a_healthy_node_is_in_no_pitfall_and_neither_is_a_host_without_overlay() {
    assert_eq!(found(|_| {}), []);
    assert_eq!(examine(&Facts::default()), []);
}

#[test]
fn settings_of_the_kernel_are_judged() {
    finds("ip_forward", Severity::Error, |facts| {
        set(facts, "net.ipv4.ip_forward", "0");
    });
    let strict = |facts: &mut Facts| set(facts, "net.ipv4.conf.all.rp_filter", "0");
    let seen = finds("rp_filter", Severity::Note, strict);
    assert!(seen.seen.contains("flannel.1"), "{seen:?}");
    finds("rp_filter", Severity::Warning, |facts| {
        strict(facts);
        facts.overlays[0].tier.routes[0].mode = "direct";
    });
    finds("tcp_be_liberal", Severity::Warning, |facts| {
        set(facts, "net.netfilter.nf_conntrack_tcp_be_liberal", "0");
    });
    // Nobody needs it where nothing is fast.
    let slow = found(|facts| {
        facts.is_fast = false;
        set(facts, "net.netfilter.nf_conntrack_tcp_be_liberal", "0");
    });
    assert_eq!(slow, []);
    finds("conntrack_full", Severity::Warning, |facts| {
        facts.conntrack = Some((85, 100));
    });
    finds("conntrack_full", Severity::Error, |facts| {
        facts.conntrack = Some((99, 100));
    });
    finds("no_programs", Severity::Warning, |facts| {
        facts.no_programs = Some("the verifier rejected it".to_owned());
    });
}

#[test]
fn services_on_a_bridge_need_br_netfilter() {
    let services = |facts: &mut Facts| {
        facts.rules.tables.insert("ip kube-proxy".to_owned());
    };
    assert_eq!(found(services), []);
    finds("br_netfilter", Severity::Warning, |facts| {
        services(facts);
        facts.settings.remove("net.bridge.bridge-nf-call-iptables");
    });
    let without_services = found(|facts| {
        facts.settings.remove("net.bridge.bridge-nf-call-iptables");
    });
    assert_eq!(without_services, []);
}

#[test]
fn offloads_that_spoil_tunnel_packets_are_known_by_kernel_and_driver() {
    finds("tx_checksum", Severity::Warning, |facts| {
        facts.kernel = Version(5, 4, 40);
    });
    finds("tx_checksum", Severity::Warning, |facts| {
        facts.kernel = Version(4, 18, 0);
    });
    for fixed in [
        Version(5, 4, 41),
        Version(4, 19, 123),
        Version(5, 7, 0),
        Version(0, 0, 0),
    ] {
        assert_eq!(found(|facts| facts.kernel = fixed), [], "{fixed:?}");
    }
    let segments = |facts: &mut Facts| {
        let card = facts.ethtool.get_mut("eth0").unwrap();
        card.on.insert("tx-udp_tnl-segmentation".to_owned());
    };
    finds("tx_checksum", Severity::Warning, segments);
    let known_port = found(|facts| {
        segments(facts);
        facts.overlays[0].port = Some(4789);
    });
    assert_eq!(known_port, []);
    finds("udp_gro_forwarding", Severity::Warning, |facts| {
        let card = facts.ethtool.get_mut("eth0").unwrap();
        card.on.insert("rx-udp-gro-forwarding".to_owned());
    });
}

#[test]
fn a_mac_address_that_peers_do_not_know_is_found_with_who_may_have_set_it() {
    let other = |facts: &mut Facts| {
        let device = facts.overlays[0].tier.device.as_mut().unwrap();
        device.vtep_mac = Some("02:00:00:00:00:99".to_owned());
    };
    finds("mac_address", Severity::Error, other);
    let policy = || Some(("99-default.link".to_owned(), "persistent".to_owned()));
    let seen = finds("mac_address", Severity::Error, |facts| {
        other(facts);
        facts.mac_policy = policy();
    });
    assert!(seen.seen.contains("99-default.link"), "{seen:?}");
    // The address is given when the device is made, and systemd leaves such ones alone.
    assert_eq!(found(|facts| facts.mac_policy = policy()), []);
}

#[test]
fn sizes_that_do_not_fit_into_each_other_are_found() {
    finds("tunnel_mtu", Severity::Error, |facts| {
        facts.overlays[0].underlay.as_mut().unwrap().mtu = 1400;
    });
    let seen = finds("pod_mtu", Severity::Warning, |facts| {
        facts.links[1].mtu = 1500;
    });
    assert!(seen.seen.contains("cni0"), "{seen:?}");
    let file = |mtu, subnet: &str| SubnetFile {
        path: "subnet.env".to_owned(),
        mtu: Some(mtu),
        said: Previous::parse(&format!("FLANNEL_SUBNET={subnet}\n")),
    };
    assert_eq!(
        found(|facts| facts.subnet_env = Some(file(1450, "10.1.1.1/24"))),
        []
    );
    finds("subnet_file", Severity::Warning, |facts| {
        facts.subnet_env = Some(file(1500, "10.1.1.1/24"));
    });
    finds("subnet_file", Severity::Warning, |facts| {
        facts.subnet_env = Some(file(1450, "10.1.9.1/24"));
    });
}

#[test]
fn whoever_else_has_the_port_is_found() {
    for address in [[0, 0, 0, 0], [192, 168, 0, 1]] {
        finds("port_taken", Severity::Error, |facts| {
            facts.udp_sockets.push(socket(address));
        });
    }
    assert_eq!(
        found(|facts| facts.udp_sockets.push(socket([127, 0, 0, 1]))),
        []
    );
    let device = |vni, exotic| {
        let vxlan = VxlanLink {
            vni,
            exotic,
            port: 8472,
            ..VxlanLink::default()
        };
        link(20, "vx", 1450, LinkKind::Vxlan(vxlan))
    };
    finds("port_taken", Severity::Error, |facts| {
        facts.links.push(device(1, false));
    });
    finds("port_taken", Severity::Error, |facts| {
        facts.links.push(device(0, true));
    });
    assert_eq!(found(|facts| facts.links.push(device(2, false))), []);
}

#[test]
fn other_network_plugins_leave_devices_and_files() {
    let seen = finds("other_cni", Severity::Warning, |facts| {
        facts
            .links
            .push(link(30, "cilium_host", 1500, LinkKind::Veth));
        facts
            .links
            .push(link(31, "cilium_net", 1500, LinkKind::Veth));
    });
    assert!(
        seen.seen.contains("Cilium") && seen.seen.contains("2 in all"),
        "{seen:?}"
    );
    let files = |names: [&str; 2]| {
        let file = |name: &str| (format!("{name}.conf"), vec![name.to_owned()]);
        names.map(file).to_vec()
    };
    assert_eq!(
        found(|facts| facts.cni = files(["flannel", "weave-net"])),
        []
    );
    finds("other_cni", Severity::Warning, |facts| {
        facts.cni = files(["calico", "flannel"]);
    });
}

#[test]
fn rules_that_refuse_to_forward_are_found_unless_ours_come_first() {
    let rules =
        |text: &'static str| move |facts: &mut Facts| facts.rules.iptables = vec![saved(text)];
    let error = Severity::Error;
    finds(
        "forward_policy",
        error,
        rules("*filter\n:FORWARD DROP [0:0]\n"),
    );
    finds(
        "forward_policy",
        error,
        rules(
            "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n-A FORWARD -j FLANNEL-FWD\n",
        ),
    );
    for fine in [
        "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -s 10.9.0.0/16 -j DROP\n",
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -s 10.0.0.0/8 -j ACCEPT\n",
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j FLANNEL-FWD\n",
    ] {
        assert_eq!(found(rules(fine)), [], "{fine}");
    }
    let chain = |text: &str| BaseChain {
        table: "inet fw".to_owned(),
        chain: "fwd".to_owned(),
        hook: "forward".to_owned(),
        drops: true,
        text: text.to_owned(),
    };
    finds("forward_policy", Severity::Warning, |facts| {
        facts
            .rules
            .base_chains
            .push(chain("ip saddr 10.2.0.0/16 accept"));
    });
    let accepted = chain("ip saddr 10.1.0.0/16 accept");
    assert_eq!(found(|facts| facts.rules.base_chains.push(accepted)), []);
}

#[test]
fn a_firewall_at_the_end_of_the_tunnel_is_found() {
    let rules =
        |text: &'static str| move |facts: &mut Facts| facts.rules.iptables = vec![saved(text)];
    let drop = "*filter\n-A INPUT -p udp -m udp --dport 8472 -j DROP\n";
    finds("port_blocked", Severity::Error, rules(drop));
    let out = "*filter\n-A OUTPUT -p udp -m udp --dport 8472 -j REJECT --reject-with icmp-port-unreachable\n";
    finds("port_blocked", Severity::Error, rules(out));
    finds(
        "port_blocked",
        Severity::Warning,
        rules("*filter\n:INPUT DROP [0:0]\n"),
    );
    for fine in [
        "*filter\n:INPUT DROP [0:0]\n-A INPUT -p udp -m udp --dport 8472 -j ACCEPT\n",
        "*filter\n:INPUT DROP [0:0]\n-A INPUT -i eth0 -j ACCEPT\n",
        "*filter\n-A INPUT -p udp -m udp --dport 84720 -j DROP\n",
        "*filter\n-A INPUT -p udp -m udp --dport 8472 -j ACCEPT\n-A INPUT -p udp -m udp --dport 8472 -j DROP\n",
    ] {
        assert_eq!(found(rules(fine)), [], "{fine}");
    }
}

#[test]
fn rules_that_hide_pods_are_found_unless_their_source_is_kept() {
    let docker = "*nat\n-A POSTROUTING -s 10.1.1.0/24 ! -o docker0 -j MASQUERADE\n";
    let rules = |facts: &mut Facts| facts.rules.iptables = vec![saved(docker)];
    assert_eq!(found(rules), []);
    finds("docker_masquerade", Severity::Warning, |facts| {
        rules(facts);
        facts.rules.tables.clear();
    });
    let kept = "*nat\n-A POSTROUTING -j OVERLAY-PODSRC\n-A POSTROUTING -s 10.1.1.0/24 ! -o docker0 -j MASQUERADE\n";
    let other = "*nat\n-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n";
    let not_pods = "*nat\n-A POSTROUTING ! -s 10.1.0.0/16 -o eth0 -j MASQUERADE\n";
    for fine in [kept, other, not_pods] {
        let findings = found(|facts| {
            facts.rules.iptables = vec![saved(fine)];
            facts.rules.tables.clear();
        });
        assert_eq!(findings, [], "{fine}");
    }
}

#[test]
fn rules_in_both_variants_are_found() {
    finds("mixed_rules", Severity::Warning, |facts| {
        let text = "*filter\n-A FORWARD -s 10.9.0.1 -j ACCEPT\n";
        let legacy = Saved::parse("iptables-legacy".to_owned(), true, false, text);
        facts.rules.iptables.push(legacy);
    });
}

#[test]
fn a_clock_that_is_not_the_stores_is_found_and_seconds_are_not() {
    for (ahead, side) in [(3600, "3600 s ahead of"), (-60, "60 s behind")] {
        let seen = finds("clock", Severity::Warning, |facts| {
            facts.clock_ahead_seconds = Some(ahead);
        });
        assert!(seen.seen.contains(side), "{seen:?}");
    }
    let findings = found(|facts| facts.clock_ahead_seconds = Some(-3));
    assert_eq!(findings, []);
}

#[test]
fn leases_with_one_address_are_found_among_peers_and_by_the_agent() {
    let seen = finds("duplicate_public_ip", Severity::Error, |facts| {
        facts.overlays[0].tier.routes[1].vtep = Some([192, 168, 0, 2].into());
    });
    assert!(
        seen.seen.contains("10.1.2.0/24 and 10.1.3.0/24"),
        "{seen:?}"
    );
    for public_ip in [Some(VTEP), Some([9, 9, 9, 9].into()), None] {
        finds("duplicate_public_ip", Severity::Error, |facts| {
            facts.duplicates.push(Duplicate {
                subnet: network("10.1.5.0/24"),
                public_ip,
            });
        });
    }
}
