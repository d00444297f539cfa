//! How pod packets reach other nodes: flannel's backends.
//!
//! Each is a module with one type, which holds its options and says what they mean ([`Kind`]). It is
//! registered by a line in the list below, and nobody else tells backends apart: what depends on the
//! backend is asked of [`Backend`], and the tiers get what it says in general terms:
//! [`Forwarding`](crate::model::Forwarding), [`OwnDevice`](crate::model::OwnDevice) and, of each peer,
//! [`ViaDevice`](crate::model::ViaDevice). One of another shape goes through all that in its tests.

mod alloc;
mod cloud;
mod direct_routing;
mod error;
mod extension;
mod host_gw;
mod ipip;
mod kind;
mod retry;
mod runtime;
pub mod udp;
mod vxlan;
mod wireguard;

use std::net::IpAddr;

use crate::{
    model::{Family, Forwarding, LeaseAttrs, OwnDevice, Peer, Underlay, V4, V6},
    netlink::{Link, Marks, Netlink, NetlinkError, Route, Vtep},
};

pub use self::{
    alloc::Alloc,
    cloud::{AwsVpc, Gce},
    error::BackendError,
    extension::Extension,
    host_gw::HostGw,
    ipip::IpIp,
    kind::{Annotated, Assigned, ChangedKeys, DeviceId, Kind, KnownDevice, NoKey, Parsed},
    runtime::{LeaseData, Runtime, Scene},
    udp::Udp,
    vxlan::{VtepSpec, Vxlan, VxlanData},
    wireguard::{KeyFile, PublicKey, WireGuard, WireGuardData},
};

/// Backends that some release of flannel has and this daemon has not, with what does in their place.
const UNSUPPORTED: [(&str, &str); 3] = [
    ("ipsec", "wireguard, which encrypts as well"),
    ("ali-vpc", "vxlan, or host-gw where the VPC carries it"),
    ("tencent-vpc", "vxlan, or host-gw where the VPC carries it"),
];

