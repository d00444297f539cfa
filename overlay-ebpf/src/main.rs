//! The programs of the fast path, and the guard before it. This file knows hooks and verdict numbers; what a program
//! decides is in the module of its name.
//!
//! | program | attach point | module |
//! |---|---|---|
//! | `overlay_egress` | tcx ingress, host side of every pod veth | [`egress`] |
//! | `overlay_confirm` | tcx egress, `flannel.<VNI>` and, for direct peers, the underlay | [`confirm`] |
//! | `overlay_ingress` | tcx ingress, underlay | [`ingress`] |
//! | `overlay_arrive` | tcx ingress, `flannel.<VNI>` | [`arrive`] |
//! | `overlay_deliver` | tcx egress, host side of every pod veth | [`deliver`] |
//! | `overlay_guard` | XDP, underlay | [`guard`] |
#![no_std]
#![no_main]

mod arrive;
mod confirm;
mod deliver;
mod egress;
mod guard;
mod helpers;
mod ingress;
mod mac;
mod maps;
mod observe;
mod packet;
mod parse;

use aya_ebpf::{
    bindings::{
        TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS},
    },
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use overlay_common::outcome::{Hook, Outcome};

use crate::helpers::Skb;

/// A program's decision to handle a packet itself. Everything else is an `Err(Outcome)`: the
/// packet goes on in the kernel.
struct Handled {
    outcome: Outcome,
    verdict: i32,
}

impl Handled {
    /// `verdict` is what a redirect helper returned.
    #[inline(always)]
    const fn redirect(outcome: Outcome, verdict: i32) -> Self {
        Self { outcome, verdict }
    }

    #[inline(always)]
    const fn drop(outcome: Outcome) -> Self {
        Self {
            outcome,
            verdict: TC_ACT_SHOT as i32,
        }
    }
}

/// Counts the outcome and turns it into the verdict. A declined packet goes on to the next program or
/// tc filter of the interface, such as those of a bandwidth limit; `TC_ACT_OK` would skip them.
#[inline(always)]
fn conclude(hook: Hook, bytes: u32, result: Result<Handled, Outcome>) -> i32 {
    let (outcome, verdict) = match result {
        Ok(handled) => (handled.outcome, handled.verdict),
        Err(outcome) => (outcome, TC_ACT_UNSPEC),
    };
    maps::count(hook, outcome, bytes);
    verdict
}

#[classifier]
pub fn overlay_egress(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let bytes = skb.len();
    conclude(Hook::Egress, bytes, egress::run(&skb))
}

#[classifier]
pub fn overlay_confirm(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    conclude(Hook::Confirm, skb.len(), Err(confirm::run(&skb)))
}

#[classifier]
pub fn overlay_ingress(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let bytes = skb.len();
    conclude(Hook::Ingress, bytes, ingress::run(&skb))
}

#[classifier]
pub fn overlay_arrive(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    conclude(Hook::Arrive, skb.len(), Err(arrive::run(&skb)))
}

#[classifier]
pub fn overlay_deliver(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    conclude(Hook::Deliver, skb.len(), Err(deliver::run(&skb)))
}

#[xdp(frags)]
pub fn overlay_guard(ctx: XdpContext) -> u32 {
    let (outcome, verdict) = match guard::run(&ctx) {
        Ok(outcome) => (outcome, XDP_PASS),
        Err(outcome) => (outcome, XDP_DROP),
    };
    maps::count(Hook::Guard, outcome, (ctx.data_end() - ctx.data()) as u32);
    verdict
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// GPL-compatible: bpf_fib_lookup and others are offered to GPL programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
