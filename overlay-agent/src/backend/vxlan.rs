//! A vxlan device per family; with `DirectRouting`, peers whose address is on-link are reached without
//! it.

mod lease;
mod options;

use overlay_common::addr::MacAddr;

pub use self::lease::VxlanData;
use super::{ChangedKeys, Kind, NodeData, Parsed};
use crate::{
    model::{Direct, Family, Forwarding, Tunnel, Underlay},
    netlink::{Netlink, NetlinkError, Vtep, VtepSpec},
};

/// The vxlan backend, with its parameters as in the network config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub vni: u32,
    /// `None`: the kernel's default, 8472.
    pub port: Option<u16>,
    /// Underlay MTU to assume instead of the interface's.
    pub mtu: Option<u32>,
    pub gbp: bool,
    pub learning: bool,
    pub direct_routing: bool,
}

impl Vxlan {
    /// What a config that gives no options means.
    pub const DEFAULT: Self = Self {
        vni: 1,
        port: None,
        mtu: None,
        gbp: false,
        learning: false,
        direct_routing: false,
    };

    /// flannel's device on this underlay.
    pub fn device<F: Family>(&self, underlay: &Underlay<F>) -> VtepSpec {
        VtepSpec {
            name: F::device_name(self.vni),
            vni: self.vni,
            underlay_ifindex: underlay.ifindex,
            local: underlay.address.into(),
            port: self.port,
            gbp: self.gbp,
            learning: self.learning,
            mtu: self.forwarding::<F>().pod_mtu(underlay.mtu),
        }
    }
}

impl Kind for Vxlan {
    const TYPE: &'static str = "vxlan";

    fn parse(options: &str, with_ipv6: bool) -> Parsed<Self> {
        options::parse(options, with_ipv6)
    }

    /// The device keeps its identity: peers and its own UDP socket know VNI, port and GBP.
    fn reload(&self, read: &Self, keys: &mut ChangedKeys) -> Self {
        let mut taken = *self;
        for (key, differs) in [
            ("Backend.VNI", self.vni != read.vni),
            ("Backend.Port", self.port != read.port),
            ("Backend.GBP", self.gbp != read.gbp),
        ] {
            if differs {
                keys.postponed.push(key);
            }
        }
        if self.direct_routing != read.direct_routing {
            taken.direct_routing = read.direct_routing;
            keys.applied.push("Backend.DirectRouting");
        }
        if self.mtu != read.mtu {
            taken.mtu = read.mtu;
            keys.applied.push("Backend.MTU");
        }
        if self.learning != read.learning {
            taken.learning = read.learning;
            keys.applied.push("Backend.Learning");
        }
        taken
    }

    fn forwarding<F: Family>(&self) -> Forwarding {
        Forwarding {
            tunnel: Some(Tunnel {
                vni: self.vni,
                port: self.port.unwrap_or(Tunnel::DEFAULT_PORT),
            }),
            direct: if self.direct_routing {
                Direct::OnLink
            } else {
                Direct::Never
            },
            // Tunnel packets of a group policy device carry the packet's mark, which the prebuilt
            // headers cannot.
            may_be_fast: !self.gbp,
            mtu: self.mtu,
            overhead: F::OVERHEAD,
        }
    }

    fn device_name<F: Family>(&self) -> Option<String> {
        Some(F::device_name(self.vni))
    }

    async fn ensure_device<F: Family>(
        &self,
        netlink: &Netlink,
        underlay: &Underlay<F>,
        known: Option<NodeData>,
    ) -> Result<Option<Vtep>, NetlinkError> {
        let mac = known.map(|node| node.vtep_mac);
        let device = netlink.ensure_vtep(&self.device(underlay), mac).await?;
        Ok(Some(device))
    }

    async fn restore_device<F: Family>(
        &self,
        netlink: &Netlink,
        underlay: &Underlay<F>,
        known: NodeData,
    ) -> Result<Option<Vtep>, NetlinkError> {
        let spec = self.device(underlay);
        let device = netlink.restore_vtep(&spec, known.vtep_mac).await?;
        Ok(Some(device))
    }

    async fn remove_unfinished<F: Family>(
        netlink: &Netlink,
        underlay: &Underlay<F>,
        current: Option<&Vtep>,
    ) -> Result<Vec<String>, NetlinkError> {
        netlink.remove_unfinished_vteps(underlay, current).await
    }

    async fn remove_devices<F: Family>(
        netlink: &Netlink,
        underlay_ifindex: u32,
    ) -> Result<Vec<String>, NetlinkError> {
        netlink.remove_vteps::<F>(underlay_ifindex).await
    }

    fn lease_data<F: Family>(&self, node: NodeData) -> Option<String> {
        let data = VxlanData {
            zero_checksum: node.zero_checksum && F::CHECKSUM_IS_REQUIRED,
            ..VxlanData::new(self.vni, node.vtep_mac)
        };
        Some(data.encode())
    }

    fn node_data<F: Family>(&self, said: Option<&str>) -> Option<NodeData> {
        let data = VxlanData::parse(said?)?;
        let usable = |mac: MacAddr| !mac.is_zero() && !mac.is_multicast();
        usable(data.vtep_mac).then_some(NodeData {
            vtep_mac: data.vtep_mac,
            zero_checksum: data.zero_checksum && F::CHECKSUM_IS_REQUIRED,
        })
    }

    fn is_same_node(one: &str, other: &str) -> bool {
        let mac = |said| VxlanData::parse(said).map(|data| data.vtep_mac);
        let mac = |said| mac(said).filter(|mac| !mac.is_zero());
        mac(one).is_some_and(|one| Some(one) == mac(other))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::V4;

    #[test]
    fn the_local_address_is_the_interfaces_and_never_the_public_one() {
        let underlay = Underlay::<V4> {
            ifindex: 2,
            name: "eth0".to_owned(),
            mtu: 1500,
            hardware: true,
            ethernet: true,
            address: Ipv4Addr::new(192, 0, 2, 1),
            public_ip: Ipv4Addr::new(198, 51, 100, 1),
        };
        let device = Vxlan::DEFAULT.device(&underlay);
        assert_eq!(device.local, Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(device.mtu, 1450);
    }
}
