//! The leases of other nodes, and which of them changed lately.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::Ipv4Addr,
    ops::Deref,
    sync::Arc,
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::{ByFamily, Family, LeaseKey, attrs::LeaseAttrs};

/// So many changes are remembered. Who has missed more looks at everything.
const JOURNAL: usize = 8192;

/// Another node's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLease {
    pub key: LeaseKey,
    pub attrs: Arc<LeaseAttrs>,
}

/// The leases of other nodes by the [subnet](LeaseKey::subnet) they go by. A reader that comes back
/// asks for what has changed since it was there.
#[derive(Clone, Debug, Default)]
pub struct LeaseTable {
    leases: BTreeMap<IpNetwork, PeerLease>,
    /// Of leases with a subnet of each family, the IPv6 one and the one they go by.
    by_ipv6: BTreeSet<(Ipv6Network, IpNetwork)>,
    /// The keys of leases that came, changed or went, the latest last.
    journal: VecDeque<LeaseKey>,
    /// Number of entries the journal ever had.
    position: u64,
}

/// Before every other network.
const LOWEST: Option<Ipv4Network> = Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0);

/// A subnet of one family.
struct SubnetOf;

impl ByFamily for SubnetOf {
    type Of<F: Family> = Option<F::Network>;
}

impl LeaseKey {
    /// The subnet of one family.
    pub fn subnet_of<F: Family>(&self) -> Option<F::Network> {
        F::pick::<SubnetOf>(self.subnets())
    }
}

impl LeaseTable {
    pub fn insert(&mut self, subnet: IpNetwork, lease: PeerLease) {
        let key = lease.key;
        self.note(key);
        let before = self.leases.insert(subnet, lease);
        if let Some(before) = before.filter(|before| before.key != key) {
            self.gone(subnet, before.key);
        }
        if let LeaseKey::V4(_, Some(ipv6)) = key {
            self.by_ipv6.insert((ipv6, subnet));
        }
    }

    pub fn remove(&mut self, subnet: &IpNetwork) {
        if let Some(before) = self.leases.remove(subnet) {
            self.gone(*subnet, before.key);
        }
    }

    /// Where a reader stands that knows everything.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The keys of leases that came, changed or went since a reader stood at `position`; `None` if
    /// that is not remembered.
    pub fn changed_since(&self, position: u64) -> Option<BTreeSet<LeaseKey>> {
        let missed = usize::try_from(self.position.checked_sub(position)?).ok()?;
        let first = self.journal.len().checked_sub(missed)?;
        Some(self.journal.range(first..).copied().collect())
    }

    /// The leases that name a subnet, in order.
    pub fn naming<F: Family>(&self, subnet: F::Network) -> impl Iterator<Item = &PeerLease> {
        let subnet: IpNetwork = subnet.into();
        let ipv6 = match subnet {
            IpNetwork::V4(_) => None,
            IpNetwork::V6(ipv6) => LOWEST.map(|lowest| (ipv6, IpNetwork::V4(lowest))),
        };
        let dual = ipv6.into_iter().flat_map(|first| {
            let pairs = self.by_ipv6.range(first..);
            pairs.take_while(move |(other, _)| *other == first.0)
        });
        let by = dual.map(|(_, by)| *by).chain([subnet]);
        by.filter_map(|by| self.leases.get(&by))
    }

    fn gone(&mut self, subnet: IpNetwork, key: LeaseKey) {
        self.note(key);
        if let LeaseKey::V4(_, Some(ipv6)) = key {
            self.by_ipv6.remove(&(ipv6, subnet));
        }
    }

    fn note(&mut self, key: LeaseKey) {
        if self.journal.len() == JOURNAL {
            self.journal.pop_front();
        }
        self.journal.push_back(key);
        self.position += 1;
    }
}

impl Deref for LeaseTable {
    type Target = BTreeMap<IpNetwork, PeerLease>;

    fn deref(&self) -> &Self::Target {
        &self.leases
    }
}

/// Tables with the same leases are equal, however they came to them.
impl PartialEq for LeaseTable {
    fn eq(&self, other: &Self) -> bool {
        self.leases == other.leases
    }
}

impl Eq for LeaseTable {}

