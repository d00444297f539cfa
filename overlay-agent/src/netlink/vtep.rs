//! The device `flannel.<VNI>`, or `flannel-v6.<VNI>`: what it must look like and how an existing one
//! compares. Pure.
//!
//! Same attributes as flannel's, so that a daemon of either kind adopts the other's device and
//! tunnels stay up across the exchange: nolearning, TTL from the route, UDP checksums sent as the
//! kernel defaults them, port and GBP only when configured. Three deliberate differences: the local
//! address is the interface's, never an advertised one behind NAT; what the kernel can change on a
//! live device is corrected instead of ignored or answered with a new device; and a device created
//! for IPv6 takes tunnel packets with UDP checksum 0, too (RFC 6935). The kernel cannot give that to
//! a live device (`vxlan_nl2flag`), so one without it is as good.

use std::net::IpAddr;

use overlay_common::addr::MacAddr;
use rtnetlink::packet_route::link::InfoVxlan;

use super::{
    NetlinkError,
    object::{Link, LinkKind, VxlanLink},
};
use crate::model::{Family, V4, V6};

/// `IFNAMSIZ` less the terminating zero.
const NAME_MAX: usize = 15;

/// What the vxlan device must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VtepSpec {
    pub name: String,
    pub vni: u32,
    pub underlay_ifindex: u32,
    /// Source address of tunnel packets.
    pub local: IpAddr,
    /// `None` leaves it to the kernel.
    pub port: Option<u16>,
    pub gbp: bool,
    pub learning: bool,
    /// MTU of the device. The kernel does not take more than the underlay's less the
    /// family's [overhead](Family::OVERHEAD).
    pub mtu: u32,
}

/// The vxlan device as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtep {
    pub ifindex: u32,
    pub name: String,
    pub mac: MacAddr,
    pub mtu: u32,
    /// UDP port tunnel packets are sent to and received on.
    pub port: u16,
    /// Whether those over IPv6 may have UDP checksum 0.
    pub zero_checksum: bool,
}

/// How an existing device compares with the specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// Usable, after these corrections.
    Compatible(Corrections),
    /// The kernel cannot turn it into what is needed.
    Incompatible(&'static str),
}

/// What to change on a live device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Corrections {
    pub vxlan: Vec<InfoVxlan>,
    pub mtu: Option<u32>,
    pub mac: Option<MacAddr>,
    pub up: bool,
}

impl VtepSpec {
    /// Refuses names the kernel cannot hold, before anything is touched.
    pub(super) fn check_name(&self) -> Result<(), NetlinkError> {
        let bad = |byte: u8| byte == b'/' || byte.is_ascii_whitespace() || byte == b':';
        if self.name.is_empty() || self.name.len() > NAME_MAX || self.name.bytes().any(bad) {
            return Err(NetlinkError::BadName {
                name: self.name.clone(),
            });
        }
        Ok(())
    }

    /// MTU the device can have on an underlay of this MTU.
    pub(super) fn mtu_on(&self, underlay_mtu: u32) -> Result<u32, NetlinkError> {
        let (family, overhead, least) = match self.local {
            IpAddr::V4(_) => (V4::NAME, V4::OVERHEAD, V4::MIN_MTU),
            IpAddr::V6(_) => (V6::NAME, V6::OVERHEAD, V6::MIN_MTU),
        };
        let mtu = self.mtu.min(underlay_mtu.saturating_sub(overhead));
        if mtu < least {
            return Err(NetlinkError::MtuTooSmall {
                name: self.name.clone(),
                mtu,
                overhead,
                family,
                least,
            });
        }
        Ok(mtu)
    }

    /// Whether the kernel would not have both devices: same VNI, same port, same outer family.
    pub(super) fn collides_with(&self, vxlan: &VxlanLink, default_port: u16) -> bool {
        let is_ipv6 = |address: IpAddr| address.is_ipv6();
        vxlan.vni == self.vni
            && vxlan.port == self.port.unwrap_or(default_port)
            && vxlan.local.is_some_and(is_ipv6) == is_ipv6(self.local)
    }

