//! Timeout objects, which rules give to flows: `ct timeout` of nf_tables, and those of `nfct`, which the
//! CT target of iptables names. Whether a rule uses one is not asked.

use std::io;

use super::{
    Protocol, Timeout,
    dump::{self, attribute},
};

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
    let mut found = Vec::new();
    let listed = dump::list(source.request, source.filter, |attributes| {
        found.extend(object(source, attributes));
    });
    Ok(listed.await?.map(|()| found))
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
        // Established, and of a further address a heartbeat sent or answered.
        libc::IPPROTO_SCTP => (Protocol::Sctp, &[4, 8, 9]),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::dump::{
            Answer, DONE, read,
            write::{attribute as nla, message},
        },
        *,
    };

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
            let mut take = |attributes: &[u8]| found.extend(object(source, attributes));
            assert_eq!(read(&datagram, &mut take), Answer::Complete);
            let origin = format!("{} short", source.kind);
            let expected = [7, 9].map(|seconds| Timeout {
                protocol: Protocol::Udp,
                seconds,
                origin: origin.clone(),
            });
            assert_eq!(found, expected);
            for end in 0..datagram.len() {
                read(&datagram[..end], &mut |attributes| {
                    drop(object(source, attributes));
                });
            }
        }
    }
}
