//! The device `flannel.ipip`: what it must look like and how an existing one compares. Pure.
//!
//! As flannel's: its local address is the interface's, by which the kernel tells it from `tunl0`, and it
//! has no remote address, for a route's gateway says where a packet goes.

use std::net::{IpAddr, Ipv4Addr};

use overlay_common::addr::MacAddr;
use rtnetlink::{
    LinkUnspec,
    packet_route::link::{InfoData, InfoIpTunnel, InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};

use crate::{
    model::{Family, Underlay, V4},
    netlink::{DeviceSpec, Link, NetlinkError},
};

pub const NAME: &str = "flannel.ipip";
/// An IPv4 header.
pub const OVERHEAD: u32 = 20;

/// What the device must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelSpec {
    underlay_ifindex: u32,
    local: IpAddr,
}

impl TunnelSpec {
    pub fn on<F: Family>(underlay: &Underlay<F>) -> Self {
        Self {
            underlay_ifindex: underlay.ifindex,
            local: underlay.address.into(),
        }
    }
}

impl DeviceSpec for TunnelSpec {
    const HAS_MAC: bool = false;

    fn name(&self) -> &'static str {
        NAME
    }

    fn underlay_ifindex(&self) -> u32 {
        self.underlay_ifindex
    }

    fn is_ipv6(&self) -> bool {
        false
    }

    fn mtu_on(&self, underlay_mtu: u32) -> Result<u32, NetlinkError> {
        let mtu = underlay_mtu.saturating_sub(OVERHEAD);
        if mtu < V4::MIN_MTU {
            return Err(NetlinkError::MtuTooSmall {
                name: NAME.to_owned(),
                kind: "ipip",
                mtu,
                overhead: OVERHEAD,
                family: V4::NAME,
                least: V4::MIN_MTU,
            });
        }
        Ok(mtu)
    }

    fn kind(&self) -> InfoKind {
        InfoKind::IpIp
    }

    fn create(&self, mtu: u32, _: MacAddr, _: &[Link]) -> LinkMessage {
        let mut message = LinkUnspec::new_with_name(NAME).mtu(mtu).build();
        let data = InfoData::IpTunnel(vec![InfoIpTunnel::Local(self.local)]);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::IpIp),
            LinkInfo::Data(data),
        ]));
        message
    }

    fn compare(&self, _: &Link, info: &[LinkInfo]) -> Result<Option<InfoData>, &'static str> {
        let data = match info {
            [LinkInfo::Kind(InfoKind::IpIp), rest @ ..] => rest.iter(),
            _ => return Err("not an ipip device"),
        };
        let attributes = data.filter_map(|info| match info {
            LinkInfo::Data(InfoData::IpTunnel(attributes)) => Some(attributes),
            _ => None,
        });
        let (mut local, mut remote) = (None, None);
        for attribute in attributes.flatten() {
            match attribute {
                InfoIpTunnel::Local(address) => local = Some(*address),
                InfoIpTunnel::Remote(address) => remote = Some(*address),
                _ => {}
            }
        }
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        if local != Some(self.local) {
            Err("another local address")
        } else if remote.is_some_and(|remote| remote != any) {
            Err("a remote address")
        } else {
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::LinkKind;

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const SPEC: TunnelSpec = TunnelSpec {
        underlay_ifindex: 2,
        local: LOCAL,
    };

    fn compare(
        kind: InfoKind,
        attributes: Vec<InfoIpTunnel>,
    ) -> Result<Option<InfoData>, &'static str> {
        let link = Link {
            ifindex: 7,
            name: NAME.to_owned(),
            kind: LinkKind::Virtual("ipip".to_owned()),
            mac: None,
            mtu: 1480,
            up: true,
            master: None,
        };
        let data = LinkInfo::Data(InfoData::IpTunnel(attributes));
        SPEC.compare(&link, &[LinkInfo::Kind(kind), data])
    }

    #[test]
    fn a_device_with_its_own_address_and_no_other_is_kept() {
        let any = InfoIpTunnel::Remote(Ipv4Addr::UNSPECIFIED.into());
        let kept = compare(InfoKind::IpIp, vec![InfoIpTunnel::Local(LOCAL), any]);
        assert_eq!(kept, Ok(None));
        let other = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));
        for attributes in [
            vec![InfoIpTunnel::Local(other)],
            vec![InfoIpTunnel::Local(LOCAL), InfoIpTunnel::Remote(other)],
            Vec::new(),
        ] {
            assert!(
                compare(InfoKind::IpIp, attributes.clone()).is_err(),
                "{attributes:?}"
            );
        }
        assert!(compare(InfoKind::SitTun, vec![InfoIpTunnel::Local(LOCAL)]).is_err());
    }

    #[test]
    fn its_mtu_is_what_the_outer_header_leaves() {
        assert!(matches!(SPEC.mtu_on(1500), Ok(1480)));
        assert!(SPEC.mtu_on(80).is_err());
    }
}