    /// Whether a new device that takes UDP checksum 0 over IPv6 could not be brought up beside this
    /// one. All devices of a port receive by one socket per family, so they must agree on what it
    /// takes (`vxlan_find_sock`, `VXLAN_F_RCV_FLAGS`).
    pub(super) fn bars_zero_checksum(&self, vxlan: &VxlanLink, default_port: u16) -> bool {
        vxlan.port == self.port.unwrap_or(default_port)
            && !vxlan.zero_checksum
            && match vxlan.local {
                Some(local) => local.is_ipv6(),
                // The family of a multicast group, or of a default remote, is not known here.
                None => vxlan.exotic,
            }
    }

    /// Compares an existing device. `mac` is the address it must have, when it must have one;
    /// `default_port` is the kernel's.
    pub(super) fn compare(
        &self,
        link: &Link,
        mtu: u32,
        mac: Option<MacAddr>,
        default_port: u16,
    ) -> Fit {
        let LinkKind::Vxlan(vxlan) = &link.kind else {
            return Fit::Incompatible("not a vxlan device");
        };
        if let Some(reason) = self.unchangeable(vxlan, default_port) {
            return Fit::Incompatible(reason);
        }
        let mut corrections = Corrections {
            up: !link.up,
            ..Corrections::default()
        };
        if vxlan.underlay != Some(self.underlay_ifindex) {
            corrections
                .vxlan
                .push(InfoVxlan::Link(self.underlay_ifindex));
        }
        if vxlan.local != Some(self.local) {
            corrections.vxlan.push(match self.local {
                IpAddr::V4(local) => InfoVxlan::Local(local),
                IpAddr::V6(local) => InfoVxlan::Local6(local),
            });
        }
        if vxlan.learning != self.learning {
            corrections.vxlan.push(InfoVxlan::Learning(self.learning));
        }
        if vxlan.ttl != 0 {
            corrections.vxlan.push(InfoVxlan::Ttl(0));
        }
        corrections.mtu = (link.mtu != mtu).then_some(mtu);
        corrections.mac = mac.filter(|mac| link.mac != Some(*mac));
        Fit::Compatible(corrections)
    }

    fn unchangeable(&self, vxlan: &VxlanLink, default_port: u16) -> Option<&'static str> {
        if vxlan.vni != self.vni {
            Some("another VNI")
        } else if vxlan.port != self.port.unwrap_or(default_port) {
            Some("another UDP port")
        } else if vxlan.gbp != self.gbp {
            Some("another GBP setting")
        } else if vxlan.exotic {
            Some("a multicast group or an operating mode flannel does not use")
        } else {
            None
        }
    }
}

