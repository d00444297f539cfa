//! Rule sets as the tools list them, and what is left to the kernel because of them.

use std::collections::BTreeSet;

use overlay_common::{
    family::V4,
    slow::{EGRESS, EVERY_FLOW, ICMP, INGRESS, Packet, Slow, TCP, UDP},
};

use super::{
    Report, Scope, nft,
    report::{everything, of_findings},
    ruleset::{Ruleset, TableFamily, TableId},
    save,
    walk::{self, Findings, UnknownMap},
};
use crate::filter::family::RuleFamily;

fn scope() -> Scope {
    Scope {
        trusted: false,
        vteps: BTreeSet::from(["flannel.1".into(), "flannel-v6.1".into()]),
        underlays: BTreeSet::from(["eth0".into()]),
        ipv4_port: Some(8472),
        ipv6_port: Some(8472),
    }
}

/// With what verdict maps lead to read as far as it is known.
fn find(ruleset: &Ruleset, scope: &Scope) -> Findings {
    walk::find(ruleset, scope, UnknownMap::Passes)
}

fn of_save(text: &str) -> Ruleset {
    let mut ruleset = Ruleset::default();
    save::read(RuleFamily::V4, text, |name, table| {
        let id = TableId {
            family: TableFamily::Ip,
            name: name.to_owned(),
            legacy: false,
        };
        ruleset.tables.insert(id, table);
    });
    ruleset
}

fn of_nft(text: &str) -> Ruleset {
    let mut ruleset = Ruleset::default();
    nft::read(text, &mut ruleset).unwrap();
    ruleset
}

/// A chain of the filter table with these rules of iptables in `chain`, and an empty chain `LOGS` that
/// logs, and `DROPS` that drops.
fn rules(chain: &str, rules: &[&str]) -> Findings {
    let mut text = String::from(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:LOGS - [0:0]\n\
         :DROPS - [0:0]\n-A LOGS -j LOG --log-prefix \"seen \"\n-A DROPS -j LOG\n-A DROPS -j DROP\n",
    );
    for rule in rules {
        text.extend(["-A ", chain, " ", rule, "\n"]);
    }
    text.push_str("COMMIT\n");
    find(&of_save(&text), &scope())
}

fn forward(these: &[&str]) -> Findings {
    rules("FORWARD", these)
}

/// What is left to the kernel, as `status` words it.
fn left(findings: &Findings) -> Vec<String> {
    let reach = findings.rules.iter().flat_map(|rule| &rule.reach);
    reach.map(ToString::to_string).collect()
}

#[track_caller]
fn assert_harmless(findings: &Findings) {
    assert_eq!(findings.rules, [], "{findings:#?}");
    assert!(!findings.is_too_large);
}

/// A rule of nftables, as `nft -j` lists its statements, in a forward chain.
fn statements(statements: &str) -> Findings {
    chain_of(&[statements])
}

/// Several of them.
fn chain_of(rules: &[&str]) -> Findings {
    let rules: Vec<String> = rules
        .iter()
        .zip(2..)
        .map(|(statements, handle)| {
            format!(
                r#"{{"rule": {{"family": "inet", "table": "t", "chain": "f", "handle": {handle},
                    "expr": [{statements}]}}}}"#
            )
        })
        .collect();
    let text = format!(
        r#"{{"nftables": [
            {{"table": {{"family": "inet", "name": "t", "handle": 1}}}},
            {{"chain": {{"family": "inet", "table": "t", "name": "f", "handle": 1, "type": "filter",
                "hook": "forward", "prio": 0, "policy": "accept"}}}},
            {}
        ]}}"#,
        rules.join(", ")
    );
    find(&of_nft(&text), &scope())
}

