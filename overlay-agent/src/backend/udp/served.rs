//! The forwarder's counters for `overlay-agent stats`.

use std::{io, sync::Arc};

use serde::{Deserialize, Serialize};

use super::counters::{Counters, Event};
use crate::inquiry::{Served, Subject};

const SUBJECT: Subject = Subject("overlay-agent/udp");

/// What became of packets, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub kind: String,
    pub event: String,
    pub description: String,
    pub packets: u64,
}

/// Tells what is counted as long as the result is kept.
pub fn start(counters: Arc<Counters>) -> io::Result<Served> {
    SUBJECT.serve(move || counts(&counters))
}

fn counts(counters: &Counters) -> Vec<Count> {
    let count = |&event: &Event| Count {
        kind: event.kind().name().to_owned(),
        event: event.name().to_owned(),
        description: event.describe().to_owned(),
        packets: counters.packets(event),
    };
    Event::ALL.iter().map(count).collect()
}

/// What the forwarder of this network namespace has counted since its agent was started; `None` if there
/// is none.
pub fn read() -> io::Result<Option<Vec<Count>>> {
    SUBJECT.ask()
}
