//! What a datagram of any netlink protocol consists of.

use rtnetlink::packet_core::NetlinkBuffer;

/// The messages of a datagram. What cannot be one ends it.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        // They are padded to 4 bytes, except possibly the last.
        let length = message.length() as usize;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}
