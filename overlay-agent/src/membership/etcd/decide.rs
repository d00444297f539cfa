//! Which record a starting node writes: flannel's order of preference, without its races.
//!
//! A node finds itself again by its public IP, or, where there is no IPv4, by its public IPv6
//! address. It keeps the subnet its containers already use (from the subnet file) where it can, and
//! takes a random free one otherwise.

use std::{fmt, net::IpAddr};

use ipnetwork::{Ipv4Network, Ipv6Network};
use rand::RngCore;

use crate::{
    backend,
    config::network::Pool,
    core::{Entry, Expect},
    membership::member::Wish,
    model::{Family, LeaseKey, PerFamily, V4, V6, each_family},
};

/// Why a subnet was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A record of this public IP exists.
    Recorded,
    /// The record shows another public IP but this node's VTEP.
    Readdressed { from: IpAddr },
    /// The subnet file names it.
    SubnetFile,
    /// Chosen at random.
    Chosen,
}

/// The next step towards a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Write {
        key: LeaseKey,
        expect: Expect,
        /// The record is not attached to a lease and must stay so.
        reservation: bool,
        origin: Origin,
    },
    /// A record of this node is in the way that the config does not allow, or that overlaps an earlier
    /// one.
    Delete {
        key: LeaseKey,
        mod_revision: i64,
    },
    OutOfSubnets,
}

/// The next step, given all records.
pub fn decide(wish: &Wish, entries: &[Entry], rng: &mut dyn RngCore) -> Decision {
    let (fitting, misfits): (Vec<_>, Vec<_>) = entries
        .iter()
        .filter(|entry| shows(entry, wish.attrs.node_ip()))
        .partition(|entry| wish.allocation.accepts(&entry.key));
    let remembered = |entry: &&&Entry| wish.remembers(&entry.key);
    let known = fitting.iter().find(remembered).or(fitting.first());
    if let Some(entry) = known {
        return rewrite(wish, entry, entries, Origin::Recorded);
    }
    // An operator's reservation is not ours to delete, even if it does not fit.
    if let Some(misfit) = misfits.iter().find(|entry| entry.lease_id.is_some()) {
        return Decision::Delete {
            key: misfit.key,
            mod_revision: misfit.mod_revision,
        };
    }
    if let Some((entry, from)) = readdressed(wish, entries) {
        return rewrite(wish, entry, entries, Origin::Readdressed { from });
    }
    let keys = || entries.iter().map(|entry| &entry.key);
    let taken: PerFamily<Vec<_>, Vec<_>> = PerFamily {
        ipv4: keys().filter_map(LeaseKey::ipv4).collect(),
        ipv6: keys().filter_map(LeaseKey::ipv6).collect(),
    };
    let pools = wish.allocation.zip(wish.remembered()).zip(taken);
    let chosen = each_family!(pools, ((pool, previous), taken) => match pool {
        None => None,
        Some(pool) => match choose(&pool, previous, &taken, rng) {
            None => return Decision::OutOfSubnets,
            chosen => chosen,
        },
    });
    let subnets = each_family!(chosen, chosen => chosen.map(|(subnet, _)| subnet));
    let origins = each_family!(chosen, chosen => chosen.map(|(_, origin)| origin));
    let Some(key) = LeaseKey::new(subnets.ipv4, subnets.ipv6) else {
        return Decision::OutOfSubnets;
    };
    Decision::Write {
        key,
        expect: Expect::Absent,
        reservation: false,
        origin: origins.ipv4.or(origins.ipv6).unwrap_or(Origin::Chosen),
    }
}

impl Wish {
    /// The subnets of the subnet file, which holds the gateway's address, `10.5.34.1/24`.
    fn remembered(&self) -> PerFamily<Option<Ipv4Network>, Option<Ipv6Network>> {
        PerFamily {
            ipv4: self.previous.and_then(network::<V4>),
            ipv6: self.previous6.and_then(network::<V6>),
        }
    }

    /// The subnet file names the subnet this key goes by.
    fn remembers(&self, key: &LeaseKey) -> bool {
        match key {
            LeaseKey::V4(subnet, _) => self.remembered().ipv4 == Some(*subnet),
            LeaseKey::V6(subnet) => self.remembered().ipv6 == Some(*subnet),
        }
    }
}

