mod held;

use std::net::Ipv4Addr;

use super::*;

const PERMANENT: AddressFlags = AddressFlags {
    permanent: true,
    temporary: false,
    deprecated: false,
    host: false,
};
const DYNAMIC: AddressFlags = AddressFlags {
    permanent: false,
    ..PERMANENT
};
const VIRTUAL: AddressFlags = AddressFlags {
    host: true,
    ..PERMANENT
};
const SECONDARY: AddressFlags = AddressFlags {
    temporary: true,
    ..PERMANENT
};

/// A host with a loopback and these interfaces; index 2 onwards, MTU 1500.
fn host(interfaces: &[(&str, &[&str])]) -> HostSnapshot {
    let mut host = HostSnapshot::default();
    let all = [("lo", &["127.0.0.1", "::1"][..])]
        .into_iter()
        .chain(interfaces.iter().copied());
    for (ifindex, (name, addresses)) in (1..).zip(all) {
        host.links.push(UnderlayLink {
            ifindex,
            name: name.to_owned(),
            mtu: 1500,
            hardware: true,
            ethernet: true,
        });
        for address in addresses {
            let ip = address.parse().unwrap();
            host.addresses.push(InterfaceAddress {
                ifindex,
                ip,
                flags: PERMANENT,
            });
        }
    }
    host
}

/// Two interfaces with two families each; the default routes leave by `eth0`.
fn two_interfaces() -> HostSnapshot {
    let mut host = host(&[
        ("eth0", &["10.0.2.15", "fe80::2", "2001:db8:2::15"]),
        (
            "eth1",
            &["192.168.50.7", "192.168.50.8", "fe80::3", "2001:db8:50::7"],
        ),
    ]);
    host.routes = vec![
        route("10.0.2.0/24", None, &[2]),
        route("0.0.0.0/0", Some("10.0.2.2"), &[2]),
        route("0.0.0.0/0", Some("192.168.50.1"), &[3]),
        route("::/0", Some("fe80::1"), &[2]),
    ];
    host
}

fn route(destination: &str, gateway: Option<&str>, interfaces: &[u32]) -> UnderlayRoute {
    UnderlayRoute {
        destination: destination.parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        interfaces: interfaces.to_owned(),
    }
}

fn asking() -> InterfaceOptions {
    InterfaceOptions::default()
}

fn iface(iface: &[&str]) -> InterfaceOptions {
    InterfaceOptions {
        iface: iface.iter().map(|text| (*text).to_owned()).collect(),
        ..asking()
    }
}

fn regex(regex: &[&str]) -> InterfaceOptions {
    InterfaceOptions {
        iface_regex: regex.iter().map(|text| (*text).to_owned()).collect(),
        ..asking()
    }
}

fn ip<A: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> A {
    text.parse().unwrap()
}

/// `interface local/public local/public`, with `-` for a family that is off.
fn chosen(host: &HostSnapshot, options: &InterfaceOptions, families: Families) -> String {
    keeping(host, options, families, &Held::default())
}

/// The same on a node that has a past.
fn keeping(
    host: &HostSnapshot,
    options: &InterfaceOptions,
    families: Families,
    held: &Held,
) -> String {
    let selection = select(host, options, families, held)
        .unwrap_or_else(|error| panic!("{options:?}: {error}"));
    let texts = each_family!(selection.addresses, addresses => {
        addresses.map_or("-".to_owned(), |a| format!("{}/{}", a.local, a.public))
    });
    format!("{} {} {}", selection.name, texts.ipv4, texts.ipv6)
}

fn error(host: &HostSnapshot, options: &InterfaceOptions, families: Families) -> String {
    select(host, options, families, &Held::default())
        .expect_err("nothing matches")
        .to_string()
}

#[test]
fn without_options_the_first_default_route_decides() {
    let host = two_interfaces();
    assert_eq!(
        chosen(&host, &asking(), Families::Ipv4),
        "eth0 10.0.2.15/10.0.2.15 -"
    );
    assert_eq!(
        chosen(&host, &asking(), Families::Ipv6),
        "eth0 - 2001:db8:2::15/2001:db8:2::15"
    );
    assert_eq!(
        chosen(&host, &asking(), Families::Dual),
        "eth0 10.0.2.15/10.0.2.15 2001:db8:2::15/2001:db8:2::15"
    );
}

