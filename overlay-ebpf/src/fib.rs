//! Questions to the kernel's routing tables (`bpf_fib_lookup`). Asked only on the kernel path.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup},
    programs::TcContext,
};
use overlay_common::{config::Config, node::Node, wire::IPPROTO_UDP};

use crate::{helpers::Skb, ip::Ip, mac::Mac};

/// `BPF_FIB_LOOKUP_MARK`, of Linux 6.10.
const BPF_FIB_LOOKUP_MARK: u32 = 1 << 5;

/// `struct bpf_fib_lookup` in words, in which it is built on the stack: the verifier wants every access
/// there aligned.
type Words = [u64; size_of::<bpf_fib_lookup>() / 8];

/// What the kernel is asked the route of.
pub struct Lookup<F: Ip> {
    /// The interface the packet came in by; of the host's own packet, the one it leaves by.
    pub ifindex: u32,
    pub is_own: bool,
    pub src: F::Be,
    pub dst: F::Be,
    pub protocol: u8,
    /// As they stand in the packet.
    pub src_port: u16,
    pub dst_port: u16,
    pub tos: u8,
}

impl<F: Ip> Lookup<F> {
    /// The kernel's tunnel packet to `node` with this source port, which leaves by the device of `skb`.
    #[inline(always)]
    pub fn of_tunnel(skb: &Skb, config: &Config<F>, node: &Node<F>, source_port: u16) -> Self {
        Self {
            ifindex: skb.ifindex(),
            is_own: true,
            src: config.vtep,
            dst: node.vtep,
            protocol: IPPROTO_UDP,
            src_port: source_port,
            dst_port: u16::from_ne_bytes(config.vxlan_port),
            tos: 0,
        }
    }
}

/// The MTU of the path, bytes, as far as the kernel tells, if it routes a packet with the mark of this one by the device
/// of this one and has `next_hop` as the neighbour there. Before Linux 6.10 nobody can ask for packets with a mark, and is
/// told of those without.
#[inline(always)]
pub fn mtu_of_way<F: Ip>(skb: &Skb, about: &Lookup<F>, next_hop: Mac) -> Option<u16> {
    let own = if about.is_own {
        BPF_FIB_LOOKUP_OUTPUT
    } else {
        0
    };
    let mark = skb.mark();
    let ports = u64::from(about.src_port) << 16 | u64::from(about.dst_port) << 32;
    let transport = u64::from(about.protocol) << 8 | ports;
    let tos = if F::IS_IPV4 { about.tos } else { 0 };
    let way = u64::from(about.ifindex) | u64::from(tos) << 32;
    let addresses = (F::fib_words(about.src), F::fib_words(about.dst));
    let mut words = question::<F>(transport, way, addresses, mark);
    let result = if mark == 0 {
        skb.ask_fib(&mut words, own)
    } else {
        match skb.ask_fib(&mut words, own | BPF_FIB_LOOKUP_MARK) {
            // The kernel does not know the flag, and has changed nothing.
            ..0 => skb.ask_fib(&mut words, own),
            answered => answered,
        }
    };
    let is_same =
        words[1] as u32 == skb.ifindex() && Mac::from_low_bits(words[7] >> 16) == next_hop;
    (result == 0 && is_same).then_some((words[0] >> 48) as u16)
}

/// Whether the kernel keeps a packet to the address that came in by this device: an address of the
/// host, or a broadcast address. True also if it has no route.
#[inline(always)]
pub fn is_local<F: Ip>(skb: &Skb, [a, b, c, d]: [u32; 4]) -> bool {
    overlay_is_local(skb.raw(), u32::from(F::FAMILY), pair(a, b), pair(c, d)) != 0
}

/// A global function: the verifier walks through it once, not behind each path to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn overlay_is_local(skb: *mut __sk_buff, family: u32, low: u64, high: u64) -> u32 {
    let skb = Skb::new(&TcContext::new(skb));
    let mut words: Words = [
        u64::from(family) | ANY_LENGTH,
        u64::from(skb.ifindex()),
        0,
        0,
        low,
        high,
        0,
        0,
    ];
    (skb.ask_fib(&mut words, 0) == i64::from(BPF_FIB_LKUP_RET_NOT_FWDED)).into()
}

/// A length makes the kernel report the MTU: a locked one of the route, else a path MTU exception, else
/// the device's (`ip_mtu_from_fib_result`).
const ANY_LENGTH: u64 = 1 << 48;

#[inline(always)]
fn question<F: Ip>(transport: u64, way: u64, (src, dst): ([u32; 4], [u32; 4]), mark: u32) -> Words {
    [
        u64::from(F::FAMILY) | transport | ANY_LENGTH,
        way,
        pair(src[0], src[1]),
        pair(src[2], src[3]),
        pair(dst[0], dst[1]),
        pair(dst[2], dst[3]),
        // Where the answer has the source MAC address, the question has the mark.
        u64::from(mark) << 32,
        0,
    ]
}

#[inline(always)]
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