impl FromIterator<(IpNetwork, PeerLease)> for LeaseTable {
    fn from_iter<I: IntoIterator<Item = (IpNetwork, PeerLease)>>(leases: I) -> Self {
        let leases: BTreeMap<_, _> = leases.into_iter().collect();
        let by_ipv6 = leases.iter().filter_map(|(subnet, lease)| match lease.key {
            LeaseKey::V4(_, Some(ipv6)) => Some((ipv6, *subnet)),
            _ => None,
        });
        Self {
            by_ipv6: by_ipv6.collect(),
            // Not remembered one by one: who knows of none of them looks at everything.
            position: leases.len() as u64,
            leases,
            journal: VecDeque::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{V4, V6};

    fn key(text: &str) -> LeaseKey {
        LeaseKey::parse(text).unwrap()
    }

    fn put(table: &mut LeaseTable, text: &str) {
        let key = key(text);
        let attrs = Arc::new(LeaseAttrs::alloc(Ipv4Addr::LOCALHOST));
        table.insert(key.subnet(), PeerLease { key, attrs });
    }

    #[test]
    fn a_reader_learns_what_changed_since_it_was_there() {
        let mut table = LeaseTable::default();
        put(&mut table, "10.5.1.0-24");
        let seen = table.position();
        assert_eq!(table.changed_since(seen), Some(BTreeSet::new()));
        put(&mut table, "10.5.2.0-24");
        table.remove(&key("10.5.1.0-24").subnet());
        table.remove(&key("10.5.9.0-24").subnet());
        let changed = [key("10.5.1.0-24"), key("10.5.2.0-24")];
        assert_eq!(table.changed_since(seen), Some(changed.into()));
        assert_eq!(table.changed_since(table.position() + 1), None);
    }

    #[test]
    fn a_reader_that_was_away_too_long_is_told_so() {
        let mut table = LeaseTable::default();
        for _ in 0..JOURNAL {
            put(&mut table, "10.5.1.0-24");
        }
        assert_eq!(table.changed_since(0).map(|keys| keys.len()), Some(1));
        put(&mut table, "10.5.1.0-24");
        assert_eq!(table.changed_since(0), None);
    }

    #[test]
    fn who_knows_nothing_of_a_table_looks_at_everything_and_then_at_what_changes() {
        let text = "10.5.1.0-24&fd00:0:0:1::-64";
        let mut first = LeaseTable::default();
        put(&mut first, text);
        let mut table: LeaseTable = first.iter().map(|(s, l)| (*s, l.clone())).collect();
        assert_eq!(table, first);
        assert_eq!(table.changed_since(0), None);
        let seen = table.position();
        assert_eq!(table.changed_since(seen), Some(BTreeSet::new()));
        put(&mut table, "10.5.2.0-24");
        assert_eq!(table.changed_since(seen), Some([key("10.5.2.0-24")].into()));
        let subnet = "fd00:0:0:1::/64".parse().unwrap();
        assert_eq!(table.naming::<V6>(subnet).count(), 1);
    }

    #[test]
    fn a_lease_with_another_ipv6_subnet_leaves_the_one_it_had() {
        let mut table = LeaseTable::default();
        put(&mut table, "10.5.1.0-24&fd00:0:0:1::-64");
        put(&mut table, "10.5.2.0-24&fd00:0:0:1::-64");
        put(&mut table, "0.0.0.0-0&fd00:0:0:1::-64");
        let subnet = "fd00:0:0:1::/64".parse().unwrap();
        assert_eq!(table.naming::<V6>(subnet).count(), 3);
        let seen = table.position();
        put(&mut table, "10.5.1.0-24&fd00:0:0:2::-64");
        assert_eq!(table.naming::<V6>(subnet).count(), 2);
        let changed = [
            key("10.5.1.0-24&fd00:0:0:1::-64"),
            key("10.5.1.0-24&fd00:0:0:2::-64"),
        ];
        assert_eq!(table.changed_since(seen), Some(changed.into()));
    }

    proptest! {
        #[test]
        fn the_leases_that_name_a_subnet_are_found(
            steps in prop::collection::vec((0u8..4, 0u8..4, any::<bool>()), 0..40),
        ) {
            let mut table = LeaseTable::default();
            for (v4, v6, stays) in steps {
                let text = match v4 {
                    0 => format!("0.0.0.0-0&fd00:0:0:{v6}::-64"),
                    _ if v6 == 0 => format!("10.5.{v4}.0-24"),
                    _ => format!("10.5.{v4}.0-24&fd00:0:0:{v6}::-64"),
                };
                if stays {
                    put(&mut table, &text);
                } else {
                    table.remove(&key(&text).subnet());
                }
            }
            for number in 0..4 {
                let v4 = format!("10.5.{number}.0/24").parse().unwrap();
                let v6 = format!("fd00:0:0:{number}::/64").parse().unwrap();
                let all = || table.values();
                let naming: Vec<_> = table.naming::<V4>(v4).collect();
                let scanned: Vec<_> = all().filter(|lease| lease.key.ipv4() == Some(v4)).collect();
                prop_assert_eq!(naming, scanned);
                let naming: Vec<_> = table.naming::<V6>(v6).collect();
                let scanned: Vec<_> = all().filter(|lease| lease.key.ipv6() == Some(v6)).collect();
                prop_assert_eq!(naming, scanned);
            }
        }
    }
}
