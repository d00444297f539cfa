//! Netkit pairs (Linux 6.7). iproute2 chooses their mode from 6.7 on, which not every machine has.

use std::process::Command;

use anyhow::{Context as _, Result};
use rtnetlink::LinkNetkit;
pub use rtnetlink::packet_route::link::NetkitMode;

use crate::{
    netns::{Namespace, checked},
    requirements::require_root,
};

/// Why this kernel makes none; `None` if it does.
pub fn missing() -> Option<String> {
    require_root();
    let mut probe = Command::new("unshare");
    probe.args(["--net", "ip", "link", "add", "x0", "type", "netkit"]);
    let error = checked(&mut probe).err()?;
    Some(format!("no netkit: {error:#}"))
}

/// Makes a pair in a namespace, as `ip link add NAME type netkit mode … peer name PEER` does.
pub fn add(namespace: &Namespace, name: &str, peer: &str, mode: NetkitMode) -> Result<()> {
    let pair = LinkNetkit::new(name, peer, mode).build();
    namespace
        .rtnetlink(|handle| handle.link().add(pair).execute())
        .with_context(|| format!("netkit {name} in {}", namespace.name()))
}
