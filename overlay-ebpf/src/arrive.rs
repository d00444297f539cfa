//! Stamps what the kernel decapsulated, so that `overlay_deliver` can tell whether it reaches the
//! pod unchanged.

use overlay_common::{config::FASTPATH_OFF, outcome::Outcome, stamp::stamp, wire::ETHERTYPE_IPV4};

use crate::{
    helpers::Skb,
    maps,
    parse::{ETH_LEN, FLOW_LEN, Flow4, Local},
};

#[inline(always)]
pub fn run(skb: &Skb) -> Outcome {
    match arrive(skb) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn arrive(skb: &Skb) -> Result<Outcome, Outcome> {
    let config = maps::config().ok_or(Outcome::Disabled)?;
    if config.fastpath == FASTPATH_OFF {
        return Err(Outcome::Disabled);
    }
    let packet = skb.packet_with(ETH_LEN as u32 + FLOW_LEN);
    let ethertype: u16 = packet.read(12).ok_or(Outcome::Truncated)?;
    if ethertype != u16::from_ne_bytes(ETHERTYPE_IPV4) {
        return Err(Outcome::NotIpv4);
    }
    let flow = Flow4::parse(packet, ETH_LEN, Local::Destination, config)?;
    if !config.is_local_pod(flow.words.local()) || !config.is_remote_pod(flow.words.remote()) {
        return Err(Outcome::NotOverlay);
    }
    skb.set_hash(stamp(flow.words, &config.stamp_key, config.generation));
    Ok(Outcome::Stamped)
}
