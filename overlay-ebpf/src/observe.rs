//! What the programs that only watch the kernel forward have in common.

use overlay_common::{
    config::{Config, FASTPATH_OFF},
    flow::TRANSLATED_UDP_PERMIT_NS,
    outcome::Outcome,
    stamp::{self, Header},
    wire::IPPROTO_UDP,
};

use crate::{
    earn::Passage,
    entered,
    flow_packet::{Control, FlowPacket, Local},
    flows,
    helpers::{Skb, now},
    ip::Ip,
    mac::Mac,
    maps,
    packet::{ETH_LEN, Packet},
    pairs,
    parse::why_off,
    slow,
};

/// A packet from or to a pod of this node, on the kernel path.
pub struct Observed<F: Ip> {
    pub config: &'static Config<F>,
    /// The addresses of its Ethernet header, if it has one.
    pub dst: Mac,
    pub src: Mac,
    pub flow: FlowPacket<F>,
    local: Local,
}

#[inline(always)]
pub fn observe<F: Ip>(skb: &Skb, local: Local) -> Result<Observed<F>, Outcome> {
    let config = watching::<F>()?;
    let packet = skb.packet_with(ETH_LEN as u32 + F::FLOW_LEN);
    let dst = Mac::read(packet, 0).ok_or(Outcome::Truncated)?;
    let src = Mac::read(packet, 6).ok_or(Outcome::Truncated)?;
    let ethertype: u16 = packet.read(12).ok_or(Outcome::Truncated)?;
    if ethertype != u16::from_ne_bytes(F::ETHERTYPE) {
        return Err(Outcome::NotIp);
    }
    of_pod(config, packet, ETH_LEN, [dst, src], local)
}

/// The same at a device without Ethernet headers.
#[inline(always)]
pub fn observe_bare<F: Ip>(skb: &Skb, local: Local) -> Result<Observed<F>, Outcome> {
    let config = watching::<F>()?;
    let packet = skb.packet_with(F::FLOW_LEN);
    of_pod(config, packet, 0, [Mac::NONE; 2], local)
}

#[inline(always)]
fn watching<F: Ip>() -> Result<&'static Config<F>, Outcome> {
    let config = F::config().ok_or(Outcome::Disabled)?;
    if config.fastpath == FASTPATH_OFF {
        return Err(why_off(config));
    }
    Ok(config)
}

#[inline(always)]
fn of_pod<F: Ip>(
    config: &'static Config<F>,
    packet: Packet,
    offset: usize,
    [dst, src]: [Mac; 2],
    local: Local,
) -> Result<Observed<F>, Outcome> {
    let flow = FlowPacket::parse(packet, offset, local, config)?;
    if !config.is_local_pod(flow.words.local()) {
        return Err(Outcome::NotOverlay);
    }
    Ok(Observed {
        config,
        dst,
        src,
        flow,
        local,
    })
}

/// As [`observe`], where a packet leaves the host.
#[inline(always)]
pub fn observe_leaving<F: Ip>(skb: &Skb, local: Local) -> Result<Observed<F>, Outcome> {
    let observed = observe(skb, local);
    observed.inspect_err(|outcome| pairs::note_unread::<F, ETH_LEN>(skb, local, *outcome))
}

/// As [`observe_bare`], where a packet leaves the host.
#[inline(always)]
pub fn observe_leaving_bare<F: Ip>(skb: &Skb, local: Local) -> Result<Observed<F>, Outcome> {
    let observed = observe_bare(skb, local);
    observed.inspect_err(|outcome| pairs::note_unread::<F, 0>(skb, local, *outcome))
}

