//! What a backend says of its device, in general terms, and how an existing device compares. Pure.

use overlay_common::addr::MacAddr;
use rtnetlink::packet_route::link::{InfoData, InfoKind, LinkInfo, LinkMessage};

use super::{
    error::{Collision, NetlinkError},
    object::{Link, LinkKind, Route},
};
use crate::model::{Family, V4};

/// `IFNAMSIZ` less the terminating zero.
const NAME_MAX: usize = 15;

/// A device that the kernel makes for a backend.
pub trait DeviceSpec: Sync {
    /// Whether such devices have an Ethernet address, by which peers know them.
    const HAS_MAC: bool;

    fn name(&self) -> &str;

    /// The interface it sends by.
    fn underlay_ifindex(&self) -> u32;

    /// Whether it carries IPv6.
    fn is_ipv6(&self) -> bool;

    /// MTU the device can have on an underlay of this MTU.
    fn mtu_on(&self, underlay_mtu: u32) -> Result<u32, NetlinkError>;

    fn kind(&self) -> InfoKind;

    /// The message that creates it, `links` being there already. The MAC address is for those that have
    /// one.
    fn create(&self, mtu: u32, mac: MacAddr, links: &[Link]) -> LinkMessage;

    /// What of its kind is to be changed on an existing device, or why it has to be created again.
    /// `info` is what the kernel says of the device's kind.
    fn compare(&self, link: &Link, info: &[LinkInfo]) -> Result<Option<InfoData>, &'static str>;

    /// Why the kernel would not have both this device and the other.
    fn collision(&self, _other: &Link) -> Option<Collision> {
        None
    }
}

/// A backend's device as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtep {
    pub ifindex: u32,
    pub name: String,
    /// Zero for devices that have none.
    pub mac: MacAddr,
    pub mtu: u32,
    pub kind: LinkKind,
}

/// How what flannel's backends make is told from what is foreign.
#[derive(Clone, Copy, Debug)]
pub struct Marks<F: Family = V4> {
    /// The link is a backend's device.
    pub is_device: fn(&Link) -> bool,
    /// flannel has such a route to a peer through its device.
    pub is_flannels: fn(&Route<F>) -> bool,
}

impl<F: Family> Marks<F> {
    /// Nothing is.
    pub const NONE: Self = Self {
        is_device: |_| false,
        is_flannels: |_| false,
    };
}

/// What to change on a live device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Corrections {
    pub data: Option<InfoData>,
    pub mtu: Option<u32>,
    pub mac: Option<MacAddr>,
    pub up: bool,
}

impl Corrections {
    /// What of an existing device is not as specified, or why it cannot be corrected. `mac` is the
    /// address it must have, when it must have one.
    pub fn of(
        spec: &impl DeviceSpec,
        link: &Link,
        info: &[LinkInfo],
        mtu: u32,
        mac: Option<MacAddr>,
    ) -> Result<Self, &'static str> {
        Ok(Self {
            data: spec.compare(link, info)?,
            mtu: (link.mtu != mtu).then_some(mtu),
            mac: mac.filter(|mac| link.mac != Some(*mac)),
            up: !link.up,
        })
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Refuses names the kernel cannot hold, before anything is touched.
pub(super) fn check_name(name: &str) -> Result<(), NetlinkError> {
    let bad = |byte: u8| byte == b'/' || byte.is_ascii_whitespace() || byte == b':';
    if name.is_empty() || name.len() > NAME_MAX || name.bytes().any(bad) {
        return Err(NetlinkError::BadName {
            name: name.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rtnetlink::{LinkUnspec, packet_route::link::InfoIpTunnel};

    use super::*;

    #[test]
    fn names_the_kernel_cannot_hold_are_refused() {
        for name in ["", "flannel.10000000", "a/b", "a b"] {
            assert!(
                matches!(check_name(name), Err(NetlinkError::BadName { .. })),
                "{name:?}"
            );
        }
        assert!(check_name("flannel.9999999").is_ok());
    }

    /// A device that needs its own address in its kind's data, and has no MAC address.
    struct Tunnel(Ipv4Addr);

    impl DeviceSpec for Tunnel {
        const HAS_MAC: bool = false;

        fn name(&self) -> &'static str {
            "tunnel"
        }

        fn underlay_ifindex(&self) -> u32 {
            2
        }

        fn is_ipv6(&self) -> bool {
            false
        }

        fn mtu_on(&self, underlay_mtu: u32) -> Result<u32, NetlinkError> {
            Ok(underlay_mtu - 20)
        }

        fn kind(&self) -> InfoKind {
            InfoKind::IpIp
        }

        fn create(&self, mtu: u32, _: MacAddr, _: &[Link]) -> LinkMessage {
            LinkUnspec::new_with_name(self.name()).mtu(mtu).build()
        }

        fn compare(&self, _: &Link, info: &[LinkInfo]) -> Result<Option<InfoData>, &'static str> {
            let local = InfoIpTunnel::Local(self.0.into());
            match info {
                [
                    LinkInfo::Kind(InfoKind::IpIp),
                    LinkInfo::Data(InfoData::IpTunnel(data)),
                ] => {
                    let is_right = data.contains(&local);
                    Ok((!is_right).then(|| InfoData::IpTunnel(vec![local])))
                }
                _ => Err("of another kind"),
            }
        }
    }

    fn link(mtu: u32, up: bool) -> Link {
        Link {
            ifindex: 7,
            name: "tunnel".to_owned(),
            kind: LinkKind::Virtual("ipip".to_owned()),
            mac: None,
            mtu,
            up,
            master: None,
        }
    }

    fn info(local: Ipv4Addr) -> [LinkInfo; 2] {
        let data = InfoData::IpTunnel(vec![InfoIpTunnel::Local(local.into())]);
        [LinkInfo::Kind(InfoKind::IpIp), LinkInfo::Data(data)]
    }

    #[test]
    fn what_every_device_has_and_what_its_kind_has_is_corrected() {
        let [own, other] = [1, 2].map(|last| Ipv4Addr::new(192, 0, 2, last));
        let spec = Tunnel(own);
        let right = Corrections::of(&spec, &link(1480, true), &info(own), 1480, None);
        assert!(right.unwrap().is_empty());
        let mac = MacAddr::new([2, 0, 0, 0, 0, 1]);
        let wrong = Corrections::of(&spec, &link(1400, false), &info(other), 1480, Some(mac));
        assert_eq!(
            wrong,
            Ok(Corrections {
                data: Some(InfoData::IpTunnel(vec![InfoIpTunnel::Local(own.into())])),
                mtu: Some(1480),
                mac: Some(mac),
                up: true,
            })
        );
        let another = Corrections::of(&spec, &link(1480, true), &[], 1480, None);
        assert_eq!(another, Err("of another kind"));
    }
}
