//! Stamps what the kernel decapsulated, so that `overlay_deliver` can tell whether it reaches the
//! pod unchanged. Stops tunnel packets of pods.

use overlay_common::outcome::Outcome;

use crate::{
    Handled,
    flow_packet::Local,
    helpers::Skb,
    injection,
    ip::Ip,
    observe::{enter, observe},
    packet::ETH_LEN,
    short,
};

#[inline(always)]
pub fn run<F: Ip>(skb: &Skb) -> Result<Handled, Outcome> {
    let config = F::config().ok_or(Outcome::Disabled)?;
    let packet = skb.packet_with(ETH_LEN as u32 + F::FLOW_LEN);
    if injection::arrives(skb, packet, config) {
        return Ok(Handled::drop(Outcome::PodTunnel));
    }
    // Most packets here opened nothing, which is no matter.
    let _ = short::open_inwards(skb, config);
    let seen = observe::<F>(skb, Local::Destination)?;
    if !seen.config.is_remote_pod(seen.flow.words.remote()) {
        return Err(Outcome::NotOverlay);
    }
    enter(skb, &seen.flow, seen.config);
    Err(Outcome::Stamped)
}