/// The previous subnet if it may be kept, else a picked one.
fn choose<F: Family>(
    pool: &Pool<F>,
    previous: Option<F::Network>,
    taken: &[F::Network],
    rng: &mut dyn RngCore,
) -> Option<(F::Network, Origin)> {
    let is_free = |subnet| !taken.iter().any(|other| F::overlap(*other, subnet));
    let kept = previous.filter(|subnet| pool.accepts(*subnet) && is_free(*subnet));
    match kept {
        Some(subnet) => Some((subnet, Origin::SubnetFile)),
        None => pool.pick(taken, rng).map(|subnet| (subnet, Origin::Chosen)),
    }
}

/// Keeps a record, unless it should not have been written: whoever wrote it died, or lost its
/// connection, before it looked back.
fn rewrite(wish: &Wish, entry: &Entry, entries: &[Entry], origin: Origin) -> Decision {
    let reservation = entry.lease_id.is_none();
    let node_ip = wish.attrs.node_ip();
    if !reservation && rival(&entry.key, node_ip, entry.create_revision, entries).is_some() {
        return Decision::Delete {
            key: entry.key,
            mod_revision: entry.mod_revision,
        };
    }
    Decision::Write {
        key: entry.key,
        expect: entry.unchanged(),
        reservation,
        origin,
    }
}

/// The store refuses a second record under one key, but not two keys that have a subnet in common:
/// two dual-stack nodes can choose the same IPv6 subnet with different IPv4 subnets. Of the two, the
/// one whose record was made later gives way.
pub fn rival(
    key: &LeaseKey,
    node_ip: IpAddr,
    create_revision: i64,
    entries: &[Entry],
) -> Option<LeaseKey> {
    let is_own = |entry: &Entry| {
        let attrs = entry.value.as_ref();
        entry.key == *key || attrs.is_ok_and(|attrs| attrs.node_ip() == node_ip)
    };
    let earlier = entries.iter().find(|entry| {
        entry.create_revision < create_revision && entry.key.overlaps(key) && !is_own(entry)
    });
    earlier.map(|entry| entry.key)
}

fn shows(entry: &Entry, node_ip: IpAddr) -> bool {
    let attrs = entry.value.as_ref();
    !node_ip.is_unspecified() && attrs.is_ok_and(|attrs| attrs.node_ip() == node_ip)
}

/// The record of the subnet this node used last, if it shows this node's device: the node's address
/// changed while the daemon was away.
fn readdressed<'a>(wish: &Wish, entries: &'a [Entry]) -> Option<(&'a Entry, IpAddr)> {
    let entry = entries.iter().find(|entry| wish.remembers(&entry.key))?;
    let attrs = entry.value.as_ref().ok()?;
    let same = backend::share_device(&wish.attrs, attrs);
    (same && wish.allocation.accepts(&entry.key)).then_some((entry, attrs.node_ip()))
}