#[test]
fn an_empty_iface_is_the_default_routes_interface() {
    assert_eq!(
        chosen(&two_interfaces(), &iface(&[""]), Families::Ipv4),
        "eth0 10.0.2.15/10.0.2.15 -"
    );
}

#[test]
fn a_missing_or_vague_default_route_is_an_error_that_says_what_to_do() {
    let mut host = host(&[
        ("eth0", &["10.0.0.1", "2001:db8::1"]),
        ("eth1", &["10.0.1.1"]),
    ]);
    assert_eq!(
        error(&host, &asking(), Families::Ipv4),
        "failed to get default interface: unable to find default route; choose an interface with \
         --iface, or give the host a default route"
    );
    assert_eq!(
        error(&host, &asking(), Families::Ipv6),
        "failed to get default v6 interface: unable to find default v6 route; choose an interface \
         with --iface, or give the host a default route"
    );
    for interfaces in [&[][..], &[2, 3]] {
        host.routes = vec![route("0.0.0.0/0", None, interfaces)];
        assert_eq!(
            error(&host, &asking(), Families::Ipv4),
            "failed to get default interface: found default route but could not determine interface; \
             choose one with --iface"
        );
    }
    host.routes = vec![route("0.0.0.0/0", None, &[2, 2])];
    assert_eq!(
        chosen(&host, &asking(), Families::Ipv4),
        "eth0 10.0.0.1/10.0.0.1 -"
    );
}

#[test]
fn default_routes_of_two_families_must_leave_by_one_interface() {
    let mut host = two_interfaces();
    host.routes = vec![route("0.0.0.0/0", None, &[2]), route("::/0", None, &[3])];
    assert_eq!(
        error(&host, &asking(), Families::Dual),
        "v6 default route interface eth1 must be the same with v4 default route interface eth0"
    );
}

#[test]
fn an_interface_is_found_by_name_or_by_any_of_its_addresses() {
    let host = two_interfaces();
    assert_eq!(
        chosen(&host, &iface(&["eth1"]), Families::Ipv4),
        "eth1 192.168.50.7/192.168.50.7 -"
    );
    assert_eq!(
        chosen(&host, &iface(&["192.168.50.8"]), Families::Ipv4),
        "eth1 192.168.50.8/192.168.50.8 -"
    );
    assert_eq!(
        chosen(&host, &iface(&["fe80::3"]), Families::Ipv6),
        "eth1 - fe80::3/fe80::3"
    );
    assert_eq!(
        chosen(&host, &iface(&["192.168.50.8"]), Families::Dual),
        "eth1 192.168.50.8/192.168.50.8 2001:db8:50::7/2001:db8:50::7"
    );
    assert_eq!(
        chosen(&host, &iface(&["2001:db8:50::7"]), Families::Dual),
        "eth1 192.168.50.7/192.168.50.7 2001:db8:50::7/2001:db8:50::7"
    );
}

#[test]
fn the_first_candidate_that_matches_wins_and_the_others_are_noted() {
    let host = two_interfaces();
    let options = InterfaceOptions {
        iface: vec!["eth9".to_owned(), "10.9.9.9".to_owned()],
        iface_regex: vec![
            "(".to_owned(),
            "^192\\.168\\.".to_owned(),
            "eth0".to_owned(),
        ],
        ..asking()
    };
    let selection = select(&host, &options, Families::Ipv4, &Held::default()).unwrap();
    assert_eq!(selection.name, "eth1");
    let [first, second, third] = &selection.notes[..] else {
        panic!("{:?}", selection.notes)
    };
    assert_eq!(
        first,
        "could not find valid interface matching eth9: error looking up interface eth9: no such \
         network interface"
    );
    assert_eq!(
        second,
        "could not find valid interface matching 10.9.9.9: error looking up interface 10.9.9.9: no \
         interface with given IP found"
    );
    assert!(
        third.contains("could not compile the IP address regex '('"),
        "{third}"
    );
}

