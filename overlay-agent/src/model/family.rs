//! The two address families as types, so that one text serves the IPv4 and the IPv6 overlay and
//! neither can be handed what belongs to the other.

use std::{
    fmt::{Debug, Display},
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
pub use overlay_common::family::{V4, V6};
use overlay_common::{
    family,
    maps::{self, FamilyMaps},
};

use super::PerFamily;

/// An address family. flannel keeps the two apart in everything: device, routes, rules.
pub trait Family: family::WireFamily<Be: aya::Pod> {
    type Address: Copy
        + Debug
        + Display
        + Eq
        + Ord
        + Hash
        + Into<IpAddr>
        + Into<Self::Be>
        + From<Self::Be>
        + Send
        + Sync;
    type Network: Copy + Debug + Display + Eq + Ord + Hash + Into<IpNetwork> + Send + Sync;

    /// For logs.
    const NAME: &'static str;
    /// Bits of an address.
    const BITS: u8;
    /// As netlink counts: `AF_INET`, `AF_INET6`.
    const NUMBER: u8;
    /// Bytes vxlan adds when the outer packet is of this family: IP, UDP, VXLAN and inner Ethernet
    /// headers.
    const OVERHEAD: u32;
    /// The maps of the family.
    const MAPS: FamilyMaps;
    /// Receivers drop tunnel packets with UDP checksum 0 unless they say that they take them.
    const CHECKSUM_IS_REQUIRED: bool;
    /// Smallest MTU of a link that carries the family.
    const MIN_MTU: u32;
    /// What the kernel makes of a route without a metric.
    const DEFAULT_METRIC: u32;
    /// Routes to one destination with one metric share the traffic instead of standing in line, so
    /// that a route can only take another's place.
    const ROUTES_SHARE: bool;
    /// The kernel refuses an onlink gateway to which a route through another interface leads
    /// (`ip6_route_check_nh_onlink`).
    const ONLINK_IS_CHECKED: bool;

    /// The address, if it is of this family.
    fn address(ip: IpAddr) -> Option<Self::Address>;
    /// An address with a prefix length the family has.
    fn with_prefix(address: Self::Address, prefix: u8) -> Option<Self::Network>;
    /// The address alone.
    fn host(address: Self::Address) -> Self::Network;
    /// The first address.
    fn first(network: Self::Network) -> Self::Address;
    /// The last address.
    fn last(network: Self::Network) -> Self::Address;
    fn mask(network: Self::Network) -> Self::Address;
    fn prefix(network: Self::Network) -> u8;
    /// The address as a number.
    fn bits(address: Self::Address) -> u128;
    /// The address that a number is, if the family has so many.
    fn of_bits(number: u128) -> Option<Self::Address>;
    /// Whether a node can have the address.
    fn is_host(address: Self::Address) -> bool;
    fn contains(network: Self::Network, address: Self::Address) -> bool;
    fn overlap(a: Self::Network, b: Self::Network) -> bool;
    /// flannel's name of the vxlan device with this VNI.
    fn device_name(vni: u32) -> String;
    /// Where the kernel says which TTL or hop limit tunnel packets leave the interface with.
    fn ttl_setting(underlay: &str) -> PathBuf;
    /// The family's own of what there is of both.
    fn pick<T: ByFamily>(both: PerFamily<T::Of<V4>, T::Of<V6>>) -> T::Of<Self>;
}

/// A type that each family has its own of: generic code takes its family's with [`Family::pick`].
pub trait ByFamily {
    type Of<F: Family>;
}

impl Family for V4 {
    type Address = Ipv4Addr;
    type Network = Ipv4Network;

    const NAME: &'static str = "IPv4";
    const BITS: u8 = 32;
    const NUMBER: u8 = 2;
    const OVERHEAD: u32 = 20 + 8 + 8 + 14;
    const MAPS: FamilyMaps = maps::IPV4;
    const CHECKSUM_IS_REQUIRED: bool = false;
    /// RFC 791, and the least of the kernel's Ethernet devices.
    const MIN_MTU: u32 = 68;
    const DEFAULT_METRIC: u32 = 0;
    const ROUTES_SHARE: bool = false;
    const ONLINK_IS_CHECKED: bool = false;

    fn address(ip: IpAddr) -> Option<Ipv4Addr> {
        match ip {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }

    fn with_prefix(address: Ipv4Addr, prefix: u8) -> Option<Ipv4Network> {
        Ipv4Network::new(address, prefix).ok()
    }

    fn host(address: Ipv4Addr) -> Ipv4Network {
        address.into()
    }

    fn first(network: Ipv4Network) -> Ipv4Addr {
        network.network()
    }

    fn last(network: Ipv4Network) -> Ipv4Addr {
        network.broadcast()
    }

    fn mask(network: Ipv4Network) -> Ipv4Addr {
        network.mask()
    }

    fn prefix(network: Ipv4Network) -> u8 {
        network.prefix()
    }

    fn bits(address: Ipv4Addr) -> u128 {
        address.to_bits().into()
    }

    fn of_bits(number: u128) -> Option<Ipv4Addr> {
        u32::try_from(number).ok().map(Ipv4Addr::from_bits)
    }

    fn is_host(address: Ipv4Addr) -> bool {
        !address.is_unspecified()
            && !address.is_multicast()
            && !address.is_broadcast()
            && !address.is_loopback()
    }

    fn contains(network: Ipv4Network, address: Ipv4Addr) -> bool {
        network.contains(address)
    }

    fn overlap(a: Ipv4Network, b: Ipv4Network) -> bool {
        a.overlaps(b)
    }

    fn device_name(vni: u32) -> String {
        format!("flannel.{vni}")
    }

    fn ttl_setting(_: &str) -> PathBuf {
        "/proc/sys/net/ipv4/ip_default_ttl".into()
    }

    fn pick<T: ByFamily>(both: PerFamily<T::Of<Self>, T::Of<V6>>) -> T::Of<Self> {
        both.ipv4
    }
}

impl Family for V6 {
    type Address = Ipv6Addr;
    type Network = Ipv6Network;

    const NAME: &'static str = "IPv6";
    const BITS: u8 = 128;
    const NUMBER: u8 = 10;
    const OVERHEAD: u32 = 40 + 8 + 8 + 14;
    const MAPS: FamilyMaps = maps::IPV6;
    const CHECKSUM_IS_REQUIRED: bool = true;
    /// RFC 8200; on a link with less the kernel turns IPv6 off.
    const MIN_MTU: u32 = 1280;
    /// `IP6_RT_PRIO_USER`.
    const DEFAULT_METRIC: u32 = 1024;
    const ROUTES_SHARE: bool = true;
    const ONLINK_IS_CHECKED: bool = true;

    fn address(ip: IpAddr) -> Option<Ipv6Addr> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address),
        }
    }

    fn with_prefix(address: Ipv6Addr, prefix: u8) -> Option<Ipv6Network> {
        Ipv6Network::new(address, prefix).ok()
    }

    fn host(address: Ipv6Addr) -> Ipv6Network {
        address.into()
    }

    fn first(network: Ipv6Network) -> Ipv6Addr {
        network.network()
    }

    fn last(network: Ipv6Network) -> Ipv6Addr {
        network.broadcast()
    }

    fn mask(network: Ipv6Network) -> Ipv6Addr {
        network.mask()
    }

    fn prefix(network: Ipv6Network) -> u8 {
        network.prefix()
    }

    fn bits(address: Ipv6Addr) -> u128 {
        address.to_bits()
    }

    fn of_bits(number: u128) -> Option<Ipv6Addr> {
        Some(Ipv6Addr::from_bits(number))
    }

    fn is_host(address: Ipv6Addr) -> bool {
        !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
    }

    fn contains(network: Ipv6Network, address: Ipv6Addr) -> bool {
        network.contains(address)
    }

    fn overlap(a: Ipv6Network, b: Ipv6Network) -> bool {
        a.overlaps(b)
    }

    fn device_name(vni: u32) -> String {
        format!("flannel-v6.{vni}")
    }

    fn ttl_setting(underlay: &str) -> PathBuf {
        ["/proc/sys/net/ipv6/conf", underlay, "hop_limit"]
            .iter()
            .collect()
    }

    fn pick<T: ByFamily>(both: PerFamily<T::Of<V4>, T::Of<Self>>) -> T::Of<Self> {
        both.ipv6
    }
}
