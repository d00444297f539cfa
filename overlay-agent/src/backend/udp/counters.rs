//! What became of packets in the forwarder.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
};

macro_rules! events {
    ($($event:ident $kind:ident $name:literal $meaning:literal,)+) => {
        /// What can become of a packet.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event {
            $($event,)+
        }

        impl Event {
            pub const ALL: &[Self] = &[$(Self::$event,)+];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$event => $name,)+
                }
            }

            pub const fn describe(self) -> &'static str {
                match self {
                    $(Self::$event => $meaning,)+
                }
            }

            pub const fn kind(self) -> Kind {
                match self {
                    $(Self::$event => Kind::$kind,)+
                }
            }
        }
    };
}

/// Whether the packet went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Carried,
    Drop,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Carried => "carried",
            Self::Drop => "drop",
        }
    }
}

events! {
    Sent Carried "sent" "From the device to the node that has the destination's subnet.",
    Received Carried "received" "From another node to the device.",
    NoNode Drop "no_node" "For a subnet that no node has. Answered with ICMP \"net unreachable\", unless it is ICMP itself.",
    NotIpv4 Drop "not_ipv4" "From the device, and not IPv4, as the IPv6 messages of the interface itself.",
    OutTtl Drop "out_ttl" "From the device, with no hop left.",
    SendRefused Drop "send_refused" "The kernel did not send it: no route, no room, or a packet filter rule.",
    UnknownSender Drop "unknown_sender" "From an address that no lease shows.",
    SenderPort Drop "sender_port" "From a node's address and not from the port of the backend: from a process or a masqueraded pod there.",
    Malformed Drop "malformed" "No IPv4 packet in the datagram.",
    InnerSource Drop "inner_source" "From a node that does not have the subnet of the packet's source.",
    InnerDestination Drop "inner_destination" "For an address outside this node's subnet.",
    InTtl Drop "in_ttl" "From another node, with no hop left.",
    DeviceRefused Drop "device_refused" "The device did not take it: it is down, or what came is no packet.",
}

/// How many there are.
const COUNT: usize = Event::ALL.len();

/// Packets of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally([u64; COUNT]);

impl Tally {
    pub fn add(&mut self, event: Event) {
        self.add_many(event, 1);
    }

    pub fn add_many(&mut self, event: Event, packets: u64) {
        self.0[event as usize] += packets;
    }
}

/// Packets since the agent was started. Written by one thread, after each batch.
#[derive(Debug)]
pub struct Counters([AtomicU64; COUNT]);

impl Default for Counters {
    fn default() -> Self {
        Self(array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Counters {
    /// Adds a batch, which is empty afterwards.
    pub fn take(&self, tally: &mut Tally) {
        for (total, packets) in self.0.iter().zip(&mut tally.0) {
            if *packets > 0 {
                total.fetch_add(std::mem::take(packets), Ordering::Relaxed);
            }
        }
    }

    pub fn packets(&self, event: Event) -> u64 {
        self.0[event as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_add_up_by_event() {
        let counters = Counters::default();
        let mut tally = Tally::default();
        tally.add(Event::Sent);
        tally.add_many(Event::InTtl, 3);
        counters.take(&mut tally);
        tally.add(Event::Sent);
        counters.take(&mut tally);
        counters.take(&mut tally);
        let counted = [Event::Sent, Event::InTtl, Event::Received].map(|e| counters.packets(e));
        assert_eq!(counted, [2, 3, 0]);
    }

    #[test]
    fn every_event_is_in_the_document_with_its_meaning() {
        let document = include_str!("../../../../docs/operator-commands.md");
        for event in Event::ALL {
            let row = format!("| `{}` | {} |", event.name(), event.describe());
            assert!(document.contains(&row), "{row}");
        }
    }

    #[test]
    fn names_are_words_of_their_own() {
        for (at, event) in Event::ALL.iter().enumerate() {
            assert_eq!(*event as usize, at);
            let earlier = &Event::ALL[..at];
            assert!(earlier.iter().all(|other| other.name() != event.name()));
            assert!(event.describe().ends_with('.'), "{event:?}");
        }
    }
}
