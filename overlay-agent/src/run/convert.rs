//! From one module's vocabulary to another's: options and config into what the lease, the subnet
//! file and the packet filter want.

use std::net::Ipv4Addr;

use ipnetwork::IpNetwork;

use crate::{
    backend::Backend,
    config::{self, NetworkConfig},
    filter,
    model::{Desired, DesiredNode, Family, LeaseAttrs, PerFamily, V4, V6, each_family},
    probe::Own,
    subnet_env::{Ipv4Lines, Ipv6Lines, SubnetEnv},
};

/// Where peers reach a node in one family, as its lease says it.
#[derive(Clone, Debug)]
pub struct Advertised<F: Family> {
    pub public_ip: F::Address,
    pub data: Option<String>,
}

/// What this node's lease says.
pub fn attrs(
    backend: &Backend,
    node: PerFamily<Option<Advertised<V4>>, Option<Advertised<V6>>>,
) -> LeaseAttrs {
    LeaseAttrs {
        public_ip: node
            .ipv4
            .as_ref()
            .map_or(Ipv4Addr::UNSPECIFIED, |node| node.public_ip),
        public_ipv6: node.ipv6.as_ref().map(|node| node.public_ip),
        backend_type: backend.lease_type().to_owned(),
        backend_data: node.ipv4.and_then(|node| node.data),
        backend_v6_data: node.ipv6.and_then(|node| node.data),
    }
}

/// What the lease of a running node says.
pub fn attrs_of(backend: &Backend, node: &DesiredNode) -> LeaseAttrs {
    fn advertised<F: Family>(side: &Desired<F>) -> Advertised<F> {
        let local = &side.local;
        Advertised {
            public_ip: local.underlay.public_ip,
            data: local.lease_data.clone(),
        }
    }
    attrs(
        backend,
        each_family!(node.present(), side => side.map(advertised)),
    )
}

/// The packet filter rules wanted.
pub fn filter_settings(
    options: &config::FilterOptions,
    config: &NetworkConfig,
    node: &DesiredNode,
) -> filter::Settings {
    let ipv4 = node.ipv4.as_ref().map(|side| &side.local);
    let ipv6 = node.ipv6.as_ref().map(|side| &side.local);
    let ipv4 = ipv4.map(|local| filter::PodNetwork::v4(local.network, local.subnet));
    let ipv6 = ipv6.map(|local| filter::PodNetwork::v6(local.network, local.subnet));
    filter::Settings {
        mode: if config.nftables {
            filter::Mode::Nftables
        } else {
            filter::Mode::Iptables
        },
        masquerade: if options.ip_masq {
            filter::Masquerade::On {
                fully_random: options.masq_fully_random,
            }
        } else {
            filter::Masquerade::Off
        },
        forward: options.forward_rules,
        keep_pod_source: options.pod_source_keep,
        networks: ipv4.into_iter().chain(ipv6).collect(),
    }
}

/// What the subnet file says.
pub fn subnet_env(node: &DesiredNode, ip_masq: bool) -> SubnetEnv {
    SubnetEnv {
        ipv4: node.ipv4.as_ref().map(|side| Ipv4Lines {
            network: side.local.network,
            subnet: side.local.subnet,
        }),
        ipv6: node.ipv6.as_ref().map(|side| Ipv6Lines {
            network: side.local.network,
            subnet: side.local.subnet,
        }),
        mtu: pod_mtu(node),
        ip_masq,
    }
}

/// MTU of the pod network: what `FLANNEL_MTU` says. There is one for both families, so it leaves
/// room for the larger of the two outer headers.
pub fn pod_mtu(node: &DesiredNode) -> u32 {
    let mtus = each_family!(node.present(), side => side.map(|side| side.local.pod_mtu()));
    mtus.into_iter().flatten().min().unwrap_or_default()
}

