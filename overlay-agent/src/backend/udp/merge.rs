//! Packets of one flow that came one behind the other, as one that the kernel receives in one pass and takes apart
//! where it has to: what its own GRO makes of packets (`udp4_gro_receive`, `tcp_gro_receive`). Pure.

use std::io::IoSlice;

use overlay_common::{
    checksum::{add_bytes, fold},
    wire::{IPPROTO_TCP, IPPROTO_UDP},
};

use super::packet::{self, HEADER, LONGEST, MAX_SEGMENTS};

/// Parts of what the device is given: headers and payloads.
pub const PARTS: usize = MAX_SEGMENTS + 2;

const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;
const LONGEST_HEADERS: usize = HEADER + 60;

const DONT_FRAGMENT: u16 = 0x4000;
const TCP_ACK: u8 = 0x10;
const TCP_PSH: u8 = 0x08;

/// `struct virtio_net_hdr`: what the kernel is told of a packet that is given to the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    segment: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl About {
    /// Bytes of it in front of a packet.
    pub const LEN: usize = 10;
    /// A packet as it is.
    pub const PLAIN: [u8; Self::LEN] = [0; Self::LEN];

    const NEEDS_CHECKSUM: u8 = 1;

    /// In the byte order of the machine, the device's unless it is told otherwise.
    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = Self::PLAIN;
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let words = [
            self.header_len,
            self.segment,
            self.checksum_start,
            self.checksum_offset,
        ];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// The protocols whose packets may be put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Udp,
    Tcp,
}

impl Kind {
    /// `VIRTIO_NET_HDR_GSO_TCPV4` and, of Linux 6.2, `VIRTIO_NET_HDR_GSO_UDP_L4`.
    const fn gso_type(self) -> u8 {
        match self {
            Self::Tcp => 1,
            Self::Udp => 5,
        }
    }