#[test]
fn what_the_common_tools_write_judges_no_flow_packet_by_packet() {
    for text in [
        include_str!("fixtures/kube-proxy.save"),
        include_str!("fixtures/kube-router.save"),
        include_str!("fixtures/docker.save"),
        include_str!("fixtures/ufw.save"),
    ] {
        let ruleset = of_save(text);
        assert!(!ruleset.tables.is_empty());
        assert_harmless(&find(&ruleset, &scope()));
    }
    for text in [
        include_str!("fixtures/docker.json"),
        include_str!("fixtures/ufw.json"),
        include_str!("fixtures/firewalld.json"),
    ] {
        let ruleset = of_nft(text);
        assert!(!ruleset.tables.is_empty());
        assert_harmless(&find(&ruleset, &scope()));
    }
}

#[test]
fn what_kube_proxy_writes_with_nftables_is_harmless_once_its_verdict_maps_are_read() {
    let mut ruleset = of_nft(include_str!("fixtures/kube-proxy.json"));
    let findings = find(&ruleset, &scope());
    let maps: Vec<&str> = findings
        .unknown_maps
        .iter()
        .map(|(_, name)| name.as_str())
        .collect();
    assert_eq!(
        maps,
        [
            "firewall-ips",
            "no-endpoint-nodeports",
            "no-endpoint-services"
        ]
    );
    let map = |name: &str, target: &str| {
        format!(
            r#"{{"nftables": [{{"map": {{"family": "ip", "name": "{name}", "table": "kube-proxy",
                "type": ["ipv4_addr", "inet_proto", "inet_service"], "map": "verdict",
                "elem": [[{{"concat": ["5.6.7.8", "tcp", 80]}}, {target}]]}}}}]}}"#
        )
    };
    let anything = walk::find(&ruleset, &scope(), UnknownMap::LeadsAnywhere);
    assert_ne!(anything.rules, []);
    for (name, target) in [
        ("firewall-ips", r#"{"goto": {"target": "firewall-a"}}"#),
        ("no-endpoint-nodeports", r#"{"drop": null}"#),
        (
            "no-endpoint-services",
            r#"{"goto": {"target": "reject-chain"}}"#,
        ),
    ] {
        nft::read(&map(name, target), &mut ruleset).unwrap();
    }
    let findings = find(&ruleset, &scope());
    assert_eq!(findings.unknown_maps, BTreeSet::new());
    assert_harmless(&findings);
}

#[test]
fn a_rule_that_judges_single_packets_leaves_what_it_can_match_to_the_kernel() {
    for (rule, by, reach) in [
        (
            "-m string --string \"x -j ACCEPT\" --algo bm -j DROP",
            "string",
            "IPv4",
        ),
        (
            "-p tcp -m tcp --dport 80 -m string --string \"evil\" --algo bm -j DROP",
            "string",
            "IPv4 tcp to port 80",
        ),
        (
            "-s 10.5.1.0/24 -p udp -m udp --dport 53 -j NFQUEUE --queue-num 3",
            "NFQUEUE",
            "IPv4 udp from 10.5.1.0/24 to port 53",
        ),
        (
            "-d 10.5.2.2/32 -m limit --limit 5/sec -j ACCEPT",
            "limit",
            "IPv4 to 10.5.2.2/32",
        ),
        (
            "-p udp -m statistic --mode random --probability 0.5 -j DROP",
            "statistic",
            "IPv4 udp",
        ),
        ("-p udp -m u32 --u32 0x1c=0x1 -j DROP", "u32", "IPv4 udp"),
        (
            "-p udp -m length --length 100:200 -j DROP",
            "length",
            "IPv4 udp",
        ),
        (
            "-p tcp -m quota --quota 1000 -j ACCEPT",
            "quota",
            "IPv4 tcp",
        ),
        (
            "-p tcp -m connbytes --connbytes 100: --connbytes-mode bytes -j DROP",
            "connbytes",
            "IPv4 tcp",
        ),
        (
            "-p udp -m time --timestart 10:00:00 -j DROP",
            "time",
            "IPv4 udp",
        ),
        (
            "-i flannel.1 -j TEE --gateway 10.0.0.9",
            "TEE",
            "IPv4 to pods",
        ),
        (
            "-o flannel.1 -j TEE --gateway 10.0.0.9",
            "TEE",
            "IPv4 from pods",
        ),
        (
            "-p tcp -m tcp --tcp-flags PSH PSH -j DROP",
            "TCP flags",
            "IPv4 tcp",
        ),
        (
            "-p icmp -m icmp --icmp-type 8 -m limit --limit 1/sec -j ACCEPT",
            "limit",
            "IPv4 icmp echo",
        ),
        (
            "-p tcp -m limit --limit 1/sec -j DROPS",
            "limit",
            "IPv4 tcp",
        ),
        (
            "-p udp -m a-match-of-tomorrow -j DROP",
            "a-match-of-tomorrow",
            "IPv4 udp",
        ),
        (
            "-p udp -j A-TARGET-OF-TOMORROW",
            "A-TARGET-OF-TOMORROW",
            "IPv4 udp",
        ),
    ] {
        let findings = forward(&[rule]);
        let found: Vec<&str> = findings
            .rules
            .iter()
            .map(|found| found.by.as_str())
            .collect();
        assert_eq!(found, [by], "{rule}");
        assert_eq!(left(&findings), [reach], "{rule}");
    }
}

#[test]
fn several_ports_are_several_matches() {
    let findings =
        forward(&["-p tcp -m multiport --dports 80,443,8000:8080 -m limit --limit 1/s -j DROP"]);
    assert_eq!(
        left(&findings),
        [
            "IPv4 tcp to port 80",
            "IPv4 tcp to port 443",
            "IPv4 tcp to ports 8000-8080"
        ]
    );
}

#[test]
fn look_alikes_change_no_verdict_about_what_could_be_fast() {
    for rule in [
        "-m limit --limit 3/min -j LOG --log-prefix \"[BLOCK] \"",
        "-m limit --limit 3/min -j LOGS",
        "-m limit --limit 3/min",
        "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m limit --limit 1/sec -j DROP",
        "-p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j DROP",
        "-p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG FIN,PSH,URG -j DROP",
        "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
        "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP",
        "-p tcp -m conntrack --ctstate NEW -m limit --limit 1/sec -j DROP",
        "-p tcp -m conntrack --ctstate NEW -m recent --update --seconds 60 --hitcount 4 --name x -j DROP",
        "-p icmp -m icmp --icmp-type 3/4 -m limit --limit 1/sec -j DROP",
        "-p gre -m limit --limit 1/sec -j DROP",
        "-p gre -m string --string x --algo bm -j DROP",
        "-i lo -m limit --limit 1/sec -j DROP",
        "-f -m limit --limit 1/sec -j DROP",
        "-m set --match-set bad src -j DROP",
        "-m recent --set --name x -j ACCEPT",
        "-m mark --mark 0x1/0x1 -j DROP",
        "-m comment --comment \"-m limit -j NFQUEUE\" -j ACCEPT",
        "-m conntrack --ctstate INVALID -m nfacct --nfacct-name  dropped -j DROP",
    ] {
        assert_harmless(&forward(&[rule]));
    }
}

/// Statements under a limit.
const LIMIT: &str = r#"{"limit": {"rate": 10, "burst": 5, "per": "second"}}, {"drop": null}"#;

#[test]
fn behind_the_acceptance_of_established_connections_tcp_is_not_judged() {
    let accept = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    let limit = "-m limit --limit 1/sec -j ACCEPT";
    assert_eq!(left(&forward(&[limit, accept])), ["IPv4"]);
    assert_eq!(
        left(&forward(&[accept, limit])),
        ["IPv4 udp and icmp echo and sctp"]
    );
    // Not all of them.
    for some in [
        "-o eth1",
        "! -i eth1",
        "! -s 10.0.0.0/8",
        "-m mark --mark 0x1",
        "-p tcp",
        "-m set --match-set x src",
    ] {
        let some = format!("{some} {accept}");
        assert_eq!(left(&forward(&[&some, limit])), ["IPv4"], "{some}");
    }
    let some = accept.replace("--ctstate", "--ctdir ORIGINAL --ctstate");
    assert_eq!(left(&forward(&[&some, limit])), ["IPv4"]);
    // With nftables.
    let states = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}"#;
    let map = r#"{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", {"drop": null}], ["established", {"accept": null}]]}}}"#;
    let mark = r#"{"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 1}}"#;
    let accept_nft = r#"{"accept": null}"#;
    for (first, reach) in [
        (
            format!("{states}, {accept_nft}"),
            "udp and icmp echo and sctp",
        ),
        (map.to_owned(), "udp and icmp echo and sctp"),
        (format!("{mark}, {states}, {accept_nft}"), "everything"),
        (format!("{mark}, {map}"), "everything"),
    ] {
        assert_eq!(left(&chain_of(&[&first, LIMIT])), [reach], "{first}");
    }
    // In a chain that everything goes through.
    let mut text = String::from(
        "*filter\n:FORWARD ACCEPT [0:0]\n:STATES - [0:0]\n-A FORWARD -j STATES\n-A FORWARD ",
    );
    text.push_str(limit);
    text.push_str("\n-A STATES ");
    text.push_str(accept);
    text.push_str("\nCOMMIT\n");
    assert_eq!(
        left(&find(&of_save(&text), &scope())),
        ["IPv4 udp and icmp echo and sctp"]
    );
    // What connection tracking is told to leave alone is in no state at all.
    let text = text.replace(
        "*filter\n",
        "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -j CT --notrack\nCOMMIT\n*filter\n",
    );
    assert_eq!(left(&find(&of_save(&text), &scope())), ["IPv4"]);
}

