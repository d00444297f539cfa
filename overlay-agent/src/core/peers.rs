//! The leases of other nodes, and which of them are fit to be routed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use ipnetwork::IpNetwork;

use super::{
    absent::{Absent, Stay},
    record::Entry,
};
use crate::{
    backend,
    model::{Alarm, LeaseAttrs, LeaseKey, PeerLease, pack},
};

/// A subnet whose peer changed: its lease now, or `None`.
pub type PeerChange = (IpNetwork, Option<PeerLease>);

/// The table of other nodes' leases.
#[derive(Debug)]
pub struct Peers {
    own: LeaseKey,
    own_ip: IpAddr,
    records: BTreeMap<LeaseKey, Record>,
    /// Those of the records that the store does not have.
    absent: Absent,
    faults: BTreeMap<LeaseKey, Alarm>,
    shown: BTreeMap<IpNetwork, PeerLease>,
}

#[derive(Debug)]
struct Record {
    attrs: Arc<LeaseAttrs>,
    create_revision: i64,
    mod_revision: i64,
}

impl Peers {
    pub fn new(own: LeaseKey, own_ip: IpAddr) -> Self {
        Self {
            own,
            own_ip,
            records: BTreeMap::new(),
            absent: Absent::default(),
            faults: BTreeMap::new(),
            shown: BTreeMap::new(),
        }
    }

    /// The leases to route, by subnet.
    pub fn shown(&self) -> &BTreeMap<IpNetwork, PeerLease> {
        &self.shown
    }

    /// Number of records a reset store does not know.
    pub fn lost(&self) -> usize {
        self.absent.lost()
    }

    /// When the first absent peer is let go.
    pub fn deadline(&self) -> Option<Instant> {
        self.absent.deadline()
    }

    /// Lets no absent peer go before `until`.
    pub fn wait(&mut self, until: Instant) {
        self.absent.wait(until);
    }

    /// Lets no absent peer go as long as this is set.
    pub fn hold(&mut self, held: bool) {
        self.absent.hold(held);
    }

    pub fn put(&mut self, entry: Entry) -> Vec<PeerChange> {
        let subnet = entry.key.subnet();
        let mut touched = self.record(entry);
        touched.insert(subnet);
        self.refresh_all(touched)
    }

    /// The record is gone; the peer stays as long as `stay` says.
    pub fn delete(&mut self, key: &LeaseKey, stay: Stay) -> Option<PeerChange> {
        if self.is_shown(key) {
            self.absent.insert(*key, stay);
        }
        let change = self.refresh(key.subnet());
        if !self.is_shown(key) {
            // Nobody was sent to by it, or another node has the subnet.
            self.remove(key);
        }
        change
    }

    /// Takes over a full list. What it lacks stays as long as `stay` says; what `is_newer` says of
    /// a key is known better than the list knows it.
    pub fn replace(
        &mut self,
        mut entries: Vec<Entry>,
        stay: Stay,
        is_newer: impl Fn(&LeaseKey) -> bool,
    ) -> Vec<PeerChange> {
        entries.retain(|entry| !is_newer(&entry.key));
        let is_first = self.records.is_empty();
        let listed: BTreeSet<_> = entries.iter().map(|entry| entry.key).collect();
        let mut touched: BTreeSet<_> = entries.iter().map(|entry| entry.key.subnet()).collect();
        let missing: Vec<_> = self
            .records
            .keys()
            .filter(|key| !listed.contains(key) && !is_newer(key))
            .copied()
            .collect();
        for key in missing {
            self.absent.insert(key, stay);
            touched.insert(key.subnet());
        }
        for entry in entries {
            touched.extend(self.record(entry));
        }
        let changes = self.refresh_all(touched);
        self.forget_unshown();
        if is_first {
            pack(&mut self.records);
            pack(&mut self.shown);
        }
        changes
    }

    /// Lets go of absent peers whose time is over.
    pub fn expire(&mut self, now: Instant) -> Vec<PeerChange> {
        let expired = self.absent.expire(now);
        for key in &expired {
            self.remove(key);
        }
        self.refresh_all(expired.into_iter().map(|key| key.subnet()))
    }

    /// The own public IP changed: records that show it are judged anew.
    pub fn set_own_ip(&mut self, own_ip: IpAddr) -> Vec<PeerChange> {
        if self.own_ip == own_ip {
            return Vec::new();
        }
        self.own_ip = own_ip;
        let subnets: BTreeSet<_> = self.records.keys().map(LeaseKey::subnet).collect();
        self.refresh_all(subnets)
    }

    pub fn alarms(&self) -> impl Iterator<Item = &Alarm> {
        self.faults.values()
    }

