//! What only the running agent knows: leases of which no route is made.

use std::{io, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    inquiry::{Served, Subject},
    model::{Alarm, LeaseView},
};

const SUBJECT: Subject = Subject("overlay-agent/duplicates");

/// A lease that shows the address of this node, or this node's lease with another's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Duplicate {
    pub subnet: IpNetwork,
    /// `None` if it keeps changing.
    pub public_ip: Option<IpAddr>,
}

/// Tells `check` about the leases as long as the result is kept.
pub fn tell(leases: watch::Receiver<LeaseView>) -> io::Result<Served> {
    SUBJECT.serve(move || {
        let view = leases.borrow();
        view.alarms.iter().filter_map(duplicate).collect::<Vec<_>>()
    })
}

pub(super) fn ask() -> io::Result<Option<Vec<Duplicate>>> {
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