/// Makes [`Backend`] of the types, each of which is a [`Kind`] and gives its name to a variant.
macro_rules! backends {
    ($($kind:ident),+ $(,)?) => {
        /// A backend with its options.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Backend {
            $($kind($kind),)+
        }

        $(impl From<$kind> for Backend {
            fn from(kind: $kind) -> Self {
                Self::$kind(kind)
            }
        })+

        impl Backend {
            /// The types there are.
            const TYPES: &[&str] = &[$($kind::TYPE),+];

            /// The backend of this type; `None` if there is none.
            fn of_type(
                name: &str,
                options: &str,
                with_ipv6: bool,
            ) -> Option<Parsed<Self>> {
                $(if name == $kind::TYPE {
                    let parsed = $kind::parse(options, with_ipv6);
                    return Some(parsed.map(|(kind, warnings)| (kind.into(), warnings)));
                })+
                None
            }

            /// See [`Kind::TYPE`].
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => $kind::TYPE,)+
                }
            }

            /// See [`Kind::LEASE_TYPE`].
            pub fn lease_type(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => $kind::LEASE_TYPE,)+
                }
            }

            /// What a running node takes over of `read`; nothing of a backend of another type.
            #[must_use]
            pub fn reload(&self, read: &Self, keys: &mut ChangedKeys) -> Self {
                match (self, read) {
                    $((Self::$kind(running), Self::$kind(read)) => {
                        running.reload(read, keys).into()
                    })+
                    _ => {
                        keys.postponed.push("Backend.Type");
                        self.clone()
                    }
                }
            }

            /// See [`Kind::forwarding`].
            pub fn forwarding<F: Family>(&self) -> Forwarding {
                match self {
                    $(Self::$kind(kind) => kind.forwarding::<F>(),)+
                }
            }

            /// See [`Kind::check`].
            pub fn check<F: Family>(&self, underlay: &Underlay<F>) -> Result<(), BackendError> {
                match self {
                    $(Self::$kind(kind) => kind.check(underlay),)+
                }
            }

            /// See [`Kind::device_name`].
            pub fn device_name<F: Family>(&self) -> Option<String> {
                match self {
                    $(Self::$kind(kind) => kind.device_name::<F>(),)+
                }
            }

            /// See [`Kind::own_device`].
            pub fn own_device<F: Family>(
                &self,
                network: F::Network,
                subnet: F::Network,
            ) -> Option<OwnDevice<F>> {
                match self {
                    $(Self::$kind(kind) => kind.own_device(network, subnet),)+
                }
            }

            /// See [`Kind::ensure_device`].
            pub async fn ensure_device<F: Family>(
                &self,
                netlink: &Netlink,
                underlay: &Underlay<F>,
                known: &[String],
            ) -> Result<Option<Vtep>, NetlinkError> {
                match self {
                    $(Self::$kind(kind) => kind.ensure_device(netlink, underlay, known).await,)+
                }
            }

            /// See [`Kind::restore_device`].
            pub async fn restore_device<F: Family>(
                &self,
                netlink: &Netlink,
                underlay: &Underlay<F>,
                known: Option<&str>,
            ) -> Result<Option<Vtep>, NetlinkError> {
                match self {
                    $(Self::$kind(kind) => kind.restore_device(netlink, underlay, known).await,)+
                }
            }

            /// See [`Kind::lease_data`].
            pub fn lease_data<F: Family>(&self, device: Option<&Vtep>) -> Option<String> {
                match self {
                    $(Self::$kind(kind) => kind.lease_data::<F>(device),)+
                }
            }

            /// See [`Kind::assigned_data`].
            pub fn assigned_data<F: Family>(
                &self,
                subnet: F::Network,
                assigned: Assigned,
            ) -> Result<Option<String>, NoKey> {
                match self {
                    $(Self::$kind(kind) => kind.assigned_data::<F>(subnet, assigned),)+
                }
            }

            /// See [`Kind::is_flannels`].
            fn flannels_routes<F: Family>(&self) -> fn(&Route<F>) -> bool {
                match self {
                    $(Self::$kind(_) => $kind::is_flannels::<F>,)+
                }
            }

            /// See [`Kind::runtime`].
            pub fn runtime(&self) -> Option<Box<dyn Runtime>> {
                match self {
                    $(Self::$kind(kind) => kind.runtime(),)+
                }
            }

            /// See [`Kind::peer`].
            pub fn peer<F: Family>(
                &self,
                subnet: F::Network,
                public_ip: F::Address,
                said: Option<&str>,
            ) -> Option<Peer<F>> {
                match self {
                    $(Self::$kind(kind) => kind.peer(subnet, public_ip, said),)+
                }
            }
        }

        /// The device that a link is, of whichever kind, and what it says. See [`Kind::recognise`].
        pub fn recognise<F: Family>(link: &Link) -> Option<(DeviceId, KnownDevice)> {
            $(if let Some(device) = $kind::recognise::<F>(link) {
                let id = DeviceId {
                    kind: $kind::TYPE,
                    number: device.number,
                };
                return Some((id, device));
            })+
            None
        }

        /// See [`Kind::ANNOTATED_V4`] and [`Kind::ANNOTATED_V6`], of the backend that a lease names.
        pub fn annotated(lease_type: &str) -> [Annotated; 2] {
            $(if lease_type == $kind::LEASE_TYPE {
                return [$kind::ANNOTATED_V4, $kind::ANNOTATED_V6];
            })+
            [Annotated::Always, Annotated::Never]
        }

        /// See [`Kind::IS_IN_AGENT`], of the kind of a device.
        pub fn is_in_agent(device: DeviceId) -> bool {
            $(($kind::IS_IN_AGENT && device.kind == $kind::TYPE))||+
        }

        /// See [`Kind::is_flannels`], of the kind of the device that the route is by.
        pub fn is_flannels<F: Family>(device: DeviceId, route: &Route<F>) -> bool {
            $((device.kind == $kind::TYPE && $kind::is_flannels(route)))||+
        }

        /// The devices of configs without options.
        pub fn usual_devices() -> impl Iterator<Item = DeviceId> {
            let usual = [$(($kind::TYPE, $kind::USUAL_DEVICE)),+];
            usual.into_iter().filter_map(|(kind, number)| {
                number.map(|number| DeviceId { kind, number })
            })
        }

        /// Whether what two leases say of one family can be of one node only, whichever backend it
        /// has.
        fn is_same_node(one: &str, other: &str) -> bool {
            $($kind::is_same_node(one, other))||+
        }
    };
}

backends! {
    Vxlan,
    HostGw,
    Udp,
    IpIp,
    WireGuard,
    Alloc,
    Extension,
    AwsVpc,
    Gce,
}