#[test]
fn a_return_under_a_limit_counts_if_something_follows() {
    let limit = "-m limit --limit 1/sec -j RETURN";
    assert_harmless(&forward(&[limit, "-j LOG"]));
    assert_eq!(left(&forward(&[limit, "-p udp -j DROP"])), ["IPv4"]);
}

#[test]
fn the_way_to_a_chain_narrows_what_its_rules_match() {
    let text = "*filter\n:FORWARD ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]\n\
                -A FORWARD -s 10.5.1.0/24 -j A\n-A FORWARD -s 10.5.2.0/24 -g A\n\
                -A A -p tcp -j B\n-A B -p tcp -m tcp --dport 25 -m string --string x --algo bm -j DROP\n\
                -A B -s 10.9.0.0/16 -m limit --limit 1/sec -j DROP\nCOMMIT\n";
    let findings = find(&of_save(text), &scope());
    assert_eq!(
        left(&findings),
        [
            "IPv4 tcp from 10.5.1.0/24 to port 25",
            "IPv4 tcp from 10.5.2.0/24 to port 25"
        ]
    );
    assert_eq!(findings.rules.len(), 1);
}

#[test]
fn what_concerns_tunnel_packets_concerns_everything_in_them() {
    let limit = "-m limit --limit 1/sec -j ACCEPT";
    assert_eq!(left(&rules("INPUT", &[limit])), ["IPv4 to pods"]);
    assert_eq!(left(&rules("OUTPUT", &[limit])), ["IPv4 from pods"]);
    let udp = format!("-i eth0 -p udp {limit}");
    assert_eq!(left(&rules("INPUT", &[&udp])), ["IPv4 to pods"]);
    for other in [
        "-p tcp",
        "-p udp -m udp --dport 53",
        "-i lo",
        "-i docker0",
        "-p icmp",
    ] {
        assert_harmless(&rules("INPUT", &[&format!("{other} {limit}")]));
    }
    let mut direct = scope();
    direct.ipv4_port = None;
    let text = format!("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT {limit}\nCOMMIT\n");
    assert_harmless(&find(&of_save(&text), &direct));
}

