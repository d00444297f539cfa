//! A backend of another shape than vxlan: a device without link-layer addresses, with the prefix length of
//! the network, and onlink routes by the peers' own addresses.

use crate::{
    backend::{ChangedKeys, Kind, KnownDevice, Parsed},
    model::{DeviceRoute, Direct, Family, Forwarding, OwnDevice, Peer, ViaDevice},
    netlink::{Link, LinkKind, Route},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Onlink;

impl Kind for Onlink {
    const TYPE: &'static str = "onlink";

    fn parse(_: &str, _: bool) -> Parsed<Self> {
        Ok((Self, Vec::new()))
    }

    fn reload(&self, _: &Self, _: &mut ChangedKeys) -> Self {
        *self
    }

    fn forwarding<F: Family>(&self) -> Forwarding {
        Forwarding {
            device: true,
            direct: Direct::OnLink,
            overhead: 20,
            ..Forwarding::NONE
        }
    }

    fn device_name<F: Family>(&self) -> Option<String> {
        Some("flannel.onlink".to_owned())
    }

    fn own_device<F: Family>(
        &self,
        network: F::Network,
        subnet: F::Network,
    ) -> Option<OwnDevice<F>> {
        Some(OwnDevice {
            address: F::with_prefix(F::first(subnet), F::prefix(network))?,
            routes: vec![DeviceRoute::to(network)],
            ..OwnDevice::of_subnet(self.device_name::<F>()?, subnet)
        })
    }

    const USUAL_DEVICE: Option<u32> = Some(0);

    fn recognise<F: Family>(link: &Link) -> Option<KnownDevice> {
        let is_one = link.name == "flannel.onlink" && link.kind == LinkKind::Virtual("ipip".into());
        is_one.then_some(KnownDevice::numbered(0))
    }

    fn is_flannels<F: Family>(route: &Route<F>) -> bool {
        route.onlink
    }

    fn peer<F: Family>(
        &self,
        subnet: F::Network,
        public_ip: F::Address,
        _: Option<&str>,
    ) -> Option<Peer<F>> {
        let route = DeviceRoute::onlink(subnet, public_ip);
        Some(Peer {
            via_device: Some(ViaDevice::routed(Some(route))),
            ..Peer::plain(subnet, public_ip)
        })
    }
}
