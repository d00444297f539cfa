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

use std::{fs, net::IpAddr};

use overlay_common::addr::MacAddr;
use rtnetlink::{
    LinkVxlan,
    packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkInfo, LinkMessage},
};

use crate::{
    model::{Family, Tunnel, V4, V6},
    netlink::{Collision, DeviceSpec, Link, LinkKind, NetlinkError, VxlanLink},
};

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

impl DeviceSpec for VtepSpec {
    const HAS_MAC: bool = true;

    fn name(&self) -> &str {
        &self.name
    }

    fn underlay_ifindex(&self) -> u32 {
        self.underlay_ifindex
    }

    fn is_ipv6(&self) -> bool {
        self.local.is_ipv6()
    }

    fn mtu_on(&self, underlay_mtu: u32) -> Result<u32, NetlinkError> {
        let (family, overhead, least) = match self.local {
            IpAddr::V4(_) => (V4::NAME, V4::OVERHEAD, V4::MIN_MTU),
            IpAddr::V6(_) => (V6::NAME, V6::OVERHEAD, V6::MIN_MTU),
        };
        let mtu = self.mtu.min(underlay_mtu.saturating_sub(overhead));
        if mtu < least {
            return Err(NetlinkError::MtuTooSmall {
                name: self.name.clone(),
                kind: "vxlan",
                mtu,
                overhead,
                family,
                least,
            });
        }
        Ok(mtu)
    }

    fn kind(&self) -> InfoKind {
        InfoKind::Vxlan
    }

    fn create(&self, mtu: u32, mac: MacAddr, links: &[Link]) -> LinkMessage {
        let rival = self.checksum_rival(links, kernel_default_port());
        if let Some(rival) = rival {
            tracing::info!(
                device = %self.name,
                %rival,
                "created without udp6zerocsumrx, as the other vxlan device of this port is"
            );
        }
        let mut builder = LinkVxlan::new(&self.name, self.vni)
            .dev(self.underlay_ifindex)
            .learning(self.learning)
            .ttl(0)
            .tos(0);
        builder = match self.local {
            IpAddr::V4(local) => builder.local(local),
            IpAddr::V6(local) => builder.local6(local),
        };
        if let Some(port) = self.port {
            builder = builder.port(port);
        }
        if self.gbp {
            builder = builder.gbp();
        }
        if self.local.is_ipv6() && rival.is_none() {
            builder = builder.udp_zero_csum6_rx(true);
        }
        builder.mtu(mtu).address(mac.octets.to_vec()).build()
    }

    fn compare(&self, link: &Link, _: &[LinkInfo]) -> Result<Option<InfoData>, &'static str> {
        let LinkKind::Vxlan(vxlan) = &link.kind else {
            return Err("not a vxlan device");
        };
        match self.unchangeable(vxlan, kernel_default_port()) {
            Some(reason) => Err(reason),
            None => Ok(self.changes(vxlan)),
        }
    }

    /// Same VNI, same port, same outer family.
    fn collision(&self, other: &Link) -> Option<Collision> {
        let LinkKind::Vxlan(vxlan) = &other.kind else {
            return None;
        };
        let is_ipv6 = |address: IpAddr| address.is_ipv6();
        let collides = vxlan.vni == self.vni
            && vxlan.port == self.port.unwrap_or_else(kernel_default_port)
            && vxlan.local.is_some_and(is_ipv6) == is_ipv6(self.local);
        collides.then(|| Collision {
            claim: format!("VNI {} on the same UDP port", self.vni),
            remedy: "configure another VNI",
        })
    }
}

impl VtepSpec {
    /// Name of the device that keeps a new one from taking UDP checksum 0.
    fn checksum_rival<'a>(&self, links: &'a [Link], default_port: u16) -> Option<&'a str> {
        let mut links = links.iter().filter(|_| self.local.is_ipv6());
        let rival = links.find(|link| {
            matches!(&link.kind, LinkKind::Vxlan(vxlan) if self.bars_zero_checksum(vxlan, default_port))
        });
        rival.map(|link| link.name.as_str())
    }

    /// Whether a new device that takes UDP checksum 0 over IPv6 could not be brought up beside this
    /// one. All devices of a port receive by one socket per family, so they must agree on what it
    /// takes (`vxlan_find_sock`, `VXLAN_F_RCV_FLAGS`).
    fn bars_zero_checksum(&self, vxlan: &VxlanLink, default_port: u16) -> bool {
        vxlan.port == self.port.unwrap_or(default_port)
            && !vxlan.zero_checksum
            && match vxlan.local {
                Some(local) => local.is_ipv6(),
                // The family of a multicast group, or of a default remote, is not known here.
                None => vxlan.exotic,
            }
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

    /// What a live device can change.
    fn changes(&self, vxlan: &VxlanLink) -> Option<InfoData> {
        let mut changes = Vec::new();
        if vxlan.underlay != Some(self.underlay_ifindex) {
            changes.push(InfoVxlan::Link(self.underlay_ifindex));
        }
        if vxlan.local != Some(self.local) {
            changes.push(match self.local {
                IpAddr::V4(local) => InfoVxlan::Local(local),
                IpAddr::V6(local) => InfoVxlan::Local6(local),
            });
        }
        if vxlan.learning != self.learning {
            changes.push(InfoVxlan::Learning(self.learning));
        }
        if vxlan.ttl != 0 {
            changes.push(InfoVxlan::Ttl(0));
        }
        (!changes.is_empty()).then_some(InfoData::Vxlan(changes))
    }
}

/// Port of a vxlan device that is given none: a parameter of the vxlan module.
fn kernel_default_port() -> u16 {
    fs::read_to_string("/sys/module/vxlan/parameters/udp_port")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(Tunnel::DEFAULT_PORT)
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

    fn compare(link: &Link) -> Result<Option<InfoData>, &'static str> {
        spec().compare(link, &[])
    }

    #[test]
    fn flannels_own_device_needs_no_correction() {
        assert_eq!(compare(&link()), Ok(None));
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
            assert_eq!(spec6().compare(&device, &[]), Ok(None));
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
            ..link()
        };
        assert_eq!(
            compare(&device),
            Ok(Some(InfoData::Vxlan(vec![
                InfoVxlan::Link(2),
                InfoVxlan::Local(Ipv4Addr::new(192, 0, 2, 1)),
                InfoVxlan::Learning(false),
                InfoVxlan::Ttl(0),
            ])))
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
            assert!(compare(&device).is_err(), "{kind:?}");
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
}