#[test]
fn a_helper_needs_both_directions() {
    let text = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp\nCOMMIT\n";
    assert_eq!(
        left(&find(&of_save(text), &scope())),
        ["IPv4 tcp to port 21", "IPv4 tcp from port 21"]
    );
}

#[test]
fn in_trusted_mode_neither_ports_nor_flags_tell_flows_apart() {
    let trusted = Scope {
        trusted: true,
        ..scope()
    };
    for rule in [
        "-s 10.5.1.2/32 -p tcp -m tcp --dport 80 -m string --string x --algo bm -j DROP",
        "-s 10.5.1.2/32 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m limit --limit 1/s -j DROP",
        "-s 10.5.1.2/32 -p tcp -m conntrack --ctstate NEW -m limit --limit 1/s -j DROP",
    ] {
        let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {rule}\nCOMMIT\n");
        let findings = find(&of_save(&text), &trusted);
        assert_eq!(left(&findings), ["IPv4 from 10.5.1.2/32"], "{rule}");
    }
}

#[test]
fn expressions_of_nftables_that_judge_single_packets_are_found() {
    const DROP: &str = r#"{"drop": null}"#;
    const DPORT: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}}"#;
    for (expression, by, reach) in [
        (
            r#"{"match": {"op": "==", "left": {"payload": {"base": "th", "offset": 64, "len": 32}}, "right": 1}}"#,
            "payload",
            "tcp to port 80",
        ),
        (
            r#"{"limit": {"rate": 10, "burst": 5, "per": "second"}}"#,
            "limit",
            "tcp to port 80",
        ),
        (r#"{"limit": "named"}"#, "limit", "tcp to port 80"),
        (
            r#"{"quota": {"val": 5, "val_unit": "mbytes"}}"#,
            "quota",
            "tcp to port 80",
        ),
        (
            r#"{"ct count": {"val": 5, "inv": true}}"#,
            "ct count",
            "tcp to port 80",
        ),
        (
            r#"{"match": {"op": "==", "left": {"numgen": {"mode": "random", "mod": 2, "offset": 0}}, "right": 0}}"#,
            "numgen",
            "tcp to port 80",
        ),
        (
            r#"{"match": {"op": ">", "left": {"meta": {"key": "length"}}, "right": 9}}"#,
            "meta length",
            "tcp to port 80",
        ),
        (
            r#"{"match": {"op": ">", "left": {"ct": {"key": "bytes"}}, "right": 9}}"#,
            "ct bytes",
            "tcp to port 80",
        ),
        (
            r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "dscp"}}, "right": "cs1"}}"#,
            "ip dscp",
            "IPv4 tcp to port 80",
        ),
        (
            r#"{"match": {"op": "==", "left": {"tcp option": {"name": "timestamp"}}, "right": true}}"#,
            "tcp option",
            "tcp to port 80",
        ),
        (
            r#"{"set": {"op": "add", "elem": {"payload": {"protocol": "ip", "field": "saddr"}}, "set": "@s", "stmt": [{"limit": {"rate": 5, "burst": 5, "per": "second", "inv": true}}]}}"#,
            "limit",
            "tcp to port 80",
        ),
        (
            r#"{"dup": {"addr": "1.2.3.4", "dev": "lo"}}"#,
            "dup",
            "tcp to port 80",
        ),
        (r#"{"queue": {"num": 3}}"#, "queue", "tcp to port 80"),
        (
            r#"{"a statement of tomorrow": null}"#,
            "a statement of tomorrow",
            "tcp to port 80",
        ),
        (
            r#"{"match": {"op": "==", "left": {"an expression of tomorrow": {}}, "right": 1}}"#,
            "an expression of tomorrow",
            "tcp to port 80",
        ),
        (
            r#"{"xt": {"type": "match", "name": "string"}}"#,
            "string",
            "tcp to port 80",
        ),
        (
            r#"{"mangle": {"key": {"payload": {"base": "th", "offset": 64, "len": 8}}, "value": 1}}"#,
            "payload",
            "tcp to port 80",
        ),
    ] {
        let findings = statements(&format!("{DPORT}, {expression}, {DROP}"));
        let found: Vec<&str> = findings
            .rules
            .iter()
            .map(|found| found.by.as_str())
            .collect();
        assert_eq!(found, [by], "{expression}");
        assert_eq!(left(&findings), [reach], "{expression}");
    }
}

