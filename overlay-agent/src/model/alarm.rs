//! Conditions an operator must hear about. They hold until cleared; each is reported when raised
//! and when cleared, not in between.

use std::{fmt, net::IpAddr};

use ipnetwork::IpNetwork;

use crate::lease::LeaseKey;

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

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken { subnet, by } => write!(
                f,
                "subnet {subnet} of this node is claimed by {by}; forwarding for existing pods \
                 goes on, the claim does not; delete the key in etcd to give the subnet back, or \
                 restart this node for another one"
            ),
            Self::Contended { subnet } => write!(
                f,
                "the lease of {subnet} keeps being changed by somebody else; check that no other \
                 node uses this node's public IP"
            ),
            Self::Overdue { subnet } => write!(
                f,
                "the lease of {subnet} ran out before it could be renewed; forwarding goes on and \
                 the lease is written again as soon as etcd answers"
            ),
            Self::Overlap { own, other, by } => write!(
                f,
                "lease {other} of {by} overlaps {own} of this node and is not routed; delete one \
                 of the two keys in etcd"
            ),
            Self::SecondRecord { subnet, public_ip } => write!(
                f,
                "subnet {subnet} is recorded for {public_ip}, which is this node; no route is made \
                 of it; delete its key in etcd, or give the other node its own public IP"
            ),
            Self::StoreReset { absent_peers } => write!(
                f,
                "etcd lost its data or was restored from an old backup; {absent_peers} peers it \
                 does not know stay reachable until their lease would have run out"
            ),
            Self::ConfigChanged => f.write_str(
                "the network config in etcd differs from the one in force; reload the daemon \
                 (SIGHUP), which applies what it can and names what needs a restart",
            ),
            Self::ConfigMissing => f.write_str(
                "the network config is gone from etcd; this node goes on with the one in force, \
                 but nodes cannot start; put it back",
            ),
        }
    }
}