impl Backend {
    /// Reads the `Backend` object of the network config, whose lower-cased type this is; none means udp, as
    /// ever since flannel had no other. Returns what is to be warned of, too.
    pub fn parse(name: Option<String>, options: Option<&str>, with_ipv6: bool) -> Parsed<Self> {
        let name = name.unwrap_or_else(|| Udp::TYPE.to_owned());
        let parsed = Self::of_type(&name, options.unwrap_or("{}"), with_ipv6);
        parsed.unwrap_or_else(|| {
            let known = UNSUPPORTED.into_iter().find(|(known, _)| name == *known);
            Err(match known {
                Some((_, instead)) => BackendError::Unsupported { name, instead },
                None => BackendError::Unknown(name),
            })
        })
    }
}

#[cfg(test)]
#[expect(dead_code, reason = "the list makes more than the tests ask")]
mod another;

/// How the reconciliation of a family tells what backends make, this one being in force.
pub fn marks<F: Family>(backend: &Backend) -> Marks<F> {
    Marks {
        is_device: |link| recognise::<F>(link).is_some(),
        is_flannels: backend.flannels_routes(),
    }
}

/// The device that a link is, of either family.
pub fn device_id(link: &Link) -> Option<DeviceId> {
    let device = recognise::<V4>(link).or_else(|| recognise::<V6>(link));
    device.map(|(id, _)| id)
}

/// Removes devices that a start which did not get far has left on the underlay, but for those in use now,
/// `current`. The backend may have been another one. Returns their names.
pub async fn remove_unfinished<F: Family>(
    netlink: &Netlink,
    underlay: &Underlay<F>,
    current: &[u32],
) -> Result<Vec<String>, NetlinkError> {
    let local: IpAddr = underlay.address.into();
    let is_of_node = |link: &Link| {
        let device = recognise::<F>(link).filter(|_| !current.contains(&link.ifindex));
        device.is_some_and(|(_, device)| {
            is_on(&device, underlay.ifindex) && device.local.is_none_or(|said| said == local)
        })
    };
    netlink.remove_unfinished(is_of_node).await
}

/// Removes the devices on an underlay whose network does not have the family, but for those in use for
/// another, `current`. Returns what there was.
pub async fn remove_devices<F: Family>(
    netlink: &Netlink,
    underlay_ifindex: u32,
    current: &[u32],
) -> Result<Vec<String>, NetlinkError> {
    let is_one = |link: &Link| {
        let device = recognise::<F>(link).filter(|_| !current.contains(&link.ifindex));
        device.is_some_and(|(_, device)| is_on(&device, underlay_ifindex))
    };
    netlink.remove_devices(is_one).await
}

/// Devices that do not say what they send by have a name of which there is one in a network namespace.
fn is_on(device: &KnownDevice, underlay_ifindex: u32) -> bool {
    device.underlay.is_none_or(|said| said == underlay_ifindex)
}

/// Whether two leases show the same device, of either family.
pub fn share_device(one: &LeaseAttrs, other: &LeaseAttrs) -> bool {
    let pairs = [
        (&one.backend_data, &other.backend_data),
        (&one.backend_v6_data, &other.backend_v6_data),
    ];
    pairs.into_iter().any(|(one, other)| {
        let pair = one.as_ref().zip(other.as_ref());
        pair.is_some_and(|(one, other)| is_same_node(one, other))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_is_registered_once_and_not_listed_as_unsupported() {
        for (at, name) in Backend::TYPES.iter().enumerate() {
            assert!(!Backend::TYPES[..at].contains(name), "{name}");
            let is_listed = UNSUPPORTED.iter().any(|(known, _)| known == name);
            assert!(!is_listed, "{name}");
        }
    }

    #[test]
    fn leases_share_a_device_by_the_mac_address_in_either_family() {
        let mac = |last| overlay_common::addr::MacAddr::new([2, 0, 0, 0, 0, last]);
        let lease = |ip: [u8; 4], last| LeaseAttrs::vxlan(ip.into(), 1, mac(last));
        let dual = |last| {
            let data = VxlanData::new(2, mac(last)).encode();
            LeaseAttrs::alloc([192, 0, 2, 3].into())
                .with_ipv6("fd00::3".parse().unwrap(), Some(data))
        };
        let one = lease([192, 0, 2, 1], 1);
        assert!(share_device(&one, &lease([192, 0, 2, 2], 1)));
        assert!(!share_device(&one, &lease([192, 0, 2, 2], 2)));
        assert!(!share_device(
            &one,
            &LeaseAttrs::host_gw([192, 0, 2, 1].into())
        ));
        assert!(share_device(&dual(1), &dual(1)));
        assert!(!share_device(&one, &dual(1)));
    }
}
