//! The bench's two address families.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use overlay_tests::lab::Node;

use crate::bench::Services;

impl Services for Ipv4Addr {
    const PODS: &str = "10.5.0.0/16";
    const SERVICES: &str = "10.96.0.0/16";
    const NFT: &str = "ip";
    const NOBODY: &str = "192.0.2.1";

    fn virtual_address(host: u8) -> Self {
        Self::new(10, 96, 0, host)
    }

    fn gateway_and_vtep(node: &Node) -> Result<[Self; 2]> {
        let gateway = node.subnet_env()?.gateway;
        Ok([gateway.ip(), gateway.network()])
    }
}

impl Services for Ipv6Addr {
    const PODS: &str = "fd00:10:5::/48";
    const SERVICES: &str = "fd00:96::/64";
    const NFT: &str = "ip6";
    const NOBODY: &str = "2001:db8::1";

    fn virtual_address(host: u8) -> Self {
        Self::new(0xfd00, 0x96, 0, 0, 0, 0, 0, host.into())
    }

    fn gateway_and_vtep(node: &Node) -> Result<[Self; 2]> {
        let gateway = node.subnet_env6()?.gateway;
        Ok([gateway.ip(), gateway.network()])
    }
}
