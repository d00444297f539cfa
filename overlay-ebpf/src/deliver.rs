//! Grants ingress leases: a packet reaches the pod's veth as it reached the host, so the kernel and
//! its packet filter let it pass unchanged. Where and how the kernel delivers it is remembered.

use overlay_common::{
    config::FASTPATH_OFF,
    node::{MODE_DIRECT, MODE_TUNNEL},
    outcome::Outcome,
    stamp::stamp,
    wire::ETHERTYPE_IPV4,
};

use crate::{
    helpers::{Skb, now},
    mac::Mac,
    maps::{self, Lease},
    parse::{Control, ETH_LEN, FLOW_LEN, Flow4, Local},
};

#[inline(always)]
pub fn run(skb: &Skb) -> Outcome {
    match deliver(skb) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn deliver(skb: &Skb) -> Result<Outcome, Outcome> {
    let config = maps::config().ok_or(Outcome::Disabled)?;
    if config.fastpath == FASTPATH_OFF {
        return Err(Outcome::Disabled);
    }
    let packet = skb.packet_with(ETH_LEN as u32 + FLOW_LEN);
    let dst = Mac::read(packet, 0).ok_or(Outcome::Truncated)?;
    let src = Mac::read(packet, 6).ok_or(Outcome::Truncated)?;
    let ethertype: u16 = packet.read(12).ok_or(Outcome::Truncated)?;
    if ethertype != u16::from_ne_bytes(ETHERTYPE_IPV4) {
        return Err(Outcome::NotIpv4);
    }
    let flow = Flow4::parse(packet, ETH_LEN, Local::Destination, config)?;
    if !config.is_local_pod(flow.words.local()) || !config.is_remote_pod(flow.words.remote()) {
        return Err(Outcome::NotOverlay);
    }
    if dst.is_multicast() {
        return Err(Outcome::NotGateway);
    }
    if skb.hash() != stamp(flow.words, &config.stamp_key, config.generation) {
        return Err(Outcome::Translated);
    }
    match flow.control {
        Control::None => {}
        Control::Open => {
            maps::forget(flow.words);
            return Err(Outcome::Handshake);
        }
        Control::Close => {
            maps::forget(flow.words);
            return Err(Outcome::FlowClosed);
        }
    }
    if maps::pod_port(dst) != Some(skb.ifindex()) {
        return Err(Outcome::UnknownPod);
    }
    let index = maps::node_of(flow.words.remote()).ok_or(Outcome::UnknownPeer)?;
    let by_tunnel = skb.ingress_ifindex() == config.vtep_ifindex;
    let mtu = skb.device_mtu();
    let lease = Lease::Ingress {
        mode: if by_tunnel { MODE_TUNNEL } else { MODE_DIRECT },
        pod: dst,
        mtu: if mtu > 0xffff { 0xffff } else { mtu as u16 },
        from: src,
        ifindex: skb.ifindex(),
    };
    maps::grant(
        flow.words,
        config.generation,
        index,
        now() + config.lease_ns,
        &lease,
    )?;
    Ok(Outcome::LeaseGranted)
}
