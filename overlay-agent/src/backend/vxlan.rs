//! A vxlan device per family; with `DirectRouting`, peers whose address is on-link are reached without
//! it.

mod device;
mod lease;
mod options;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use overlay_common::addr::MacAddr;
use tracing::info;

pub use self::{device::VtepSpec, lease::VxlanData};
use super::{Annotated, Assigned, ChangedKeys, Kind, KnownDevice, NoKey, Parsed};
use crate::{
    model::{
        DeviceRoute, Direct, Family, Forwarding, OwnDevice, Peer, Tunnel, TunnelKind, Underlay,
        ViaDevice, VxlanEnd,
    },
    netlink::{Link, LinkKind, Netlink, NetlinkError, Route, Vtep, VxlanLink},
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

/// A MAC address for the device of the node with this subnet: locally administered, and the same whoever
/// computes it. Of IPv4 subnets no two have the same, of IPv6 subnets hardly any.
fn mac_of(subnet: IpNetwork) -> MacAddr {
    let (family, [a, b, c, d]) = match subnet.network() {
        IpAddr::V4(address) => (0xf1, address.octets()),
        IpAddr::V6(address) => {
            // FNV-1a, 32 bits.
            let hash = address
                .octets()
                .into_iter()
                .fold(0x811c_9dc5_u32, |hash, byte| {
                    (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
                });
            (0xf6, hash.to_be_bytes())
        }
    };
    MacAddr::new([0x0e, family, a, b, c, d])
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

    /// A peer whose device has this MAC address. flannel's layout: a permanent neighbour for the first
    /// address of the peer's subnet, a forwarding entry from the MAC to the peer's address, and an
    /// onlink route through the two.
    pub fn peer_at<F: Family>(
        subnet: F::Network,
        public_ip: F::Address,
        vxlan: VxlanEnd,
    ) -> Peer<F> {
        let gateway = F::first(subnet);
        Peer {
            subnet,
            public_ip,
            via_device: Some(ViaDevice {
                route: Some(DeviceRoute::onlink(subnet, gateway)),
                neighbour: Some((gateway, vxlan.mac)),
                fdb: Some((vxlan.mac, public_ip)),
            }),
            vxlan: Some(vxlan),
        }
    }

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

    const ANNOTATED_V4: Annotated = Annotated::WithData;

    const ANNOTATED_V6: Annotated = Annotated::WithData;

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
            device: true,
            tunnel: Some(Tunnel {
                kind: TunnelKind::Vxlan { vni: self.vni },
                port: self.port.unwrap_or(Tunnel::DEFAULT_PORT),
            }),
            direct: Direct::routing(self.direct_routing),
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

    /// The first address of the subnet, alone.
    fn own_device<F: Family>(&self, _: F::Network, subnet: F::Network) -> Option<OwnDevice<F>> {
        Some(OwnDevice {
            has_fdb: true,
            ..OwnDevice::of_subnet(F::device_name(self.vni), subnet)
        })
    }

    async fn ensure_device<F: Family>(
        &self,
        netlink: &Netlink,
        underlay: &Underlay<F>,
        known: &[String],
    ) -> Result<Option<Vtep>, NetlinkError> {
        let mac = known.iter().find_map(|said| end::<F>(said));
        let mac = mac.map(|end| end.mac);
        let device = netlink.ensure_vtep(&self.device(underlay), mac).await?;
        report_checksums::<F>(&device);
        Ok(Some(device))
    }

    async fn restore_device<F: Family>(
        &self,
        netlink: &Netlink,
        underlay: &Underlay<F>,
        known: Option<&str>,
    ) -> Result<Option<Vtep>, NetlinkError> {
        let spec = self.device(underlay);
        let known = known.and_then(end::<F>);
        let mac = known.map_or(MacAddr::ZERO, |end| end.mac);
        let device = netlink.restore_vtep(&spec, mac).await?;
        if known.is_some_and(|end| end.zero_checksum) {
            report_checksums::<F>(&device);
        }
        Ok(Some(device))
    }

    const USUAL_DEVICE: Option<u32> = Some(Self::DEFAULT.vni);

    fn recognise<F: Family>(link: &Link) -> Option<KnownDevice> {
        let vxlan = vxlan(&link.kind)?;
        (link.name == F::device_name(vxlan.vni)).then_some(KnownDevice {
            number: vxlan.vni,
            underlay: vxlan.underlay,
            local: vxlan.local,
        })
    }

    fn is_flannels<F: Family>(route: &Route<F>) -> bool {
        route.is_tunnel_shaped()
    }

    fn lease_data<F: Family>(&self, device: Option<&Vtep>) -> Option<String> {
        let device = device?;
        let takes = vxlan(&device.kind).is_some_and(|vxlan| vxlan.zero_checksum);
        let data = VxlanData {
            zero_checksum: takes && F::CHECKSUM_IS_REQUIRED,
            ..VxlanData::new(self.vni, device.mac)
        };
        Some(data.encode())
    }

    fn assigned_data<F: Family>(
        &self,
        subnet: F::Network,
        assigned: Assigned,
    ) -> Result<Option<String>, NoKey> {
        let mac = assigned.mac.unwrap_or_else(|| mac_of(subnet.into()));
        let data = VxlanData {
            zero_checksum: F::CHECKSUM_IS_REQUIRED,
            ..VxlanData::new(self.vni, mac)
        };
        Ok(Some(data.encode()))
    }

    fn peer<F: Family>(
        &self,
        subnet: F::Network,
        public_ip: F::Address,
        said: Option<&str>,
    ) -> Option<Peer<F>> {
        Some(Self::peer_at(subnet, public_ip, end::<F>(said?)?))
    }

    fn is_same_node(one: &str, other: &str) -> bool {
        let mac = |said| VxlanData::parse(said).map(|data| data.vtep_mac);
        let mac = |said| mac(said).filter(|mac| !mac.is_zero());
        mac(one).is_some_and(|one| Some(one) == mac(other))
    }
}

/// What a lease says of a node's end of the tunnels of a family.
fn end<F: Family>(said: &str) -> Option<VxlanEnd> {
    let data = VxlanData::parse(said)?;
    let usable = |mac: MacAddr| !mac.is_zero() && !mac.is_multicast();
    usable(data.vtep_mac).then_some(VxlanEnd {
        zero_checksum: data.zero_checksum && F::CHECKSUM_IS_REQUIRED,
        ..VxlanEnd::new(data.vtep_mac)
    })
}

const fn vxlan(kind: &LinkKind) -> Option<&VxlanLink> {
    match kind {
        LinkKind::Vxlan(vxlan) => Some(vxlan),
        _ => None,
    }
}

/// Says of a device that does not take all that peers could send it what would help. The device is
/// kept: to create it anew would lose packets of pods that run.
fn report_checksums<F: Family>(device: &Vtep) {
    let takes = vxlan(&device.kind).is_some_and(|vxlan| vxlan.zero_checksum);
    if F::CHECKSUM_IS_REQUIRED && !takes {
        info!(
            device = %device.name,
            "the device lacks udp6zerocsumrx, which only a new one can get, so this node does not \
             say that it takes IPv6 tunnel packets with UDP checksum 0; `ip link delete {}` has it \
             made anew within a second, with a moment's loss, and so has a reboot",
            device.name
        );
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
