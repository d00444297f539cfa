//! Pods: namespaces with one interface, connected to their node the way container runtimes do it.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::{node::Node, random_mac, state::State, subnet_env::SubnetEnv};
use crate::{
    netkit::{self, NetkitMode},
    netns::Namespace,
    traffic::Endpoint,
};

/// How a pod hangs off its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attachment {
    /// A port of the bridge `cni0`, which has the gateway address: Docker, CNI `bridge`.
    #[default]
    Bridge,
    /// A veth of its own with a host route: CNI `ptp`.
    PointToPoint,
    /// The same with a netkit.
    Netkit(NetkitMode),
}

/// The bridge pods are ports of.
pub const BRIDGE: &str = "cni0";

#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub address: Ipv4Addr,
    /// The host side of the pod's interface, in the node.
    pub host_interface: String,
    pub namespace: Namespace,
}

impl Pod {
    pub(super) fn create(
        node: &Node,
        state: &State,
        name: &str,
        address: Ipv4Addr,
        attachment: Attachment,
        env: &SubnetEnv,
    ) -> Result<Self> {
        let namespace = state.create_namespace(&format!("{}-{name}", node.name))?;
        let host_interface = format!("veth{name}");
        let (gateway, prefix, mtu) = (env.gateway.ip(), env.gateway.prefix(), env.mtu);
        let pod = namespace.name();
        let pair = if let Attachment::Netkit(mode) = attachment {
            let peer = format!("pod{name}");
            netkit::add(&node.namespace, &host_interface, &peer, mode)?;
            format!(
                "link set {host_interface} mtu {mtu}\n\
                 link set {peer} mtu {mtu} name eth0 netns {pod}\n"
            )
        } else {
            format!(
                "link add {host_interface} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod}\n"
            )
        };
        match attachment {
            Attachment::Bridge => {
                node.namespace.ip_batch(&format!(
                    "{pair}link set {host_interface} master {BRIDGE} up\n"
                ))?;
                namespace.ip_batch(&format!(
                    "addr add {address}/{prefix} dev eth0\n\
                     link set eth0 up\n\
                     route add default via {gateway}\n"
                ))?;
            }
            Attachment::PointToPoint | Attachment::Netkit(_) => {
                node.namespace.ip_batch(&format!(
                    "{pair}\
                     link set {host_interface} up\n\
                     addr add {gateway}/32 dev {host_interface}\n\
                     route add {address}/32 dev {host_interface} scope link\n"
                ))?;
                namespace.ip_batch(&format!(
                    "addr add {address}/32 dev eth0\n\
                     link set eth0 up\n\
                     route add {gateway}/32 dev eth0 scope link\n\
                     route add default via {gateway}\n"
                ))?;
            }
        }
        Ok(Self {
            name: name.to_owned(),
            address,
            host_interface,
            namespace,
        })
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            namespace: self.namespace.clone(),
            address: self.address,
        }
    }

    /// Removes the pod as a container runtime does: the interface first, then the namespace.
    pub(super) fn remove(self, node: &Namespace) -> Result<()> {
        node.run("ip", ["link", "delete", &self.host_interface])?;
        Namespace::delete(self.namespace.name())
    }
}

/// Creates the pods' bridge with the gateway address. Its MAC address is chosen here: a bridge
/// without one of its own follows whichever port has the lowest.
pub(super) fn create_bridge(node: &Namespace, env: &SubnetEnv) -> Result<()> {
    let (mac, mtu, gateway) = (random_mac(), env.mtu, env.gateway);
    node.ip_batch(&format!(
        "link add {BRIDGE} address {mac} mtu {mtu} type bridge\n\
         addr add {gateway} dev {BRIDGE}\n\
         link set {BRIDGE} up\n"
    ))
}
