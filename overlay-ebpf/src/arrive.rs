//! Stamps what the kernel decapsulated, so that `overlay_deliver` can tell whether it reaches the
//! pod unchanged.

use overlay_common::outcome::Outcome;

use crate::{helpers::Skb, ip::Ip, observe::observe, parse::Local};

#[inline(always)]
pub fn run<F: Ip>(skb: &Skb) -> Outcome {
    match observe::<F>(skb, Local::Destination) {
        Ok(seen) => {
            skb.set_hash(seen.stamp);
            Outcome::Stamped
        }
        Err(outcome) => outcome,
    }
}
