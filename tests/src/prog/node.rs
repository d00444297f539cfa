//! A node for the programs to run on: a network namespace with the interfaces, routes and
//! neighbours that they look at.

use std::{
    fs,
    io::Write as _,
    panic,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    net::if_::if_nametoindex,
    sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare},
    unistd::Pid,
};
use overlay_common::addr::MacAddr;

/// MAC address of the underlay interface.
pub const UNDERLAY_MAC: MacAddr = MacAddr::new([0x02, 0xaa, 0, 0, 0, 1]);
/// MAC address of the bridge that the pods' veths are ports of.
pub const GATEWAY_MAC: MacAddr = MacAddr::new([0x02, 0xcc, 0, 0, 0, 1]);
/// MAC addresses of the neighbours on the underlay, by the last octet of their addresses.
pub const fn neighbour_mac(last_octet: u8) -> MacAddr {
    MacAddr::new([0x02, 0xbb, 0, 0, 0, last_octet])
}

/// MTU of the pod's veth.
pub const POD_VETH_MTU: u16 = 1450;

/// Indexes of the node's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interfaces {
    /// The underlay: 192.168.77.1/24, with neighbours .2, .3 and the router .254, through which
    /// 192.168.88.0/24 is reached with a locked MTU of 1400. 2001:db8:77::/64 and
    /// 2001:db8:88::/64 are like them, with the router ::fe. Neighbour .3 takes the packets for the pods
    /// of its subnet directly.
    pub underlay: u32,
    /// Takes the place of `flannel.<VNI>`, with the routes to the other nodes' subnets.
    pub tunnel: u32,
    /// The other end of the underlay's wire, with the MAC address of neighbour .2: a second
    /// underlay interface for tests that play both ends.
    pub wire: u32,
    /// The bridge.
    pub gateway: u32,
    /// Host side of a pod's veth, `pod0`.
    pub pod: u32,
    /// The pod's side.
    pub eth0: u32,
}

const SETUP: &str = "
link add under0 address 02:aa:00:00:00:01 type veth peer name wire0 address 02:bb:00:00:00:02
link add cni0 address 02:cc:00:00:00:01 type bridge
link add flannel.1 type bridge
link add pod0 mtu 1450 type veth peer name eth0 mtu 1450
link set wire0 up
link set under0 up
link set cni0 up
link set flannel.1 up
link set eth0 up
link set pod0 up
address add 192.168.77.1/24 dev under0
address add 10.244.1.1/24 dev cni0
neighbour add 192.168.77.2 lladdr 02:bb:00:00:00:02 dev under0 nud permanent
neighbour add 192.168.77.3 lladdr 02:bb:00:00:00:03 dev under0 nud permanent
neighbour add 192.168.77.254 lladdr 02:bb:00:00:00:fe dev under0 nud permanent
route add 192.168.88.0/24 via 192.168.77.254 mtu lock 1400
address add 2001:db8:77::1/64 dev under0 nodad
address add fd00:10:244:1::1/64 dev cni0 nodad
neighbour add 2001:db8:77::2 lladdr 02:bb:00:00:00:02 dev under0 nud permanent
neighbour add 2001:db8:77::3 lladdr 02:bb:00:00:00:03 dev under0 nud permanent
neighbour add 2001:db8:77::fe lladdr 02:bb:00:00:00:fe dev under0 nud permanent
route add 2001:db8:88::/64 via 2001:db8:77::fe mtu lock 1400
neighbour add 10.244.2.0 lladdr 02:ee:00:00:00:02 dev flannel.1 nud permanent
neighbour add 10.244.4.0 lladdr 02:ee:00:00:00:04 dev flannel.1 nud permanent
neighbour add 10.244.5.0 lladdr 02:ee:00:00:00:05 dev flannel.1 nud permanent
route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink
route add 10.244.3.0/24 via 192.168.77.3
route add 10.244.4.0/24 via 10.244.4.0 dev flannel.1 onlink
route add 10.244.5.0/24 via 10.244.5.0 dev flannel.1 onlink
neighbour add fd00:10:244:2:: lladdr 02:ee:00:00:00:02 dev flannel.1 nud permanent
neighbour add fd00:10:244:4:: lladdr 02:ee:00:00:00:04 dev flannel.1 nud permanent
neighbour add fd00:10:244:5:: lladdr 02:ee:00:00:00:05 dev flannel.1 nud permanent
route add fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel.1 onlink
route add fd00:10:244:3::/64 via 2001:db8:77::3
route add fd00:10:244:4::/64 via fd00:10:244:4:: dev flannel.1 onlink
route add fd00:10:244:5::/64 via fd00:10:244:5:: dev flannel.1 onlink
";

/// Calls `body` inside a new node, which is gone afterwards. It has its own mount namespace too, so
/// that `body` may mount a BPF file system.
pub fn on_node<T: Send>(body: impl FnOnce(Interfaces) -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let node = scope.spawn(|| body(enter()?));
        node.join()
            .unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    })
}

/// Moves this thread into a new node, and keeps it on one CPU: what programs note for each CPU, the next
/// program finds.
fn enter() -> Result<Interfaces> {
    let mut cpu = CpuSet::new();
    cpu.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &cpu).context("cannot stay on one CPU")?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("cannot create namespaces: the test needs root")?;
    let nothing = None::<&str>;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .context("cannot keep mounts to this thread")?;
    for forwarding in [
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/net/ipv6/conf/all/forwarding",
    ] {
        fs::write(forwarding, "1").with_context(|| format!("cannot write {forwarding}"))?;
    }
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start ip (package iproute2)")?;
    ip.stdin
        .take()
        .context("ip has no standard input")?
        .write_all(SETUP.as_bytes())?;
    ensure!(ip.wait()?.success(), "ip refused the setup of the node");
    Ok(Interfaces {
        underlay: if_nametoindex("under0")?,
        tunnel: if_nametoindex("flannel.1")?,
        wire: if_nametoindex("wire0")?,
        gateway: if_nametoindex("cni0")?,
        pod: if_nametoindex("pod0")?,
        eth0: if_nametoindex("eth0")?,
    })
}
