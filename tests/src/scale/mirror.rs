//! Peers that answer: one socket for all the invented nodes. It returns each question as its answer, and asks
//! the node the same, so that it is asked as often as it asks.

use std::{
    io::{IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;
use nix::{
    cmsg_space,
    errno::Errno,
    libc::in_pktinfo,
    sys::{
        socket::{
            ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg,
            setsockopt, sockopt,
        },
        time::TimeVal,
    },
};
use overlay_agent::probe::{Identity, Kind, Packet};

use crate::{lab::Lab, netns::Namespace};

/// Flannel's vxlan port.
const PORT: u16 = 8472;
/// Where the invented nodes' addresses are.
const ADDRESSES: &str = "172.16.0.0/12";
const TICK: TimeVal = TimeVal::new(0, 200_000);

/// Bytes of a tunnel packet's payload: VXLAN, Ethernet, IPv4 and UDP headers come before a probe.
const ETH: usize = 8;
const IP: usize = ETH + 14;
const UDP: usize = IP + 20;
const PROBE: usize = UDP + 8;

/// Runs until it is dropped.
pub struct Mirror {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Mirror {
    /// In the router of the lab, which the nodes' tunnel packets to the invented ones get to.
    pub fn start(lab: &Lab) -> Result<Self> {
        let router = lab.underlay().router().clone();
        router.run("ip", ["route", "add", "local", ADDRESSES, "dev", "lo"])?;
        let socket = open(&router)?;
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let thread = thread::spawn({
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            move || serve(&socket, &stop, &answered)
        });
        Ok(Self {
            stop,
            answered,
            thread: Some(thread),
        })
    }

    /// Questions that were answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(thread::JoinHandle::join);
        if let Some(Ok(Err(error))) = ended {
            eprintln!("the mirror failed: {error:#}");
        }
    }
}

fn open(router: &Namespace) -> Result<UdpSocket> {
    let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    let socket = router
        .enter(|| UdpSocket::bind(address))
        .context("the mirror's socket")?;
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TICK)?;
    Ok(socket)
}

fn serve(socket: &UdpSocket, stop: &AtomicBool, answered: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let (len, from, ghost) = match receive(socket, &mut buffer) {
            Ok(Some(received)) => received,
            Ok(None) | Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let Some(packet) = buffer.get_mut(..len) else {
            continue;
        };
        let Some(question) = question(packet) else {
            continue;
        };
        let subnet = reflect(packet)?;
        let public_ip = Ipv4Addr::from_bits(u32::from_be(ghost.ipi_addr.s_addr)).into();
        for kind in [Kind::Answer, Kind::Question] {
            let node = Identity { subnet, public_ip };
            let probe = Packet {
                kind,
                node,
                ..question
            };
            packet[PROBE..].copy_from_slice(&probe.encode(len - PROBE));
            send(socket, packet, from, ghost)?;
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// A tunnel packet: its length, which node sent it, and to which address.
fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> Result<Option<(usize, SockaddrIn, in_pktinfo)>, Errno> {
    let mut control = cmsg_space!(in_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::empty();
    let message = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let to = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(info),
        _ => None,
    });
    Ok(message
        .address
        .zip(to)
        .map(|(from, to)| (message.bytes, from, to)))
}

fn send(
    socket: &UdpSocket,
    packet: &[u8],
    node: SockaddrIn,
    ghost: in_pktinfo,
) -> Result<(), Errno> {
    let from = in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: ghost.ipi_addr,
        ipi_addr: ghost.ipi_addr,
    };
    let to = SockaddrIn::from(SocketAddrV4::new(node.ip(), PORT));
    let control = [ControlMessage::Ipv4PacketInfo(&from)];
    let parts = [IoSlice::new(packet)];
    sendmsg(
        socket.as_raw_fd(),
        &parts,
        &control,
        MsgFlags::empty(),
        Some(&to),
    )
    .map(drop)
}

fn question(packet: &[u8]) -> Option<Packet> {
    let probe = Packet::decode(packet.get(PROBE..)?)?;
    (probe.kind == Kind::Question).then_some(probe)
}

/// Makes of a packet to an invented node one that the node sends back, and returns the node's subnet. The same words in
/// another order have the same checksum; those of the UDP header and its data change, so it goes without.
fn reflect(packet: &mut [u8]) -> Result<IpNetwork> {
    swap(packet, ETH, 6);
    swap(packet, IP + 12, 4);
    swap(packet, UDP, 2);
    packet[UDP + 6..PROBE].fill(0);
    let (source, _) = packet[IP + 12..]
        .split_first_chunk::<4>()
        .context("no IP header")?;
    Ok(IpNetwork::new(Ipv4Addr::from(*source).into(), 24)?)
}

/// Swaps two fields of so many bytes that follow each other.
fn swap(packet: &mut [u8], at: usize, len: usize) {
    let (first, second) = packet[at..at + 2 * len].split_at_mut(len);
    first.swap_with_slice(second);
}
