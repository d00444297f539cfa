//! Stamps what the kernel decapsulated, so that `overlay_deliver` can tell whether it reaches the
//! pod unchanged. Stops tunnel packets of pods.

use overlay_common::outcome::Outcome;

use crate::{
    Handled,
    helpers::Skb,
    injection,
    ip::Ip,
    observe::observe,
    parse::{ETH_LEN, Local},
};

#[inline(always)]
pub fn run<F: Ip>(skb: &Skb) -> Result<Handled, Outcome> {
    let config = F::config().ok_or(Outcome::Disabled)?;
    let packet = skb.packet_with(ETH_LEN as u32 + F::FLOW_LEN);
    if injection::arrives(skb, packet, config) {
        return Ok(Handled::drop(Outcome::PodTunnel));
    }
    let seen = observe::<F>(skb, Local::Destination)?;
    skb.set_hash(seen.flow.stamp_before_hop(seen.config));
    Err(Outcome::Stamped)
}
