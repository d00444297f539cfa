//! Flows that stay on the kernel path because the packet filter judges each of their packets, or
//! because a rule of the administrator marks them. Asked only where a permit would be granted: packets
//! that have one cost nothing.

use overlay_common::{
    config::Config,
    flow::FlowWords,
    outcome::Outcome,
    slow::{self, EVERY_FLOW, Packet},
    wire::{IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
};

use crate::{
    flow_packet::Local,
    helpers::Skb,
    ip::Ip,
    maps,
};

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

/// Whether one of the matches, or all flows being judged, concerns the flow. Called by [`crate::global`] alone.
#[inline(always)]
pub fn is_judged<F: Ip>(words: FlowWords<F>, local: Local) -> bool {
    let Some(slow) = maps::slow() else {
        return true;
    };
    let (count, matches) = F::slow(slow);
    if count == EVERY_FLOW {
        return true;
    }
    let packet = packet(words, local);
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
fn packet<F: Ip>(words: FlowWords<F>, local: Local) -> Packet<F> {
    let local_port = words.local_port().to_be();
    let remote_port = words.remote_port().to_be();
    let protocol = match words.protocol() {
        IPPROTO_TCP => slow::TCP,
        IPPROTO_UDP => slow::UDP,
        IPPROTO_SCTP => slow::SCTP,
        _ => slow::ICMP,
    };
    if local == Local::Source {
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
