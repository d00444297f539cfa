//! Stamps what the kernel decapsulated, so that `overlay_deliver` can tell whether it reaches the
//! pod unchanged.

use overlay_common::outcome::Outcome;

use crate::{Handled, helpers::Skb, ip::Ip, observe::observe, parse::Local};

#[inline(always)]
pub fn run<F: Ip>(skb: &Skb) -> Result<Handled, Outcome> {
    let seen = observe::<F>(skb, Local::Destination)?;
    skb.set_hash(seen.stamp);
    Err(Outcome::Stamped)
}
