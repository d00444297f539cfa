//! Frames as they are: sent by a pod past its own IP layer, and received before it.

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::socket::{MsgFlags, send},
};
use overlay_common::addr::MacAddr;
use serde_json::Value;

use super::{family::SequenceFamily, offload::Offload};
use crate::{lab::Pod, netns::Namespace, sys};

/// Interface of every pod.
pub const POD_INTERFACE: &str = "eth0";

/// A socket that sends frames out of an interface.
#[derive(Debug)]
pub struct RawPort {
    socket: OwnedFd,
    /// The interface's own address.
    pub mac: MacAddr,
}

impl RawPort {
    pub fn open(pod: &Pod) -> Result<Self> {
        Self::at(&pod.namespace, POD_INTERFACE)
    }

    /// Sends out of any interface of a namespace.
    pub fn at(namespace: &Namespace, interface: &str) -> Result<Self> {
        let socket = namespace
            .enter(|| -> Result<_> { Ok(sys::packet_socket(if_nametoindex(interface)?)?) })?;
        sys::show_offloads(&socket)?;
        Ok(Self {
            socket,
            mac: mac_of(namespace, interface)?,
        })
    }

    /// Tells everybody that `address` is here: gratuitous ARP (RFC 5227 §3), as container runtimes
    /// and keepalived send it.
    pub fn announce(&self, address: Ipv4Addr) -> Result<()> {
        let (mac, address) = (self.mac.octets, address.octets());
        let request = [0, 1, 8, 0, 6, 4, 0, 1];
        let frame = [
            &[0xff; 6][..],
            &mac,
            &[8, 6],
            &request,
            &mac,
            &address,
            &[0; 6],
            &address,
        ];
        self.send(&frame.concat())
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.send_with(Offload::default(), frame)
    }

    /// Sends a frame that is not finished.
    pub fn send_with(&self, offload: Offload, frame: &[u8]) -> Result<()> {
        let message = [&offload.encode(), frame].concat();
        loop {
            match send(self.socket.as_raw_fd(), &message, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(errno) => {
                    return Err(errno)
                        .with_context(|| format!("send a frame of {} bytes", frame.len()));
                }
            }
        }
    }
}

/// MAC address of an interface.
pub fn mac_of(namespace: &Namespace, interface: &str) -> Result<MacAddr> {
    let links = namespace.run("ip", ["-j", "link", "show", "dev", interface])?;
    let links: Value = serde_json::from_str(&links)?;
    let mac = links[0]["address"].as_str().context("no address")?;
    mac.parse().ok().with_context(|| format!("`{mac}`"))
}

/// Makes a pod's IP layer deaf: nothing answers what arrives, address resolution excepted. Captures
/// still see it.
pub fn deafen<F: SequenceFamily>(pod: &Namespace) -> Result<()> {
    let rules = format!(
        "table netdev deaf {{ chain everything {{ type filter hook ingress device {POD_INTERFACE} \
         priority 0; {} }}; }}",
        F::DEAF
    );
    pod.run("nft", [rules.as_str()]).map(drop)
}

pub fn undeafen(pod: &Namespace) -> Result<()> {
    let rules = ["delete", "table", "netdev", "deaf"];
    pod.run("nft", rules).map(drop)
}
