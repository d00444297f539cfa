//! The bench's two address families.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use overlay_tests::{
    lab::{Lab, Node, ipv6::ping_matrix},
    traffic::Endpoint,
};

use crate::bench::{Family, ServicePod};

impl Family for Ipv4Addr {
    const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    const PODS: &str = "10.5.0.0/16";
    const SERVICES: &str = "10.96.0.0/16";
    const NFT: &str = "ip";
    const IPTABLES: &str = "iptables-nft";
    const NOBODY: &str = "192.0.2.1";

    fn virtual_address(host: u8) -> Self {
        Self::new(10, 96, 0, host)
    }

    fn outside(lab: &Lab) -> Endpoint {
        lab.outside()
    }

    fn host(node: &Node) -> Endpoint {
        node.endpoint()
    }

    fn gateway_and_vtep(node: &Node) -> Result<[Self; 2]> {
        let gateway = node.subnet_env()?.gateway;
        Ok([gateway.ip(), gateway.network()])
    }

    fn add_pods(lab: &Lab) -> Result<Vec<ServicePod<Self>>> {
        lab.add_pods(2)?;
        let pods = lab.pods().into_iter().zip([0, 0, 1, 1]);
        let pods = pods.map(|((_, pod), node)| ServicePod {
            node,
            name: pod.name.chars().next().unwrap_or_default(),
            endpoint: pod.endpoint(),
        });
        Ok(pods.collect())
    }
}

impl Family for Ipv6Addr {
    const CONFIG: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
    const PODS: &str = "fd00:10:5::/48";
    const SERVICES: &str = "fd00:96::/64";
    const NFT: &str = "ip6";
    const IPTABLES: &str = "ip6tables-nft";
    const NOBODY: &str = "2001:db8::1";

    fn virtual_address(host: u8) -> Self {
        Self::new(0xfd00, 0x96, 0, 0, 0, 0, 0, host.into())
    }

    fn outside(lab: &Lab) -> Endpoint<Self> {
        lab.outside6()
    }

    fn host(node: &Node) -> Endpoint<Self> {
        node.endpoint6()
    }

    fn gateway_and_vtep(node: &Node) -> Result<[Self; 2]> {
        let gateway = node.subnet_env6()?.gateway;
        Ok([gateway.ip(), gateway.network()])
    }

    fn add_pods(lab: &Lab) -> Result<Vec<ServicePod<Self>>> {
        let mut pods = Vec::new();
        for (index, node) in lab.nodes().iter().enumerate() {
            for name in ['a', 'b'] {
                pods.push(ServicePod {
                    node: index,
                    name,
                    endpoint: node.add_pod6(name)?,
                });
            }
        }
        let ends: Vec<_> = pods.iter().map(|pod| pod.endpoint.clone()).collect();
        ping_matrix(&ends)?;
        Ok(pods)
    }
}
