//! The map layouts as the BPF object carries them equal those the agent reads and writes with.
//!
//! Both sides compile the same types, but for different targets and by different compilers; the BTF
//! is also what `bpftool map dump` prints by.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::{offset_of, size_of},
};

use anyhow::{Context as _, Result};
use overlay_agent::object::OBJECT;
use overlay_common::{
    addr::{Ipv4Be, Ipv6Be, MacAddr},
    config::Config,
    encap::EncapHeader,
    encap6::EncapHeader6,
    family::{V4, V6},
    flow::{Entered, Flow, FlowKey, FlowWords},
    maps::{self, Kind},
    node::{Gateway, Leaving, Nexthop, Node, Peer, PodKey, PodPort},
    outcome::Counter,
    route::RouteEntry,
    short::Short,
    slow::{Match, Slow},
    wire::{EthHeader, Ipv4Header, Ipv6Header, UdpHeader, VxlanHeader},
};
use overlay_tests::btf::Btf;

/// Name, offset and size of each member, and the size of the whole.
type Layout = (usize, Vec<(&'static str, usize, usize)>);

macro_rules! layouts {
    ($($ty:ty { $($field:ident),+ $(,)? })+) => {
        BTreeMap::from([$((
            short_name::<$ty>(),
            (
                size_of::<$ty>(),
                vec![$((
                    stringify!($field),
                    offset_of!($ty, $field),
                    member_size(|value: &$ty| &value.$field),
                )),+],
            ),
        )),+])
    };
}

/// A type's name without paths: `Node<V6>`.
fn short_name<T>() -> String {
    let is_path = |c: char| !c.is_alphanumeric() && c != ':' && c != '_';
    std::any::type_name::<T>()
        .split_inclusive(is_path)
        .map(|part| part.rsplit("::").next().unwrap_or(part))
        .collect()
}

fn member_size<T, M>(_: fn(&T) -> &M) -> usize {
    size_of::<M>()
}

fn layouts() -> BTreeMap<String, Layout> {
    layouts! {
        Ipv4Be { octets }
        Ipv6Be { octets }
        MacAddr { octets }
        RouteEntry { node, flags }
        Node<V4> {
            flags, vtep, ipv4_sum, subnet, vtep_mac, prefix_len, _pad, encap, route_mtu, _pad2,
        }
        Node<V6> {
            flags, vtep, ipv4_sum, subnet, vtep_mac, prefix_len, _pad, encap, route_mtu, _pad2,
        }
        EncapHeader { ipv4, udp, vxlan, inner_eth }
        EncapHeader6 { ipv6, udp, vxlan, inner_eth }
        Ipv4Header {
            version_ihl, tos, total_len, id, fragment, ttl, protocol, check, src, dst,
        }
        Ipv6Header { version_class_label, payload_len, next_header, hop_limit, src, dst }
        UdpHeader { src_port, dst_port, len, check }
        VxlanHeader { flags, reserved, vni, reserved2 }
        EthHeader { dst, src, ethertype }
        Nexthop { vtep, ifindex, dst_mac, mtu, src_mac, mode, _pad, path_changes, _pad2 }
        Leaving {
            flow, gateway_mac, _pad, generation, stamp, hash, node, mark, priority, hash_generation, _pad2,
        }
        Short {
            egress_until, generation, underlay_ifindex, next_hop_mac, mtu, underlay_mac, _pad, vtep,
            path_changes, inner_mark, inner_priority, mark, priority, check, ingress_until, ingress_owner,
        }
        Peer { node }
        Gateway { mac, _pad }
        PodKey { mac, _pad }
        PodPort { ifindex }
        Config<V4> {
            stamp_key, tcp_permit_ns, udp_permit_ns, icmp_permit_ns, generation, fastpath, vtep,
            network, network_mask, subnet, subnet_mask, vtep_mac, vxlan_port, vni, tunnel,
            source_port_min, source_port_span, vtep_ifindex, pod_mtu, slow_mark, slow_mask, _pad2,
            sctp_permit_ns, closed, _pad3,
        }
        Config<V6> {
            stamp_key, tcp_permit_ns, udp_permit_ns, icmp_permit_ns, generation, fastpath, vtep,
            network, network_mask, subnet, subnet_mask, vtep_mac, vxlan_port, vni, tunnel,
            source_port_min, source_port_span, vtep_ifindex, pod_mtu, slow_mark, slow_mask, _pad2,
            sctp_permit_ns, closed, _pad3,
        }
        FlowKey<V4> { local, remote, local_port, remote_port, protocol, _pad }
        FlowKey<V6> { local, remote, local_port, remote_port, protocol, _pad }
        Flow {
            id, egress_until, ingress_until, generation, node, rewrite, _pad, gateway_mac,
            source_port, pod_mac, pod_mtu, deliver_mac, ingress_mode, ingress_ttl, pod_ifindex, moves, underlay_ifindex,
            path_changes, next_hop_mac, path_mtu, underlay_mac, egress_mode, egress_ttl, vtep, mark,
            priority, _pad2, rewrite_address, rewrite_port, _pad3,
        }
        FlowWords<V4> { addresses, ports }
        FlowWords<V6> { addresses, ports }
        Entered<V4> { words, stamp, _pad }
        Entered<V6> { words, stamp, _pad }
        Counter { packets, bytes }
        Match<V4> {
            src, src_mask, dst, dst_mask, src_ports, dst_ports, protocols, directions, _pad,
        }
        Match<V6> {
            src, src_mask, dst, dst_mask, src_ports, dst_ports, protocols, directions, _pad,
        }
        Slow { ipv4_count, ipv6_count, report_len, outer, ipv4, ipv6, report }
    }
}

/// The name of a struct with its parameter, the way Rust writes it: without IPv4, the default. BTF names hold
/// letters, digits and underscores: the compiler spells others by their number.
fn readable(name: &str) -> String {
    let Some((name, parameter)) = name.split_once("_3C_") else {
        return name.to_owned();
    };
    let path = parameter.trim_end_matches("_3E_");
    match path.rsplit("_3A_").next().unwrap_or(path) {
        "V4" => name.to_owned(),
        parameter => format!("{name}<{parameter}>"),
    }
}

/// Compares every struct below type `id` with its Rust layout; collects the names it met.
fn check(
    btf: &Btf,
    id: u32,
    wanted: &BTreeMap<String, Layout>,
    met: &mut BTreeSet<String>,
) -> Result<()> {
    let Some(name) = btf.struct_name(id)? else {
        return Ok(());
    };
    let name = &readable(name);
    let id = btf.element(id)?;
    let members = btf.members(id)?;
    // The trie's key is aya's own generic struct around an address.
    if let Some(address) = name.strip_prefix("Key<") {
        let fields: Vec<_> = members
            .iter()
            .map(|member| (member.name.as_str(), member.offset, member.size))
            .collect();
        assert_eq!(
            fields,
            [
                ("prefix_len", 0, 4),
                ("data", 4, if address == "Ipv4Be>" { 4 } else { 16 })
            ]
        );
    } else {
        let (size, fields) = wanted
            .get(name.as_str())
            .with_context(|| format!("{name} is in the object but not listed here"))?;
        let found: Vec<_> = members
            .iter()
            .map(|member| (member.name.as_str(), member.offset, member.size))
            .collect();
        assert_eq!(&found, fields, "members of {name}: name, offset, size");
        assert_eq!(btf.size(id)?, *size, "size of {name}");
        met.insert(name.to_owned());
    }
    members
        .iter()
        .try_for_each(|member| check(btf, member.type_id, wanted, met))
}

#[test]
fn every_map_of_the_object_has_the_layout_the_agent_uses() -> Result<()> {
    let btf = Btf::of_object(OBJECT)?;
    let found = btf.maps()?;
    assert_eq!(
        found.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        BTreeSet::from(maps::ALL),
        "the maps of the object"
    );
    let layouts = layouts();
    let mut met = BTreeSet::new();
    for spec in maps::TABLE {
        let name = spec.name;
        let map = &found[name];
        let type_name = |id| -> Result<String> {
            Ok(match (btf.struct_name(id)?, btf.size(id)?) {
                (Some(name), _) => readable(name),
                (None, size @ ..=8) => format!("u{}", size * 8),
                (None, size) => format!("[u64; {}]", size / 8),
            })
        };
        let key = match spec.kind {
            Kind::LpmTrie => format!("Key<{}>", spec.key.name),
            _ => spec.key.name.to_owned(),
        };
        assert_eq!(map.kind, spec.kind as u32, "kind of {name}");
        assert_eq!(type_name(map.key)?, key, "key of {name}");
        assert_eq!(type_name(map.value)?, spec.value.name, "value of {name}");
        assert_eq!(
            (btf.size(map.key)?, btf.size(map.value)?),
            (spec.key_size(), spec.value.size),
            "sizes of {name}"
        );
        assert_eq!(
            map.max_entries as usize, spec.max_entries,
            "capacity of {name}"
        );
        check(&btf, map.key, &layouts, &mut met)?;
        check(&btf, map.value, &layouts, &mut met)?;
    }
    assert_eq!(
        met.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        layouts.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        "every listed struct is part of a map"
    );
    Ok(())
}
