//! IPv4 in IPv4 by the kernel's tunnel device; with `DirectRouting`, peers whose address is on-link are
//! reached without it.

mod device;

use self::device::TunnelSpec;
use super::{BackendError, ChangedKeys, Kind, KnownDevice, Parsed, direct_routing};
use crate::{
    go::json::Object,
    model::{DeviceRoute, Direct, Family, Forwarding, OwnDevice, Peer, Underlay, V4, ViaDevice},
    netlink::{Link, LinkKind, Netlink, NetlinkError, Route, Vtep},
};

/// The ipip backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpIp {
    pub direct_routing: bool,
}

impl Kind for IpIp {
    const TYPE: &'static str = "ipip";

    fn parse(options: &str, with_ipv6: bool) -> Parsed<Self> {
        if with_ipv6 {
            return Err(BackendError::Ipv4Only {
                backend: Self::TYPE,
            });
        }
        let object = Object::parse(options, "Backend");
        let read = object.and_then(|object| direct_routing::read(&object));
        let (direct_routing, warning) = read.map_err(|reason| BackendError::Options {
            backend: "IPIP",
            reason: reason.into(),
        })?;
        Ok((Self { direct_routing }, warning.into_iter().collect()))
    }

    fn reload(&self, read: &Self, keys: &mut ChangedKeys) -> Self {
        if self != read {
            keys.applied.push("Backend.DirectRouting");
        }
        *read
    }

    fn forwarding<F: Family>(&self) -> Forwarding {
        Forwarding {
            device: true,
            direct: Direct::routing(self.direct_routing),
            overhead: device::OVERHEAD,
            ..Forwarding::NONE
        }
    }

    fn device_name<F: Family>(&self) -> Option<String> {
        Some(device::NAME.to_owned())
    }

    /// The first address of the subnet, alone.
    fn own_device<F: Family>(&self, _: F::Network, subnet: F::Network) -> Option<OwnDevice<F>> {
        Some(OwnDevice::of_subnet(device::NAME, subnet))
    }

    async fn ensure_device<F: Family>(
        &self,
        netlink: &Netlink,
        underlay: &Underlay<F>,
        _: &[String],
    ) -> Result<Option<Vtep>, NetlinkError> {
        let spec = TunnelSpec::on(underlay);
        netlink.ensure_vtep(&spec, None).await.map(Some)
    }

    const USUAL_DEVICE: Option<u32> = Some(0);

    fn recognise<F: Family>(link: &Link) -> Option<KnownDevice> {
        let is_one = link.name == device::NAME
            && link.kind == LinkKind::Virtual(Self::TYPE.to_owned())
            && F::NUMBER == V4::NUMBER;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::V6;

    #[test]
    fn the_option_is_read_as_flannel_reads_it_and_ipv6_is_refused() {
        let read = |text| IpIp::parse(text, false).map(|(backend, _)| backend.direct_routing);
        assert!(!read("{}").unwrap());
        assert!(read(r#"{"Type":"ipip","directrouting":true}"#).unwrap());
        assert!(read(r#"{"DirectRouting":1}"#).is_err());
        let error = IpIp::parse("{}", true).unwrap_err().to_string();
        assert!(error.contains("carries IPv4 only"), "{error}");
    }

    #[test]
    fn its_device_is_told_by_name_and_kind() {
        let link = |name: &str, kind: &str| Link {
            ifindex: 7,
            name: name.to_owned(),
            kind: LinkKind::Virtual(kind.to_owned()),
            mac: None,
            mtu: 1480,
            up: true,
            master: None,
        };
        assert!(IpIp::recognise::<V4>(&link("flannel.ipip", "ipip")).is_some());
        assert!(IpIp::recognise::<V6>(&link("flannel.ipip", "ipip")).is_none());
        assert!(IpIp::recognise::<V4>(&link("flannel.ipip", "gre")).is_none());
        assert!(IpIp::recognise::<V4>(&link("tunl0", "ipip")).is_none());
    }
}
