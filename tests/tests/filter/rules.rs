//! The packet filter rules in a real kernel: installed exactly, left alone when right, removed
//! without touching anybody else's, in both modes and both variants of iptables.

use overlay_agent::filter::{
    Filter, FilterError, Masquerade, Mode, PodNetwork, Settings, cleanup, iptables::Variant,
};

use crate::support::{Host, Tools, settings, v4, v6};

const BOTH: [Variant; 2] = [Variant::Nft, Variant::Legacy];

const NAT_RULES: &str = "\
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 172.7.21.0/24 -d 172.7.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 172.7.0.0/16 -d 172.7.21.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG ! -s 172.7.0.0/16 -d 172.7.21.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 172.7.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 172.7.0.0/16 -d 172.7.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
";

const FORWARD_RULES: &str = "\
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A FLANNEL-FWD -s 172.7.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d 172.7.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
";

const NFT_RULES: &str = "\
table ip flannel-ipv4 {
	comment \"rules for flannel-ipv4\"
	chain postrtg {
		comment \"chain to manage traffic masquerading by flannel\"
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		ip saddr 172.7.21.0/24 ip daddr 172.7.0.0/16 return
		ip saddr 172.7.0.0/16 ip daddr 172.7.21.0/24 return
		ip saddr != 172.7.0.0/16 ip daddr 172.7.21.0/24 return
		ip saddr 172.7.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 172.7.0.0/16 ip daddr 172.7.0.0/16 masquerade fully-random
	}

	chain forward {
		comment \"chain to accept flannel traffic\"
		type filter hook forward priority filter; policy accept;
		ip saddr 172.7.0.0/16 accept
		ip daddr 172.7.0.0/16 accept
	}
}
";

/// What other programs of the host have configured: Docker, kube-proxy, a firewall.
fn add_foreign_rules(host: &Host, variant: Variant) {
    let suffix = variant;
    for rule in [
        "-t nat -A POSTROUTING -s 172.7.21.0/24 ! -o docker0 -j MASQUERADE",
        "-t nat -N KUBE-POSTROUTING",
        "-t nat -A POSTROUTING -j KUBE-POSTROUTING",
        "-t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-P FORWARD DROP",
        "-A FORWARD -s 172.7.0.0/16 -j ACCEPT",
    ] {
        host.run(&format!("iptables-{suffix} {rule}"));
    }
    host.run(&format!(
        "ip6tables-{suffix} -t nat -A POSTROUTING -s fd00::/8 -j MASQUERADE"
    ));
    host.run(&format!(
        "ip6tables-{suffix} -A FORWARD -s fd00::/8 -j DROP"
    ));
}

