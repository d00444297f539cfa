//! The devices `flannel-wg` and `flannel-wg-v6` as route netlink knows them. Their keys, ports and peers
//! are told them in another way. Pure.

use overlay_common::addr::MacAddr;
use rtnetlink::{
    LinkUnspec,
    packet_route::link::{InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};

use crate::{
    model::Family,
    netlink::{self, Link, NetlinkError},
};

pub const NAME: &str = "flannel-wg";
/// IPv6's, where each family has its own.
pub const NAME_V6: &str = "flannel-wg-v6";
/// The kernel's name for such devices.
pub const LINK_KIND: &str = "wireguard";
/// An IPv6 header, UDP, 16 bytes before the encrypted packet and 16 behind.
pub const OVERHEAD: u32 = 80;

/// What the device must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    name: &'static str,
    underlay_ifindex: u32,
    is_ipv6: bool,
    mtu: u32,
    family: &'static str,
    least_mtu: u32,
}

impl DeviceSpec {
    pub fn new<F: Family>(name: &'static str, underlay_ifindex: u32, mtu: u32) -> Self {
        Self {
            name,
            underlay_ifindex,
            is_ipv6: F::NUMBER != crate::model::V4::NUMBER,
            mtu,
            family: F::NAME,
            least_mtu: F::MIN_MTU,
        }
    }
}

impl netlink::DeviceSpec for DeviceSpec {
    const HAS_MAC: bool = false;

    fn name(&self) -> &str {
        self.name
    }

    fn underlay_ifindex(&self) -> u32 {
        self.underlay_ifindex
    }

    fn is_ipv6(&self) -> bool {
        self.is_ipv6
    }

    /// As configured, whatever the underlay has, as flannel's: outer packets may be fragmented.
    fn mtu_on(&self, _: u32) -> Result<u32, NetlinkError> {
        if self.mtu < self.least_mtu {
            return Err(NetlinkError::MtuTooSmall {
                name: self.name.to_owned(),
                kind: LINK_KIND,
                mtu: self.mtu,
                overhead: OVERHEAD,
                family: self.family,
                least: self.least_mtu,
            });
        }
        Ok(self.mtu)
    }

    fn kind(&self) -> InfoKind {
        InfoKind::Wireguard
    }

    fn create(&self, mtu: u32, _: MacAddr, _: &[Link]) -> LinkMessage {
        let mut message = LinkUnspec::new_with_name(self.name).mtu(mtu).build();
        let info = vec![LinkInfo::Kind(InfoKind::Wireguard)];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        message
    }

    fn compare(&self, _: &Link, info: &[LinkInfo]) -> Result<Option<InfoData>, &'static str> {
        if info.contains(&LinkInfo::Kind(InfoKind::Wireguard)) {
            Ok(None)
        } else {
            Err("not a WireGuard device")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{V4, V6},
        netlink::DeviceSpec as _,
    };

    #[test]
    fn its_mtu_is_the_configured_one_if_that_carries_the_family() {
        let spec = DeviceSpec::new::<V4>(NAME, 2, 1420);
        assert!(matches!(spec.mtu_on(1000), Ok(1420)));
        let error = DeviceSpec::new::<V6>(NAME_V6, 2, 1200).mtu_on(1500);
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("flannel-wg-v6 would have an MTU of 1200"),
            "{text}"
        );
    }
}