#[test]
fn expressions_of_nftables_that_are_about_flows_are_not() {
    for expressions in [
        r#"{"limit": {"rate": 5, "burst": 5, "per": "minute"}}, {"log": {"prefix": "x"}}"#,
        r#"{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", {"drop": null}], ["established", {"accept": null}]]}}}"#,
        r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@bad"}}, {"drop": null}"#,
        r#"{"match": {"op": "==", "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "rst"]]}, "right": "syn"}}, {"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": {"rt": {"key": "mtu"}}}}"#,
        r#"{"match": {"op": "in", "left": {"payload": {"protocol": "tcp", "field": "flags"}}, "right": "syn"}}, {"limit": {"rate": 5, "burst": 5, "per": "second"}}, {"drop": null}"#,
        r#"{"match": {"op": "!", "left": {"payload": {"protocol": "tcp", "field": "flags"}}, "right": ["fin", "syn", "rst", "psh", "ack", "urg"]}}, {"drop": null}"#,
        r#"{"match": {"op": "!=", "left": {"&": [{"payload": {"protocol": "ip", "field": "frag-off"}}, 8191]}, "right": 0}}, {"drop": null}"#,
        r#"{"match": {"op": "==", "left": {"exthdr": {"name": "rt", "field": "type"}}, "right": 0}}, {"drop": null}"#,
        r#"{"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["saddr"]}}, "right": "local"}}, {"drop": null}"#,
        r#"{"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 16384]}, "right": 16384}}, {"drop": null}"#,
        r#"{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"ct": {"key": "mark"}}}}"#,
        r#"{"mangle": {"key": {"payload": {"protocol": "ip", "field": "dscp"}}, "value": "cs1"}}"#,
        r#"{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "icmpv6"}}, {"match": {"op": "==", "left": {"payload": {"protocol": "icmpv6", "field": "type"}}, "right": {"set": ["nd-router-advert"]}}}, {"limit": {"rate": 5, "burst": 5, "per": "second"}}, {"drop": null}"#,
        r#"{"xt": {"type": "match", "name": "limit"}}, {"xt": {"type": "target", "name": "LOG"}}"#,
        r#"{"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "lo"}}, {"limit": {"rate": 5, "burst": 5, "per": "second"}}, {"drop": null}"#,
        r#"{"flow": {"op": "add", "flowtable": "@f"}}"#,
    ] {
        assert_harmless(&statements(expressions));
    }
}

