//! The timeouts that hold where no object says otherwise: sysctls of the network namespace.

use std::{fs, io, path::Path};

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

/// Reads them. There are none where conntrack is not in use.
pub fn read() -> Vec<Timeout> {
    let settings = SETTINGS.iter();
    settings
        .filter_map(|&(protocol, name)| {
            let text = match fs::read_to_string(Path::new(DIRECTORY).join(name)) {
                Ok(text) => text,
                Err(error) => {
                    if error.kind() != io::ErrorKind::NotFound {
                        debug!(name, %error, "cannot read a timeout of conntrack");
                    }
                    return None;
                }
            };
            Some(Timeout {
                protocol,
                seconds: text.trim().parse().ok()?,
                origin: format!("net.netfilter.{name}"),
            })
        })
        .collect()
}
