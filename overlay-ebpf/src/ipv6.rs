//! IPv6 packets (RFC 8200). What has extension headers is left to the kernel.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6},
    programs::TcContext,
};
use overlay_common::{
    addr::Ipv6Be,
    ecn,
    encap6::{ENCAP6_LEN, EncapHeader6},
    family::V6,
    flow::FlowWords,
    node::Node,
    outcome::Outcome,
    wire::{
        ETHERTYPE_IPV6, IPPROTO_AH, IPPROTO_DSTOPTS, IPPROTO_FRAGMENT, IPPROTO_HOPOPTS,
        IPPROTO_ICMPV6, IPPROTO_ROUTING, IPPROTO_UDP, Ipv6Header, UdpHeader,
    },
};

use crate::{
    flow_packet::{FlowPacket, Local},
    helpers::Skb,
    ip::{Fields, Header, Ip},
    packet::{ETH_LEN, Packet},
    slow::{overlay_is_judged6, ports_and_source},
};

/// Extension headers that are followed to the transport header. The kernel follows more, but nobody
/// has a use for them.
const MAX_EXTENSIONS: usize = 4;

/// Whether the kernel looks for a transport header behind this one.
#[inline(always)]
const fn is_extension(next_header: u8) -> bool {
    matches!(
        next_header,
        IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_FRAGMENT | IPPROTO_AH | IPPROTO_DSTOPTS
    )
}

/// Whether the headers from `next` on, the first behind the IP header, lead to a UDP header with this destination port.
/// A packet of which nobody can tell counts as one. A global function: the verifier walks through it once, not behind
/// each path to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn overlay_leads_to_udp(skb: *mut __sk_buff, next: u32, port: u32) -> u32 {
    let skb = Skb::new(&TcContext::new(skb));
    leads_to_udp(&skb, next as u8, (port as u16).to_ne_bytes()).into()
}

#[inline(always)]
fn leads_to_udp(skb: &Skb, mut next: u8, port: [u8; 2]) -> bool {
    let mut at = (ETH_LEN + V6::LEN) as u32;
    // A first fragment's headers may go on in the next one. The kernel takes them together before
    // it looks at them (`ipv6frag_thdr_truncated` does not notice).
    let mut truncated = false;
    for _ in 0..=MAX_EXTENSIONS {
        if next == IPPROTO_UDP {
            let at = at + offset_of!(UdpHeader, dst_port) as u32;
            return match skb.load::<[u8; 2]>(at) {
                Some(dst_port) => dst_port == port,
                None => truncated,
            };
        }
        if !is_extension(next) {
            return false;
        }
        let Some([following, len, fragment @ ..]) = skb.load::<[u8; 4]>(at) else {
            return truncated;
        };
        at += match next {
            // Only the first fragment has ports.
            IPPROTO_FRAGMENT if u16::from_be_bytes(fragment) & 0xfff8 != 0 => return false,
            IPPROTO_FRAGMENT => 8,
            // RFC 4302: in units of 4 bytes, less two.
            IPPROTO_AH => (u32::from(len) + 2) * 4,
            _ => (u32::from(len) + 1) * 8,
        };
        if next == IPPROTO_FRAGMENT {
            truncated = true;
        }
        next = following;
    }
    true
}

