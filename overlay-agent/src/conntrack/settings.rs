//! The timeouts that hold where no object says otherwise: sysctls of the network namespace.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use tracing::debug;

use super::{Protocol, Timeout};

/// As the calling thread's network namespace has it.
const DIRECTORY: &str = "/proc/sys/net/netfilter";

/// The states in which packets of a flow are fast. A connection that one side has closed goes on in the
/// other direction; of what is sent conntrack may miss the acknowledgement.
const SETTINGS: [(Protocol, &str); 12] = [
    (Protocol::Tcp, "nf_conntrack_tcp_timeout_established"),
    (Protocol::Tcp, "nf_conntrack_tcp_timeout_unacknowledged"),
    (Protocol::Tcp, "nf_conntrack_tcp_timeout_max_retrans"),
    (Protocol::Tcp, "nf_conntrack_tcp_timeout_fin_wait"),
    (Protocol::Tcp, "nf_conntrack_tcp_timeout_close_wait"),
    (Protocol::Udp, "nf_conntrack_udp_timeout"),
    (Protocol::Udp, "nf_conntrack_udp_timeout_stream"),
    (Protocol::Icmp, "nf_conntrack_icmp_timeout"),
    (Protocol::Icmpv6, "nf_conntrack_icmpv6_timeout"),
    (Protocol::Sctp, "nf_conntrack_sctp_timeout_established"),
    (Protocol::Sctp, "nf_conntrack_sctp_timeout_heartbeat_sent"),
    (Protocol::Sctp, "nf_conntrack_sctp_timeout_heartbeat_acked"),
];

/// Long enough for any number.
const LONGEST: usize = 32;

/// The files, kept open: they are read often.
#[derive(Debug, Default)]
pub struct Sysctls([Option<File>; SETTINGS.len()]);

impl Sysctls {
    /// Reads them. There are none where conntrack is not in use.
    pub fn read(&mut self) -> Vec<Timeout> {
        let settings = SETTINGS.iter().zip(&mut self.0);
        settings
            .filter_map(|(&(protocol, name), file)| {
                let seconds = match seconds(name, file) {
                    Ok(seconds) => seconds?,
                    Err(error) => {
                        *file = None;
                        if error.kind() != io::ErrorKind::NotFound {
                            debug!(name, %error, "cannot read a timeout of conntrack");
                        }
                        return None;
                    }
                };
                Some(Timeout {
                    protocol,
                    seconds,
                    origin: format!("net.netfilter.{name}"),
                })
            })
            .collect()
    }
}

fn seconds(name: &str, file: &mut Option<File>) -> io::Result<Option<u32>> {
    let file = match file {
        Some(file) => file,
        None => file.insert(File::open(Path::new(DIRECTORY).join(name))?),
    };
    let mut text = [0; LONGEST];
    let len = file.read_at(&mut text, 0)?;
    let text = text.get(..len).and_then(|text| str::from_utf8(text).ok());
    Ok(text.and_then(|text| text.trim().parse().ok()))
}
