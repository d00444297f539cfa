//! The programs of the fast path, and the guard before it. This file knows hooks and verdict numbers; what a program
//! decides is in the module of its name.
//!
//! | program | attach point | module |
//! |---|---|---|
//! | `overlay_egress` | tcx ingress, host side of every pod veth | [`egress`] |
//! | `overlay_confirm` | tcx egress, `flannel.<VNI>` and the underlay | [`confirm`] |
//! | `overlay_ingress` | tcx ingress, underlay | [`ingress`] |
//! | `overlay_arrive` | tcx ingress, `flannel.<VNI>` | [`arrive`] |
//! | `overlay_deliver` | tcx egress, host side of every pod veth | [`deliver`] |
//! | `overlay_guard`, `overlay_guard_1` | XDP, underlay | [`mod@guard`] |
//!
//! Nodes with the udp backend have `overlay_egress_udp`, `overlay_confirm_udp`, `overlay_ingress_udp` and
//! `overlay_arrive_udp` in place of those of the same names, with `flannel0` for `flannel.<VNI>` ([`carried`]).
#![no_std]
#![no_main]

mod act;
mod arrive;
mod carried;
mod confirm;
mod datagram;
mod deliver;
mod earn;
mod egress;
mod encap;
mod entered;
mod fib;
mod flow_packet;
mod flows;
mod guard;
mod helpers;
mod ingress;
mod injection;
mod ip;
mod ipv4;
mod ipv6;
mod leaving;
mod log;
mod mac;
mod maps;
mod nexthop;
mod observe;
mod packet;
mod pairs;
mod parse;
mod short;
mod slow;
mod ways;
mod words;

use aya_ebpf::{
    bindings::{
        TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS},
    },
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use overlay_common::{
    family::{V4, V6},
    outcome::{Hook, Outcome},
    wire::ETHERTYPE_IPV6,
};

use crate::{
    encap::{Datagrams, Vxlan},
    helpers::Skb,
};

/// What `__sk_buff::protocol` says of IPv6 packets.
const IPV6: u32 = u16::from_ne_bytes(ETHERTYPE_IPV6) as u32;

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
            verdict: TC_ACT_SHOT,
        }
    }
}

/// What came of a packet. A declined one goes on to the next program or tc filter of the interface,
/// such as those of a bandwidth limit; `TC_ACT_OK` would skip them.
struct Conclusion {
    outcome: Outcome,
    verdict: i32,
}

/// Of a program that only watches.
impl From<Outcome> for Conclusion {
    #[inline(always)]
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            verdict: TC_ACT_UNSPEC,
        }
    }
}

impl From<Handled> for Conclusion {
    #[inline(always)]
    fn from(Handled { outcome, verdict }: Handled) -> Self {
        Self { outcome, verdict }
    }
}

impl From<Result<Handled, Outcome>> for Conclusion {
    #[inline(always)]
    fn from(result: Result<Handled, Outcome>) -> Self {
        match result {
            Ok(handled) => handled.into(),
            Err(outcome) => outcome.into(),
        }
    }
}

/// What came of a packet that goes on in the kernel in any case.
#[inline(always)]
fn told(result: Result<Outcome, Outcome>) -> Outcome {
    match result {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

/// Counts the outcome and returns the verdict.
#[inline(always)]
fn conclude(hook: Hook, skb: Skb, bytes: u32, conclusion: impl Into<Conclusion>) -> i32 {
    let Conclusion { outcome, verdict } = conclusion.into();
    maps::count(hook, outcome, bytes);
    log::packet(hook, outcome, skb);
    verdict
}

/// A TC program. Each is written once for both families, and compiled to a function for each, so that
/// neither takes registers or stack from the other: the verifier limits the sum of the stack that
/// functions in a row of calls use. Those of a program whose work is in functions of its own already are
/// no further step in the row.
macro_rules! program {
    (
        $program:ident, $ipv4:ident, $ipv6:ident, $inline:ident, $hook:ident,
        $($run:ident)::+ $(, $kind:ty)?
    ) => {
        #[classifier]
        pub fn $program(ctx: TcContext) -> i32 {
            let skb = Skb::new(&ctx);
            if skb.protocol() == IPV6 {
                $ipv6(skb)
            } else {
                $ipv4(skb)
            }
        }

        #[inline($inline)]
        fn $ipv4(skb: Skb) -> i32 {
            let bytes = skb.len();
            conclude(Hook::$hook, skb, bytes, $($run)::+::<V4 $(, $kind)?>(&skb))
        }

        #[inline($inline)]
        fn $ipv6(skb: Skb) -> i32 {
            let bytes = skb.len();
            conclude(Hook::$hook, skb, bytes, $($run)::+::<V6 $(, $kind)?>(&skb))
        }
    };
}

program!(
    overlay_egress,
    egress_ipv4,
    egress_ipv6,
    never,
    Egress,
    egress::run,
    Vxlan
);
program!(
    overlay_confirm,
    confirm_ipv4,
    confirm_ipv6,
    always,
    Confirm,
    confirm::run
);
program!(
    overlay_ingress,
    ingress_ipv4,
    ingress_ipv6,
    always,
    Ingress,
    ingress::run
);
program!(
    overlay_arrive,
    arrive_ipv4,
    arrive_ipv6,
    never,
    Arrive,
    arrive::run
);
program!(
    overlay_deliver,
    deliver_ipv4,
    deliver_ipv6,
    never,
    Deliver,
    deliver::run
);

/// A TC program of the udp backend, which carries IPv4 alone.
macro_rules! udp_program {
    ($program:ident, $hook:ident, $run:expr) => {
        #[classifier]
        pub fn $program(ctx: TcContext) -> i32 {
            let skb = Skb::new(&ctx);
            let bytes = skb.len();
            if skb.protocol() == IPV6 {
                return conclude(Hook::$hook, skb, bytes, Outcome::Unserved);
            }
            conclude(Hook::$hook, skb, bytes, $run(&skb))
        }
    };
}

udp_program!(overlay_egress_udp, Egress, egress::run::<V4, Datagrams>);
udp_program!(overlay_confirm_udp, Confirm, carried::confirm);
udp_program!(overlay_ingress_udp, Ingress, ingress::run_datagrams);
udp_program!(overlay_arrive_udp, Arrive, carried::arrive);

#[xdp(frags)]
pub fn overlay_guard(ctx: XdpContext) -> u32 {
    guard(&ctx)
}

/// The same without the flag for packets of several fragments, which is of Linux 5.18.
#[xdp]
pub fn overlay_guard_1(ctx: XdpContext) -> u32 {
    guard(&ctx)
}

#[inline(always)]
fn guard(ctx: &XdpContext) -> u32 {
    let (outcome, verdict) = match guard::run(ctx) {
        Ok(outcome) => (outcome, XDP_PASS),
        Err(outcome) => (outcome, XDP_DROP),
    };
    maps::count(Hook::Guard, outcome, (ctx.data_end() - ctx.data()) as u32);
    log::guarded(outcome, ctx);
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
