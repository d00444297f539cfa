//! Flows that stay on the kernel path because the packet filter judges each of their packets, or
//! because a rule of the administrator marks them. Asked only where a permit would be granted: packets
//! that have one cost nothing.

use overlay_common::{
    config::Config,
    family::{V4, V6},
    flow::FlowWords,
    outcome::Outcome,
    slow::{self, EVERY_FLOW, Packet},
    wire::{IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
};

use crate::{flow_packet::Local, helpers::Skb, ip::Ip, maps};

/// Whether an administrator's rule has marked the packet's flow.
#[inline(always)]
pub fn check<F: Ip>(skb: &Skb, config: &Config<F>) -> Result<(), Outcome> {
    if config.slow_mask != 0 && skb.mark() & config.slow_mask == config.slow_mark {
        return Err(Outcome::SlowMark);
    }
    Ok(())
}

/// Whether the packet filter judges each packet of the flow `words`, whose local end is the packet's `local`.
#[inline(always)]
pub fn judge<F: Ip>(words: &FlowWords<F>, local: Local) -> Result<(), Outcome> {
    // The map always has its entry.
    let (count, _) = F::slow(maps::slow().ok_or(Outcome::PerPacketRule)?);
    if count != 0 && F::is_judged(words, local) {
        return Err(Outcome::PerPacketRule);
    }
    Ok(())
}

/// Of the word of ports and protocol, beside which there is room: the local end is the packet's source.
const IS_SOURCE: u64 = 1 << 63;

/// The last argument of [`overlay_is_judged`] and [`overlay_is_judged6`].
#[inline(always)]
pub fn ports_and_source(ports: u64, local: Local) -> u64 {
    if local == Local::Source {
        ports | IS_SOURCE
    } else {
        ports
    }
}

/// [`is_judged`] of an IPv4 flow. A global function: the verifier walks through it once, not behind each path to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn overlay_is_judged(addresses: u64, ports: u64) -> u32 {
    is_judged(FlowWords::<V4> { addresses, ports }).into()
}

/// [`is_judged`] of an IPv6 flow, a global function as well.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn overlay_is_judged6(a: u64, b: u64, c: u64, d: u64, ports: u64) -> u32 {
    let addresses = [a, b, c, d];
    is_judged(FlowWords::<V6> { addresses, ports }).into()
}

/// Whether one of the matches concerns the flow, or all flows are judged.
#[inline(always)]
fn is_judged<F: Ip>(words: FlowWords<F>) -> bool {
    let Some(slow) = maps::slow() else {
        return true;
    };
    let (count, matches) = F::slow(slow);
    if count == EVERY_FLOW {
        return true;
    }
    let packet = packet(words);
    for (index, slow) in matches.iter().enumerate() {
        if index as u32 >= count {
            break;
        }
        if slow.contains(&packet) {
            return true;
        }
    }
    false
}

#[inline(always)]
fn packet<F: Ip>(words: FlowWords<F>) -> Packet<F> {
    let local_port = words.local_port().to_be();
    let remote_port = words.remote_port().to_be();
    let protocol = match words.protocol() {
        IPPROTO_TCP => slow::TCP,
        IPPROTO_UDP => slow::UDP,
        IPPROTO_SCTP => slow::SCTP,
        _ => slow::ICMP,
    };
    if words.ports & IS_SOURCE != 0 {
        Packet {
            src: words.local(),
            dst: words.remote(),
            src_port: local_port,
            dst_port: remote_port,
            protocol,
            direction: slow::EGRESS,
        }
    } else {
        Packet {
            src: words.remote(),
            dst: words.local(),
            src_port: remote_port,
            dst_port: local_port,
            protocol,
            direction: slow::INGRESS,
        }
    }
}
