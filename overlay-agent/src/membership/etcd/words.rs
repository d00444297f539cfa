//! What operators are told about leases in etcd.

use crate::model::Alarm;

/// flannel's own words and where to look, while there is no network config.
pub fn config_missing(place: &str, remedy: &str) -> String {
    format!(
        "flannel config not found in etcd store. Did you create your config using etcdv3 API? Looked \
         for {place}; {remedy}"
    )
}

/// What is wrong, and what to do about it.
pub fn alarm(alarm: &Alarm) -> String {
    match alarm {
        Alarm::Taken { subnet, by } => format!(
            "subnet {subnet} of this node is claimed by {by}; forwarding for existing pods \
             goes on, the claim does not; delete the key in etcd to give the subnet back, or \
             restart this node for another one"
        ),
        Alarm::Contended { subnet } => format!(
            "the lease of {subnet} keeps being changed by somebody else; check that no other \
             node uses this node's public IP"
        ),
        Alarm::Overdue { subnet } => format!(
            "the lease of {subnet} ran out before it could be renewed; forwarding goes on and \
             the lease is written again as soon as etcd answers"
        ),
        Alarm::Overlap { own, other, by } => format!(
            "lease {other} of {by} overlaps {own} of this node and is not routed; delete one \
             of the two keys in etcd"
        ),
        Alarm::SecondRecord { subnet, public_ip } => format!(
            "subnet {subnet} is recorded for {public_ip}, which is this node; no route is made \
             of it; delete its key in etcd, or give the other node its own public IP"
        ),
        Alarm::StoreReset { absent_peers } => format!(
            "etcd lost its data or was restored from an old backup; {absent_peers} peers it \
             does not know stay reachable until their lease would have run out"
        ),
        Alarm::ConfigChanged => String::from(
            "the network config in etcd differs from the one in force; reload the daemon \
             (SIGHUP), which applies what it can and names what needs a restart",
        ),
        Alarm::ConfigMissing => String::from(
            "the network config is gone from etcd; this node goes on with the one in force, \
             but nodes cannot start; put it back",
        ),
    }
}
