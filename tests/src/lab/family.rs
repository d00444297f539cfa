//! What a test has to know of an address family to say the same of both.

use std::{
    fmt::Debug,
    net::{Ipv4Addr, Ipv6Addr},
};

use anyhow::Result;

use super::{Attachment, DEFAULT_CONFIG, Lab, Node};
use crate::traffic::{Address, Endpoint, ping, ping6};

pub trait LabFamily: Address + Debug + Eq + Ord {
    /// A network that has the family.
    const CONFIG: &str;
    /// How `ip` is told of the family.
    const IP: &str;
    const IPTABLES: &str;

    /// The node on the underlay.
    fn host(node: &Node) -> Endpoint<Self>;

    /// The router, a host outside the pod network.
    fn outside(lab: &Lab) -> Endpoint<Self>;

    /// Adds a pod behind the bridge of a node; it reaches its gateway. Its name decides its address.
    fn add_pod(node: &Node, name: char) -> Result<Endpoint<Self>>;

    fn ping(from: &Endpoint<Self>, to: Self) -> Result<()>;

    /// Pods with the same names on all nodes, node by node; each reaches every other.
    fn add_pods(lab: &Lab, names: &[char]) -> Result<Vec<Endpoint<Self>>> {
        let mut pods = Vec::new();
        for node in lab.nodes() {
            for &name in names {
                pods.push(Self::add_pod(node, name)?);
            }
        }
        for from in &pods {
            for to in pods.iter().filter(|to| to.address != from.address) {
                Self::ping(from, to.address)?;
            }
        }
        Ok(pods)
    }
}

impl LabFamily for Ipv4Addr {
    const CONFIG: &str = DEFAULT_CONFIG;
    const IP: &str = "-4";
    const IPTABLES: &str = "iptables-nft";

    fn host(node: &Node) -> Endpoint {
        node.endpoint()
    }

    fn outside(lab: &Lab) -> Endpoint {
        lab.outside()
    }

    fn add_pod(node: &Node, name: char) -> Result<Endpoint> {
        let pod = node
            .add_pod(&name.to_string(), Attachment::Bridge)?
            .endpoint();
        ping::once(&pod, node.subnet_env()?.gateway.ip())?;
        Ok(pod)
    }

    fn ping(from: &Endpoint, to: Self) -> Result<()> {
        ping::once(from, to).map(drop)
    }
}

impl LabFamily for Ipv6Addr {
    const CONFIG: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
    const IP: &str = "-6";
    const IPTABLES: &str = "ip6tables-nft";

    fn host(node: &Node) -> Endpoint<Self> {
        node.endpoint6()
    }

    fn outside(lab: &Lab) -> Endpoint<Self> {
        lab.outside6()
    }

    fn add_pod(node: &Node, name: char) -> Result<Endpoint<Self>> {
        node.add_pod6(name)
    }

    fn ping(from: &Endpoint<Self>, to: Self) -> Result<()> {
        ping6::once(from, to)
    }
}

/// Makes tests of functions over an address family, one for each: functions over a
/// [`Cluster`](crate::prog::fixture::Cluster), or, after `addresses:`, over a [`LabFamily`].
#[macro_export]
macro_rules! in_both_families {
    (@ $ipv4:ty, $ipv6:ty: $($test:ident,)+) => {
        mod ipv4 {
            $(#[test]
            fn $test() -> impl std::process::Termination {
                super::$test::<$ipv4>()
            })+
        }

        mod ipv6 {
            $(#[test]
            fn $test() -> impl std::process::Termination {
                super::$test::<$ipv6>()
            })+
        }
    };
    (addresses: $($test:ident,)+) => {
        $crate::in_both_families! { @ std::net::Ipv4Addr, std::net::Ipv6Addr: $($test,)+ }
    };
    ($($test:ident,)+) => {
        $crate::in_both_families! {
            @ overlay_common::family::V4, overlay_common::family::V6: $($test,)+
        }
    };
}
