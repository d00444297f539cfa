//! Grants ingress permits: a packet reaches the pod's veth as it reached the host, so the kernel and
//! its packet filter let it pass unchanged. Where and how the kernel delivers it is remembered.

use overlay_common::{
    node::{MODE_DIRECT, MODE_TUNNEL},
    outcome::Outcome,
};

use crate::{
    earn::{self, IngressPermit},
    flow_packet::Local,
    helpers::Skb,
    ip::Ip,
    mac::Mac,
    maps,
    observe::{observe_leaving, permit_until},
    told,
};

#[inline(always)]
pub fn run<F: Ip>(skb: &Skb) -> Outcome {
    told(deliver::<F>(skb))
}

#[inline(always)]
fn deliver<F: Ip>(skb: &Skb) -> Result<Outcome, Outcome> {
    let seen = observe_leaving::<F>(skb, Local::Destination)?;
    if seen.dst.is_multicast() {
        return Err(Outcome::NotGateway);
    }
    let passage = seen.may_earn(skb)?;
    let (dst, config, flow) = (seen.dst, seen.config, &seen.flow);
    let until = permit_until(config, flow, passage.is_translated)?;
    let moves = maps::moves(dst);
    let is_its = if dst == Mac::NONE {
        maps::has_no_addresses(skb.ifindex())
    } else {
        maps::pod_port(dst) == Some(skb.ifindex())
    };
    if !is_its {
        return Err(Outcome::UnknownPod);
    }
    let index = F::node_of(passage.entered.remote()).ok_or(Outcome::UnknownPeer)?;
    let by_tunnel = skb.ingress_ifindex() == config.vtep_ifindex;
    let mtu = skb.device_mtu();
    let delivery = IngressPermit {
        mode: if by_tunnel { MODE_TUNNEL } else { MODE_DIRECT },
        header: flow.header_bits(0),
        pod: dst,
        mtu: if mtu > 0xffff { 0xffff } else { mtu as u16 },
        from: seen.src,
        ifindex: skb.ifindex(),
        moves,
    };
    earn::ingress(&passage, index, until, &delivery)?;
    Ok(Outcome::PermitGranted)
}
