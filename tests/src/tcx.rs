//! tcx programs of somebody else.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use overlay_agent::datapath::sys::{Place, link_create};

use crate::{
    lab::Node,
    sys::{
        bpf,
        insn::{EXIT, MOV, insn},
    },
};

/// `TCX_NEXT`.
const NEXT: u32 = u32::MAX;

/// Attaches a program that lets every packet pass, behind those that are there. It goes with what is returned.
pub fn attach(node: &Node, interface: &str, place: Place) -> Result<OwnedFd> {
    let program = bpf::classifier_load(&[insn(MOV, 0, 0, 0, NEXT), insn(EXIT, 0, 0, 0, 0)])?;
    let ifindex = node.namespace.ifindex(interface)?;
    node.enter(|| link_create(program.as_fd(), ifindex, place, 0))
        .with_context(|| format!("attach to {interface} of {}", node.name))
}
