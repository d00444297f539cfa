use super::*;
use crate::{
    check::Saved,
    trace::packet::{Packet, Protocol},
};

fn seen() -> Seen {
    Seen {
        packet: Packet {
            protocol: Protocol::Tcp,
            source: "10.5.1.2".parse().unwrap(),
            source_port: None,
            destination: "10.5.2.3".parse().unwrap(),
            destination_port: Some(80),
        },
        incoming: Some("cni0".to_owned()),
        outgoing: Some("flannel.1".to_owned()),
        is_established: false,
    }
}

fn iptables(lines: &str) -> Rules {
    let saved = Saved::parse("iptables-nft".to_owned(), false, false, lines);
    Rules {
        iptables: vec![saved],
        ..Rules::default()
    }
}

fn of(lines: &str) -> Passage {
    let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n{lines}\nCOMMIT\n");
    passage(&iptables(&text), &seen(), Course::Forwarded)
}

fn dropped(passage: &Passage) -> &str {
    match passage {
        Passage::Dropped { by } => by,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_rule_that_holds_decides() {
    let drop = "-A FORWARD -d 10.5.2.0/24 -p tcp -m tcp --dport 80 -j DROP";
    let accept = "-A FORWARD -s 10.5.0.0/16 -i cni0 -o flannel+ -j ACCEPT";
    assert_eq!(of(""), Passage::Accepted);
    assert!(dropped(&of(drop)).contains("--dport 80"));
    assert_eq!(of(&format!("{accept}\n{drop}")), Passage::Accepted);
    assert!(dropped(&of(&format!("{drop}\n{accept}"))).contains("of filter FORWARD"));
    for other in [
        "-A FORWARD -d 10.5.3.0/24 -j DROP",
        "-A FORWARD ! -d 10.5.2.0/24 -j DROP",
        "-A FORWARD -p udp -m udp --dport 80 -j REJECT",
        "-A FORWARD -p tcp -m tcp --dport 81:90 -j DROP",
        "-A FORWARD -i eth0 -j DROP",
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j DROP",
        "-A FORWARD -p tcp -m multiport --dports 81,443 -j DROP",
    ] {
        assert_eq!(of(other), Passage::Accepted, "{other}");
    }
}

#[test]
fn chains_are_followed_and_left_again() {
    let jump =
        "-A FORWARD -j X\n-A X -s 10.5.9.0/24 -j DROP\n-A X -s 10.5.1.0/24 -j RETURN\n-A X -j DROP";
    assert_eq!(of(jump), Passage::Accepted);
    let dropping =
        "-A FORWARD -m comment --comment \"a -j ACCEPT b\" -j X\n-A X -j Y\n-A Y -j REJECT";
    assert!(dropped(&of(dropping)).contains("-A Y -j REJECT"));
}

#[test]
fn what_the_packet_does_not_tell_leaves_the_verdict_unclear_only_where_it_matters() {
    let marked = "-A FORWARD -m mark --mark 0x1 -j DROP";
    assert!(matches!(of(marked), Passage::Unclear { by } if by.contains("--mark 0x1")));
    let before = format!("-A FORWARD -j ACCEPT\n{marked}");
    assert_eq!(of(&before), Passage::Accepted);
    let may_accept = "-A FORWARD -m set --match-set x src -j ACCEPT\n-A FORWARD -j DROP";
    assert!(matches!(of(may_accept), Passage::Unclear { by } if by.contains("unless")));
    // A source port was not given.
    let by_port = "-A FORWARD -p tcp -m tcp --sport 1024 -j DROP";
    assert!(matches!(of(by_port), Passage::Unclear { .. }));
}

#[test]
fn a_policy_is_the_last_word() {
    let text = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n";
    let passage = passage(&iptables(text), &seen(), Course::Forwarded);
    assert!(dropped(&passage).contains("the policy of filter FORWARD"));
}

fn nft(rules: &str, drops: bool) -> Passage {
    let text = format!(
        "table inet fw {{\n\tset x {{\n\t\ttype ipv4_addr\n\t}}\n\tchain through {{\n\
         \t\ttype filter hook forward priority 10; policy accept;\n\t\t{rules}\n\t}}\n\
         \tchain more {{\n\t\tudp dport 53 accept\n\t\tdrop\n\t}}\n}}\n"
    );
    let rules = Rules {
        base_chains: vec![BaseChain {
            table: "inet fw".to_owned(),
            chain: "through".to_owned(),
            hook: "forward".to_owned(),
            drops,
            text,
        }],
        ..Rules::default()
    };
    passage(&rules, &seen(), Course::Forwarded)
}

#[test]
fn chains_of_nftables_are_read_as_well() {
    for accepting in [
        "ip daddr 10.5.3.0/24 drop",
        "ip daddr != { 10.5.2.0/24, 10.5.4.0/24 } drop",
        "udp dport 80 drop",
        "iifname \"eth*\" counter packets 3 bytes 4 drop",
        "ct state established,related drop",
        "ip6 saddr fd00::/8 drop",
    ] {
        assert_eq!(nft(accepting, false), Passage::Accepted, "{accepting}");
    }
    for dropping in [
        "ip daddr 10.5.2.0/24 counter packets 3 bytes 4 drop",
        "tcp dport { 22, 80-90 } reject with tcp reset",
        "meta l4proto tcp jump more",
        "oifname \"flannel.1\" log prefix \"no \" drop",
    ] {
        assert!(dropped(&nft(dropping, false)).contains("in table inet fw"));
    }
    assert!(dropped(&nft("ct state established accept", true)).contains("the policy"));
    assert!(matches!(
        nft("ip saddr @x drop", false),
        Passage::Unclear { .. }
    ));
}

#[test]
fn other_chains_are_not_met() {
    let text = "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT\n";
    let rules = iptables(text);
    assert_eq!(
        passage(&rules, &seen(), Course::Forwarded),
        Passage::Accepted
    );
    assert!(dropped(&passage(&rules, &seen(), Course::Received)).contains("-A INPUT"));
}