#[test]
fn a_truncated_or_strange_listing_is_an_error_or_nothing_and_never_a_panic() {
    let whole = include_str!("fixtures/docker.json");
    for end in (0..whole.len())
        .step_by(97)
        .filter(|&end| whole.is_char_boundary(end))
    {
        assert!(nft::read(&whole[..end], &mut Ruleset::default()).is_err());
    }
    assert!(nft::read("{}", &mut Ruleset::default()).is_err());
    for odd in [
        r#"{"nftables": [1, null, {}, {"rule": 1}, {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [1, {}, {"match": 1}, {"vmap": null}, {"mangle": 3}, {"set": []}, {"jump": null}]}}]}"#,
        r#"{"other": {}, "nftables": []}"#,
    ] {
        let mut ruleset = Ruleset::default();
        nft::read(odd, &mut ruleset).unwrap();
        find(&ruleset, &scope());
    }
    for odd in [
        "-A",
        "*filter\n-A FORWARD -j",
        "*filter\n:\n-A FORWARD -p\nCOMMIT",
        "COMMIT\n\"\\",
    ] {
        find(&of_save(odd), &scope());
    }
}

#[test]
fn jumps_in_a_circle_end() {
    let text = "*filter\n:FORWARD ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]\n-A FORWARD -j A\n\
                -A A -j B\n-A B -s 10.0.0.0/8 -j A\n-A B -m limit --limit 1/s -j A\nCOMMIT\n";
    find(&of_save(text), &scope());
}