    /// A node whose record overlaps the own one and was made before `create_revision`; if there is no
    /// own one, at any time.
    pub fn rival(&self, create_revision: Option<i64>) -> Option<IpAddr> {
        let overlapping = self.faults.iter().filter_map(|(key, alarm)| match alarm {
            Alarm::Overlap { by, .. } if !self.absent.contains(key) => {
                Some((self.records.get(key)?, *by))
            }
            _ => None,
        });
        let mut earlier = overlapping.filter(|(record, _)| {
            create_revision.is_none_or(|created| record.create_revision < created)
        });
        earlier.next().map(|(_, by)| by)
    }

    fn remove(&mut self, key: &LeaseKey) {
        self.records.remove(key);
        self.absent.remove(key);
        self.faults.remove(key);
    }

    /// Absent records that nobody is sent to by need not stay.
    fn forget_unshown(&mut self) {
        let absent = self.absent.keys().filter(|key| !self.is_shown(key));
        for key in absent.copied().collect::<Vec<_>>() {
            self.remove(&key);
        }
    }

    fn is_shown(&self, key: &LeaseKey) -> bool {
        let shown = self.shown.get(&key.subnet());
        shown.is_some_and(|lease| lease.key == *key)
    }

    /// Returns the subnets of the absent peers that make room for the record. A value that cannot
    /// be read leaves what is known of the node in force.
    fn record(&mut self, entry: Entry) -> BTreeSet<IpNetwork> {
        let mut vacated = BTreeSet::new();
        if entry.key == self.own {
            return vacated;
        }
        self.absent.remove(&entry.key);
        let Ok(attrs) = entry.value else {
            return vacated;
        };
        let known = self.records.get(&entry.key);
        let known = known.filter(|known| *known.attrs == attrs);
        let is_known = known.is_some();
        let record = Record {
            attrs: known.map_or_else(|| Arc::new(attrs), |known| Arc::clone(&known.attrs)),
            create_revision: entry.create_revision,
            mod_revision: entry.mod_revision,
        };
        if !is_known {
            for key in self.contradicted(&entry.key, &record) {
                self.remove(&key);
                vacated.insert(key.subnet());
            }
        }
        self.records.insert(entry.key, record);
        vacated
    }

    /// Absent peers that cannot be where they were if a record is true.
    fn contradicted(&self, key: &LeaseKey, record: &Record) -> Vec<LeaseKey> {
        let is_routable = fault(&self.own, self.own_ip, key, record).is_none()
            && !record.attrs.node_ip().is_unspecified();
        let contradicts = |other: &&LeaseKey| {
            let absent = self.records.get(other);
            key.overlaps(other) || absent.is_some_and(|absent| share(&record.attrs, &absent.attrs))
        };
        let absent = self.absent.keys().filter(|_| is_routable);
        absent.filter(contradicts).copied().collect()
    }

    fn refresh_all(&mut self, subnets: impl IntoIterator<Item = IpNetwork>) -> Vec<PeerChange> {
        let changes = subnets.into_iter().filter_map(|s| self.refresh(s));
        changes.collect()
    }

    /// The lease to show for a subnet: the one written last, if several keys name it.
    fn refresh(&mut self, subnet: IpNetwork) -> Option<PeerChange> {
        let same_subnet = self
            .records
            .range(LeaseKey::first_of(subnet)..)
            .take_while(|(key, _)| key.subnet() == subnet);
        let mut routable = Vec::new();
        for (key, record) in same_subnet {
            if let Some(alarm) = fault(&self.own, self.own_ip, key, record) {
                self.faults.insert(*key, alarm);
            } else {
                self.faults.remove(key);
                routable.push((key, record));
            }
        }
        let best = routable
            .into_iter()
            .filter(|(_, record)| !record.attrs.node_ip().is_unspecified())
            .max_by_key(|(key, record)| (!self.absent.contains(key), record.mod_revision))
            .map(|(key, record)| PeerLease {
                key: *key,
                attrs: Arc::clone(&record.attrs),
            });
        if self.shown.get(&subnet) == best.as_ref() {
            return None;
        }
        match &best {
            Some(lease) => self.shown.insert(subnet, lease.clone()),
            None => self.shown.remove(&subnet),
        };
        Some((subnet, best))
    }
}

/// Whether two records name one node, or one end of tunnels.
fn share(one: &LeaseAttrs, other: &LeaseAttrs) -> bool {
    let both_ipv6 = one.public_ipv6.zip(other.public_ipv6);
    one.node_ip() == other.node_ip()
        || both_ipv6.is_some_and(|(one, other)| one == other)
        || backend::share_device(one, other)
}

/// Why no route may be made of a record.
fn fault(own: &LeaseKey, own_ip: IpAddr, key: &LeaseKey, record: &Record) -> Option<Alarm> {
    let by = record.attrs.node_ip();
    if by == own_ip {
        Some(Alarm::SecondRecord {
            subnet: key.subnet(),
            public_ip: by,
        })
    } else if key.overlaps(own) {
        Some(Alarm::Overlap {
            own: *own,
            other: *key,
            by,
        })
    } else {
        None
    }
}
