//! Grants ingress leases: a packet reaches the pod's veth as it reached the host, so the kernel and
//! its packet filter let it pass unchanged. Where and how the kernel delivers it is remembered.

use overlay_common::{
    node::{MODE_DIRECT, MODE_TUNNEL},
    outcome::Outcome,
};

use crate::{
    flows::{self, Delivery},
    helpers::Skb,
    ip::Ip,
    maps,
    observe::{Observed, observe},
    parse::Local,
};

#[inline(always)]
pub fn run<F: Ip>(skb: &Skb) -> Outcome {
    match deliver::<F>(skb) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn deliver<F: Ip>(skb: &Skb) -> Result<Outcome, Outcome> {
    let seen = observe::<F>(skb, Local::Destination)?;
    if seen.dst.is_multicast() {
        return Err(Outcome::NotGateway);
    }
    let generation = seen.may_earn(skb)?;
    let until = seen.lease_until()?;
    let Observed {
        config,
        dst,
        src,
        flow,
        ..
    } = seen;
    let moves = maps::moves(dst);
    if maps::pod_port(dst) != Some(skb.ifindex()) {
        return Err(Outcome::UnknownPod);
    }
    let index = F::node_of(flow.words.remote()).ok_or(Outcome::UnknownPeer)?;
    let by_tunnel = skb.ingress_ifindex() == config.vtep_ifindex;
    let mtu = skb.device_mtu();
    let delivery = Delivery {
        mode: if by_tunnel { MODE_TUNNEL } else { MODE_DIRECT },
        header: flow.header_bits(0),
        pod: dst,
        mtu: if mtu > 0xffff { 0xffff } else { mtu as u16 },
        from: src,
        ifindex: skb.ifindex(),
        moves,
    };
    flows::grant_ingress(flow.words, generation, index, until, &delivery)?;
    Ok(Outcome::LeaseGranted)
}