/// What a sum over 16-bit words in native order changes by when an address in it is replaced.
#[inline(always)]
fn difference(old: Ipv6Be, new: Ipv6Be) -> u32 {
    let ([a, b], [c, d]) = (old.words(), new.words());
    let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
    let sum = halves(!a) + halves(!b) + halves(c) + halves(d);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

impl Header<Ipv6Be> for Ipv6Header {
    #[inline(always)]
    fn fields(self) -> Fields<Ipv6Be> {
        Fields {
            src: self.src,
            dst: self.dst,
            protocol: self.next_header,
            ttl: self.hop_limit,
            tos: self.class(),
            total_len: u32::from(u16::from_be_bytes(self.payload_len)) + size_of::<Self>() as u32,
            check: 0,
        }
    }

    #[inline(always)]
    fn is_plain(self) -> Result<(), Outcome> {
        if self.version_class_label[0] >> 4 == 6 {
            Ok(())
        } else {
            Err(Outcome::NotIp)
        }
    }

    #[inline(always)]
    fn is_other(self) -> Outcome {
        match self.next_header {
            IPPROTO_FRAGMENT => Outcome::Fragment,
            other if is_extension(other) => Outcome::IpOptions,
            _ => Outcome::Protocol,
        }
    }
}

impl Ip for V6 {
    type Header = Ipv6Header;

    const ETHERTYPE: [u8; 2] = ETHERTYPE_IPV6;
    const FAMILY: u8 = 10;
    const ICMP: u8 = IPPROTO_ICMPV6;
    const ECHO: u16 = u16::from_ne_bytes([128, 0]);
    const ECHO_REPLY: u16 = u16::from_ne_bytes([129, 0]);
    /// "Packet too big" (RFC 4443 §3.2).
    const TOO_BIG: [u8; 2] = [2, 0];
    const ENCAP_LEN: u32 = ENCAP6_LEN;
    const ENCAP_FLAG: u32 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;

    #[inline(always)]
    fn udp_destination(skb: &Skb, packet: Packet, port: [u8; 2]) -> Option<Ipv6Be> {
        let ip: Ipv6Header = packet.read(ETH_LEN)?;
        if ip.version_class_label[0] >> 4 != 6 {
            return None;
        }
        let next = ip.next_header;
        // Most packets have no more headers than these: it takes no call to see.
        if next != IPPROTO_UDP && !is_extension(next) {
            return None;
        }
        let port = u16::from_ne_bytes(port);
        (overlay_leads_to_udp(skb.raw(), next.into(), port.into()) != 0).then_some(ip.dst)
    }

    #[inline(always)]
    fn is_judged(flow: &FlowWords<Self>, local: Local) -> bool {
        let [a, b, c, d] = flow.addresses;
        overlay_is_judged6(a, b, c, d, ports_and_source(flow.ports, local)) != 0
    }

    #[inline(always)]
    fn write_hops(packet: Packet, offset: usize, flow: &FlowPacket<Self>, hops: u8) -> Option<()> {
        packet.write(offset + offset_of!(Ipv6Header, hop_limit), flow.ttl - hops)
    }

    #[inline(always)]
    fn write_address(
        packet: Packet,
        offset: usize,
        local: Local,
        _: Ipv6Be,
        new: Ipv6Be,
    ) -> Option<()> {
        let at = match local {
            Local::Source => offset + offset_of!(Ipv6Header, dst),
            Local::Destination => offset + offset_of!(Ipv6Header, src),
        };
        let [a, b] = new.words();
        packet.write(at, a)?;
        packet.write(at + 8, b)
    }

    /// The helper takes the address for a part of what the packet's checksum covers no more, as it is with
    /// IPv4, where the header's own checksum makes up for it. Here nothing does.
    #[inline(always)]
    fn replace_in_l4_checksum(
        skb: &Skb,
        check: u32,
        is_udp: bool,
        (old, new): (Ipv6Be, Ipv6Be),
    ) -> Option<()> {
        let difference = difference(old, new);
        skb.add_address_to_checksum(check, is_udp, difference)?;
        skb.add_to_checksum(difference);
        Some(())
    }

    #[inline(always)]
    fn write_tos(packet: Packet, _: &FlowPacket<Self>, tos: u8) -> Option<()> {
        let [_, second]: [u8; 2] = packet.read(ETH_LEN)?;
        let [first, class] = Ipv6Header::start(tos);
        packet.write(ETH_LEN, [first, class | second & 0x0f])
    }

    #[inline(always)]
    fn heed_checksum(skb: &Skb, flow: &FlowPacket<Self>, tos: u8) {
        let word = |ttl| u16::from_ne_bytes([flow.protocol, ttl]);
        skb.replace_in_checksum(word(flow.ttl), word(flow.ttl - 1));
        if tos != flow.tos {
            let word = |tos| u16::from_ne_bytes(Ipv6Header::start(tos));
            skb.replace_in_checksum(word(flow.tos), word(tos));
        }
    }

    #[inline(always)]
    fn write_encap(
        packet: Packet,
        tos: u8,
        node: &Node<Self>,
        outer_len: u32,
        source_port: u16,
    ) -> Option<()> {
        const LEN: usize = ETH_LEN + offset_of!(Ipv6Header, payload_len);
        const UDP: usize = ETH_LEN + offset_of!(EncapHeader6, udp);
        let len = ((outer_len - Self::LEN as u32) as u16).to_be_bytes();
        let (words, four, two) = node.encap.words();
        packet.write(ETH_LEN, words[0])?;
        packet.write(ETH_LEN + 8, words[1])?;
        packet.write(ETH_LEN + 16, words[2])?;
        packet.write(ETH_LEN + 24, words[3])?;
        packet.write(ETH_LEN + 32, words[4])?;
        packet.write(ETH_LEN + 40, words[5])?;
        packet.write(ETH_LEN + 48, words[6])?;
        packet.write(ETH_LEN + 56, words[7])?;
        packet.write(ETH_LEN + 64, four)?;
        packet.write(ETH_LEN + 68, two)?;
        packet.write(ETH_LEN, Ipv6Header::start(ecn::encapsulate(tos)))?;
        packet.write(LEN, len)?;
        packet.write(UDP + offset_of!(UdpHeader, src_port), source_port)?;
        packet.write(UDP + offset_of!(UdpHeader, len), len)
    }

    /// `ff00::/8`, and of that scopes up to 2 (RFC 4291 §2.7).
    #[inline(always)]
    fn is_group_of_hosts(address: [u32; 4]) -> Option<bool> {
        let start = u32::from_be(address[0]);
        (start >> 24 == 0xff).then_some(start >> 16 & 0xf <= 2)
    }

    #[inline(always)]
    fn fib_words(address: Ipv6Be) -> [u32; 4] {
        bytemuck::cast(address.octets)
    }
}
