//! The leases of other nodes, and which of them are fit to be routed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use ipnetwork::IpNetwork;

use super::{alarm::Alarm, view::PeerLease};
use crate::lease::{Entry, LeaseAttrs, LeaseKey};

/// A subnet whose peer changed: its lease now, or `None`.
pub type Change = (IpNetwork, Option<PeerLease>);

/// The table of other nodes' leases.
#[derive(Debug)]
pub struct Peers {
    own: LeaseKey,
    own_ip: IpAddr,
    records: BTreeMap<LeaseKey, Record>,
    /// Records a reset store does not know, and how long they stay.
    kept: BTreeMap<LeaseKey, Instant>,
    faults: BTreeMap<LeaseKey, Alarm>,
    shown: BTreeMap<IpNetwork, PeerLease>,
}

#[derive(Debug)]
struct Record {
    attrs: LeaseAttrs,
    mod_revision: i64,
}

impl Peers {
    pub fn new(own: LeaseKey, own_ip: IpAddr) -> Self {
        Self {
            own,
            own_ip,
            records: BTreeMap::new(),
            kept: BTreeMap::new(),
            faults: BTreeMap::new(),
            shown: BTreeMap::new(),
        }
    }

    /// The leases to route, by subnet.
    pub fn shown(&self) -> &BTreeMap<IpNetwork, PeerLease> {
        &self.shown
    }

    /// Number of records a reset store does not know.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// When the first kept record is let go.
    pub fn deadline(&self) -> Option<Instant> {
        self.kept.values().min().copied()
    }

    pub fn put(&mut self, entry: Entry) -> Option<Change> {
        let subnet = entry.key.subnet();
        self.record(entry);
        self.refresh(subnet)
    }

    pub fn delete(&mut self, key: &LeaseKey) -> Option<Change> {
        self.remove(key);
        self.refresh(key.subnet())
    }

    /// Takes over a full list. What it lacks is gone, or, when the store lost its data, kept
    /// until `keep_until`; what `is_newer` says of a key is known better than the list knows it.
    pub fn replace(
        &mut self,
        mut entries: Vec<Entry>,
        keep_until: Option<Instant>,
        is_newer: impl Fn(&LeaseKey) -> bool,
    ) -> Vec<Change> {
        entries.retain(|entry| !is_newer(&entry.key));
        let listed: BTreeSet<_> = entries.iter().map(|entry| entry.key).collect();
        let mut touched: BTreeSet<_> = entries.iter().map(|entry| entry.key.subnet()).collect();
        let absent: Vec<_> = self
            .records
            .keys()
            .filter(|key| !listed.contains(key) && !is_newer(key))
            .filter(|key| !self.kept.contains_key(key))
            .copied()
            .collect();
        for key in absent {
            match keep_until {
                Some(until) => drop(self.kept.insert(key, until)),
                None => self.remove(&key),
            }
            touched.insert(key.subnet());
        }
        for entry in entries {
            self.record(entry);
        }
        self.refresh_all(touched)
    }

    /// Lets go of kept records whose time is over.
    pub fn expire(&mut self, now: Instant) -> Vec<Change> {
        let expired: Vec<_> = self
            .kept
            .extract_if(.., |_, until| *until <= now)
            .map(|(key, _)| key)
            .collect();
        for key in &expired {
            self.remove(key);
        }
        self.refresh_all(expired.into_iter().map(|key| key.subnet()))
    }

    /// The own public IP changed: records that show it are judged anew.
    pub fn set_own_ip(&mut self, own_ip: IpAddr) -> Vec<Change> {
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

    fn remove(&mut self, key: &LeaseKey) {
        self.records.remove(key);
        self.kept.remove(key);
        self.faults.remove(key);
    }

    /// A value that cannot be read leaves what is known of the node in force.
    fn record(&mut self, entry: Entry) {
        let Ok(attrs) = entry.value else { return };
        if entry.key == self.own {
            return;
        }
        self.kept.remove(&entry.key);
        let mod_revision = entry.mod_revision;
        let record = Record {
            attrs,
            mod_revision,
        };
        self.records.insert(entry.key, record);
    }

    fn refresh_all(&mut self, subnets: impl IntoIterator<Item = IpNetwork>) -> Vec<Change> {
        let changes = subnets.into_iter().filter_map(|s| self.refresh(s));
        changes.collect()
    }

    /// The lease to show for a subnet: the one written last, if several keys name it.
    fn refresh(&mut self, subnet: IpNetwork) -> Option<Change> {
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
            .max_by_key(|(key, record)| (!self.kept.contains_key(key), record.mod_revision))
            .map(|(key, record)| PeerLease {
                key: *key,
                attrs: record.attrs.clone(),
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