/// A packet from one pod to another, as the programs see it.
fn packet(direction: u8, protocol: u8, dst_port: u16) -> Packet<V4> {
    Packet {
        src: [10, 5, 1, 2].into_addr(),
        dst: [10, 5, 2, 2].into_addr(),
        src_port: 40_000,
        dst_port,
        protocol,
        direction,
    }
}

trait IntoAddr {
    fn into_addr(self) -> overlay_common::addr::Ipv4Be;
}

impl IntoAddr for [u8; 4] {
    fn into_addr(self) -> overlay_common::addr::Ipv4Be {
        std::net::Ipv4Addr::from(self).into()
    }
}

fn is_slow(slow: &Slow, packet: &Packet<V4>) -> bool {
    match slow.ipv4_count {
        EVERY_FLOW => true,
        count => slow.ipv4[..count as usize]
            .iter()
            .any(|entry| entry.contains(packet)),
    }
}

#[test]
fn the_programs_are_told_what_the_rule_can_match_and_no_more() {
    let slow = of_findings(&forward(&[
        "-s 10.5.1.0/24 -o flannel.1 -p tcp -m tcp --dport 80:81 -m string --string x --algo bm -j DROP",
    ]));
    assert_eq!((slow.ipv4_count, slow.ipv6_count), (1, 0));
    assert!(is_slow(&slow, &packet(EGRESS, TCP, 80)));
    assert!(is_slow(&slow, &packet(EGRESS, TCP, 81)));
    assert!(!is_slow(&slow, &packet(EGRESS, TCP, 79)));
    assert!(!is_slow(&slow, &packet(EGRESS, TCP, 82)));
    assert!(!is_slow(&slow, &packet(EGRESS, UDP, 80)));
    assert!(!is_slow(&slow, &packet(EGRESS, ICMP, 0)));
    assert!(!is_slow(&slow, &packet(INGRESS, TCP, 80)));
    let elsewhere = Packet {
        src: [10, 5, 3, 2].into_addr(),
        ..packet(EGRESS, TCP, 80)
    };
    assert!(!is_slow(&slow, &elsewhere));
}

