//! Conditions an operator must hear about. They hold until cleared; each is reported when raised
//! and when cleared, not in between.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::key::LeaseKey;

/// Something is wrong with the leases that the daemon cannot put right by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// The own key shows another node's address.
    Taken { subnet: IpNetwork, by: IpAddr },
    /// Somebody keeps changing the own record: most likely two nodes have this public IP.
    Contended { subnet: IpNetwork },
    /// The own lease could not be renewed in time.
    Overdue { subnet: IpNetwork },
    /// Another node's subnet overlaps the own one.
    Overlap {
        own: LeaseKey,
        other: LeaseKey,
        by: IpAddr,
    },
    /// Another subnet is recorded for the own public IP.
    SecondRecord {
        subnet: IpNetwork,
        public_ip: IpAddr,
    },
    /// The store lost its data, or went back to an older state.
    StoreReset { absent_peers: usize },
    /// The network config differs from the one in force.
    ConfigChanged,
    /// The network config is gone from the store.
    ConfigMissing,
}
