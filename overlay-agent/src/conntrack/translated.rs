//! Which connections netfilter translates, of those that conntrack knows.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::dump::{self, attribute};

/// `IPCTNL_MSG_CT_GET`.
pub(super) const CONNECTIONS: u16 = 0x0101;
/// `CTA_TUPLE_ORIG` and `CTA_TUPLE_REPLY`.
pub(super) const ORIGINAL: u16 = 1;
pub(super) const REPLY: u16 = 2;
/// Of a tuple: `CTA_TUPLE_IP` and `CTA_TUPLE_PROTO`.
const ADDRESSES: u16 = 1;
pub(super) const TRANSPORT: u16 = 2;
/// `CTA_IP_V4_SRC` and `_DST`, `CTA_IP_V6_SRC` and `_DST`.
const IPV4: [u16; 2] = [1, 2];
const IPV6: [u16; 2] = [3, 4];
/// `CTA_PROTO_SRC_PORT` and `_DST_PORT`, and the identifiers of echo.
const PORTS: [u16; 2] = [2, 3];
const IDENTIFIERS: [u16; 2] = [4, 7];

/// Source and destination.
pub type Ends = [IpAddr; 2];

/// With which addresses the packets of translated connections enter the host, in either direction. `None` if
/// the kernel does not tell.
pub async fn list() -> io::Result<Option<Vec<Ends>>> {
    let mut found = Vec::new();
    let listed = dump::list(CONNECTIONS, &[], |connection| {
        found.extend(translated(connection).into_iter().flatten());
    });
    Ok(listed.await?.map(|()| found))
}

/// With which addresses a connection's packets enter, if it is translated.
fn translated(connection: &[u8]) -> Option<[Ends; 2]> {
    let original = Tuple::read(attribute(connection, ORIGINAL)?)?;
    let reply = Tuple::read(attribute(connection, REPLY)?)?;
    (reply != original.answer()).then_some([original.ends, reply.ends])
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tuple<'a> {
    pub(super) ends: Ends,
    pub(super) ports: [Option<&'a [u8]>; 2],
    identifiers: [Option<&'a [u8]>; 2],
}

impl<'a> Tuple<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let addresses = attribute(bytes, ADDRESSES)?;
        let ipv4 = |kind| {
            let octets: [u8; 4] = attribute(addresses, kind)?.try_into().ok()?;
            Some(IpAddr::from(Ipv4Addr::from(octets)))
        };
        let ipv6 = |kind| {
            let octets: [u8; 16] = attribute(addresses, kind)?.try_into().ok()?;
            Some(IpAddr::from(Ipv6Addr::from(octets)))
        };
        let end = |index: usize| ipv4(IPV4[index]).or_else(|| ipv6(IPV6[index]));
        let transport = attribute(bytes, TRANSPORT).unwrap_or_default();
        Some(Self {
            ends: [end(0)?, end(1)?],
            ports: PORTS.map(|kind| attribute(transport, kind)),
            identifiers: IDENTIFIERS.map(|kind| attribute(transport, kind)),
        })
    }

    /// What answers it where nothing is translated.
    fn answer(&self) -> Self {
        let Self {
            ends: [source, destination],
            ports: [from, to],
            identifiers,
        } = *self;
        Self {
            ends: [destination, source],
            ports: [to, from],
            identifiers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::dump::write::attribute as nla;

    fn tuple([source, destination]: [&str; 2], transport: &[(u16, u16)]) -> Vec<u8> {
        let address = |text: &str, kinds: [u16; 2]| match text.parse().unwrap() {
            IpAddr::V4(address) => nla(kinds[0], &address.octets()),
            IpAddr::V6(address) => nla(kinds[1], &address.octets()),
        };
        let addresses = [address(source, [1, 3]), address(destination, [2, 4])].concat();
        let transport: Vec<_> = transport
            .iter()
            .flat_map(|(kind, value)| nla(*kind, &value.to_be_bytes()))
            .collect();
        [
            nla(ADDRESSES | 0x8000, &addresses),
            nla(TRANSPORT | 0x8000, &transport),
        ]
        .concat()
    }

    fn connection(original: &[u8], reply: &[u8]) -> Vec<u8> {
        [nla(ORIGINAL | 0x8000, original), nla(REPLY | 0x8000, reply)].concat()
    }

    #[test]
    fn a_connection_is_translated_unless_its_answers_are_its_inverse() {
        let ports = |from, to| [(2, from), (3, to)];
        let found = |original: &[u8], reply: &[u8]| {
            translated(&connection(original, reply))
                .map(|ends| ends.map(|ends| ends.map(|end| end.to_string())))
        };
        for [pod, service, backend] in [
            ["10.5.1.2", "10.96.0.1", "10.5.2.3"],
            ["fd00:5:1::2", "fd00:96::1", "fd00:5:2::3"],
        ] {
            let direct = found(
                &tuple([pod, backend], &ports(1000, 80)),
                &tuple([backend, pod], &ports(80, 1000)),
            );
            assert_eq!(direct, None);
            let of_service = found(
                &tuple([pod, service], &ports(1000, 80)),
                &tuple([backend, pod], &ports(8080, 1000)),
            );
            let expected = [[pod, service], [backend, pod]].map(|ends| ends.map(str::to_owned));
            assert_eq!(of_service, Some(expected));
            let other_port = found(
                &tuple([pod, backend], &ports(1000, 80)),
                &tuple([backend, pod], &ports(80, 1001)),
            );
            assert!(other_port.is_some());
            let [echo, other] = [7, 8].map(|id| tuple([pod, backend], &[(4, id)]));
            let answer = tuple([backend, pod], &[(4, 7)]);
            assert_eq!(found(&echo, &answer), None);
            assert!(found(&other, &answer).is_some());
        }
    }

    #[test]
    fn what_is_cut_off_is_no_connection() {
        let ports = [(2, 1), (3, 2)];
        let original = tuple(["10.5.1.2", "10.96.0.1"], &ports);
        let whole = connection(&original, &tuple(["10.5.2.3", "10.5.1.2"], &ports));
        for end in 0..whole.len() {
            assert_eq!(translated(&whole[..end]), None, "{end} bytes");
        }
    }
}
