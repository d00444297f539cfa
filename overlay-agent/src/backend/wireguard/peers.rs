//! From leases to the peers of each device, and to what has to change there. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZero,
};

use ipnetwork::IpNetwork;

use super::{
    device::{NAME, NAME_V6},
    key::{PublicKey, Secret},
    lease::WireGuardData,
    options::{Mode, WireGuard},
};
use crate::{
    backend::Scene,
    model::{Desired, Family, PeerLease, PerFamily, each_family},
    netlink::admit,
};

/// A node as a device is to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where its lease says it is.
    pub endpoint: SocketAddr,
    /// The subnets it has.
    pub allowed: BTreeSet<IpNetwork>,
}

pub type Peers = BTreeMap<PublicKey, Peer>;

/// The peers of each device, and who cannot be one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub devices: BTreeMap<&'static str, Peers>,
    pub problems: Vec<String>,
}

/// A peer of a device as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub endpoint: Option<SocketAddr>,
    pub psk: Option<Secret>,
    pub keepalive: Option<NonZero<u16>>,
    pub allowed: BTreeSet<IpNetwork>,
    /// The two nodes have spoken within the lifetime of a session's keys.
    pub alive: bool,
}

/// A change of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Remove(PublicKey),
    Set {
        key: PublicKey,
        /// `None`: it stays.
        endpoint: Option<SocketAddr>,
        /// The subnets, if they and what all peers have in common are to be set.
        allowed: Option<BTreeSet<IpNetwork>>,
    },
}

/// What the leases make of the devices.
pub fn wanted(options: &WireGuard, own: PublicKey, scene: &Scene) -> Wanted {
    let served = each_family!(scene.node.present(), side => side.is_some());
    let admitted = PerFamily {
        ipv4: admitted(scene.node.ipv4.as_ref()),
        ipv6: admitted(scene.node.ipv6.as_ref()),
    };
    let is_separate = options.mode == Mode::Separate;
    let mut wanted = Wanted::default();
    if served.ipv4 || (served.ipv6 && !is_separate) {
        wanted.devices.insert(NAME, Peers::new());
    }
    if served.ipv6 && is_separate {
        wanted.devices.insert(NAME_V6, Peers::new());
    }
    for lease in &scene.leases {
        let ipv4 = lease.key.ipv4().map(IpNetwork::V4);
        let ipv6 = lease.key.ipv6().map(IpNetwork::V6);
        let ipv4 = ipv4.filter(|subnet| admitted.ipv4.contains(subnet));
        let ipv6 = ipv6.filter(|subnet| admitted.ipv6.contains(subnet));
        let said = Said::by(lease);
        if is_separate {
            for (device, subnet, data, address, port) in [
                (NAME, ipv4, said.ipv4, said.address(), options.port),
                (NAME_V6, ipv6, said.ipv6, said.address_v6(), options.port_v6),
            ] {
                if let (Some(subnet), Some(data), Some(address)) = (subnet, data, address) {
                    let endpoint = SocketAddr::new(address, data.port.unwrap_or(port));
                    wanted.add(device, own, data.public_key, endpoint, [subnet]);
                }
            }
            continue;
        }
        let subnets = ipv4.into_iter().chain(ipv6);
        let Some(data) = said.ipv6.or(said.ipv4).filter(|_| ipv4.or(ipv6).is_some()) else {
            continue;
        };
        match said.endpoint(options, scene) {
            Some(endpoint) => wanted.add(NAME, own, data.public_key, endpoint, subnets),
            None => wanted.problems.push(format!(
                "{} is no peer: its lease has no address of the family that Mode has tunnel packets take",
                lease.key
            )),
        }
    }
    wanted
}

/// The subnets of a family's peers that the kernel tier would not refuse either.
fn admitted<F: Family>(side: Option<&Desired<F>>) -> BTreeSet<IpNetwork> {
    let accepted = side.map(|side| admit(side, &BTreeMap::new()).accepted);
    let subnets = accepted.into_iter().flat_map(BTreeMap::into_keys);
    subnets.map(Into::into).collect()
}

impl Wanted {
    fn add(
        &mut self,
        device: &'static str,
        own: PublicKey,
        key: PublicKey,
        endpoint: SocketAddr,
        subnets: impl IntoIterator<Item = IpNetwork>,
    ) {
        let allowed: BTreeSet<IpNetwork> = subnets.into_iter().collect();
        let Some(first) = allowed.first().copied() else {
            return;
        };
        if key == own {
            self.problems.push(format!(
                "{first} at {} is no peer: it has this node's own WireGuard key; remove the key file of one \
                 of the two and restart its agent",
                endpoint.ip()
            ));
            return;
        }
        match self.devices.entry(device).or_default().entry(key) {
            Entry::Vacant(entry) => drop(entry.insert(Peer { endpoint, allowed })),
            Entry::Occupied(_) => self.problems.push(format!(
                "{first} at {} is no peer: another node has its WireGuard key {key}; remove the key file of \
                 one of the two and restart its agent",
                endpoint.ip()
            )),
        }
    }
}

