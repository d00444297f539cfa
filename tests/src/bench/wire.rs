//! The wire between the two nodes: one veth pair, instead of the lab's bridge, which would add the
//! same cost to everything and so blur every ratio.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{
    lab::{
        Lab, Node,
        underlay::{NODE_INTERFACE, UNDERLAY_MTU, router_address},
    },
    netns::Namespace,
};

/// What the lab's interface becomes: the way to etcd, and to nothing else.
const STORE_INTERFACE: &str = "store0";

/// Connects the nodes of `lab` directly. There is no default route: packets that miss the overlay
/// are not delivered by another way.
pub fn join(lab: &Lab, ipv6: bool) -> Result<()> {
    let [first, second] = lab.nodes() else {
        anyhow::bail!("the benchmark has two nodes");
    };
    let store = router_address(0);
    for node in [first, second] {
        node.namespace.ip_batch(&format!(
            "link set {NODE_INTERFACE} down\n\
             addr flush dev {NODE_INTERFACE}\n\
             link set {NODE_INTERFACE} name {STORE_INTERFACE}\n\
             link set {STORE_INTERFACE} up\n"
        ))?;
    }
    first.namespace.ip_batch(&format!(
        "link add {NODE_INTERFACE} mtu {UNDERLAY_MTU} type veth \
             peer name {NODE_INTERFACE} mtu {UNDERLAY_MTU} netns {}\n",
        second.namespace.name()
    ))?;
    for node in [first, second] {
        let address = node.address;
        node.namespace.ip_batch(&format!(
            "addr add {address}/24 dev {NODE_INTERFACE}\n\
             link set {NODE_INTERFACE} up\n\
             route add {store}/32 dev {STORE_INTERFACE} src {address}\n"
        ))?;
        if ipv6 {
            let address = node.address6();
            node.namespace.ip_batch(&format!(
                "addr add {address}/64 dev {NODE_INTERFACE} nodad\n"
            ))?;
        }
    }
    Ok(())
}

/// Makes the wire like a network card without tunnel offloads, or a plain veth pair again.
pub fn set_segmented(lab: &Lab, segmented: bool) -> Result<()> {
    let (offloads, gro) = if segmented {
        ("off", "on")
    } else {
        ("on", "off")
    };
    for node in lab.nodes() {
        let mut arguments = vec!["-K", NODE_INTERFACE];
        for feature in [
            "tso",
            "gso",
            "tx-udp_tnl-segmentation",
            "tx-udp_tnl-csum-segmentation",
        ] {
            arguments.extend([feature, offloads]);
        }
        arguments.extend(["gro", gro]);
        node.cmd("ethtool", arguments)?;
    }
    Ok(())
}

/// Has everything leave with its checksums, and segments cut, as by a network card.
pub fn sum(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        node.cmd("ethtool", ["-K", NODE_INTERFACE, "tx", "off"])?;
    }
    Ok(())
}

/// Directs what arrives on the interfaces of a namespace to one core.
pub fn pin_softirqs(namespace: &Namespace, cpu: usize) -> Result<()> {
    // sysfs shows the interfaces of the namespace it was mounted in.
    let script = format!(
        "mount -t sysfs sysfs /sys
         for queue in /sys/class/net/eth* /sys/class/net/veth*; do
             if [ -e $queue ]; then echo {:x} > $queue/queues/rx-0/rps_cpus; fi
         done",
        1_u64 << cpu
    );
    namespace
        .run("unshare", ["--mount", "sh", "-ec", &script])
        .map(drop)
}

/// Frames and bytes a node has sent on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub frames: u64,
    pub bytes: u64,
}

impl Sent {
    pub fn read(node: &Node) -> Result<Self> {
        // The calling thread's namespace decides what it shows.
        let text = node.enter(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
        Self::parse(&text).with_context(|| format!("no {NODE_INTERFACE} in\n{text}"))
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(NODE_INTERFACE)?.strip_prefix(':'))?;
        let mut sent = line.split_whitespace().skip(8).map(str::parse);
        Some(Self {
            bytes: sent.next()?.ok()?,
            frames: sent.next()?.ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sent_frames_are_read_from_the_transmit_columns() {
        let text = "Inter-|   Receive\n  eth0: 1 2 3 4 5 6 7 8 900 10 0 0 0 0 0 0\n";
        let sent = Sent::parse(text).expect("a line of eth0");
        assert_eq!((sent.bytes, sent.frames), (900, 10));
        assert!(Sent::parse("eth1: 1 2 3 4 5 6 7 8 9 10\n").is_none());
    }
}