impl Corrections {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);

    const LOCAL6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

    fn spec6() -> VtepSpec {
        VtepSpec {
            local: LOCAL6.into(),
            mtu: 1430,
            ..spec()
        }
    }

    fn spec() -> VtepSpec {
        VtepSpec {
            name: "flannel.1".to_owned(),
            vni: 1,
            underlay_ifindex: 2,
            local: Ipv4Addr::new(192, 0, 2, 1).into(),
            port: None,
            gbp: false,
            learning: false,
            mtu: 1450,
        }
    }

    fn link() -> Link {
        Link {
            ifindex: 7,
            name: "flannel.1".to_owned(),
            kind: LinkKind::Vxlan(vxlan()),
            mac: Some(MAC),
            mtu: 1450,
            up: true,
            master: None,
        }
    }

    fn vxlan() -> VxlanLink {
        VxlanLink {
            vni: 1,
            underlay: Some(2),
            local: Some(Ipv4Addr::new(192, 0, 2, 1).into()),
            port: 8472,
            ..VxlanLink::default()
        }
    }

    fn compare(link: &Link) -> Fit {
        spec().compare(link, 1450, Some(MAC), 8472)
    }

    #[test]
    fn flannels_own_device_needs_no_correction() {
        assert_eq!(compare(&link()), Fit::Compatible(Corrections::default()));
    }

    #[test]
    fn a_device_is_as_good_with_and_without_udp_checksum_0() {
        for zero_checksum in [false, true] {
            let device = Link {
                kind: LinkKind::Vxlan(VxlanLink {
                    local: Some(LOCAL6.into()),
                    zero_checksum,
                    ..vxlan()
                }),
                mtu: 1430,
                ..link()
            };
            let fit = spec6().compare(&device, 1430, Some(MAC), 8472);
            assert_eq!(fit, Fit::Compatible(Corrections::default()));
        }
    }

    #[test]
    fn devices_of_a_port_and_family_agree_on_udp_checksum_0() {
        let other = VxlanLink {
            vni: 9,
            local: Some(LOCAL6.into()),
            ..vxlan()
        };
        let bars = |vxlan| spec6().bars_zero_checksum(&vxlan, 8472);
        assert!(bars(other));
        assert!(bars(VxlanLink {
            local: None,
            exotic: true,
            ..other
        }));
        for vxlan in [
            vxlan(),
            VxlanLink {
                zero_checksum: true,
                ..other
            },
            VxlanLink {
                port: 4789,
                ..other
            },
        ] {
            assert!(!bars(vxlan), "{vxlan:?}");
        }
    }

    #[test]
    fn what_a_live_device_can_change_is_corrected_in_place() {
        let device = Link {
            kind: LinkKind::Vxlan(VxlanLink {
                underlay: Some(3),
                local: Some(Ipv4Addr::new(192, 0, 2, 9).into()),
                learning: true,
                ttl: 64,
                ..vxlan()
            }),
            mac: Some(MacAddr::new([2, 9, 9, 9, 9, 9])),
            mtu: 1400,
            up: false,
            ..link()
        };
        assert_eq!(
            compare(&device),
            Fit::Compatible(Corrections {
                vxlan: vec![
                    InfoVxlan::Link(2),
                    InfoVxlan::Local(Ipv4Addr::new(192, 0, 2, 1)),
                    InfoVxlan::Learning(false),
                    InfoVxlan::Ttl(0),
                ],
                mtu: Some(1450),
                mac: Some(MAC),
                up: true,
            })
        );
    }

    #[test]
    fn what_a_live_device_cannot_change_is_incompatible() {
        let kinds = [
            LinkKind::Bridge,
            LinkKind::Vxlan(VxlanLink { vni: 2, ..vxlan() }),
            LinkKind::Vxlan(VxlanLink {
                port: 4789,
                ..vxlan()
            }),
            LinkKind::Vxlan(VxlanLink {
                gbp: true,
                ..vxlan()
            }),
            LinkKind::Vxlan(VxlanLink {
                exotic: true,
                ..vxlan()
            }),
        ];
        for kind in kinds {
            let device = Link {
                kind: kind.clone(),
                ..link()
            };
            assert!(matches!(compare(&device), Fit::Incompatible(_)), "{kind:?}");
        }
    }

    #[test]
    fn a_configured_mtu_never_exceeds_what_the_underlay_carries() {
        let wide = VtepSpec {
            mtu: 8950,
            ..spec()
        };
        assert!(matches!(wide.mtu_on(1500), Ok(1450)));
        assert!(matches!(wide.mtu_on(9000), Ok(8950)));
    }

    #[test]
    fn an_underlay_too_small_for_a_tunnel_is_reported() {
        let error = spec().mtu_on(100).expect_err("too small");
        assert!(error.to_string().contains("MTU of 50"), "{error}");
    }

    #[test]
    fn names_the_kernel_cannot_hold_are_refused() {
        for name in ["", "flannel.10000000", "a/b", "a b"] {
            let spec = VtepSpec {
                name: name.to_owned(),
                ..spec()
            };
            assert!(
                matches!(spec.check_name(), Err(NetlinkError::BadName { .. })),
                "{name:?}"
            );
        }
        let longest = VtepSpec {
            name: "flannel.9999999".to_owned(),
            ..spec()
        };
        assert!(longest.check_name().is_ok());
    }
}
