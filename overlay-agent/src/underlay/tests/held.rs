//! Which address a running node keeps, and which it returns to.

use super::*;

/// A node whose interface has these addresses one after the other.
struct Node {
    host: HostSnapshot,
    options: InterfaceOptions,
    families: Families,
    held: Held,
}

impl Node {
    fn new(families: Families) -> Self {
        let mut host = host(&[("eth0", &[]), ("eth1", &[])]);
        host.routes = vec![route("0.0.0.0/0", None, &[2]), route("::/0", None, &[2])];
        Self {
            host,
            options: asking(),
            families,
            held: Held::default(),
        }
    }

    fn with(mut self, options: InterfaceOptions) -> Self {
        self.options = options;
        self
    }

    fn add(&mut self, ifindex: u32, address: &str, flags: AddressFlags) {
        let ip = address.parse().unwrap();
        self.host
            .addresses
            .push(InterfaceAddress { ifindex, ip, flags });
    }

    fn remove(&mut self, address: &str) {
        let ip: IpAddr = address.parse().unwrap();
        self.host.addresses.retain(|address| address.ip != ip);
    }

    fn flags(&mut self, address: &str, flags: AddressFlags) {
        let ip: IpAddr = address.parse().unwrap();
        let addresses = self.host.addresses.iter_mut();
        addresses
            .filter(|address| address.ip == ip)
            .for_each(|address| address.flags = flags);
    }

    /// What a look at the host comes to: interface and addresses in use, or why there are none.
    fn look(&mut self) -> String {
        let (selection, error) = select_again(&self.host, &self.options, self.families, &self.held);
        let mut words = Vec::new();
        if let Some(selection) = selection {
            self.held.note(&self.host, &selection);
            words.push(selection.name);
            each_family!(selection.addresses, addresses => {
                words.extend(addresses.map(|addresses| addresses.local.to_string()));
            });
        }
        words.extend(error.map(|error| error.to_string()));
        words.join(" ")
    }
}

#[test]
fn a_virtual_address_beside_that_in_use_is_never_taken() {
    for (families, own, virtual_one) in [
        (Families::Ipv4, "10.0.0.5", "10.0.0.100"),
        (Families::Ipv6, "fd00::5", "fd00::100"),
    ] {
        for shape in [VIRTUAL, SECONDARY, PERMANENT] {
            let mut node = Node::new(families);
            node.add(2, own, DYNAMIC);
            let own = format!("eth0 {own}");
            assert_eq!(node.look(), own);
            node.add(2, virtual_one, shape);
            assert_eq!(node.look(), own, "{shape:?}");
        }
    }
}

#[test]
fn a_virtual_address_that_was_there_first_gives_way() {
    let mut node = Node::new(Families::Ipv4);
    node.add(2, "10.0.0.100", VIRTUAL);
    assert_eq!(node.look(), "eth0 10.0.0.100");
    node.add(2, "10.0.0.5", DYNAMIC);
    assert_eq!(node.look(), "eth0 10.0.0.5");
}

#[test]
fn a_host_that_has_only_an_address_alone_uses_and_keeps_it() {
    let mut node = Node::new(Families::Ipv4);
    node.add(2, "10.0.0.5", VIRTUAL);
    assert_eq!(node.look(), "eth0 10.0.0.5");
    node.host.addresses.reverse();
    node.add(2, "10.0.0.100", VIRTUAL);
    node.host.addresses.reverse();
    assert_eq!(node.look(), "eth0 10.0.0.5");
    node.remove("10.0.0.5");
    assert_eq!(node.look(), "eth0 10.0.0.100");
    node.add(2, "10.0.0.5", VIRTUAL);
    assert_eq!(node.look(), "eth0 10.0.0.5");
}