/// Without the host bits.
fn network<F: Family>(address: F::Network) -> Option<F::Network> {
    F::with_prefix(F::first(address), F::prefix(address))
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recorded => f.write_str("recorded for this public IP"),
            Self::Readdressed { from } => write!(f, "recorded for this VTEP at {from}"),
            Self::SubnetFile => f.write_str("from the subnet file"),
            Self::Chosen => f.write_str("chosen among the free ones"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use overlay_common::addr::MacAddr;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{backend::VxlanData, membership::Allocation, model::LeaseAttrs};

    const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
    const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);

    fn wish(previous: Option<&str>) -> Wish {
        Wish {
            attrs: LeaseAttrs::vxlan(NODE, 1, MAC),
            allocation: Allocation {
                ipv4: Some(Pool {
                    network: "10.3.0.0/16".parse().unwrap(),
                    subnet_min: "10.3.1.0".parse().unwrap(),
                    subnet_max: "10.3.255.0".parse().unwrap(),
                    subnet_len: 24,
                }),
                ipv6: None,
            },
            previous: previous.map(|text| text.parse().unwrap()),
            previous6: None,
        }
    }

    fn entry(key: &str, public_ip: Ipv4Addr) -> Entry {
        Entry {
            key: LeaseKey::parse(key).unwrap(),
            value: Ok(LeaseAttrs::alloc(public_ip)),
            lease_id: Some(9),
            create_revision: 5,
            mod_revision: 5,
        }
    }

    /// What [`entry`] is expected to be when it is replaced.
    const LEASED: Expect = Expect::Unchanged {
        mod_revision: 5,
        lease_id: Some(9),
    };

    fn step(wish: &Wish, entries: &[Entry]) -> Decision {
        decide(wish, entries, &mut StdRng::seed_from_u64(3))
    }

    fn written(decision: Decision) -> (String, Expect, bool, Origin) {
        match decision {
            Decision::Write {
                key,
                expect,
                reservation,
                origin,
            } => (key.to_string(), expect, reservation, origin),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_record_of_the_own_public_ip_is_reused() {
        let entries = [entry("10.3.4.0-24", OTHER), entry("10.3.9.0-24", NODE)];
        assert_eq!(
            written(step(&wish(None), &entries)),
            ("10.3.9.0-24".into(), LEASED, false, Origin::Recorded)
        );
    }

    #[test]
    fn of_several_own_records_the_subnet_in_use_is_kept() {
        let entries = [entry("10.3.4.0-24", NODE), entry("10.3.9.0-24", NODE)];
        assert_eq!(written(step(&wish(None), &entries)).0, "10.3.4.0-24");
        assert_eq!(
            written(step(&wish(Some("10.3.9.1/24")), &entries)).0,
            "10.3.9.0-24"
        );
    }

    #[test]
    fn a_record_without_a_lease_pins_the_subnet_and_stays_a_reservation() {
        let mut pinned = entry("10.3.4.0-24", NODE);
        pinned.lease_id = None;
        assert_eq!(
            written(step(&wish(None), &[pinned])),
            (
                "10.3.4.0-24".into(),
                Expect::Unchanged {
                    mod_revision: 5,
                    lease_id: None
                },
                true,
                Origin::Recorded
            )
        );
    }

    #[test]
    fn an_own_record_outside_the_config_is_deleted_but_a_reservation_is_not() {
        let mut misfit = entry("10.4.4.0-24", NODE);
        assert_eq!(
            step(&wish(None), &[misfit.clone()]),
            Decision::Delete {
                key: misfit.key,
                mod_revision: 5
            }
        );
        misfit.lease_id = None;
        assert_eq!(written(step(&wish(None), &[misfit])).3, Origin::Chosen);
    }

    #[test]
    fn the_subnet_of_the_subnet_file_is_taken_when_nobody_holds_it() {
        let wish = wish(Some("10.3.21.1/24"));
        assert_eq!(
            written(step(&wish, &[entry("10.3.4.0-24", OTHER)])),
            (
                "10.3.21.0-24".into(),
                Expect::Absent,
                false,
                Origin::SubnetFile
            )
        );
        let held = [entry("10.3.21.0-24", OTHER)];
        let (key, _, _, origin) = written(step(&wish, &held));
        assert_eq!(origin, Origin::Chosen);
        assert_ne!(key, "10.3.21.0-24");
    }

    #[test]
    fn a_subnet_file_that_does_not_fit_the_config_is_ignored() {
        for previous in ["10.4.1.1/24", "10.3.1.1/25", "10.3.0.1/24"] {
            let (_, _, _, origin) = written(step(&wish(Some(previous)), &[]));
            assert_eq!(origin, Origin::Chosen, "{previous}");
        }
    }

    #[test]
    fn a_node_whose_address_changed_finds_its_subnet_by_its_vtep() {
        let mut mine = entry("10.3.21.0-24", OTHER);
        mine.value = Ok(LeaseAttrs::vxlan(OTHER, 1, MAC));
        assert_eq!(
            written(step(&wish(Some("10.3.21.1/24")), &[mine.clone()])),
            (
                "10.3.21.0-24".into(),
                LEASED,
                false,
                Origin::Readdressed { from: OTHER.into() }
            )
        );
        mine.value = Ok(LeaseAttrs::vxlan(
            OTHER,
            1,
            MacAddr::new([2, 0, 0, 0, 0, 9]),
        ));
        assert_eq!(
            written(step(&wish(Some("10.3.21.1/24")), &[mine])).3,
            Origin::Chosen
        );
    }

    #[test]
    fn a_full_network_is_reported() {
        assert_eq!(
            step(&wish(None), &[entry("10.3.0.0-16", OTHER)]),
            Decision::OutOfSubnets
        );
    }

    #[test]
    fn a_dual_stack_node_keeps_or_gets_a_subnet_of_each_family() {
        let mut dual = wish(Some("10.3.21.1/24"));
        dual.allocation.ipv6 = Some(Pool::<V6> {
            network: "fc00::/48".parse().unwrap(),
            subnet_min: "fc00:0:0:1::".parse().unwrap(),
            subnet_max: "fc00:0:0:ffff::".parse().unwrap(),
            subnet_len: 64,
        });
        dual.previous6 = "fc00:0:0:15::1/64".parse().ok();
        let (key, ..) = written(step(&dual, &[entry("10.3.4.0-24&fc00:0:0:4::-64", OTHER)]));
        assert_eq!(key, "10.3.21.0-24&fc00:0:0:15::-64");
        let (key, ..) = written(step(&dual, &[entry("10.3.4.0-24&fc00:0:0:15::-64", OTHER)]));
        assert!(key.starts_with("10.3.21.0-24&fc00:0:0:"), "{key}");
        assert!(!key.contains(":15::"), "{key}");
    }

    /// A wish in a cluster without IPv4.
    fn ipv6_wish(node: &str, previous: Option<&str>) -> Wish {
        let mut wish = wish(None);
        wish.attrs = LeaseAttrs::alloc(Ipv4Addr::UNSPECIFIED)
            .with_ipv6(node.parse().unwrap(), Some(VxlanData::new(1, MAC).encode()));
        wish.allocation = Allocation {
            ipv4: None,
            ipv6: Some(Pool::<V6> {
                network: "fc00::/48".parse().unwrap(),
                subnet_min: "fc00:0:0:1::".parse().unwrap(),
                subnet_max: "fc00:0:0:ffff::".parse().unwrap(),
                subnet_len: 64,
            }),
        };
        wish.previous6 = previous.map(|text| text.parse().unwrap());
        wish
    }

    #[test]
    fn nodes_without_ipv4_are_told_apart_by_their_public_ipv6_address() {
        let record = |key, node: &str, mac| Entry {
            value: Ok(LeaseAttrs::alloc(Ipv4Addr::UNSPECIFIED)
                .with_ipv6(node.parse().unwrap(), Some(VxlanData::new(1, mac).encode()))),
            ..entry(key, NODE)
        };
        let other_mac = MacAddr::new([2, 0, 0, 0, 0, 2]);
        let entries = [
            record("0.0.0.0-0&fc00:0:0:4::-64", "fd00::4", other_mac),
            record("0.0.0.0-0&fc00:0:0:9::-64", "fd00::9", MAC),
        ];
        let recorded = written(step(&ipv6_wish("fd00::9", None), &entries));
        assert_eq!(
            (recorded.0.as_str(), recorded.3),
            ("0.0.0.0-0&fc00:0:0:9::-64", Origin::Recorded)
        );
        let wish = ipv6_wish("fd00::8", Some("fc00:0:0:9::1/64"));
        let (key, .., origin) = written(step(&wish, &entries));
        let from = "fd00::9".parse().unwrap();
        assert_eq!(
            (key.as_str(), origin),
            ("0.0.0.0-0&fc00:0:0:9::-64", Origin::Readdressed { from })
        );
        let wish = ipv6_wish("fd00::8", Some("fc00:0:0:15::1/64"));
        let (key, expect, _, origin) = written(step(&wish, &entries));
        assert_eq!(
            (key.as_str(), expect, origin),
            (
                "0.0.0.0-0&fc00:0:0:15::-64",
                Expect::Absent,
                Origin::SubnetFile
            )
        );
        let (key, .., origin) = written(step(&ipv6_wish("fd00::8", None), &entries));
        assert!(key.starts_with("0.0.0.0-0&fc00:0:0:"), "{key}");
        assert_eq!(origin, Origin::Chosen);
    }
}
