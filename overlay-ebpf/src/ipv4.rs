//! IPv4 packets (RFC 791).

use core::mem::offset_of;

use aya_ebpf::bindings::BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
use overlay_common::{
    addr::Ipv4Be,
    checksum::{finish, replace_word},
    ecn,
    encap::{ENCAP_LEN, EncapHeader, outer_ipv4_check},
    family::V4,
    flow::FlowWords,
    node::Node,
    outcome::Outcome,
    wire::{ETHERTYPE_IPV4, IPPROTO_ICMP, IPPROTO_UDP, IPV4_NO_OPTIONS, Ipv4Header, UdpHeader},
};

use crate::{
    flow_packet::{FlowPacket, Local},
    helpers::Skb,
    ip::{Fields, Header, Ip},
    packet::{ETH_LEN, Packet},
    slow::{overlay_is_judged, ports_and_source},
};

/// Mask of the fragment field: more fragments follow, or an offset. Don't-fragment may be set or not.
pub const IS_FRAGMENT: u16 = 0x3fff;
/// Mask of the fragment field: the offset.
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// What a sum over 16-bit words in native order changes by when an address in it is replaced.
#[inline(always)]
fn difference(old: Ipv4Be, new: Ipv4Be) -> u32 {
    let [a, b, c, d] = old.octets;
    let [e, f, g, h] = new.octets;
    let word = |a, b| u32::from(u16::from_ne_bytes([a, b]));
    let gone = |a, b| u32::from(!u16::from_ne_bytes([a, b]));
    gone(a, b) + gone(c, d) + word(e, f) + word(g, h)
}

impl Header<Ipv4Be> for Ipv4Header {
    #[inline(always)]
    fn fields(self) -> Fields<Ipv4Be> {
        Fields {
            src: self.src,
            dst: self.dst,
            protocol: self.protocol,
            ttl: self.ttl,
            tos: self.tos,
            total_len: u16::from_be_bytes(self.total_len).into(),
            check: u16::from_be_bytes(self.check),
        }
    }

    #[inline(always)]
    fn is_plain(self) -> Result<(), Outcome> {
        if self.version_ihl != IPV4_NO_OPTIONS {
            let is_ipv4 = self.version_ihl >> 4 == 4;
            return Err(if is_ipv4 {
                Outcome::IpOptions
            } else {
                Outcome::NotIp
            });
        }
        if u16::from_be_bytes(self.fragment) & IS_FRAGMENT != 0 {
            return Err(Outcome::Fragment);
        }
        Ok(())
    }

    #[inline(always)]
    fn is_other(self) -> Outcome {
        Outcome::Protocol
    }
}

impl Ip for V4 {
    type Header = Ipv4Header;

    const ETHERTYPE: [u8; 2] = ETHERTYPE_IPV4;
    const FAMILY: u8 = 2;
    const ICMP: u8 = IPPROTO_ICMP;
    const ECHO: u16 = u16::from_ne_bytes([8, 0]);
    const ECHO_REPLY: u16 = u16::from_ne_bytes([0, 0]);
    /// "Fragmentation needed".
    const TOO_BIG: [u8; 2] = [3, 4];
    const ENCAP_LEN: u32 = ENCAP_LEN;
    const ENCAP_FLAG: u32 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;

    #[inline(always)]
    fn udp_destination(skb: &Skb, packet: Packet, port: [u8; 2]) -> Option<Ipv4Be> {
        let ip: Ipv4Header = packet.read(ETH_LEN)?;
        let first_fragment = u16::from_be_bytes(ip.fragment) & FRAGMENT_OFFSET == 0;
        if ip.version_ihl >> 4 != 4 || ip.protocol != IPPROTO_UDP || !first_fragment {
            return None;
        }
        let at = ETH_LEN + usize::from(ip.version_ihl & 0x0f) * 4 + offset_of!(UdpHeader, dst_port);
        let packet = skb.packet_with((at + size_of_val(&port)) as u32);
        let dst_port: [u8; 2] = packet.read(at)?;
        (dst_port == port).then_some(ip.dst)
    }

    #[inline(always)]
    fn is_judged(flow: &FlowWords<Self>, local: Local) -> bool {
        overlay_is_judged(flow.addresses, ports_and_source(flow.ports, local)) != 0
    }

