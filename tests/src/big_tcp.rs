//! BIG TCP over IPv4 (Linux 6.3): GSO and GRO packets beyond 64 KiB. iproute2 sets it from 6.3 on,
//! which not every machine has.

use anyhow::{Context as _, Result};
use rtnetlink::{LinkUnspec, packet_route::link::LinkAttribute};

use crate::netns::Namespace;

/// Allows IPv4 packets of up to `size` bytes inside the kernel on an interface, as
/// `ip link set dev … gso_ipv4_max_size … gro_ipv4_max_size …` does.
pub fn allow(namespace: &Namespace, interface: &str, size: u32) -> Result<()> {
    let index = namespace.ifindex(interface)?;
    let change = LinkUnspec::new_with_index(index)
        .append_extra_attribute(LinkAttribute::GsoIpv4MaxSize(size))
        .append_extra_attribute(LinkAttribute::GroIpv4MaxSize(size))
        .build();
    namespace
        .rtnetlink(|handle| handle.link().set(change).execute())
        .with_context(|| format!("BIG TCP on {interface} in {}", namespace.name()))
}
