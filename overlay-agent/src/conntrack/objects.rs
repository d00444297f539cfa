//! Timeout objects, which rules give to flows: `ct timeout` of nf_tables, and those of `nfct`, which the
//! CT target of iptables names. Whether a rule uses one is not asked.

use std::{io, time::Duration};

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use tokio::time::timeout;

use super::{Protocol, Timeout};

/// The kernel answers while it is asked.
const PATIENCE: Duration = Duration::from_secs(5);
const DATAGRAM_BYTES: usize = 64 << 10;

/// `NLMSG_ERROR`, `NLMSG_DONE` and the flags of a dump.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const DUMP_REQUEST: u16 = 0x0301;
/// `struct nfgenmsg` before the attributes.
const GENERIC_HEADER: [u8; 4] = [0; 4];
/// An attribute's type without its flags.
const TYPE_MASK: u16 = 0x3fff;

/// Where objects are kept, and how they are listed there.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// For people.
    kind: &'static str,
    /// `NFNL_SUBSYS_… << 8 | …_GET`.
    request: u16,
    /// Attributes that choose what is listed.
    filter: &'static [u8],
    /// Attribute with the object's name.
    name: u16,
    /// Attribute in which protocol and timeouts are; `None`: they are beside it.
    nest: Option<u16>,
    /// Attributes with the protocol's number and its timeouts.
    protocol: u16,
    timeouts: u16,
}

/// `NFT_MSG_GETOBJ` of `NFT_OBJECT_CT_TIMEOUT`.
pub const NFTABLES: Source = Source {
    kind: "ct timeout",
    request: 0x0a13,
    // NFTA_OBJ_TYPE: 7
    filter: &[8, 0, 3, 0, 0, 0, 0, 7],
    name: 2,
    nest: Some(4),
    protocol: 2,
    timeouts: 3,
};

/// `IPCTNL_MSG_TIMEOUT_GET`.
pub const NFCT: Source = Source {
    kind: "nfct timeout",
    request: 0x0801,
    filter: &[],
    name: 1,
    nest: None,
    protocol: 3,
    timeouts: 4,
};

/// What is listed in `source`; `None` where the kernel does not have it.
pub async fn list(source: Source) -> io::Result<Option<Vec<Timeout>>> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind_auto()?;
    socket
        .send_to(&request(source), &SocketAddr::new(0, 0))
        .await?;
    let mut found = Vec::new();
    let mut datagram = Vec::with_capacity(DATAGRAM_BYTES);
    loop {
        datagram.clear();
        timeout(PATIENCE, socket.recv(&mut datagram))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        match read(source, &datagram, &mut found) {
            Answer::More => {}
            Answer::Complete => return Ok(Some(found)),
            Answer::Error(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT) => return Ok(None),
            Answer::Error(code) => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

fn request(source: Source) -> Vec<u8> {
    let length = 16 + GENERIC_HEADER.len() + source.filter.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(source.request.to_ne_bytes());
    bytes.extend(DUMP_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(GENERIC_HEADER);
    bytes.extend(source.filter);
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    More,
    Complete,
    Error(i32),
}

/// Takes over the objects of one datagram.
fn read(source: Source, datagram: &[u8], found: &mut Vec<Timeout>) -> Answer {
    let mut rest = datagram;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        match message.message_type() {
            DONE => return Answer::Complete,
            ERROR => {
                let code = message.payload().first_chunk().copied();
                let code = code.map_or(libc::EIO, i32::from_ne_bytes);
                return Answer::Error(code.saturating_abs());
            }
            _ => {
                let attributes = message.payload().get(GENERIC_HEADER.len()..);
                found.extend(object(source, attributes.unwrap_or_default()));
            }
        }
        let length = message.length() as usize;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Answer::More
}

/// The timeouts of one object, those of states in which packets are fast.
fn object(source: Source, attributes: &[u8]) -> Vec<Timeout> {
    let name = attribute(attributes, source.name).unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    let origin = format!("{} {}", source.kind, name.trim_end_matches('\0'));
    let body = match source.nest {
        Some(nest) => attribute(attributes, nest).unwrap_or_default(),
        None => attributes,
    };
    let protocol = attribute(body, source.protocol).and_then(|value| value.first().copied());
    let Some((protocol, states)) = protocol.and_then(known) else {
        return Vec::new();
    };
    let timeouts = attribute(body, source.timeouts).unwrap_or_default();
    let seconds = states.iter().filter_map(|&state| {
        let value = attribute(timeouts, state)?.first_chunk()?;
        Some(u32::from_be_bytes(*value))
    });
    seconds
        .map(|seconds| Timeout {
            protocol,
            seconds,
            origin: origin.clone(),
        })
        .collect()
}

/// A protocol by its number, and the attributes of its states in which packets are fast.
fn known(number: u8) -> Option<(Protocol, &'static [u16])> {
    Some(match i32::from(number) {
        // Established, half closed, retransmitted, not acknowledged.
        libc::IPPROTO_TCP => (Protocol::Tcp, &[3, 4, 5, 10, 11]),
        // Without replies and with them.
        libc::IPPROTO_UDP => (Protocol::Udp, &[1, 2]),
        libc::IPPROTO_ICMP => (Protocol::Icmp, &[1]),
        libc::IPPROTO_ICMPV6 => (Protocol::Icmpv6, &[1]),
        _ => return None,
    })
}

/// The value of the first attribute of this type.
fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    loop {
        let (header, _) = rest.split_first_chunk()?;
        let [low, high, kind_low, kind_high] = *header;
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let value = rest.get(header.len()..length)?;
        if u16::from_ne_bytes([kind_low, kind_high]) & TYPE_MASK == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes
    }

    fn udp(source: Source, nested: u16) -> Vec<u8> {
        let timeouts = [nla(1, &7u32.to_be_bytes()), nla(2, &9u32.to_be_bytes())].concat();
        let body = [
            nla(source.protocol, &[17]),
            nla(source.timeouts | nested, &timeouts),
        ]
        .concat();
        let body = match source.nest {
            Some(nest) => nla(nest | nested, &body),
            None => body,
        };
        let payload = [vec![2, 0, 0, 0], nla(source.name, b"short\0"), body].concat();
        message(source.request, &payload)
    }

    #[test]
    fn objects_of_both_kinds_are_read_to_the_end_of_the_list() {
        for (source, nested) in [(NFTABLES, 0x8000), (NFCT, 0)] {
            let mut found = Vec::new();
            let datagram = [udp(source, nested), message(DONE, &[0; 4])].concat();
            assert_eq!(read(source, &datagram, &mut found), Answer::Complete);
            let origin = format!("{} short", source.kind);
            let expected = [7, 9].map(|seconds| Timeout {
                protocol: Protocol::Udp,
                seconds,
                origin: origin.clone(),
            });
            assert_eq!(found, expected);
            for end in 0..datagram.len() {
                read(source, &datagram[..end], &mut Vec::new());
            }
        }
    }

    #[test]
    fn a_refusal_ends_the_list_with_the_kernels_reason() {
        let refusal = message(ERROR, &(-libc::EINVAL).to_ne_bytes());
        let answer = read(NFCT, &refusal, &mut Vec::new());
        assert_eq!(answer, Answer::Error(libc::EINVAL));
    }
}
