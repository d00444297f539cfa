//! Packets on their way through the host by the kernel, from program to program.

use anyhow::{Result, ensure};
use overlay_common::{
    flow::FlowKey,
    node::MODE_DIRECT,
    outcome::{Hook, Outcome},
};

use super::{
    Bench, Run,
    Step::{Hop, Program},
    Surroundings,
    fixture::{Cluster, Fixture, LEAVING, POD_MAC, Remote, SOURCE_PORT},
    node::{GATEWAY_MAC, Interfaces},
    packet::{Packet, Transport},
};

/// How a packet from a pod goes through the host.
pub fn outward<F: Cluster>(interfaces: &Interfaces, remote: &Remote<F>) -> Surroundings {
    Surroundings {
        ifindex: if remote.mode == MODE_DIRECT {
            interfaces.underlay
        } else {
            interfaces.tunnel
        },
        ingress_ifindex: interfaces.gateway,
        ..Surroundings::default()
    }
}

/// How a packet to a pod goes through the host.
pub fn inward<F: Cluster>(interfaces: &Interfaces, remote: &Remote<F>) -> Surroundings {
    Surroundings {
        ifindex: interfaces.pod,
        ingress_ifindex: if remote.mode == MODE_DIRECT {
            interfaces.underlay
        } else {
            interfaces.tunnel
        },
        ..Surroundings::default()
    }
}

/// The surroundings of the tunnel packet at the underlay that carries a packet of the flow `key`, which
/// passed unchanged to the vxlan device.
pub fn at_underlay<F: Cluster>(fixture: &Fixture<F>, key: FlowKey<F>) -> Surroundings {
    Surroundings {
        ifindex: fixture.interfaces.underlay,
        ingress_ifindex: fixture.interfaces.gateway,
        tc_index: LEAVING,
        leaving: Some(fixture.noted(key)),
        ..Surroundings::default()
    }
}

/// What the kernel makes of a pod's packet at the underlay.
pub fn sent_frame<F: Cluster>(remote: &Remote<F>, packet: &Packet<F>) -> Vec<u8> {
    let inner = remote.leaving(packet).bytes();
    if remote.mode == MODE_DIRECT {
        inner
    } else {
        remote.sent(SOURCE_PORT).around(&inner)
    }
}

/// A packet to the pod with the MAC addresses that the kernel gives it on its last hop. The stamp
/// does not depend on them.
pub fn as_delivered<F: Cluster>(remote: &Remote<F>, transport: Transport) -> Packet<F> {
    remote.to_pod(transport).macs(POD_MAC, GATEWAY_MAC)
}

/// The packet's way through the programs behind `overlay_egress`, by the kernel.
pub struct Passage {
    /// At the vxlan device, or of a direct packet at the underlay.
    pub first: Run,
    /// The tunnel packet at the underlay.
    pub sent: Option<Run>,
}

/// Sends `packet` of this node's pod to the one on `remote` by the kernel.
pub fn send<F: Cluster>(
    bench: &mut Bench<F>,
    interfaces: &Interfaces,
    remote: &Remote<F>,
    packet: &Packet<F>,
    surroundings: Surroundings,
) -> Result<Passage> {
    let out = Surroundings {
        ifindex: outward(interfaces, remote).ifindex,
        ingress_ifindex: interfaces.gateway,
        ..surroundings
    };
    let frame = remote.addressed(packet).bytes();
    let steps = [Program(Hook::Egress), Hop, Program(Hook::Confirm)];
    let first = bench.chain(&steps, &frame, &out)?;
    if remote.mode == MODE_DIRECT {
        return Ok(Passage { first, sent: None });
    }
    // What the kernel derives the source port from.
    let hash = bench.left_by(Hook::Egress, &frame, &out)?.hash;
    let left = Surroundings {
        ifindex: interfaces.underlay,
        tc_index: LEAVING,
        hash,
        ..out
    };
    let outer = remote.sent(kernel_source_port(hash, 32_768, 60_999));
    let sent = bench.run(Hook::Confirm, &outer.around(&first.frame), &left)?;
    Ok(Passage {
        first,
        sent: Some(sent),
    })
}

/// The same, which must earn a permit.
pub fn earn<F: Cluster>(
    bench: &mut Bench<F>,
    interfaces: &Interfaces,
    remote: &Remote<F>,
    packet: &Packet<F>,
    surroundings: Surroundings,
) -> Result<()> {
    let Passage { first, sent } = send(bench, interfaces, remote, packet, surroundings)?;
    let granted = [(Hook::Confirm, Outcome::PermitGranted)];
    if let Some(sent) = sent {
        ensure!(
            first.outcomes()
                == [
                    (Hook::Egress, Outcome::NoPermit),
                    (Hook::Confirm, Outcome::Leaving)
                ],
            "{first:?}"
        );
        ensure!(sent.outcomes() == granted, "{sent:?}");
    } else {
        ensure!(
            first.outcomes() == [&[(Hook::Egress, Outcome::NoPermit)][..], &granted].concat(),
            "{first:?}"
        );
    }
    Ok(())
}

/// `udp_flow_src_port` of the kernel's `include/net/udp.h`.
pub fn kernel_source_port(hash: u32, min: u16, max: u16) -> u16 {
    let hash = hash ^ hash << 16;
    let port = (u64::from(hash) * u64::from(max - min)) >> 32;
    u16::try_from(port).expect("less than max - min") + min
}
