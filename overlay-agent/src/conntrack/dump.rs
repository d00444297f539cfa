//! Lists of what connection tracking and the packet filter keep, read by netlink.

use std::{io, time::Duration};

use netlink_sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use tokio::time::timeout;

use crate::netlink::messages;

/// The kernel answers while it is asked.
const PATIENCE: Duration = Duration::from_secs(5);
const DATAGRAM_BYTES: usize = 64 << 10;

/// `NLMSG_ERROR`, `NLMSG_DONE` and the flags of a dump.
pub const ERROR: u16 = 2;
pub const DONE: u16 = 3;
const DUMP_REQUEST: u16 = 0x0301;
/// `struct nfgenmsg` before the attributes.
const GENERIC_HEADER: [u8; 4] = [0; 4];
/// An attribute's type without its flags.
const TYPE_MASK: u16 = 0x3fff;

/// Asks for a list and hands each entry's attributes to `take`. `None` where the kernel does not have it.
/// `kind` is `NFNL_SUBSYS_… << 8 | …_GET`; the attributes `filter` choose what is listed.
pub async fn list(kind: u16, filter: &[u8], mut take: impl FnMut(&[u8])) -> io::Result<Option<()>> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind_auto()?;
    socket
        .send_to(&request(kind, filter), &SocketAddr::new(0, 0))
        .await?;
    let mut datagram = Vec::with_capacity(DATAGRAM_BYTES);
    loop {
        datagram.clear();
        timeout(PATIENCE, socket.recv(&mut datagram))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        match read(&datagram, &mut take) {
            Answer::More => {}
            Answer::Complete => return Ok(Some(())),
            Answer::Error(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT) => return Ok(None),
            Answer::Error(code) => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

fn request(kind: u16, filter: &[u8]) -> Vec<u8> {
    let length = 16 + GENERIC_HEADER.len() + filter.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(DUMP_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(GENERIC_HEADER);
    bytes.extend(filter);
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    More,
    Complete,
    Error(i32),
}

/// Takes over the entries of one datagram.
pub fn read(datagram: &[u8], take: &mut impl FnMut(&[u8])) -> Answer {
    for message in messages(datagram) {
        match message.message_type() {
            DONE => return Answer::Complete,
            ERROR => {
                let code = message.payload().first_chunk().copied();
                let code = code.map_or(libc::EIO, i32::from_ne_bytes);
                return Answer::Error(code.saturating_abs());
            }
            _ => {
                let attributes = message.payload().get(GENERIC_HEADER.len()..);
                take(attributes.unwrap_or_default());
            }
        }
    }
    Answer::More
}

/// The value of the first attribute of this type.
pub fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
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

/// For tests: what the kernel writes.
#[cfg(test)]
pub mod write {
    pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    pub fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_ends_the_list_with_the_kernels_reason() {
        let refusal = write::message(ERROR, &(-libc::EINVAL).to_ne_bytes());
        assert_eq!(read(&refusal, &mut |_| {}), Answer::Error(libc::EINVAL));
    }
}