fn appended(listing: &str) -> String {
    listing
        .lines()
        .filter(|line| line.starts_with("-A"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

#[test]
fn iptables_rules_are_flannels_in_both_variants() {
    for default in BOTH {
        let host = Host::new();
        host.apply(&Tools::all(default), settings(Mode::Iptables));
        let iptables = format!("iptables-{default}");
        let nat = host.run(&format!("{iptables} -t nat -S"));
        assert_eq!(appended(&nat), NAT_RULES, "{default:?}");
        let filter = host.run(&format!("{iptables} -S"));
        assert_eq!(appended(&filter), FORWARD_RULES, "{default:?}");
    }
}

#[test]
fn nftables_rules_are_flannels() {
    let host = Host::new();
    let dual = Settings {
        networks: vec![v4(), v6()],
        ..settings(Mode::Nftables)
    };
    host.apply(&Tools::all(Variant::Nft), dual);
    assert_eq!(host.run("nft list table ip flannel-ipv4"), NFT_RULES);
    let v6 = NFT_RULES
        .replace("table ip ", "table ip6 ")
        .replace("ip saddr", "ip6 saddr")
        .replace("ip daddr", "ip6 daddr")
        .replace("flannel-ipv4", "flannel-ipv6")
        .replace("172.7.21.0/24", "fd07:0:21::/64")
        .replace("172.7.0.0/16", "fd07::/32")
        .replace("224.0.0.0/4", "ff00::/8");
    assert_eq!(host.run("nft list table ip6 flannel-ipv6"), v6);
}

#[test]
fn ip6tables_rules_are_the_twins_of_the_iptables_rules() {
    let host = Host::new();
    let v6_only = Settings {
        networks: vec![v6()],
        ..settings(Mode::Iptables)
    };
    host.apply(&Tools::all(Variant::Nft), v6_only);
    let nat = NAT_RULES
        .replace("172.7.21.0/24", "fd07:0:21::/64")
        .replace("172.7.0.0/16", "fd07::/32")
        .replace("224.0.0.0/4", "ff00::/8");
    assert_eq!(appended(&host.run("ip6tables-nft -t nat -S")), nat);
    assert_eq!(appended(&host.run("iptables-nft -t nat -S")), "");
}

#[test]
fn without_ipv6_there_is_no_ipv6_table() {
    let host = Host::new();
    host.apply(&Tools::all(Variant::Nft), settings(Mode::Nftables));
    let tables = host.run("nft list tables");
    assert!(!tables.contains("ip6 "), "{tables}");
}

#[test]
fn the_second_run_changes_nothing() {
    for mode in [Mode::Iptables, Mode::Nftables] {
        for default in BOTH {
            for tools in [Tools::all(default), Tools::iptables(default)] {
                let host = Host::new();
                add_foreign_rules(&host, default);
                let dual = Settings {
                    networks: vec![v4(), v6()],
                    ..settings(mode)
                };
                let first = host.apply(&tools, dual.clone());
                assert!(!first.is_empty());
                let generation = host.run("nft list ruleset");
                let second = host.apply(&tools, dual);
                assert!(second.is_empty(), "{mode:?} {default:?}: {second:?}");
                assert_eq!(
                    host.run("nft list ruleset"),
                    generation,
                    "{mode:?} {default:?}"
                );
            }
        }
    }
}

#[test]
fn rules_that_are_not_asked_for_are_removed() {
    for mode in [Mode::Iptables, Mode::Nftables] {
        let host = Host::new();
        let tools = Tools::all(Variant::Nft);
        let before = host.iptables_rules(Variant::Nft);
        host.apply(&tools, settings(mode));
        let nothing = Settings {
            masquerade: Masquerade::Off,
            forward: false,
            keep_pod_source: false,
            ..settings(mode)
        };
        host.apply(&tools, nothing);
        assert_eq!(host.iptables_rules(Variant::Nft), before, "{mode:?}");
        let ruleset = host.run("nft list ruleset");
        assert!(!ruleset.contains("flannel traffic"), "{mode:?}:\n{ruleset}");
        assert!(!ruleset.contains("pod-source"), "{mode:?}:\n{ruleset}");
    }
}

#[test]
fn a_changed_network_replaces_the_rules() {
    for mode in [Mode::Iptables, Mode::Nftables] {
        let host = Host::new();
        let tools = Tools::all(Variant::Nft);
        host.apply(&tools, settings(mode));
        let moved = PodNetwork::v4(
            "10.9.0.0/16".parse().unwrap(),
            "10.9.3.0/24".parse().unwrap(),
        );
        host.apply(
            &tools,
            Settings {
                networks: vec![moved],
                ..settings(mode)
            },
        );
        let ruleset = host.run("nft list ruleset");
        assert!(ruleset.contains("10.9.3.0/24"), "{mode:?}:\n{ruleset}");
        assert!(!ruleset.contains("172.7."), "{mode:?}:\n{ruleset}");
    }
}

#[test]
fn rules_of_old_flannel_for_the_previous_network_are_removed_and_no_others() {
    for default in BOTH {
        let host = Host::new();
        let iptables = format!("iptables-{default}");
        let keep = "-A POSTROUTING -s 10.9.0.0/16 -o eth7 -j MASQUERADE\n";
        for rule in [
            "-s 10.9.0.0/16 -d 10.9.0.0/16 -j RETURN",
            "-s 10.9.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
            "! -s 10.9.0.0/16 -d 10.9.3.0/24 -j RETURN",
            "! -s 10.9.0.0/16 -d 10.9.0.0/16 -j MASQUERADE",
            "-s 10.9.0.0/16 -o eth7 -j MASQUERADE",
        ] {
            host.run(&format!("{iptables} -t nat -A POSTROUTING {rule}"));
        }
        let previous = PodNetwork::v4(
            "10.9.0.0/16".parse().unwrap(),
            "10.9.3.0/24".parse().unwrap(),
        );
        let tools = Tools::all(default);
        host.block_on(async {
            let nft = settings(Mode::Nftables);
            let mut filter = Filter::open(nft, tools.executor()).await.unwrap();
            filter.ensure().await.unwrap();
            filter.remove_strays(&[previous]).await;
        });
        assert_eq!(
            appended(&host.run(&format!("{iptables} -t nat -S"))),
            keep,
            "{default:?}"
        );
    }
}

#[test]
fn switching_the_mode_leaves_nothing_of_the_other_one() {
    for default in BOTH {
        let host = Host::new();
        let tools = Tools::all(default);
        add_foreign_rules(&host, default);
        let without_ours = host.iptables_rules(default);
        host.apply(&tools, settings(Mode::Iptables));
        host.apply(&tools, settings(Mode::Nftables));
        assert_eq!(host.iptables_rules(default), without_ours, "{default:?}");
        assert_eq!(host.run("nft list table ip flannel-ipv4"), NFT_RULES);
        host.apply(&tools, settings(Mode::Iptables));
        let tables = host.run("nft list tables");
        assert!(!tables.contains("flannel"), "{default:?}: {tables}");
    }
}

#[test]
fn rules_flanneld_wrote_into_the_other_variant_are_removed() {
    for default in BOTH {
        let host = Host::new();
        let other = match default {
            Variant::Nft => Variant::Legacy,
            Variant::Legacy => Variant::Nft,
        };
        let untouched = host.iptables_rules(other);
        let before = Tools::iptables(other);
        host.apply(&before, settings(Mode::Iptables));
        // The administrator has switched the alternative and Docker has restarted since.
        add_foreign_rules(&host, default);
        host.apply(&Tools::all(default), settings(Mode::Iptables));
        assert_eq!(host.iptables_rules(other), untouched, "{default:?}");
        let nat = host.run(&format!("iptables-{default} -t nat -S FLANNEL-POSTRTG"));
        assert!(nat.contains("MASQUERADE"), "{nat}");
    }
}

#[test]
fn the_variant_that_the_other_programs_use_is_used() {
    let host = Host::new();
    add_foreign_rules(&host, Variant::Legacy);
    host.apply(&Tools::all(Variant::Nft), settings(Mode::Iptables));
    let legacy = host.iptables_rules(Variant::Legacy);
    assert!(legacy.contains("FLANNEL-FWD"), "{legacy}");
    let nft = host.iptables_rules(Variant::Nft);
    assert!(!nft.contains("FLANNEL"), "{nft}");
}

#[test]
fn legacy_tables_are_not_created_by_looking_for_them() {
    let host = Host::new();
    host.apply(&Tools::all(Variant::Nft), settings(Mode::Nftables));
    host.block_on(async { cleanup(&Tools::all(Variant::Nft).executor(), false).await });
    let tables = host.run("cat /proc/self/net/ip_tables_names /proc/self/net/ip6_tables_names");
    assert_eq!(tables, "");
}

#[test]
fn cleanup_removes_ours_of_every_kind_and_nothing_else() {
    let host = Host::new();
    for variant in BOTH {
        add_foreign_rules(&host, variant);
    }
    host.run("nft add table ip foreign");
    host.run("nft add table inet flannel-ipv4");
    let all_rules = || {
        format!(
            "{}{}{}",
            host.iptables_rules(Variant::Nft),
            host.iptables_rules(Variant::Legacy),
            host.run("nft list ruleset")
        )
    };
    let before = all_rules();
    let dual = Settings {
        networks: vec![v4(), v6()],
        ..settings(Mode::Iptables)
    };
    let open = async |tools: Tools, settings: Settings| {
        let mut filter = Filter::open(settings, tools.executor()).await.unwrap();
        filter.ensure().await.unwrap();
    };
    host.block_on(async {
        for default in BOTH {
            open(Tools::iptables(default), dual.clone()).await;
        }
        open(
            Tools::none().with_nft(),
            Settings {
                mode: Mode::Nftables,
                ..dual.clone()
            },
        )
        .await;
    });
    let installed = all_rules();
    let tools = Tools::all(Variant::Nft);
    let (planned, errors) = host.block_on(cleanup(&tools.executor(), true));
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(all_rules(), installed, "a dry run changes nothing");
    let (removed, errors) = host.block_on(cleanup(&tools.executor(), false));
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(planned, removed);
    let listed: Vec<String> = removed.iter().map(ToString::to_string).collect();
    assert!(
        listed.contains(&"nft: table ip flannel-ipv4".to_owned()),
        "{listed:#?}"
    );
    for name in [
        "iptables-nft",
        "iptables-legacy",
        "ip6tables-nft",
        "ip6tables-legacy",
    ] {
        assert!(
            listed.contains(&format!("{name}: chain FLANNEL-FWD")),
            "{listed:#?}"
        );
    }
    assert_eq!(all_rules(), before);
    let (again, _) = host.block_on(cleanup(&tools.executor(), false));
    assert!(again.is_empty(), "{again:?}");
}

#[test]
fn without_any_tool_the_error_says_what_to_install() {
    let host = Host::new();
    let open = |settings| host.block_on(Filter::open(settings, Tools::none().executor()));
    let error = open(settings(Mode::Iptables)).unwrap_err();
    assert!(matches!(error, FilterError::NoTool), "{error}");
    assert!(
        error.to_string().contains("apt-get install nftables"),
        "{error}"
    );
    let nothing = Settings {
        masquerade: Masquerade::Off,
        forward: false,
        keep_pod_source: false,
        ..settings(Mode::Iptables)
    };
    assert!(open(nothing).is_ok());
}

#[test]
fn a_missing_tool_is_replaced_by_the_other_mode() {
    let host = Host::new();
    host.apply(&Tools::none().with_nft(), settings(Mode::Iptables));
    assert_eq!(host.run("nft list table ip flannel-ipv4"), NFT_RULES);
    let host = Host::new();
    host.apply(&Tools::iptables(Variant::Legacy), settings(Mode::Nftables));
    assert!(
        host.iptables_rules(Variant::Legacy)
            .contains("FLANNEL-POSTRTG")
    );
}

#[test]
fn a_tampered_table_is_rebuilt() {
    let host = Host::new();
    let tools = Tools::all(Variant::Nft);
    host.apply(&tools, settings(Mode::Nftables));
    host.run("nft delete chain ip flannel-ipv4 forward");
    host.run(
        "nft add chain ip flannel-ipv4 forward { type filter hook input priority 5; policy drop; }",
    );
    let changes = host.apply(&tools, settings(Mode::Nftables));
    assert_eq!(changes, ["nft: table ip flannel-ipv4 repaired"]);
    assert_eq!(host.run("nft list table ip flannel-ipv4"), NFT_RULES);
}
