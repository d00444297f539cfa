//! Flows that stay on the kernel path because the packet filter judges each of their packets, or
//! because a rule of the administrator marks them. Asked only where a lease would be granted: packets
//! that have one cost nothing.

use overlay_common::{
    config::Config,
    outcome::Outcome,
    slow::{self, EVERY_FLOW, Packet},
    wire::{IPPROTO_TCP, IPPROTO_UDP},
};

use crate::{
    helpers::Skb,
    ip::Ip,
    maps,
    parse::{Flow, Local},
};

#[inline(always)]
pub fn check<F: Ip>(
    skb: &Skb,
    config: &Config<F>,
    flow: &Flow<F>,
    local: Local,
) -> Result<(), Outcome> {
    if config.slow_mask != 0 && skb.mark() & config.slow_mask == config.slow_mark {
        return Err(Outcome::SlowMark);
    }
    // The map always has its entry.
    let (count, matches) = F::slow(maps::slow().ok_or(Outcome::PerPacketRule)?);
    if count == 0 {
        return Ok(());
    }
    if count == EVERY_FLOW {
        return Err(Outcome::PerPacketRule);
    }
    let packet = packet(flow, local);
    for (index, slow) in matches.iter().enumerate() {
        if index as u32 >= count {
            break;
        }
        if slow.contains(&packet) {
            return Err(Outcome::PerPacketRule);
        }
    }
    Ok(())
}

#[inline(always)]
fn packet<F: Ip>(flow: &Flow<F>, local: Local) -> Packet<F> {
    let words = flow.words;
    let local_port = (words.ports as u16).to_be();
    let remote_port = ((words.ports >> 16) as u16).to_be();
    let protocol = match flow.protocol {
        IPPROTO_TCP => slow::TCP,
        IPPROTO_UDP => slow::UDP,
        _ => slow::ICMP,
    };
    match local {
        Local::Source => Packet {
            src: words.local(),
            dst: words.remote(),
            src_port: local_port,
            dst_port: remote_port,
            protocol,
            direction: slow::EGRESS,
        },
        Local::Destination => Packet {
            src: words.remote(),
            dst: words.local(),
            src_port: remote_port,
            dst_port: local_port,
            protocol,
            direction: slow::INGRESS,
        },
    }
}