/// This node's ends of the overlay: the addresses of the backend's device.
pub fn own_ends(node: &DesiredNode) -> Vec<Own> {
    fn own<F: Family>(side: &Desired<F>) -> Option<Own> {
        let local = &side.local;
        let address: IpNetwork = local.device.as_ref()?.address.into();
        Some(Own {
            address: address.ip(),
            subnet: local.subnet.into(),
            public_ip: local.underlay.public_ip.into(),
            mtu: local.pod_mtu(),
        })
    }
    let ends = each_family!(node.present(), side => side.and_then(own));
    ends.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use overlay_common::addr::MacAddr;

    use super::*;
    use crate::{
        backend::{HostGw, Vxlan},
        model::{LocalNode, Underlay},
        netlink::{LinkKind, Vtep, VxlanLink},
    };

    const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);

    fn vxlan(mtu: Option<u32>) -> Backend {
        Backend::from(Vxlan {
            mtu,
            ..Vxlan::DEFAULT
        })
    }

    fn vtep(zero_checksum: bool) -> Vtep {
        Vtep {
            ifindex: 7,
            name: "flannel.1".to_owned(),
            mac: MAC,
            mtu: 1450,
            kind: LinkKind::Vxlan(VxlanLink {
                zero_checksum,
                ..VxlanLink::default()
            }),
        }
    }

    fn side<F: Family>(
        network: F::Network,
        subnet: F::Network,
        address: F::Address,
        backend: &Backend,
    ) -> Desired<F> {
        Desired {
            local: LocalNode {
                network,
                subnet,
                underlay: Underlay {
                    ifindex: 2,
                    name: "eth0".to_owned(),
                    mtu: 1500,
                    hardware: false,
                    ethernet: true,
                    address,
                    public_ip: address,
                },
                forwarding: backend.forwarding::<F>(),
                device: backend.own_device(network, subnet),
                vtep_mac: MAC,
                lease_data: backend.lease_data::<F>(Some(&vtep(false))),
            },
            peers: BTreeMap::new(),
        }
    }

    fn dual(backend: &Backend) -> DesiredNode {
        DesiredNode {
            ipv4: Some(side(
                "10.42.0.0/16".parse().unwrap(),
                "10.42.0.0/24".parse().unwrap(),
                "192.168.64.3".parse().unwrap(),
                backend,
            )),
            ipv6: Some(side(
                "2001:cafe:42::/56".parse().unwrap(),
                "2001:cafe:42::/64".parse().unwrap(),
                "fd00::3".parse().unwrap(),
                backend,
            )),
        }
    }

    #[test]
    fn the_subnet_file_of_a_dual_stack_node_leaves_room_for_the_larger_outer_header() {
        let vxlan = subnet_env(&dual(&vxlan(None)), true).to_string();
        assert_eq!(
            vxlan,
            "FLANNEL_NETWORK=10.42.0.0/16\n\
             FLANNEL_SUBNET=10.42.0.1/24\n\
             FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\n\
             FLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\n\
             FLANNEL_MTU=1430\n\
             FLANNEL_IPMASQ=true\n"
        );
        let ipv4 = DesiredNode {
            ipv6: None,
            ..dual(&self::vxlan(Some(1400)))
        };
        assert_eq!(pod_mtu(&ipv4), 1350);
        assert_eq!(pod_mtu(&dual(&HostGw.into())), 1500);
    }

    #[test]
    fn the_lease_of_each_kind_of_node_is_flannels() {
        let (backend, host_gw) = (vxlan(None), HostGw.into());
        let node = dual(&backend);
        assert_eq!(
            attrs_of(&backend, &node).encode(),
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#
        );
        let mut ipv6 = DesiredNode { ipv4: None, ..node };
        assert_eq!(
            attrs_of(&backend, &ipv6).encode(),
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#
        );
        // With one more key if the device takes what flannel's does not.
        let data = backend.lease_data::<V6>(Some(&vtep(true)));
        ipv6.ipv6.as_mut().unwrap().local.lease_data = data;
        assert_eq!(
            attrs_of(&backend, &ipv6).encode(),
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:01","ZeroCsum6":true}}"#
        );
        assert_eq!(
            attrs_of(&host_gw, &dual(&host_gw)).encode(),
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"host-gw"}"#
        );
    }
}
