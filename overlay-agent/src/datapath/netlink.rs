//! Requests to rtnetlink that attachments need besides bpf(2), one at a time and to their end. Each
//! opens a socket in the network namespace of the calling thread.

use std::io;

use nix::{
    libc,
    sys::{
        socket::{setsockopt, sockopt::ReceiveTimeout},
        time::TimeVal,
    },
};
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage, LinkXdp},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::attachment::XdpMode;
use crate::netlink::TIMEOUT;

/// How the interface runs XDP program `id`; `None` if it does not.
pub fn xdp_mode(ifindex: u32, id: u32) -> io::Result<Option<XdpMode>> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let replies = match exchange(RouteNetlinkMessage::GetLink(message), 0) {
        Ok(replies) => replies,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        Err(error) => return Err(error),
    };
    let xdp = replies
        .into_iter()
        .filter_map(|reply| match reply {
            RouteNetlinkMessage::NewLink(link) => Some(link.attributes),
            _ => None,
        })
        .flatten()
        .filter_map(|attribute| match attribute {
            LinkAttribute::Xdp(xdp) => Some(xdp),
            _ => None,
        })
        .flatten();
    let mut modes = xdp.filter_map(|attribute| match attribute {
        LinkXdp::DrvProgId(found) if found == id => Some(XdpMode::Native),
        LinkXdp::SkbProgId(found) if found == id => Some(XdpMode::Generic),
        _ => None,
    });
    Ok(modes.next())
}

/// Sends one request and collects what answers it, apart from acknowledgements.
pub fn exchange(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    setsockopt(
        &socket,
        ReceiveTimeout,
        &TimeVal::new(TIMEOUT.as_secs().cast_signed(), 0),
    )?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(io::Error::other)?;
            let len = (reply.header.length as usize).next_multiple_of(4);
            rest = rest.get(len..).unwrap_or_default();
            match reply.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::InnerMessage(message) => {
                    found.push(message);
                    if flags & (NLM_F_ACK | NLM_F_DUMP) == 0 {
                        return Ok(found);
                    }
                }
                _ => {}
            }
        }
    }
}
