//! What the programs of the logging flavour say about packets, in the daemon's log.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata};
use overlay_common::{
    outcome::{Hook, Outcome},
    record::{FAMILY_IPV4, FAMILY_IPV6, FAMILY_NONE, Record},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Mutex,
    task::block_in_place,
};
use tokio_util::sync::CancellationToken;
use tracing::{Level, event, level_filters::LevelFilter};

use super::error::DatapathError;
use crate::names::{interface_label, interface_name, protocol_name};

/// The target of the lines about packets.
pub const PACKETS: &str = "overlay_packets";

/// What the programs log, not read yet. Clones share it.
#[derive(Clone)]
pub struct PacketLog {
    ring: Arc<Mutex<EbpfLogger<Sink>>>,
}

impl fmt::Debug for PacketLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PacketLog")
    }
}

impl PacketLog {
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let logger = EbpfLogger::init_with_logger(ebpf, Sink)
            .map_err(|source| DatapathError::Log { source })?;
        Ok(Self {
            ring: Arc::new(Mutex::new(logger)),
        })
    }

    /// Writes the lines as they come, until `stop` is cancelled.
    pub async fn forward(self, stop: CancellationToken) -> io::Result<()> {
        let mut ring = self.ring.lock().await;
        let fd = register(ring.as_fd().try_clone_to_owned()?)?;
        loop {
            let mut ready = tokio::select! {
                ready = fd.readable() => ready?,
                () = stop.cancelled() => return Ok(()),
            };
            // This does not return while packets come faster than lines are written.
            block_in_place(|| ring.flush());
            ready.clear_ready();
        }
    }
}

#[expect(
    unsafe_code,
    reason = "tokio cannot check that a descriptor lasts as long as its registration"
)]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor and drops it after deregistering it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(registered?)
}

/// The level as the programs know it: 1 to 5, 0 for none.
pub const fn level(filter: LevelFilter) -> u8 {
    let level = match filter.into_level() {
        None => return 0,
        Some(Level::ERROR) => aya_log::Level::Error,
        Some(Level::WARN) => aya_log::Level::Warn,
        Some(Level::INFO) => aya_log::Level::Info,
        Some(Level::DEBUG) => aya_log::Level::Debug,
        Some(Level::TRACE) => aya_log::Level::Trace,
    };
    level as u8
}

/// Takes the messages of `aya-log`, each of which is a [`Record`] in hexadecimal.
struct Sink;

impl Log for Sink {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, message: &log::Record<'_>) {
        let text = message.args().to_string();
        if let Some(line) = decode(&text).and_then(|record| Line::of(&record)) {
            line.write(match message.level() {
                log::Level::Error => Level::ERROR,
                log::Level::Warn => Level::WARN,
                log::Level::Info => Level::INFO,
                log::Level::Debug => Level::DEBUG,
                log::Level::Trace => Level::TRACE,
            });
        }
    }

    fn flush(&self) {}
}

fn decode(text: &str) -> Option<Record> {
    let bytes: Vec<u8> = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect::<Option<_>>()?;
    bytemuck::try_pod_read_unaligned(&bytes).ok()
}

/// A packet in the words of the log.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    hook: &'static str,
    kind: &'static str,
    outcome: &'static str,
    interface: String,
    protocol: Option<String>,
    source: Option<String>,
    destination: Option<String>,
    peer: Option<IpAddr>,
    bytes: u32,
}

impl Line {
    fn of(record: &Record) -> Option<Self> {
        let hook = Hook::ALL
            .iter()
            .find(|&&hook| hook as u32 == u32::from(record.hook))?;
        let outcome = Outcome::ALL
            .iter()
            .find(|&&outcome| outcome as u32 == u32::from(record.outcome))?;
        let address = |octets| address(record.family, octets);
        let end = |octets, port| Some(end(address(octets)?, u16::from_be_bytes(port)));
        Some(Self {
            hook: hook.name(),
            kind: outcome.kind().name(),
            outcome: outcome.name(),
            interface: interface_label(record.ifindex, interface_name(record.ifindex).as_deref()),
            protocol: (record.family != FAMILY_NONE).then(|| protocol_name(record.protocol)),
            source: end(record.src, record.src_port),
            destination: end(record.dst, record.dst_port),
            peer: address(record.peer).filter(|peer| !peer.is_unspecified()),
            bytes: record.bytes,
        })
    }