impl<F: Ip> Observed<F> {
    /// Whether the packet, routed by now, may earn a permit: it left as it came but for what netfilter
    /// translates of its remote end, neither opens nor closes a connection, which ends the permits there
    /// are, and what was decided about it holds for the next.
    #[inline(always)]
    pub fn may_earn(&self, skb: &Skb) -> Result<Passage<'_, F>, Outcome> {
        let generation = maps::generation(self.config);
        let config = self.config;
        let Some(passage) = passage(skb.hash(), config, &self.flow, generation) else {
            pairs::note_unproven(skb, config, &self.flow);
            return Err(if config.is_remote_pod(self.flow.words.remote()) {
                Outcome::Translated
            } else {
                Outcome::NotOverlay
            });
        };
        if passage.is_translated {
            pairs::note_translated(config, &self.flow, &passage)?;
        }
        let overlay = match self.local {
            Local::Source => passage.left,
            Local::Destination => passage.entered,
        };
        if !config.is_remote_pod(overlay.remote()) {
            return Err(Outcome::NotOverlay);
        }
        match self.flow.control {
            Control::None => {
                slow::check(skb, config)?;
                // Rules judge a translated packet by either of its tuples, depending on where they stand.
                slow::judge(passage.left, self.local)?;
                if passage.is_translated {
                    slow::judge(passage.entered, self.local)?;
                }
                // An entry in the flow table costs more than a packet on the kernel path. A bare
                // acknowledgement announces packets.
                let is_inbound = self.local == Local::Destination;
                if !self.flow.is_acknowledgement() && !maps::was_seen(skb.hash(), is_inbound) {
                    return Err(Outcome::FirstPacket);
                }
                Ok(passage)
            }
            Control::Open => {
                forget(&passage);
                Err(Outcome::Handshake)
            }
            Control::Close => {
                forget(&passage);
                Err(Outcome::FlowClosed)
            }
            Control::Stray => Err(Outcome::TcpControl),
        }
    }
}

#[inline(always)]
fn forget<F: Ip>(passage: &Passage<'_, F>) {
    flows::forget(*passage.entered);
    if passage.is_translated {
        flows::forget(*passage.left);
    }
}

/// Stamps a packet that the host has yet to route, and notes the flow with which it enters.
#[inline(always)]
pub fn enter<F: Ip>(skb: &Skb, flow: &FlowPacket<F>, config: &Config<F>) {
    let stamp = flow.stamp_before_hop(config);
    skb.set_hash(stamp);
    entered::note(stamp, flow.words);
}

/// The way through the host of a packet that leaves as `flow`: the `stamp` it carries is proof. `None` if it
/// did not come from a pod or a peer, or was changed in anything but its remote end.
#[inline(always)]
pub fn passage<'a, F: Ip>(
    stamp: u32,
    config: &Config<F>,
    flow: &'a FlowPacket<F>,
    generation: u32,
) -> Option<Passage<'a, F>> {
    let header = Header {
        tos: flow.tos,
        ttl: flow.ttl,
    };
    let left = &flow.words;
    let passage = Passage::unchanged(flow, generation);
    if stamp == flow.stamp(header, config, generation) {
        return Some(passage);
    }
    let entered = entered::find::<F>(stamp)?;
    let is_its = flow.has_ports()
        && entered.is_beside(*left)
        && stamp == stamp::stamp(*entered, header, &config.stamp_key, generation);
    is_its.then_some(Passage {
        entered,
        is_translated: true,
        is_pair: false,
        ..passage
    })
}

/// When a permit of `flow` that is granted now runs out.
#[inline(always)]
pub fn permit_until<F: Ip>(
    config: &Config<F>,
    flow: &FlowPacket<F>,
    is_translated: bool,
) -> Result<u64, Outcome> {
    let permit = match config.permit_ns(flow.protocol) {
        0 => return Err(Outcome::NoPermit),
        permit => permit,
    };
    let is_short =
        is_translated && flow.protocol == IPPROTO_UDP && permit > TRANSLATED_UDP_PERMIT_NS;
    Ok(now()
        + if is_short {
            TRANSLATED_UDP_PERMIT_NS
        } else {
            permit
        })
}