#[test]
fn when_no_candidate_matches_the_error_gives_every_reason() {
    assert_eq!(
        error(
            &two_interfaces(),
            &iface(&["eth9", "fd00::9"]),
            Families::Ipv6
        ),
        "Failed to find interface to use that matches the interfaces and/or regexes provided: could \
         not find valid interface matching eth9: error looking up interface eth9: no such network \
         interface; could not find valid interface matching fd00::9: error looking up v6 interface \
         fd00::9: no interface with given IPv6 found"
    );
}

#[test]
fn an_address_of_the_other_family_is_no_match() {
    let host = two_interfaces();
    let text = error(&host, &iface(&["2001:db8:50::7"]), Families::Ipv4);
    assert!(
        text.ends_with("2001:db8:50::7: no interface with given IP found"),
        "{text}"
    );
    let text = error(&host, &iface(&["192.168.50.7"]), Families::Ipv6);
    assert!(
        text.ends_with("v6 interface 192.168.50.7: no interface with given IPv6 found"),
        "{text}"
    );
}

#[test]
fn a_regex_matches_addresses_before_names_and_is_not_anchored() {
    let host = two_interfaces();
    assert_eq!(
        chosen(&host, &regex(&["50\\.8"]), Families::Ipv4),
        "eth1 192.168.50.8/192.168.50.8 -"
    );
    assert_eq!(
        chosen(&host, &regex(&["eth[1-9]"]), Families::Ipv4),
        "eth1 192.168.50.7/192.168.50.7 -"
    );
    assert_eq!(
        chosen(&host, &regex(&["^eth"]), Families::Ipv4),
        "eth0 10.0.2.15/10.0.2.15 -"
    );
    assert_eq!(
        chosen(&host, &regex(&["db8:50"]), Families::Ipv6),
        "eth1 - 2001:db8:50::7/2001:db8:50::7"
    );
}

#[test]
fn a_regex_must_match_both_families_of_one_interface_in_a_dual_network() {
    let host = two_interfaces();
    assert_eq!(
        chosen(&host, &regex(&["^192|50::7"]), Families::Dual),
        "eth1 192.168.50.7/192.168.50.7 2001:db8:50::7/2001:db8:50::7"
    );
    let text = error(&host, &regex(&["^192"]), Families::Dual);
    assert!(
        text.ends_with(
            "Could not match pattern ^192 to any of the available network interfaces (lo:[], \
             eth0:[10.0.2.15], eth1:[192.168.50.7 192.168.50.8])"
        ),
        "{text}"
    );
}

#[test]
fn can_reach_takes_the_kernels_interface_and_source_address() {
    let mut host = two_interfaces();
    let options = InterfaceOptions {
        iface_can_reach: Some(ip("192.168.50.1")),
        ..asking()
    };
    host.reach = Some(Ok(Reach {
        ifindex: 3,
        source: Some(ip("192.168.50.8")),
    }));
    assert_eq!(
        chosen(&host, &options, Families::Ipv4),
        "eth1 192.168.50.8/192.168.50.8 -"
    );
    assert_eq!(
        chosen(&host, &options, Families::Dual),
        "eth1 192.168.50.8/192.168.50.8 2001:db8:50::7/2001:db8:50::7"
    );
    host.reach = Some(Ok(Reach {
        ifindex: 3,
        source: Some(ip("2001:db8:50::7")),
    }));
    assert_eq!(
        chosen(&host, &options, Families::Ipv6),
        "eth1 - 2001:db8:50::7/2001:db8:50::7"
    );
    host.reach = Some(Err("Network is unreachable".to_owned()));
    let text = error(&host, &options, Families::Ipv4);
    assert!(
        text.ends_with(
            "failed to get ifcanreach based interface: couldn't lookup route to 192.168.50.1: Network \
             is unreachable"
        ),
        "{text}"
    );
}

