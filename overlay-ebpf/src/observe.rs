//! What the programs that only watch the kernel forward have in common.

use overlay_common::{
    config::{Config, FASTPATH_OFF},
    outcome::Outcome,
    stamp::Header,
};

use crate::{
    flows,
    helpers::{Skb, now},
    ip::Ip,
    mac::Mac,
    maps,
    parse::{Control, ETH_LEN, Flow, Local, why_off},
    slow,
};

/// A packet between a pod of this node and one of another, on the kernel path.
pub struct Observed<F: Ip> {
    pub config: &'static Config<F>,
    /// The addresses of its Ethernet header.
    pub dst: Mac,
    pub src: Mac,
    pub flow: Flow<F>,
    local: Local,
}

#[inline(always)]
pub fn observe<F: Ip>(skb: &Skb, local: Local) -> Result<Observed<F>, Outcome> {
    let config = F::config().ok_or(Outcome::Disabled)?;
    if config.fastpath == FASTPATH_OFF {
        return Err(why_off(config));
    }
    let packet = skb.packet_with(ETH_LEN as u32 + F::FLOW_LEN);
    let dst = Mac::read(packet, 0).ok_or(Outcome::Truncated)?;
    let src = Mac::read(packet, 6).ok_or(Outcome::Truncated)?;
    let ethertype: u16 = packet.read(12).ok_or(Outcome::Truncated)?;
    if ethertype != u16::from_ne_bytes(F::ETHERTYPE) {
        return Err(Outcome::NotIp);
    }
    let flow = Flow::parse(packet, ETH_LEN, local, config)?;
    if !config.is_local_pod(flow.words.local()) || !config.is_remote_pod(flow.words.remote()) {
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

impl<F: Ip> Observed<F> {
    /// Whether the packet, routed by now, may earn a lease: it left as it came, neither opens nor
    /// closes a connection, which ends the leases there are, and what was decided about it holds for the
    /// next. Returns the generation in which that is so, the one of its stamp.
    #[inline(always)]
    pub fn may_earn(&self, skb: &Skb) -> Result<u32, Outcome> {
        let generation = maps::generation(self.config);
        let header = Header {
            tos: self.flow.tos,
            ttl: self.flow.ttl,
        };
        if skb.hash() != self.flow.stamp(header, self.config, generation) {
            return Err(Outcome::Translated);
        }
        match self.flow.control {
            Control::None => {
                slow::check(skb, self.config, &self.flow, self.local).map(|()| generation)
            }
            Control::Open => {
                flows::forget(self.flow.words);
                Err(Outcome::Handshake)
            }
            Control::Close => {
                flows::forget(self.flow.words);
                Err(Outcome::FlowClosed)
            }
            Control::Stray => Err(Outcome::TcpControl),
        }
    }

    /// When a lease that the packet earns now runs out.
    #[inline(always)]
    pub fn lease_until(&self) -> Result<u64, Outcome> {
        lease_until(self.config, &self.flow)
    }
}

/// When a lease of `flow` that is granted now runs out.
#[inline(always)]
pub fn lease_until<F: Ip>(config: &Config<F>, flow: &Flow<F>) -> Result<u64, Outcome> {
    match config.lease_ns(flow.protocol) {
        0 => Err(Outcome::NoLease),
        lease => Ok(now() + lease),
    }
}