#[test]
fn while_the_address_is_gone_a_virtual_one_does_not_take_its_place() {
    let mut node = Node::new(Families::Ipv4);
    node.add(2, "10.0.0.5", DYNAMIC);
    node.look();
    node.add(2, "10.0.0.100", VIRTUAL);
    node.remove("10.0.0.5");
    let error = node.look();
    assert_eq!(
        error,
        "address 10.0.0.5 of interface eth0 is gone; 10.0.0.100 may be a virtual address or one of \
         the link alone and is not taken in its place. Waiting for it to be back; to use another one, \
         name it with --iface"
    );
    node.add(2, "10.0.0.5", DYNAMIC);
    assert_eq!(node.look(), "eth0 10.0.0.5");
}

#[test]
fn while_the_address_is_gone_a_link_local_one_does_not_take_its_place() {
    for (families, own, link_local) in [
        (Families::Ipv4, "10.0.0.5", "169.254.7.7"),
        (Families::Ipv6, "fd00::5", "fe80::7"),
    ] {
        let mut node = Node::new(families);
        node.add(2, own, DYNAMIC);
        node.add(2, link_local, PERMANENT);
        node.look();
        node.remove(own);
        let error = node.look();
        assert!(error.starts_with(&format!("address {own} of")), "{error}");
    }
}

#[test]
fn another_ordinary_address_is_taken_until_the_one_before_is_back() {
    let mut node = Node::new(Families::Ipv4);
    node.add(2, "10.0.0.5", PERMANENT);
    node.look();
    node.add(2, "10.0.0.100", SECONDARY);
    node.remove("10.0.0.5");
    // The kernel promotes what was secondary.
    node.flags("10.0.0.100", PERMANENT);
    assert_eq!(node.look(), "eth0 10.0.0.100");
    node.add(2, "10.0.0.5", SECONDARY);
    assert_eq!(node.look(), "eth0 10.0.0.5");
}

#[test]
fn what_stands_in_is_kept_as_long_as_it_has_to() {
    let mut node = Node::new(Families::Ipv4);
    node.add(2, "10.0.0.5", DYNAMIC);
    node.look();
    node.remove("10.0.0.5");
    node.add(2, "10.0.0.6", DYNAMIC);
    assert_eq!(node.look(), "eth0 10.0.0.6");
    node.add(2, "10.0.0.7", PERMANENT);
    assert_eq!(node.look(), "eth0 10.0.0.6");
}

#[test]
fn a_deprecated_address_is_kept_while_it_is_there() {
    let deprecated = AddressFlags {
        deprecated: true,
        ..DYNAMIC
    };
    let mut node = Node::new(Families::Ipv6);
    node.add(2, "fd00:1::5", DYNAMIC);
    node.look();
    node.flags("fd00:1::5", deprecated);
    node.add(2, "fd00:2::5", DYNAMIC);
    assert_eq!(node.look(), "eth0 fd00:1::5");
    node.remove("fd00:1::5");
    assert_eq!(node.look(), "eth0 fd00:2::5");
}

#[test]
fn the_past_counts_among_addresses_of_one_rank() {
    let past = |address: &str| Held::of_the_past([address.parse().unwrap()]);
    let mut node = Node::new(Families::Ipv4);
    node.add(2, "10.0.0.5", DYNAMIC);
    node.add(2, "10.1.0.5", PERMANENT);
    node.add(2, "10.0.0.100", VIRTUAL);
    assert_eq!(node.look(), "eth0 10.1.0.5");
    for (before, now) in [
        ("10.0.0.5", "eth0 10.0.0.5"),
        ("10.0.0.100", "eth0 10.1.0.5"),
        ("10.9.9.9", "eth0 10.1.0.5"),
    ] {
        node.held = past(before);
        assert_eq!(node.look(), now, "{before}");
    }
    // It is where the node belongs, also when it comes back later.
    node.add(2, "10.9.9.9", DYNAMIC);
    assert_eq!(node.look(), "eth0 10.9.9.9");
}