#[test]
fn a_candidate_without_an_address_gives_way_to_the_next() {
    let mut host = host(&[("eth0", &[]), ("eth1", &["10.0.1.1"])]);
    assert_eq!(
        chosen(&host, &iface(&["eth0", "eth1"]), Families::Ipv4),
        "eth1 10.0.1.1/10.0.1.1 -"
    );
    host.routes = vec![route("0.0.0.0/0", None, &[2])];
    assert_eq!(
        error(&host, &asking(), Families::Ipv4),
        "failed to find IPv4 address for interface eth0"
    );
    host.routes = vec![route("::/0", None, &[2])];
    assert_eq!(
        error(&host, &asking(), Families::Ipv6),
        "failed to find IPv6 address for interface eth0"
    );
}

#[test]
fn a_public_address_of_the_chosen_interface_is_the_tunnels_own_too() {
    let options = |iface: InterfaceOptions| InterfaceOptions {
        public_ip: Some(ip("192.168.50.8")),
        public_ipv6: Some(ip("2001:db8:50::7")),
        ..iface
    };
    let eth1 = "eth1 192.168.50.8/192.168.50.8 2001:db8:50::7/2001:db8:50::7";
    for iface in [asking(), iface(&["eth1"]), regex(&["^eth1$"])] {
        let options = options(iface);
        assert_eq!(chosen(&two_interfaces(), &options, Families::Dual), eth1);
    }
    // It may be of any shape, and it is not left for one that was in use before.
    let mut host = two_interfaces();
    host.addresses
        .iter_mut()
        .filter(|address| address.ip == IpAddr::V4(ip("192.168.50.8")))
        .for_each(|address| address.flags = VIRTUAL);
    let held = Held::of_the_past([IpAddr::V4(ip("192.168.50.7"))]);
    let options = options(iface(&["eth1"]));
    assert_eq!(keeping(&host, &options, Families::Dual, &held), eth1);
    // An address that --iface names is the tunnel's, whatever is advertised.
    let options = InterfaceOptions {
        public_ip: Some(ip("192.168.50.8")),
        ..iface(&["192.168.50.7"])
    };
    assert_eq!(
        chosen(&two_interfaces(), &options, Families::Ipv4),
        "eth1 192.168.50.7/192.168.50.8 -"
    );
}

#[test]
fn a_public_address_of_no_interface_is_advertised_and_is_not_the_tunnels_own() {
    let options = InterfaceOptions {
        public_ip: Some(ip("203.0.113.9")),
        public_ipv6: Some(ip("2001:db8:ffff::9")),
        ..iface(&["eth1"])
    };
    assert_eq!(
        chosen(&two_interfaces(), &options, Families::Dual),
        "eth1 192.168.50.7/203.0.113.9 2001:db8:50::7/2001:db8:ffff::9"
    );
    let underlay = select(
        &two_interfaces(),
        &options,
        Families::Ipv4,
        &Held::default(),
    )
    .unwrap()
    .underlays()
    .ipv4
    .unwrap();
    assert_eq!(underlay.address, Ipv4Addr::new(192, 168, 50, 7));
    assert_eq!(underlay.public_ip, Ipv4Addr::new(203, 0, 113, 9));
}

#[test]
fn a_local_public_address_alone_chooses_its_interface() {
    let options = InterfaceOptions {
        public_ip: Some(ip("192.168.50.8")),
        ..asking()
    };
    assert_eq!(
        chosen(&two_interfaces(), &options, Families::Ipv4),
        "eth1 192.168.50.8/192.168.50.8 -"
    );
    let options = InterfaceOptions {
        public_ipv6: Some(ip("2001:db8:50::7")),
        ..asking()
    };
    assert_eq!(
        chosen(&two_interfaces(), &options, Families::Dual),
        "eth1 192.168.50.7/192.168.50.7 2001:db8:50::7/2001:db8:50::7"
    );
}

