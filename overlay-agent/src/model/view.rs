//! What the rest of the agent sees of the leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use ipnetwork::IpNetwork;

use super::alarm::Alarm;
use crate::lease::{ConfigText, LeaseAttrs, LeaseKey};

/// The leases as this node knows them. What was learned stays while etcd is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    pub own: OwnLease,
    /// Other nodes, of all backends, by the [subnet](LeaseKey::subnet) their leases go by. Never
    /// holds anything that overlaps the own subnet.
    pub peers: BTreeMap<IpNetwork, PeerLease>,
    pub etcd: EtcdState,
    /// The network config as etcd has it, which may differ from the one in force.
    pub config: Option<ConfigText>,
    pub alarms: BTreeSet<Alarm>,
}

/// The own lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnLease {
    pub key: LeaseKey,
    /// When etcd lets the record go; `None` for a reservation, and until etcd was asked.
    pub expires: Option<Instant>,
    /// The record is attached to no etcd lease and does not run out.
    pub reservation: bool,
    pub state: OwnState,
}

/// Standing of the own record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnState {
    /// etcd has it, as far as known.
    Held,
    /// It is gone from etcd and is being written again.
    Lost,
    /// Another node has it.
    Taken { by: IpAddr },
}

/// Another node's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLease {
    pub key: LeaseKey,
    pub attrs: LeaseAttrs,
}

/// The connection to etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdState {
    /// The watch stands: changes arrive as they happen.
    pub connected: bool,
    /// Why it does not, or did not last.
    pub last_error: Option<String>,
    /// Everything up to here is in the view.
    pub revision: i64,
}