/// What a lease says.
struct Said {
    public_ip: Ipv4Addr,
    public_ipv6: Option<Ipv6Addr>,
    ipv4: Option<WireGuardData>,
    ipv6: Option<WireGuardData>,
}

impl Said {
    fn by(lease: &PeerLease) -> Self {
        let attrs = &lease.attrs;
        let data = |said: &Option<String>| WireGuardData::parse(said.as_deref()?);
        Self {
            public_ip: attrs.public_ip,
            public_ipv6: attrs.public_ipv6,
            ipv4: data(&attrs.backend_data),
            ipv6: data(&attrs.backend_v6_data),
        }
    }

    fn address(&self) -> Option<IpAddr> {
        (!self.public_ip.is_unspecified()).then_some(self.public_ip.into())
    }

    fn address_v6(&self) -> Option<IpAddr> {
        self.public_ipv6.map(Into::into)
    }

    /// Where the one device of both families finds the node.
    fn endpoint(&self, options: &WireGuard, scene: &Scene) -> Option<SocketAddr> {
        let is_ipv6 = match options.mode {
            Mode::Ipv6 => true,
            Mode::Auto => self.is_better_by_ipv6(scene),
            Mode::Ipv4 | Mode::Separate => false,
        };
        let (address, data) = if is_ipv6 {
            (self.address_v6(), self.ipv6.or(self.ipv4))
        } else {
            (self.address(), self.ipv4.or(self.ipv6))
        };
        let port = data.and_then(|data| data.port).unwrap_or(options.port);
        Some(SocketAddr::new(address?, port))
    }

    /// flannel's rule: IPv4, unless only IPv6 has public addresses at both ends.
    fn is_better_by_ipv6(&self, scene: &Scene) -> bool {
        let Some(theirs) = self.public_ipv6 else {
            return false;
        };
        let own = scene.node.ipv6.as_ref();
        let own = own.map(|side| side.local.underlay.public_ip);
        let has_ipv4 = scene.node.ipv4.is_some();
        if self.public_ip.is_unspecified() || !has_ipv4 {
            return true;
        }
        self.public_ip.is_private()
            && !theirs.is_unique_local()
            && own.is_some_and(|own| !own.is_unique_local())
    }
}