#[test]
fn on_another_interface_the_choice_is_a_new_one() {
    let mut node = Node::new(Families::Ipv4);
    node.add(2, "10.0.0.5", PERMANENT);
    node.look();
    node.add(3, "10.1.0.5", VIRTUAL);
    node.host.routes = vec![route("0.0.0.0/0", None, &[3])];
    assert_eq!(node.look(), "eth1 10.1.0.5");
    node.host.routes = vec![route("0.0.0.0/0", None, &[2])];
    assert_eq!(node.look(), "eth0 10.0.0.5");
}

#[test]
fn the_kernels_source_address_for_can_reach_is_taken_once() {
    let reach = |source: &str| {
        Some(Ok(Reach {
            ifindex: 2,
            source: Some(source.parse().unwrap()),
        }))
    };
    let options = InterfaceOptions {
        iface_can_reach: Some(ip("10.0.0.1")),
        ..asking()
    };
    let mut node = Node::new(Families::Ipv4).with(options);
    node.add(2, "10.0.0.6", PERMANENT);
    node.add(2, "10.0.0.5", SECONDARY);
    node.host.reach = reach("10.0.0.5");
    assert_eq!(node.look(), "eth0 10.0.0.5");
    node.add(2, "10.0.0.100", VIRTUAL);
    for source in ["10.0.0.6", "10.0.0.100"] {
        node.host.reach = reach(source);
        assert_eq!(node.look(), "eth0 10.0.0.5");
    }
    node.remove("10.0.0.5");
    assert_eq!(node.look(), "eth0 10.0.0.6");
}

#[test]
fn a_regex_finds_the_address_in_use_before_others_that_match() {
    let mut node = Node::new(Families::Ipv4).with(regex(&["^10\\.0\\."]));
    node.add(2, "10.0.0.5", DYNAMIC);
    assert_eq!(node.look(), "eth0 10.0.0.5");
    node.add(2, "10.0.0.6", PERMANENT);
    assert_eq!(node.look(), "eth0 10.0.0.5");
}

#[test]
fn an_address_that_iface_names_is_left_only_while_it_is_gone() {
    let mut node = Node::new(Families::Ipv4).with(iface(&["10.0.0.100", "eth0"]));
    node.add(2, "10.0.0.5", PERMANENT);
    node.add(2, "10.0.0.100", VIRTUAL);
    assert_eq!(node.look(), "eth0 10.0.0.100");
    node.remove("10.0.0.100");
    assert_eq!(node.look(), "eth0 10.0.0.5");
    node.add(2, "10.0.0.100", VIRTUAL);
    assert_eq!(node.look(), "eth0 10.0.0.100");
}

#[test]
fn what_one_family_lacks_does_not_hold_up_the_other() {
    let missing = "failed to find IPv6 address for interface eth0";
    let mut node = Node::new(Families::Dual);
    node.add(2, "10.0.0.5", PERMANENT);
    node.add(2, "fd00::5", PERMANENT);
    assert_eq!(node.look(), "eth0 10.0.0.5 fd00::5");
    node.remove("fd00::5");
    assert_eq!(node.look(), format!("eth0 10.0.0.5 {missing}"));
    node.remove("10.0.0.5");
    node.add(2, "10.0.0.6", PERMANENT);
    assert_eq!(node.look(), format!("eth0 10.0.0.6 {missing}"));
    // A virtual one does not take the place of what is missing.
    node.add(2, "fd00::100", VIRTUAL);
    let text = node.look();
    assert!(
        text.starts_with("eth0 10.0.0.6 address fd00::5 of interface eth0 is gone"),
        "{text}"
    );
    node.add(2, "fd00::5", PERMANENT);
    assert_eq!(node.look(), "eth0 10.0.0.6 fd00::5");
    // Nor does the other follow to an interface that only it has.
    node.add(3, "10.1.0.5", PERMANENT);
    node.host.routes = vec![route("0.0.0.0/0", None, &[3]), route("::/0", None, &[2])];
    let text = node.look();
    assert!(text.starts_with("eth0 fd00::5 v6 default route"), "{text}");
}