    /// The arithmetic of the kernel's `ip_decrease_ttl`.
    #[inline(always)]
    fn write_hops(packet: Packet, offset: usize, flow: &FlowPacket<Self>, hops: u8) -> Option<()> {
        let check = u32::from(flow.check) + (u32::from(hops) << 8);
        let check = check + u32::from(check >= 0xffff);
        packet.write(offset + 10, (check as u16).to_be_bytes())?;
        packet.write(offset + 8, flow.ttl - hops)
    }

    #[inline(always)]
    fn write_address(
        packet: Packet,
        offset: usize,
        local: Local,
        old: Ipv4Be,
        new: Ipv4Be,
    ) -> Option<()> {
        let at = match local {
            Local::Source => offset + offset_of!(Ipv4Header, dst),
            Local::Destination => offset + offset_of!(Ipv4Header, src),
        };
        let check_at = offset + offset_of!(Ipv4Header, check);
        let check: u16 = packet.read(check_at)?;
        let sum = u32::from(!check) + difference(old, new);
        packet.write(check_at, finish(sum))?;
        packet.write(at, new.octets)
    }

    #[inline(always)]
    fn replace_in_l4_checksum(
        skb: &Skb,
        check: u32,
        is_udp: bool,
        (old, new): (Ipv4Be, Ipv4Be),
    ) -> Option<()> {
        skb.add_address_to_checksum(check, is_udp, difference(old, new))
    }

    #[inline(always)]
    fn write_tos(packet: Packet, flow: &FlowPacket<Self>, tos: u8) -> Option<()> {
        let at = ETH_LEN + offset_of!(Ipv4Header, check);
        let check = u16::from_be_bytes(packet.read(at)?);
        let old = u16::from_be_bytes([IPV4_NO_OPTIONS, flow.tos]);
        let new = u16::from_be_bytes([IPV4_NO_OPTIONS, tos]);
        packet.write(at, replace_word(check, old, new).to_be_bytes())?;
        packet.write(ETH_LEN + offset_of!(Ipv4Header, tos), tos)
    }

    #[inline(always)]
    fn heed_checksum(_: &Skb, _: &FlowPacket<Self>, _: u8) {}

    #[inline(always)]
    fn write_encap(
        packet: Packet,
        tos: u8,
        node: &Node,
        outer_len: u32,
        source_port: u16,
    ) -> Option<()> {
        const TOS: usize = ETH_LEN + offset_of!(EncapHeader, ipv4) + offset_of!(Ipv4Header, tos);
        const LEN: usize =
            ETH_LEN + offset_of!(EncapHeader, ipv4) + offset_of!(Ipv4Header, total_len);
        const CHECK: usize =
            ETH_LEN + offset_of!(EncapHeader, ipv4) + offset_of!(Ipv4Header, check);
        const UDP: usize = ETH_LEN + offset_of!(EncapHeader, udp);
        let tos = ecn::encapsulate(tos);
        let total_len = (outer_len as u16).to_be_bytes();
        let udp_len = ((outer_len - Self::LEN as u32) as u16).to_be_bytes();
        let (words, last) = node.encap.words();
        packet.write(ETH_LEN, words[0])?;
        packet.write(ETH_LEN + 8, words[1])?;
        packet.write(ETH_LEN + 16, words[2])?;
        packet.write(ETH_LEN + 24, words[3])?;
        packet.write(ETH_LEN + 32, words[4])?;
        packet.write(ETH_LEN + 40, words[5])?;
        packet.write(ETH_LEN + 48, last)?;
        packet.write(TOS, tos)?;
        packet.write(LEN, total_len)?;
        packet.write(
            CHECK,
            outer_ipv4_check(node.ipv4_sum, total_len, tos).to_ne_bytes(),
        )?;
        packet.write(UDP + offset_of!(UdpHeader, src_port), source_port)?;
        packet.write(UDP + offset_of!(UdpHeader, len), udp_len)
    }

    /// 224.0.0.0/4, and of that 224.0.0.0/24 (RFC 5771 §4).
    #[inline(always)]
    fn is_group_of_hosts(address: [u32; 4]) -> Option<bool> {
        let address = u32::from_be(address[0]);
        (address >> 28 == 0xe).then_some(address >> 8 == 0x00e0_0000)
    }

    #[inline(always)]
    fn fib_words(address: Ipv4Be) -> [u32; 4] {
        [u32::from_ne_bytes(address.octets), 0, 0, 0]
    }
}