/// The changes that make the peers of a device as wanted. `asked`: the endpoints last told the device.
/// A node that is heard from elsewhere, from behind NAT, is answered there as long as it is heard.
pub fn diff(
    options: &WireGuard,
    wanted: &Peers,
    asked: &BTreeMap<PublicKey, SocketAddr>,
    known: &BTreeMap<PublicKey, Known>,
) -> Vec<Change> {
    let gone = known.keys().filter(|key| !wanted.contains_key(key));
    let mut changes: Vec<Change> = gone.copied().map(Change::Remove).collect();
    for (&key, peer) in wanted {
        let known = known.get(&key);
        let moved = asked.get(&key).is_some_and(|asked| *asked != peer.endpoint);
        let stays = known.is_some_and(|known| {
            known.endpoint == Some(peer.endpoint)
                || (known.endpoint.is_some() && known.alive && !moved)
        });
        let is_set = known.is_some_and(|known| {
            known.allowed == peer.allowed
                && known.psk == options.psk
                && known.keepalive == options.keepalive
        });
        if !stays || !is_set {
            changes.push(Change::Set {
                key,
                endpoint: (!stays).then_some(peer.endpoint),
                allowed: (!is_set).then(|| peer.allowed.clone()),
            });
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use overlay_common::addr::MacAddr;

    use super::*;
    use crate::{
        backend::{Backend, Kind as _},
        model::{DesiredNode, LeaseAttrs, LeaseKey, LocalNode, Underlay},
    };

    const OWN: PublicKey = PublicKey([9; 32]);

    fn options(text: &str) -> WireGuard {
        WireGuard::parse(text, true).unwrap().0
    }

    fn key(number: u8) -> PublicKey {
        PublicKey([number; 32])
    }

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    /// A node of a dual-stack cluster. `port` as old releases have it: none.
    fn lease(number: u8, addresses: (&str, &str), port: Option<u16>) -> PeerLease {
        let data = |port| {
            WireGuardData {
                public_key: key(number),
                port,
            }
            .encode()
            .replace(",\"Port\":null", "")
        };
        let attrs = LeaseAttrs {
            backend_type: "wireguard".to_owned(),
            backend_data: Some(data(port)),
            ..LeaseAttrs::alloc(addresses.0.parse().unwrap())
        };
        PeerLease {
            key: LeaseKey::parse(&format!("10.5.{number}.0-24&fd00:{number}::-64")).unwrap(),
            attrs: attrs
                .with_ipv6(
                    addresses.1.parse().unwrap(),
                    Some(data(port.map(|port| port + 1))),
                )
                .into(),
        }
    }

    fn side<F: Family>(
        backend: &Backend,
        [network, subnet]: [F::Network; 2],
        address: F::Address,
        leases: &[PeerLease],
    ) -> Desired<F> {
        let peers = leases.iter().map(|lease| lease_peer(lease, backend));
        Desired {
            local: LocalNode {
                network,
                subnet,
                underlay: Underlay {
                    ifindex: 2,
                    name: "eth0".to_owned(),
                    mtu: 1500,
                    hardware: false,
                    ethernet: true,
                    address,
                    public_ip: address,
                },
                forwarding: backend.forwarding::<F>(),
                device: backend.own_device(network, subnet),
                vtep_mac: MacAddr::ZERO,
                lease_data: None,
            },
            peers: peers.map(|peer| (peer.subnet, peer)).collect(),
        }
    }

    fn lease_peer<F: Family>(lease: &PeerLease, backend: &Backend) -> crate::model::Peer<F> {
        lease.usable::<F>(backend).unwrap()
    }

    fn scene(options: &WireGuard, own_v6: &str, leases: &[PeerLease]) -> Scene {
        let backend = Backend::from(options.clone());
        Scene {
            node: DesiredNode {
                ipv4: Some(side(
                    &backend,
                    ["10.5.0.0/16", "10.5.1.0/24"].map(|net| net.parse().unwrap()),
                    "192.0.2.1".parse().unwrap(),
                    leases,
                )),
                ipv6: Some(side(
                    &backend,
                    ["fd00::/16", "fd00:1::/64"].map(|net| net.parse().unwrap()),
                    own_v6.parse().unwrap(),
                    leases,
                )),
            },
            holds_lease: true,
            leases: leases.to_vec(),
        }
    }

    fn peer(endpoint: &str, allowed: &[&str]) -> Peer {
        Peer {
            endpoint: endpoint.parse().unwrap(),
            allowed: allowed.iter().map(|text| net(text)).collect(),
        }
    }

    #[test]
    fn each_family_has_its_peers_at_the_ports_of_their_leases_or_its_own() {
        let options = options("{}");
        let leases = [
            lease(2, ("192.0.2.2", "2001:db8::2"), Some(7000)),
            lease(3, ("192.0.2.3", "2001:db8::3"), None),
        ];
        let wanted = wanted(&options, OWN, &scene(&options, "2001:db8::1", &leases));
        let ipv4 = Peers::from([
            (key(2), peer("192.0.2.2:7000", &["10.5.2.0/24"])),
            (key(3), peer("192.0.2.3:51820", &["10.5.3.0/24"])),
        ]);
        let ipv6 = Peers::from([
            (key(2), peer("[2001:db8::2]:7001", &["fd00:2::/64"])),
            (key(3), peer("[2001:db8::3]:51821", &["fd00:3::/64"])),
        ]);
        assert_eq!(
            wanted.devices,
            BTreeMap::from([(NAME, ipv4), (NAME_V6, ipv6)])
        );
        assert!(wanted.problems.is_empty(), "{:?}", wanted.problems);
    }

    #[test]
    fn one_device_for_both_families_takes_the_family_that_the_mode_says() {
        let endpoint = |text: &str, own: &str, addresses| {
            let options = options(text);
            let leases = [lease(2, addresses, Some(7000))];
            let wanted = wanted(&options, OWN, &scene(&options, own, &leases));
            assert!(!wanted.devices.contains_key(NAME_V6));
            let peer = &wanted.devices[NAME][&key(2)];
            assert_eq!(
                peer.allowed,
                [net("10.5.2.0/24"), net("fd00:2::/64")].into()
            );
            peer.endpoint.to_string()
        };
        let public = ("192.0.2.2", "2001:db8::2");
        let private = ("10.0.0.2", "2001:db8::2");
        let local = ("10.0.0.2", "fdff::2");
        for (mode, own, addresses, expected) in [
            ("ipv4", "2001:db8::1", private, "10.0.0.2:7000"),
            ("ipv6", "fdff::1", local, "[fdff::2]:7001"),
            ("auto", "2001:db8::1", public, "192.0.2.2:7000"),
            ("auto", "2001:db8::1", private, "[2001:db8::2]:7001"),
            ("auto", "fdff::1", private, "10.0.0.2:7000"),
            ("auto", "2001:db8::1", local, "10.0.0.2:7000"),
        ] {
            let text = format!(r#"{{"Mode":"{mode}"}}"#);
            assert_eq!(endpoint(&text, own, addresses), expected, "{mode} {own}");
        }
    }

    #[test]
    fn copies_of_a_key_are_told_by_node_and_keep_nobody_else_away() {
        let options = options("{}");
        let mut copy = lease(3, ("192.0.2.3", "2001:db8::3"), None);
        let original = lease(2, ("192.0.2.2", "::"), None);
        copy.attrs = Arc::new(LeaseAttrs {
            backend_data: original.attrs.backend_data.clone(),
            backend_v6_data: None,
            ..(*copy.attrs).clone()
        });
        copy.key = LeaseKey::parse("10.5.3.0-24").unwrap();
        let other = lease(2, ("192.0.2.2", "2001:db8::2"), None);
        let mut own = scene(&options, "2001:db8::1", std::slice::from_ref(&other));
        let copied = copy.usable(&Backend::from(options.clone())).unwrap();
        own.node
            .ipv4
            .as_mut()
            .unwrap()
            .peers
            .insert(copied.subnet, copied);
        own.leases.push(copy);
        let of = |key| wanted(&options, key, &own);
        let found = of(OWN);
        assert_eq!(found.devices[NAME].len(), 1);
        assert!(found.problems[0].starts_with("10.5.3.0/24 at 192.0.2.3 is no peer: another node"));
        let found = of(key(2));
        assert!(found.devices[NAME].is_empty());
        assert!(
            found.problems[0].contains("this node's own WireGuard key"),
            "{found:?}"
        );
    }

    fn known(peer: &Peer) -> Known {
        Known {
            endpoint: Some(peer.endpoint),
            allowed: peer.allowed.clone(),
            ..Known::default()
        }
    }

    #[test]
    fn what_is_right_is_left_alone_and_what_is_not_wanted_goes_first() {
        let options = options("{}");
        let peer = peer("192.0.2.2:51820", &["10.5.2.0/24"]);
        let wanted = Peers::from([(key(2), peer.clone())]);
        let asked = BTreeMap::new();
        let right = BTreeMap::from([(key(2), known(&peer))]);
        assert!(diff(&options, &wanted, &asked, &right).is_empty());
        let other = BTreeMap::from([(key(3), known(&peer))]);
        let set = Change::Set {
            key: key(2),
            endpoint: Some(peer.endpoint),
            allowed: Some(peer.allowed.clone()),
        };
        let changes = diff(&options, &wanted, &asked, &other);
        assert_eq!(changes, [Change::Remove(key(3)), set]);
        let keepalive = self::options(r#"{"PersistentKeepaliveInterval":25}"#);
        let changes = diff(&keepalive, &wanted, &asked, &right);
        let set = Change::Set {
            key: key(2),
            endpoint: None,
            allowed: Some(peer.allowed),
        };
        assert_eq!(changes, [set]);
    }

    #[test]
    fn a_node_behind_nat_is_answered_where_it_is_heard_from_until_it_falls_silent_or_moves() {
        let options = options("{}");
        let peer = peer("192.0.2.2:51820", &["10.5.2.0/24"]);
        let wanted = Peers::from([(key(2), peer.clone())]);
        let elsewhere = |alive| {
            let known = Known {
                endpoint: Some("198.51.100.1:4000".parse().unwrap()),
                alive,
                ..known(&peer)
            };
            BTreeMap::from([(key(2), known)])
        };
        let asked = |endpoint: &str| BTreeMap::from([(key(2), endpoint.parse().unwrap())]);
        let is_set = |asked: &BTreeMap<_, _>, alive| {
            !diff(&options, &wanted, asked, &elsewhere(alive)).is_empty()
        };
        assert!(!is_set(&asked("192.0.2.2:51820"), true));
        assert!(!is_set(&BTreeMap::new(), true), "after a restart");
        assert!(is_set(&asked("192.0.2.2:51820"), false));
        assert!(
            is_set(&asked("192.0.2.9:51820"), true),
            "its lease says another place"
        );
    }
}
