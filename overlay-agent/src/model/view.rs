//! What the rest of the agent sees of the leases.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use super::{
    alarm::Alarm,
    key::LeaseKey,
    leases::LeaseTable,
    store::{ConfigText, StoreState},
};

/// The leases as this node knows them. What was learned stays while the store is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    pub own: OwnLease,
    /// Other nodes, of all backends. Never holds anything that overlaps the own subnet.
    pub peers: LeaseTable,
    pub store: StoreState,
    /// The network config as the store has it, which may differ from the one in force.
    pub config: Option<ConfigText>,
    pub alarms: BTreeSet<Alarm>,
}

/// The own lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnLease {
    pub key: LeaseKey,
    /// When the store lets the record go; `None` for a reservation, and until the store was asked.
    pub expires: Option<Instant>,
    /// The record is not bound to a time and does not run out.
    pub reservation: bool,
    pub state: OwnState,
}

/// Standing of the own record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnState {
    /// The store has it, as far as known.
    Held,
    /// It is gone from the store and is being written again.
    Lost,
    /// Another node has it.
    Taken { by: IpAddr },
    /// The store gives this node another subnet now, or none.
    Reassigned { to: Option<LeaseKey> },
}