#[test]
fn more_rules_than_fit_are_merged_and_none_is_lost() {
    let many: Vec<String> = (1..200)
        .map(|port| format!("-p tcp -m tcp --dport {port} -m string --string x --algo bm -j DROP"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let slow = of_findings(&forward(&many));
    assert_eq!(slow.ipv4_count, 1);
    assert!(is_slow(&slow, &packet(EGRESS, TCP, 150)));
    assert!(!is_slow(&slow, &packet(EGRESS, UDP, 150)));
    let report = Report::of(&slow).unwrap();
    assert!(report.rules.len() > 5, "{report:?}");
    assert_eq!(report.rules.len() + report.more, 199);
}

#[test]
fn what_matches_everything_is_every_flow() {
    let slow = of_findings(&forward(&["-j NFQUEUE --queue-num 1"]));
    assert_eq!((slow.ipv4_count, slow.ipv6_count), (EVERY_FLOW, 0));
    let slow = everything("the rules cannot be read");
    assert_eq!((slow.ipv4_count, slow.ipv6_count), (EVERY_FLOW, EVERY_FLOW));
    let report = Report::of(&slow).unwrap();
    assert_eq!(report.problem.as_deref(), Some("the rules cannot be read"));
}

#[test]
fn rules_that_tell_tunnel_packets_of_a_node_apart_are_found_by_direction() {
    for (chain, rule, directions) in [
        (
            "OUTPUT",
            "-p udp -m udp --sport 40000:50000 -j DROP",
            EGRESS,
        ),
        ("OUTPUT", "-p udp -m udp ! --sport 53 -j DROP", EGRESS),
        (
            "INPUT",
            "-p udp -m multiport --sports 40000,40001 -j DROP",
            INGRESS,
        ),
        ("OUTPUT", "-m owner --uid-owner 1000 -j REJECT", EGRESS),
        (
            "OUTPUT",
            "-o eth0 -m owner --uid-owner 1000 -j MARK --set-xmark 0x1/0xffffffff",
            EGRESS,
        ),
        ("INPUT", "-m set --match-set blocked src -j DROP", INGRESS),
        (
            "INPUT",
            "-p udp -m udp --dport 8472 -m limit --limit 5/sec -j ACCEPT",
            INGRESS,
        ),
        (
            "INPUT",
            "-p udp -m udp --dport 8472 -m conntrack --ctstate NEW -j DROP",
            INGRESS,
        ),
        (
            "OUTPUT",
            "-m conntrack --ctstate NEW,UNTRACKED -j DROP",
            EGRESS,
        ),
        // Of no tunnel packet, or of all of a node's alike, or of no consequence.
        ("OUTPUT", "-p tcp -m tcp --sport 22 -j ACCEPT", 0),
        ("OUTPUT", "-p udp -m udp --sport 68 --dport 67 -j ACCEPT", 0),
        ("OUTPUT", "-o lo -m owner --uid-owner 1000 -j DROP", 0),
        (
            "INPUT",
            "-p udp -m udp --dport 8472 -s 192.168.0.0/24 -j ACCEPT",
            0,
        ),
        (
            "INPUT",
            "-p udp -m udp --dport 8472 -m mark --mark 0x1 -j DROP",
            0,
        ),
        ("INPUT", "-m conntrack --ctstate INVALID -j DROP", 0),
        (
            "INPUT",
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            0,
        ),
        (
            "INPUT",
            "-p tcp -m conntrack --ctstate NEW -m tcp --dport 22 -j ACCEPT",
            0,
        ),
        ("OUTPUT", "-p udp -m udp --sport 40000 -j LOGS", 0),
        ("FORWARD", "-p udp -m udp --sport 40000 -j DROP", 0),
    ] {
        let findings = rules(chain, &[rule]);
        assert_eq!(findings.outer, directions, "{chain} {rule}");
    }
    assert_eq!(
        of_findings(&rules("OUTPUT", &["-m owner --uid-owner 1 -j DROP"])).outer,
        u32::from(EGRESS)
    );
    assert_eq!(everything("x").outer, u32::from(EGRESS | INGRESS));
}

#[test]
fn expressions_of_nftables_that_tell_tunnel_packets_of_a_node_apart_are_found() {
    for (statement, is_found) in [
        (
            r#"{"match": {"op": "!=", "left": {"payload": {"protocol": "udp", "field": "sport"}}, "right": 9}}"#,
            true,
        ),
        (
            r#"{"match": {"op": "==", "left": {"payload": {"protocol": "th", "field": "sport"}}, "right": "@ports"}}"#,
            true,
        ),
        (
            r#"{"match": {"op": "==", "left": {"meta": {"key": "skuid"}}, "right": 1000}}"#,
            true,
        ),
        (
            r#"{"match": {"op": "==", "left": {"concat": [{"payload": {"protocol": "ip", "field": "saddr"}},
            {"payload": {"protocol": "udp", "field": "sport"}}]}, "right": "@peers"}}"#,
            true,
        ),
        (
            r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@peers"}}"#,
            false,
        ),
        (
            r#"{"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 1}}"#,
            false,
        ),
    ] {
        let text = format!(
            r#"{{"nftables": [{{"table": {{"family": "inet", "name": "t", "handle": 1}}}},
                {{"chain": {{"family": "inet", "table": "t", "name": "o", "handle": 1, "type": "filter",
                    "hook": "output", "prio": 0, "policy": "accept"}}}},
                {{"rule": {{"family": "inet", "table": "t", "chain": "o", "handle": 2,
                    "expr": [{statement}, {{"drop": null}}]}}}}]}}"#
        );
        let findings = find(&of_nft(&text), &scope());
        assert_eq!(findings.outer == EGRESS, is_found, "{statement}");
    }
}
