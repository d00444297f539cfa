//! What conntrack knows of one connection.

use std::{io, net::SocketAddr};

use super::{
    dump::{self, attribute},
    translated::{CONNECTIONS, ORIGINAL, REPLY, TRANSPORT, Tuple},
};

/// `CTA_STATUS` and, in it, `IPS_SEEN_REPLY`.
const STATUS: u16 = 3;
const SEEN_REPLY: u32 = 1 << 1;
/// Of a tuple's transport: `CTA_PROTO_NUM`.
const PROTOCOL: u16 = 1;

/// A connection by the ends of its packets as they enter the host. A port is 0 where the protocol has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub protocol: u8,
    /// Source and destination of what opened it.
    pub original: [SocketAddr; 2],
    /// The same of the answers.
    pub reply: [SocketAddr; 2],
    /// Whether answers have been seen.
    pub is_answered: bool,
}

/// The first connection that is `wanted`; `None` also where the kernel does not tell.
pub async fn find(wanted: impl Fn(&Connection) -> bool) -> io::Result<Option<Connection>> {
    let mut found = None;
    dump::list(CONNECTIONS, &[], |attributes| {
        if found.is_none() {
            found = Connection::read(attributes).filter(&wanted);
        }
    })
    .await?;
    Ok(found)
}

impl Connection {
    /// Whether packets of it leave with another destination, or another source, than they enter with.
    pub fn is_translated(&self) -> bool {
        let [source, destination] = self.original;
        self.reply != [destination, source]
    }

    fn read(attributes: &[u8]) -> Option<Self> {
        let original = attribute(attributes, ORIGINAL)?;
        let reply = attribute(attributes, REPLY)?;
        let transport = attribute(original, TRANSPORT).unwrap_or_default();
        let status = attribute(attributes, STATUS).and_then(<[u8]>::first_chunk);
        Some(Self {
            protocol: *attribute(transport, PROTOCOL)?.first()?,
            original: ends(original)?,
            reply: ends(reply)?,
            is_answered: status.is_some_and(|bits| u32::from_be_bytes(*bits) & SEEN_REPLY != 0),
        })
    }
}

fn ends(tuple: &[u8]) -> Option<[SocketAddr; 2]> {
    let Tuple { ends, ports, .. } = Tuple::read(tuple)?;
    let port = |port: Option<&[u8]>| {
        let port = port.and_then(<[u8]>::first_chunk);
        port.map_or(0, |port| u16::from_be_bytes(*port))
    };
    Some([
        SocketAddr::new(ends[0], port(ports[0])),
        SocketAddr::new(ends[1], port(ports[1])),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::dump::write::attribute as nla;

    fn tuple(source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
        let addresses = [nla(1, &source), nla(2, &destination)].concat();
        let transport = [
            nla(1, &[6]),
            nla(2, &ports[0].to_be_bytes()),
            nla(3, &ports[1].to_be_bytes()),
        ]
        .concat();
        [nla(1 | 0x8000, &addresses), nla(2 | 0x8000, &transport)].concat()
    }

    #[test]
    fn a_connection_to_a_service_tells_where_it_leads() {
        let (pod, service, backend) = ([10, 5, 1, 2], [10, 96, 0, 1], [10, 5, 2, 3]);
        let attributes = [
            nla(ORIGINAL | 0x8000, &tuple(pod, service, [1000, 80])),
            nla(REPLY | 0x8000, &tuple(backend, pod, [8080, 1000])),
            nla(STATUS, &SEEN_REPLY.to_be_bytes()),
        ]
        .concat();
        let found = Connection::read(&attributes).unwrap();
        let expected = Connection {
            protocol: 6,
            original: [(pod, 1000).into(), (service, 80).into()],
            reply: [(backend, 8080).into(), (pod, 1000).into()],
            is_answered: true,
        };
        assert_eq!(found, expected);
        assert!(found.is_translated());
        for end in 0..attributes.len() - 8 {
            assert!(Connection::read(&attributes[..end]).is_none(), "{end}");
        }
    }
}
