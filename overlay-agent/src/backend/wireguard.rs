//! Encrypted tunnels by the kernel's WireGuard: a device per family, or one for both, to which all other
//! nodes are peers. The device knows by a packet's address which peer it is for, so one route leads there.

mod device;
mod key;
mod lease;
mod options;
mod peers;
mod runtime;
mod uapi;

use self::{
    device::{DeviceSpec, LINK_KIND, NAME, NAME_V6},
    options::Mode,
};
pub use self::{
    key::{KeyFile, PublicKey},
    lease::WireGuardData,
    options::WireGuard,
};
use super::{Annotated, Assigned, ChangedKeys, Kind, KnownDevice, NoKey, Parsed, Runtime};
use crate::{
    model::{DeviceRoute, Family, Forwarding, OwnDevice, Peer, Underlay, V4, ViaDevice},
    netlink::{Link, LinkKind, Netlink, NetlinkError, Route, Vtep},
};

impl WireGuard {
    fn device<F: Family>(&self) -> &'static str {
        if self.mode == Mode::Separate && F::NUMBER != V4::NUMBER {
            NAME_V6
        } else {
            NAME
        }
    }

    fn device_port(&self, device: &str) -> u16 {
        if device == NAME_V6 {
            self.port_v6
        } else {
            self.port
        }
    }
}

impl Kind for WireGuard {
    const TYPE: &'static str = "wireguard";

    const ANNOTATED_V6: Annotated = Annotated::WithData;

    fn parse(options: &str, with_ipv6: bool) -> Parsed<Self> {
        options::parse(options, with_ipv6)
    }

    /// Peers know the keys and ports in force.
    fn reload(&self, read: &Self, keys: &mut ChangedKeys) -> Self {
        keys.postponed.extend(self.differing(read));
        let mut taken = self.clone();
        if self.mtu != read.mtu {
            taken.mtu = read.mtu;
            keys.applied.push("Backend.MTU");
        }
        taken
    }

    fn forwarding<F: Family>(&self) -> Forwarding {
        Forwarding {
            device: true,
            mtu: self.mtu,
            overhead: device::OVERHEAD,
            ..Forwarding::NONE
        }
    }

    fn device_name<F: Family>(&self) -> Option<String> {
        Some(self.device::<F>().to_owned())
    }

    /// The first address of the subnet, alone, and a route to all pods.
    fn own_device<F: Family>(
        &self,
        network: F::Network,
        subnet: F::Network,
    ) -> Option<OwnDevice<F>> {
        Some(OwnDevice {
            routes: vec![DeviceRoute::to(network)],
            ..OwnDevice::of_subnet(self.device::<F>(), subnet)
        })
    }

    async fn ensure_device<F: Family>(
        &self,
        netlink: &Netlink,
        underlay: &Underlay<F>,
        _: &[String],
    ) -> Result<Option<Vtep>, NetlinkError> {
        let spec = DeviceSpec::new::<F>(
            self.device::<F>(),
            underlay.ifindex,
            self.forwarding::<F>().pod_mtu(underlay.mtu),
        );
        netlink.ensure_vtep(&spec, None).await.map(Some)
    }

    const USUAL_DEVICE: Option<u32> = Some(0);

    /// The first device carries IPv6, too, unless each family has its own.
    fn recognise<F: Family>(link: &Link) -> Option<KnownDevice> {
        let is_ipv4 = F::NUMBER == V4::NUMBER;
        let number = match link.name.as_str() {
            NAME => 0,
            NAME_V6 if !is_ipv4 => 1,
            _ => return None,
        };
        let is_one = link.kind == LinkKind::Virtual(LINK_KIND.to_owned());
        is_one.then_some(KnownDevice::numbered(number))
    }

    fn is_flannels<F: Family>(route: &Route<F>) -> bool {
        route.gateway.is_none()
    }

    fn assigned_data<F: Family>(
        &self,
        _: F::Network,
        assigned: Assigned,
    ) -> Result<Option<String>, NoKey> {
        let data = WireGuardData {
            public_key: assigned.wireguard_key.map(PublicKey).ok_or(NoKey)?,
            port: Some(self.device_port(self.device::<F>())),
        };
        Ok(Some(data.encode()))
    }

    fn runtime(&self) -> Option<Box<dyn Runtime>> {
        Some(Box::new(runtime::Tunnels::new(self.clone())))
    }

    /// The runtime tells the device of it.
    fn peer<F: Family>(
        &self,
        subnet: F::Network,
        public_ip: F::Address,
        said: Option<&str>,
    ) -> Option<Peer<F>> {
        WireGuardData::parse(said?)?;
        Some(Peer {
            via_device: Some(ViaDevice::routed(None)),
            ..Peer::plain(subnet, public_ip)
        })
    }

    fn is_same_node(one: &str, other: &str) -> bool {
        let key = |said| WireGuardData::parse(said).map(|data| data.public_key);
        key(one).is_some_and(|one| Some(one) == key(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::V6;

    fn link(name: &str, kind: &str) -> Link {
        Link {
            ifindex: 7,
            name: name.to_owned(),
            kind: LinkKind::Virtual(kind.to_owned()),
            mac: None,
            mtu: 1420,
            up: true,
            master: None,
        }
    }

    #[test]
    fn its_devices_are_told_by_name_and_kind() {
        let first = link("flannel-wg", "wireguard");
        let second = link("flannel-wg-v6", "wireguard");
        let number = |device: Option<KnownDevice>| device.map(|device| device.number);
        assert_eq!(number(WireGuard::recognise::<V4>(&first)), Some(0));
        assert_eq!(number(WireGuard::recognise::<V6>(&first)), Some(0));
        assert_eq!(number(WireGuard::recognise::<V4>(&second)), None);
        assert_eq!(number(WireGuard::recognise::<V6>(&second)), Some(1));
        for other in [link("wg0", "wireguard"), link("flannel-wg", "tun")] {
            assert!(WireGuard::recognise::<V4>(&other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn one_device_is_for_both_families_unless_each_has_its_own() {
        let names = |text| {
            let (backend, _) = WireGuard::parse(text, true).unwrap();
            [backend.device::<V4>(), backend.device::<V6>()]
        };
        assert_eq!(names("{}"), ["flannel-wg", "flannel-wg-v6"]);
        assert_eq!(names(r#"{"Mode":"auto"}"#), ["flannel-wg", "flannel-wg"]);
    }
}
