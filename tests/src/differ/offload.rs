//! What the sender of a frame leaves to the network card, as a packet socket is told it and tells it.

use etherparse::checksum::Sum16BitWords;

use super::packets::{Header, TCP};

/// Length of `struct virtio_net_hdr`, which stands before the frame.
pub const HEADER_LEN: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;

/// The checksum of the transport header, and the cut into segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    pub needs_checksum: bool,
    /// Length of the headers before the payload; of what is received what the kernel had at hand.
    headers: u16,
    /// Where the sum starts, and where it is to stand behind that.
    sum: [u16; 2],
    kind: u8,
    pub segment: u16,
}

impl Offload {
    /// Leaves the checksum of `segment`, which is to stand behind `ip` and, with that, at `offset` of a frame.
    /// `cut`: the length of the pieces, if it is TCP that is to be cut.
    pub fn leave(
        segment: &mut [u8],
        ip: &impl Header,
        protocol: u8,
        offset: usize,
        cut: Option<u16>,
    ) -> Self {
        let is_tcp = protocol == TCP;
        let at = if is_tcp { 16 } else { 6 };
        let sum = !ip.pseudo_sum(segment.len()).ones_complement();
        segment[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
        let own = if is_tcp {
            usize::from(segment[12] >> 4) * 4
        } else {
            8
        };
        let short = |len: usize| u16::try_from(len).unwrap_or(u16::MAX);
        let kind = match cut {
            None => 0,
            Some(_) if ip.is_ipv6() => GSO_TCP_V6,
            Some(_) => GSO_TCP_V4,
        };
        Self {
            needs_checksum: true,
            headers: short(offset + own),
            sum: [short(offset), short(at)],
            kind,
            segment: cut.unwrap_or(0),
        }
    }

    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[0] = if self.needs_checksum {
            NEEDS_CHECKSUM
        } else {
            0
        };
        header[1] = self.kind;
        let words = [self.headers, self.segment, self.sum[0], self.sum[1]];
        for (field, word) in header[2..].chunks_mut(2).zip(words) {
            field.copy_from_slice(&word.to_ne_bytes());
        }
        header
    }

    pub fn decode(header: [u8; HEADER_LEN]) -> Self {
        let [flags, kind, rest @ ..] = header;
        let word = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
        let needs_checksum = flags & NEEDS_CHECKSUM != 0;
        Self {
            needs_checksum,
            headers: word(0),
            sum: if needs_checksum {
                [word(4), word(6)]
            } else {
                [0, 0]
            },
            kind,
            segment: if kind == 0 { 0 } else { word(2) },
        }
    }

    /// What is left when the kernel has computed the checksum itself: where a packet on its way meets a device that
    /// would not, it does. Pieces of one that is yet to be cut have to wait.
    #[must_use]
    pub fn without_checksum(self, frame: &mut [u8]) -> Self {
        let [start, at] = self.sum.map(usize::from);
        if !self.needs_checksum || self.kind != 0 || start + at + 2 > frame.len() {
            return self;
        }
        let sum = Sum16BitWords::new()
            .add_slice(&frame[start..])
            .ones_complement();
        let sum = if sum == 0 { 0xffff } else { sum };
        frame[start + at..][..2].copy_from_slice(&sum.to_ne_bytes());
        Self {
            headers: self.headers,
            ..Self::default()
        }
    }

    /// What has to be the same at every receiver, in bytes.
    pub fn comparable(self) -> [u8; HEADER_LEN] {
        Self { headers: 0, ..self }.encode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_that_was_left_is_the_one_that_the_card_would_write() {
        // A UDP datagram from port 1 to port 2, 2 bytes long, with a sum of addresses of 7.
        let mut frame = [[0, 1], [0, 2], [0, 10], [0, 7], [0xff, 0]].concat();
        let offload = Offload {
            needs_checksum: true,
            sum: [0, 6],
            ..Offload::default()
        };
        assert_eq!(offload.without_checksum(&mut frame), Offload::default());
        assert_eq!(frame[6..8], (!0xff14u16).to_be_bytes());
    }

    #[test]
    fn an_encoded_header_is_decoded_to_the_same() {
        let offload = Offload {
            needs_checksum: true,
            headers: 66,
            sum: [34, 16],
            kind: GSO_TCP_V4,
            segment: 1_398,
        };
        let header = offload.encode();
        assert_eq!(header[..2], [1, 1]);
        assert_eq!(Offload::decode(header), offload);
        assert_eq!(Offload::default().encode(), [0; HEADER_LEN]);
    }
}
