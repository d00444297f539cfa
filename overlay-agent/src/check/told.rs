//! What only the running agent knows: leases of which no route is made, and what time it is at the lease store.

use std::{io, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    clock::Clock,
    inquiry::{Served, Subject},
    model::{Alarm, LeaseView},
};

const SUBJECT: Subject = Subject("overlay-agent/check");

/// A lease that shows the address of this node, or this node's lease with another's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Duplicate {
    pub subnet: IpNetwork,
    /// `None` if it keeps changing.
    pub public_ip: Option<IpAddr>,
}

/// What the agent says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Told {
    pub duplicates: Vec<Duplicate>,
    /// By how many seconds this node's clock is ahead of the store's.
    pub clock_ahead_seconds: Option<i64>,
}

/// Tells `check` as long as the result is kept.
pub fn tell(leases: watch::Receiver<LeaseView>, clock: Clock) -> io::Result<Served> {
    SUBJECT.serve(move || {
        let view = leases.borrow();
        Told {
            duplicates: view.alarms.iter().filter_map(duplicate).collect(),
            clock_ahead_seconds: clock.ahead_seconds(),
        }
    })
}

pub(super) fn ask() -> io::Result<Option<Told>> {
    SUBJECT.ask()
}

fn duplicate(alarm: &Alarm) -> Option<Duplicate> {
    let (subnet, public_ip) = match alarm {
        Alarm::SecondRecord { subnet, public_ip } => (*subnet, Some(*public_ip)),
        Alarm::Taken { subnet, by } => (*subnet, Some(*by)),
        Alarm::Contended { subnet } => (*subnet, None),
        _ => return None,
    };
    Some(Duplicate { subnet, public_ip })
}