    const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => IPPROTO_TCP,
            Self::Udp => IPPROTO_UDP,
        }
    }

    /// Where its header has the checksum.
    const fn checksum_at(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// Packets to be given to the device, the first and those that were put to it.
pub struct Run<'a> {
    packets: [&'a [u8]; MAX_SEGMENTS],
    count: usize,
    /// What the packets are, if others can be put to the first.
    shape: Option<Shape>,
    /// The headers of all packets as one.
    headers: [u8; LONGEST_HEADERS],
    about: [u8; About::LEN],
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    kind: Kind,
    /// Bytes of headers, and of payload in every packet but the last.
    headers: usize,
    segment: usize,
    /// Bytes of payload in all packets.
    payload: usize,
    /// Nothing may follow what came last.
    is_closed: bool,
}

impl<'a> Run<'a> {
    pub const fn new() -> Self {
        Self {
            packets: [&[]; MAX_SEGMENTS],
            count: 0,
            shape: None,
            headers: [0; LONGEST_HEADERS],
            about: About::PLAIN,
        }
    }

    /// Takes a packet. Returns false if it does not belong to those that are there, which have to go first.
    /// `may` tells which kinds may be put together.
    pub fn push(&mut self, packet: &'a [u8], may: impl Fn(Kind) -> bool) -> bool {
        let shape = Shape::of(packet).filter(|shape| may(shape.kind));
        if self.count == 0 {
            self.shape = shape;
        } else {
            let (Some(run), Some(shape)) = (&mut self.shape, shape) else {
                return false;
            };
            if self.count == MAX_SEGMENTS
                || !run.extend(self.packets[0], packet, &shape, self.count)
            {
                return false;
            }
        }
        self.packets[self.count] = packet;
        self.count += 1;
        true
    }

    /// The packets one by one.
    pub fn packets(&self) -> &[&'a [u8]] {
        &self.packets[..self.count]
    }

    /// What the packets are, if others can be put to the first.
    pub fn kind(&self) -> Option<Kind> {
        self.shape.map(|shape| shape.kind)
    }

    /// All as one packet, in parts: what the kernel is to be told of it, its headers, the payloads. `None` if there
    /// are not several.
    pub fn whole(&mut self) -> Option<([IoSlice<'_>; PARTS], usize)> {
        let shape = self.shape.filter(|_| self.count > 1)?;
        let first = self.packets[0];
        let headers = &mut self.headers[..shape.headers];
        headers.copy_from_slice(&first[..shape.headers]);
        if shape.kind == Kind::Tcp {
            // Only the last may have it.
            headers[HEADER + 13] |= self.packets[self.count - 1][HEADER + 13] & TCP_PSH;
        }
        self.about = shape.write(headers)?.to_bytes();

        let mut parts = [IoSlice::new(&[]); PARTS];
        parts[0] = IoSlice::new(&self.about);
        parts[1] = IoSlice::new(&self.headers[..shape.headers]);
        let packets = &self.packets[..self.count];
        for (part, packet) in parts[2..].iter_mut().zip(packets) {
            *part = IoSlice::new(&packet[shape.headers..]);
        }
        Some((parts, self.count + 2))
    }

    pub fn clear(&mut self) {
        self.count = 0;
        self.shape = None;
    }
}

impl Shape {
    /// Of a packet that others may be put to, or that may be put to others.
    fn of(packet: &[u8]) -> Option<Self> {
        let ip: &[u8; HEADER] = packet.first_chunk()?;
        let rest = &packet[HEADER..];
        let is_plain = ip[0] == 0x45
            && usize::from(word(ip, 2)) == packet.len()
            && word(ip, 6) & !DONT_FRAGMENT == 0;
        if !is_plain {
            return None;
        }
        let (kind, header, is_closed) = match ip[9] {
            IPPROTO_UDP => {
                let header: &[u8; UDP_HEADER] = rest.first_chunk()?;
                // Without a checksum nobody could tell what was damaged.
                if usize::from(word(header, 4)) != rest.len() || word(header, 6) == 0 {
                    return None;
                }
                (Kind::Udp, UDP_HEADER, false)
            }
            IPPROTO_TCP => {
                let header: &[u8; TCP_HEADER] = rest.first_chunk()?;
                let flags = header[13];
                // Nor where the header has reserved bits, one of which is a flag by now.
                if flags & !TCP_PSH != TCP_ACK || header[12] & 0x0f != 0 {
                    return None;
                }
                let len = usize::from(header[12] >> 4) * 4;
                if len < TCP_HEADER {
                    return None;
                }
                (Kind::Tcp, len, flags & TCP_PSH != 0)
            }
            _ => return None,
        };
        let segment = rest.len().checked_sub(header).filter(|len| *len > 0)?;
        Some(Self {
            kind,
            headers: HEADER + header,
            segment,
            payload: segment,
            is_closed,
        })
    }

    /// Takes over a packet behind `count` others, if it is the next of them.
    fn extend(&mut self, first: &[u8], packet: &[u8], next: &Self, count: usize) -> bool {
        let payload = self.payload + next.segment;
        if self.is_closed
            || next.kind != self.kind
            || next.headers != self.headers
            || next.segment > self.segment
            || self.headers + payload > LONGEST
            || !self.is_next(first, packet, count)
        {
            return false;
        }
        // One whose checksums are wrong has to stay what it is. The first one's have been looked at when it got a second.
        if count == 1 && !is_right(first, self.kind) || !is_right(packet, self.kind) {
            return false;
        }
        self.payload = payload;
        self.is_closed = next.is_closed || next.segment < self.segment;
        true
    }

    /// Whether the headers say that the packet comes behind `count` others, whose first this is.
    fn is_next(&self, first: &[u8], packet: &[u8], count: usize) -> bool {
        let same = |from: usize, to: usize| first[from..to] == packet[from..to];
        // But for lengths, checksums and what numbers packets.
        let is_ip = same(0, 2) && same(6, 10) && same(12, HEADER);
        // The number of a packet that must not be cut says nothing (RFC 6864).
        let is_numbered = word(first, 6) & DONT_FRAGMENT != 0
            || usize::from(word(packet, 4).wrapping_sub(word(first, 4))) == count;
        let l4 = HEADER;
        let is_flow = same(l4, l4 + 4);
        let is_l4 = match self.kind {
            Kind::Udp => true,
            Kind::Tcp => {
                let sequence = |bytes: &[u8]| {
                    u32::from_be_bytes([bytes[l4 + 4], bytes[l4 + 5], bytes[l4 + 6], bytes[l4 + 7]])
                };
                let ahead = sequence(packet).wrapping_sub(sequence(first));
                usize::try_from(ahead) == Ok(self.payload)
                    && same(l4 + 8, l4 + 13)
                    && same(l4 + 14, l4 + 16)
                    && same(l4 + 18, self.headers)
            }
        };
        is_ip && is_numbered && is_flow && is_l4
    }

    /// Makes the headers of the first packet those of all. The checksum is left to the kernel, which starts from
    /// that of the pseudo-header.
    fn write(&self, headers: &mut [u8]) -> Option<About> {
        let total = u16::try_from(self.headers + self.payload).ok()?;
        headers[2..4].copy_from_slice(&total.to_be_bytes());
        headers[10..12].fill(0);
        let sum = packet::checksum(&headers[..HEADER]);
        headers[10..12].copy_from_slice(&sum.to_be_bytes());
        let l4_len = u16::try_from(self.headers - HEADER + self.payload).ok()?;
        let sum = fold(pseudo_header(headers, self.kind, l4_len));
        let l4 = &mut headers[HEADER..];
        if self.kind == Kind::Udp {
            l4[4..6].copy_from_slice(&l4_len.to_be_bytes());
        }
        let at = self.kind.checksum_at();
        l4[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
        Some(About {
            flags: About::NEEDS_CHECKSUM,
            gso_type: self.kind.gso_type(),
            header_len: u16::try_from(self.headers).ok()?,
            segment: u16::try_from(self.segment).ok()?,
            checksum_start: u16::try_from(HEADER).ok()?,
            checksum_offset: u16::try_from(at).ok()?,
        })
    }
}

/// Whether the checksums of IP and of what it carries are right.
fn is_right(packet: &[u8], kind: Kind) -> bool {
    let (ip, l4) = packet.split_at(HEADER);
    let Ok(len) = u16::try_from(l4.len()) else {
        return false;
    };
    packet::checksum(ip) == 0 && fold(add_bytes(pseudo_header(ip, kind, len), l4)) == u16::MAX
}

/// The sum of what a checksum covers beside the packet's payload.
fn pseudo_header(ip: &[u8], kind: Kind, len: u16) -> u32 {
    let addresses = add_bytes(0, &ip[12..HEADER]);
    let words = [u16::from(kind.protocol()), len];
    words
        .into_iter()
        .fold(addresses, |sum, word| sum + u32::from(word.to_be()))
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests;