#[test]
fn a_public_address_behind_a_nat_needs_no_iface_and_is_noted() {
    let options = InterfaceOptions {
        public_ip: Some(ip("203.0.113.9")),
        ..asking()
    };
    let selection = select(
        &two_interfaces(),
        &options,
        Families::Ipv4,
        &Held::default(),
    )
    .unwrap();
    assert_eq!(
        selection.addresses.ipv4,
        Some(Addresses {
            local: Ipv4Addr::new(10, 0, 2, 15),
            public: Ipv4Addr::new(203, 0, 113, 9)
        })
    );
    assert_eq!(
        selection.notes,
        [
            "no interface has the public IP address 203.0.113.9: it is advertised, and tunnel packets \
          leave by the default route's interface; choose another one with --iface"
        ]
    );
}

#[test]
fn public_addresses_on_two_interfaces_are_refused() {
    let options = InterfaceOptions {
        public_ipv6: Some(ip("2001:db8:2::15")),
        ..iface(&["192.168.50.7"])
    };
    assert_eq!(
        error(&two_interfaces(), &options, Families::Dual),
        "v6 interface eth0 must be the same with v4 interface eth1"
    );
}

#[test]
fn addresses_are_preferred_by_shape_and_then_by_the_kernels_flags() {
    let mut host = host(&[("eth0", &[])]);
    host.routes = vec![route("0.0.0.0/0", None, &[2]), route("::/0", None, &[2])];
    let mut add = |text: &str, flags: AddressFlags| {
        host.addresses.push(InterfaceAddress {
            ifindex: 2,
            ip: text.parse().unwrap(),
            flags,
        });
        host.clone()
    };
    let temporary = AddressFlags {
        temporary: true,
        ..DYNAMIC
    };
    let dhcp6 = AddressFlags {
        permanent: false,
        ..VIRTUAL
    };
    // Each addition is better than everything before it.
    let steps = [
        ("169.254.7.7", PERMANENT),
        ("10.0.0.1", VIRTUAL),
        ("10.0.0.2", temporary),
        ("10.0.0.3", SECONDARY),
        ("10.0.0.4", DYNAMIC),
        ("10.0.0.5", PERMANENT),
        ("fe80::7", PERMANENT),
        ("2001:db8::1", VIRTUAL),
        ("2001:db8::2", temporary),
        ("2001:db8::3", dhcp6),
        ("2001:db8::4", PERMANENT),
    ];
    for (text, flags) in steps {
        let host = add(text, flags);
        let families = if text.contains(':') {
            Families::Ipv6
        } else {
            Families::Ipv4
        };
        let got = chosen(&host, &asking(), families);
        assert!(got.contains(&format!(" {text}/{text}")), "{text}: {got}");
    }
    // These are not, for the first of equals stays first.
    let deprecated = AddressFlags {
        deprecated: true,
        ..PERMANENT
    };
    for (text, flags) in [
        ("10.0.0.6", PERMANENT),
        ("10.0.0.7", deprecated),
        ("127.0.0.9", PERMANENT),
        ("224.0.0.9", PERMANENT),
    ] {
        let host = add(text, flags);
        assert_eq!(
            chosen(&host, &asking(), Families::Ipv4),
            "eth0 10.0.0.5/10.0.0.5 -",
            "{text}"
        );
    }
}

#[test]
fn an_interface_without_an_mtu_is_refused() {
    let mut host = two_interfaces();
    for link in &mut host.links {
        link.mtu = 0;
    }
    assert_eq!(
        error(&host, &asking(), Families::Ipv4),
        "failed to determine MTU for eth0 interface"
    );
}

#[tokio::test]
async fn the_kernel_is_asked_for_links_addresses_routes_and_reachability() {
    let host = snapshot(Some(Ipv4Addr::LOCALHOST.into())).await.unwrap();
    let lo = host
        .links
        .iter()
        .find(|link| link.name == "lo")
        .expect("every host has a loopback");
    assert!(lo.mtu > 0);
    assert!(host.links.is_sorted_by_key(|link| link.ifindex));
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    assert!(
        host.addresses
            .iter()
            .any(|address| address.ifindex == lo.ifindex && address.ip == loopback)
    );
    let reach = host
        .reach
        .expect("it was asked")
        .expect("the loopback is reachable");
    assert_eq!(
        reach,
        Reach {
            ifindex: lo.ifindex,
            source: Some(loopback)
        }
    );
}
