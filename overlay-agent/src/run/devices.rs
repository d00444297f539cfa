//! The vxlan devices of a running node, as far as decisions depend on them.

use crate::{model::PerFamily, netlink::Vtep};

/// The vxlan devices as they were last settled.
pub type Devices = PerFamily<Option<Device>>;

/// A vxlan device, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub ifindex: u32,
    /// Whether it takes tunnel packets over IPv6 with UDP checksum 0.
    pub zero_checksum: bool,
}

impl From<&Vtep> for Device {
    fn from(vtep: &Vtep) -> Self {
        Self {
            ifindex: vtep.ifindex,
            zero_checksum: vtep.zero_checksum,
        }
    }
}
