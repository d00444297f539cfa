//! The cheapest programs that carry packets from pod to pod: no look-up, no encapsulation, no check but
//! that of the destination. They show what the way itself costs, from the pod's device to the wire and
//! from the wire into the other pod.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use overlay_agent::datapath::sys::{Place, link_create};
use overlay_common::addr::MacAddr;

use super::site::first_pod;
use crate::{
    lab::{Lab, Node, pod::BRIDGE, underlay::NODE_INTERFACE},
    sys::{
        bpf::{self, SkBuff},
        insn::{self, insn},
    },
};

/// `BPF_FUNC_*`.
const REDIRECT: u32 = 23;
const REDIRECT_PEER: u32 = 155;

/// The attached programs, which go with it.
pub struct Floor {
    _links: Vec<OwnedFd>,
}

/// What a program does with packets to one address.
struct Way {
    to: Ipv4Addr,
    destination: MacAddr,
    source: MacAddr,
    ifindex: u32,
    helper: u32,
}

impl Floor {
    /// Between the first pods of the two nodes.
    pub fn lay(lab: &Lab) -> Result<Self> {
        let (one, other) = (lab.node(0), lab.node(1));
        let mut links = Vec::new();
        for (node, peer) in [(one, other), (other, one)] {
            let (pod, remote) = (first_pod(node)?, first_pod(peer)?);
            let out = Way {
                to: remote.address,
                destination: peer.mac(NODE_INTERFACE)?,
                source: node.mac(NODE_INTERFACE)?,
                ifindex: node.namespace.ifindex(NODE_INTERFACE)?,
                helper: REDIRECT,
            };
            links.push(out.attach(node, &pod.host_interface)?);
            let into = Way {
                to: pod.address,
                destination: pod.namespace.mac("eth0")?,
                source: node.mac(BRIDGE)?,
                ifindex: node.namespace.ifindex(&pod.host_interface)?,
                helper: REDIRECT_PEER,
            };
            links.push(into.attach(node, NODE_INTERFACE)?);
        }
        Ok(Self { _links: links })
    }
}

impl Way {
    fn attach(&self, node: &Node, interface: &str) -> Result<OwnedFd> {
        let program = bpf::classifier_load(&self.instructions())?;
        let ifindex = node.namespace.ifindex(interface)?;
        node.enter(|| link_create(program.as_fd(), ifindex, Place::TcxIngress, 0))
            .with_context(|| format!("attach to {interface} of {}", node.name))
    }

    /// The program. Registers: 2 the packet, 3 its end, 4 the end of what is read, 5 what was read.
    fn instructions(&self) -> [u64; 18] {
        use insn::{
            ADD, CALL, EXIT, IF_GREATER_REG, IF_NOT_EQUAL, IF_NOT_EQUAL_32, LOAD, LOAD_HALF, MOV,
            MOV_REG, STORE_IMMEDIATE,
        };
        use std::mem::offset_of;

        /// Ethernet and IPv4 header.
        const HEADERS: u32 = 14 + 20;
        const TYPE: u16 = 12;
        const ADDRESS: u16 = 14 + 16;
        const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
        /// `TCX_NEXT`.
        const NEXT: u32 = u32::MAX;
        const DATA: u16 = insn::short(offset_of!(SkBuff, data));
        const DATA_END: u16 = insn::short(offset_of!(SkBuff, data_end));

        let mut addresses = [0; 12];
        addresses[..6].copy_from_slice(&self.destination.octets);
        addresses[6..].copy_from_slice(&self.source.octets);
        let words: [u32; 3] = bytemuck::cast(addresses);
        [
            insn(LOAD, 2, 1, DATA, 0),
            insn(LOAD, 3, 1, DATA_END, 0),
            insn(MOV_REG, 4, 2, 0, 0),
            insn(ADD, 4, 0, 0, HEADERS),
            insn(IF_GREATER_REG, 4, 3, 11, 0),
            insn(LOAD_HALF, 5, 2, TYPE, 0),
            insn(IF_NOT_EQUAL, 5, 0, 9, ETH_P_IP),
            insn(LOAD, 5, 2, ADDRESS, 0),
            insn(
                IF_NOT_EQUAL_32,
                5,
                0,
                7,
                u32::from_ne_bytes(self.to.octets()),
            ),
            insn(STORE_IMMEDIATE, 2, 0, 0, words[0]),
            insn(STORE_IMMEDIATE, 2, 0, 4, words[1]),
            insn(STORE_IMMEDIATE, 2, 0, 8, words[2]),
            insn(MOV, 1, 0, 0, self.ifindex),
            insn(MOV, 2, 0, 0, 0),
            insn(CALL, 0, 0, 0, self.helper),
            insn(EXIT, 0, 0, 0, 0),
            insn(MOV, 0, 0, 0, NEXT),
            insn(EXIT, 0, 0, 0, 0),
        ]
    }
}
