//! Global functions, which the verifier walks through once and by themselves, not behind each path through each program
//! that comes to them. It knows nothing of what they get: numbers, and the packet.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    family::{V4, V6},
    flow::FlowWords,
};

use crate::{fib, flow_packet::Local, helpers::Skb, ipv6, slow};

/// Of the word of ports and protocol, beside which it has room: the local end is the packet's source.
const IS_SOURCE: u64 = 1 << 63;

/// The word for [`overlay_is_judged`] and [`overlay_is_judged6`].
#[inline(always)]
pub const fn ports_and_source(ports: u64, local: Local) -> u64 {
    match local {
        Local::Source => ports | IS_SOURCE,
        Local::Destination => ports,
    }
}

#[inline(always)]
const fn source_of(ports: u64) -> Local {
    if ports & IS_SOURCE == 0 {
        Local::Destination
    } else {
        Local::Source
    }
}

/// [`slow::is_judged`] of an IPv4 flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn overlay_is_judged(addresses: u64, ports: u64) -> u32 {
    let words = FlowWords::<V4> { addresses, ports };
    slow::is_judged(words, source_of(ports)).into()
}

/// [`slow::is_judged`] of an IPv6 flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn overlay_is_judged6(a: u64, b: u64, c: u64, d: u64, ports: u64) -> u32 {
    let words = FlowWords::<V6> {
        addresses: [a, b, c, d],
        ports,
    };
    slow::is_judged(words, source_of(ports)).into()
}

/// [`fib::asked_is_local`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn overlay_is_local(skb: *mut __sk_buff, family: u32, low: u64, high: u64) -> u32 {
    let skb = Skb::new(&TcContext::new(skb));
    fib::asked_is_local(&skb, family as u8, low, high).into()
}

/// [`ipv6::walk_to_port`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn overlay_is_udp6_to(skb: *mut __sk_buff, next: u32, port: u32) -> u32 {
    let skb = Skb::new(&TcContext::new(skb));
    ipv6::walk_to_port(&skb, next as u8, (port as u16).to_ne_bytes()).into()
}