    fn write(&self, level: Level) {
        // The level of an event is part of the program text.
        macro_rules! write {
            ($level:expr) => {
                event!(
                    target: PACKETS,
                    $level,
                    kind = self.kind,
                    hook = self.hook,
                    outcome = self.outcome,
                    interface = self.interface,
                    protocol = self.protocol,
                    source = self.source,
                    destination = self.destination,
                    peer = self.peer.map(display),
                    bytes = self.bytes,
                    "packet"
                )
            };
        }
        match level {
            Level::ERROR => write!(Level::ERROR),
            Level::WARN => write!(Level::WARN),
            Level::INFO => write!(Level::INFO),
            Level::DEBUG => write!(Level::DEBUG),
            Level::TRACE => write!(Level::TRACE),
        }
    }
}

fn address(family: u8, octets: [u8; 16]) -> Option<IpAddr> {
    let [a, b, c, d, ..] = octets;
    match family {
        FAMILY_IPV4 => Some(Ipv4Addr::from([a, b, c, d]).into()),
        FAMILY_IPV6 => Some(Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

/// One end of a packet; port 0 is none.
fn end(address: IpAddr, port: u16) -> String {
    match port {
        0 => address.to_string(),
        _ => SocketAddr::new(address, port).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use aya_log::{Formatter as _, LowerHexBytesFormatter};
    use bytemuck::bytes_of;

    use super::*;

    fn hexadecimal(record: &Record) -> String {
        LowerHexBytesFormatter::format(bytes_of(record))
    }

    fn octets<const N: usize>(address: [u8; N]) -> [u8; 16] {
        let mut octets = [0; 16];
        octets[..N].copy_from_slice(&address);
        octets
    }

    fn ipv4() -> Record {
        Record {
            hook: Hook::Egress as u8,
            outcome: Outcome::Ttl as u8,
            family: FAMILY_IPV4,
            protocol: 17,
            ifindex: 1,
            bytes: 90,
            src_port: 4242u16.to_be_bytes(),
            dst_port: 53u16.to_be_bytes(),
            src: octets([10, 5, 1, 2]),
            dst: octets([10, 5, 2, 3]),
            ..Record::default()
        }
    }

    #[test]
    fn a_record_passes_through_a_message_unchanged() {
        assert_eq!(decode(&hexadecimal(&ipv4())), Some(ipv4()));
        for wrong in [
            "",
            "0",
            "00",
            "zz",
            "\u{e9}\u{e9}",
            &hexadecimal(&ipv4())[1..],
        ] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_line_names_the_packet_and_what_became_of_it() {
        let line = Line {
            hook: "egress",
            kind: "decline",
            outcome: "ttl",
            interface: "lo".to_owned(),
            protocol: Some("udp".to_owned()),
            source: Some("10.5.1.2:4242".to_owned()),
            destination: Some("10.5.2.3:53".to_owned()),
            peer: None,
            bytes: 90,
        };
        assert_eq!(Line::of(&ipv4()), Some(line));
    }

    #[test]
    fn ipv6_ends_without_ports_are_addresses_and_a_tunnel_packet_has_a_peer() {
        let pod = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
        let node = Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 1);
        let record = Record {
            hook: Hook::Ingress as u8,
            outcome: Outcome::WrongPeer as u8,
            family: FAMILY_IPV6,
            protocol: 58,
            src: pod.octets(),
            peer: node.octets(),
            ..Record::default()
        };
        let line = Line::of(&record).expect("a line");
        assert_eq!(line.source.as_deref(), Some("fd00::2"));
        assert_eq!(line.peer, Some(node.into()));
        assert_eq!(line.interface, "if0");
        let with_port = Record {
            src_port: 80u16.to_be_bytes(),
            ..record
        };
        let line = Line::of(&with_port).expect("a line");
        assert_eq!(line.source.as_deref(), Some("[fd00::2]:80"));
    }

    #[test]
    fn what_is_no_ip_packet_has_no_addresses() {
        let line = Line::of(&Record::default()).expect("a line");
        assert_eq!((line.protocol, line.source, line.peer), (None, None, None));
    }

    #[test]
    fn numbers_without_a_name_make_no_line() {
        for (hook, outcome) in [(u8::MAX, 0), (0, u8::MAX)] {
            let record = Record {
                hook,
                outcome,
                ..Record::default()
            };
            assert_eq!(Line::of(&record), None);
        }
    }
}
