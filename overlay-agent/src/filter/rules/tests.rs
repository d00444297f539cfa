use super::*;

fn v4() -> PodNetwork {
    PodNetwork::v4(
        "10.5.0.0/16".parse().unwrap(),
        "10.5.34.1/24".parse().unwrap(),
    )
}

fn v6() -> PodNetwork {
    PodNetwork::v6(
        "2001:cafe:42::/56".parse().unwrap(),
        "2001:cafe:42:3::1/64".parse().unwrap(),
    )
}

fn settings() -> Settings {
    Settings {
        mode: Mode::Nftables,
        masquerade: Masquerade::On { fully_random: true },
        forward: true,
        keep_pod_source: true,
        networks: vec![v4()],
    }
}

const ALL: Dialect = Dialect {
    comments: true,
    fully_random: true,
};

fn listing(chain: &ChainSpec) -> String {
    let mut text = format!("-A {} {}\n-N {}\n", chain.hook, chain.jump, chain.name);
    for rule in chain.rules.as_deref().unwrap_or_default() {
        _ = writeln!(text, "-A {} {rule}", chain.name);
    }
    text
}

#[test]
fn iptables_masquerade_rules_are_flannels() {
    assert_eq!(
        listing(&masquerade_chain(Some(&v4()), true)),
        "\
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-N FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.34.0/24 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.34.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.34.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
"
    );
}

#[test]
fn iptables_masquerade_rules_do_without_random_ports() {
    let chain = masquerade_chain(Some(&v6()), false);
    let rules = chain.rules.unwrap();
    assert_eq!(
        rules[4],
        "-s 2001:cafe:42::/56 ! -d ff00::/8 -m comment --comment \"flanneld masq\" -j MASQUERADE"
    );
    assert_eq!(
        rules[1],
        "-s 2001:cafe:42:3::/64 -d 2001:cafe:42::/56 -m comment --comment \"flanneld masq\" -j RETURN"
    );
}

#[test]
fn iptables_forward_rules_are_flannels() {
    assert_eq!(
        listing(&forward_chain(Some(&v4()))),
        "\
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-N FLANNEL-FWD
-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
"
    );
}

#[test]
fn nftables_rules_are_flannels_with_the_mark_masked_and_the_fourth_rule_of_iptables() {
    assert_eq!(
        flannel_table(&v4(), &settings(), ALL).text,
        "\
table ip flannel-ipv4 {
	comment \"rules for flannel-ipv4\"
	chain postrtg {
		comment \"chain to manage traffic masquerading by flannel\"
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		ip saddr 10.5.34.0/24 ip daddr 10.5.0.0/16 return
		ip saddr 10.5.0.0/16 ip daddr 10.5.34.0/24 return
		ip saddr != 10.5.0.0/16 ip daddr 10.5.34.0/24 return
		ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random
	}

	chain forward {
		comment \"chain to accept flannel traffic\"
		type filter hook forward priority filter; policy accept;
		ip saddr 10.5.0.0/16 accept
		ip daddr 10.5.0.0/16 accept
	}
}
"
    );
}

#[test]
fn nftables_rules_of_ipv6_use_the_ipv6_words() {
    let table = flannel_table(&v6(), &settings(), ALL);
    assert!(
        table.text.starts_with("table ip6 flannel-ipv6 {\n"),
        "{}",
        table.text
    );
    assert!(
        table
            .text
            .contains("ip6 saddr 2001:cafe:42::/56 ip6 daddr != ff00::/8 masquerade fully-random"),
        "{}",
        table.text
    );
}

#[test]
fn a_flannel_table_without_rules_is_still_a_table() {
    let settings = Settings {
        masquerade: Masquerade::Off,
        forward: false,
        ..settings()
    };
    let dialect = Dialect {
        comments: false,
        fully_random: true,
    };
    assert_eq!(
        flannel_table(&v4(), &settings, dialect).text,
        "table ip flannel-ipv4 {\n}\n"
    );
}

#[test]
fn pod_source_is_decided_one_step_before_other_nat_chains() {
    assert_eq!(
        pod_source_table(&v4(), ALL).text,
        "\
table ip overlay-agent {
	comment \"rules of overlay-agent beside flannel's\"
	chain pod-source {
		comment \"traffic between pods keeps its source address\"
		type nat hook postrouting priority srcnat - 1; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		ip daddr 10.5.34.0/24 return
		ip saddr 10.5.0.0/16 ip daddr 10.5.0.0/16 snat to ip saddr
	}
}
"
    );
}

#[test]
fn pod_source_comes_first_in_iptables() {
    let chain = pod_source_chain(Some(&v4()));
    assert_eq!(chain.place, Place::First);
    assert_eq!(
        listing(&chain),
        "\
-A POSTROUTING -m comment --comment \"overlay pod source\" -j OVERLAY-PODSRC
-N OVERLAY-PODSRC
-A OVERLAY-PODSRC -m mark --mark 0x4000/0x4000 -m comment --comment \"overlay pod source\" -j RETURN
-A OVERLAY-PODSRC -d 10.5.34.0/24 -m comment --comment \"overlay pod source\" -j RETURN
-A OVERLAY-PODSRC -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment \"overlay pod source\" -j ACCEPT
"
    );
}

#[test]
fn chainless_rules_of_old_flannel_are_known_with_and_without_comment() {
    let rules = chainless_rules(&v4());
    let texts: Vec<&str> = rules.iter().map(|(_, _, rule)| rule.as_str()).collect();
    assert!(
        texts.contains(&"-s 10.5.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE"),
        "{texts:#?}"
    );
    assert!(
        texts.contains(&"-d 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT"),
        "{texts:#?}"
    );
}
