//! Keeps pods from sending tunnel packets, which a node would believe to be another node's. Its vxlan
//! socket takes them at every address of the host, broadcast and the groups of all hosts included,
//! so the host's own routes say which those are.
//!
//! Stopped where the pod sends them: to a peer's VTEP, which the kernel would masquerade them to, and
//! to this node. What is for other addresses of a peer, its bridge's for one, is stopped when it
//! arrives there.

use overlay_common::config::Config;

use crate::{
    fib,
    helpers::Skb,
    ip::{Header as _, Ip},
    packet::{ETH_LEN, Packet},
};

/// Whether a frame from a pod begins a tunnel packet to a node.
#[inline(always)]
pub fn is_sent<F: Ip>(skb: &Skb, packet: Packet, config: &Config<F>) -> bool {
    match destination(skb, packet, config) {
        Some(address) => {
            address == config.vtep || F::is_peer(address) || is_of_host::<F>(skb, address)
        }
        None => false,
    }
}

/// Whether a frame from another node begins a tunnel packet that a pod there sent.
#[inline(always)]
pub fn arrives<F: Ip>(skb: &Skb, packet: Packet, config: &Config<F>) -> bool {
    if packet.read(12) != Some(F::ETHERTYPE) {
        return false;
    }
    let Some(header) = packet.read::<F::Header>(ETH_LEN) else {
        return false;
    };
    config.is_remote_pod(header.fields().src) && is_for_host(skb, packet, config)
}

/// Whether a frame begins a tunnel packet to this node, at whatever address.
#[inline(always)]
pub fn is_for_host<F: Ip>(skb: &Skb, packet: Packet, config: &Config<F>) -> bool {
    destination(skb, packet, config).is_some_and(|address| is_of_host::<F>(skb, address))
}

/// Where a UDP datagram to the vxlan port is for.
#[inline(always)]
fn destination<F: Ip>(skb: &Skb, packet: Packet, config: &Config<F>) -> Option<F::Be> {
    if config.vxlan_port == [0; 2] {
        return None;
    }
    F::udp_destination(skb, packet, config.vxlan_port)
}

#[inline(always)]
fn is_of_host<F: Ip>(skb: &Skb, address: F::Be) -> bool {
    let address = F::fib_words(address);
    F::is_group_of_hosts(address).unwrap_or_else(|| fib::is_local::<F>(skb, address))
}
