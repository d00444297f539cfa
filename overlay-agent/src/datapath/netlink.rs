//! What attachments ask of rtnetlink.

use std::io;

use nix::libc;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp},
};

use super::attachment::XdpMode;
use crate::netlink::blocking;

/// How the interface runs XDP program `id`; `None` if it does not.
pub fn xdp_mode(ifindex: u32, id: u32) -> io::Result<Option<XdpMode>> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let message = RouteNetlinkMessage::GetLink(message);
    let attributes = match blocking::query("look up an interface", message) {
        Ok(Some(RouteNetlinkMessage::NewLink(link))) => link.attributes,
        Ok(_) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        Err(error) => return Err(error),
    };
    let xdp = attributes
        .into_iter()
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
