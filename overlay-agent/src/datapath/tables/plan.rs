//! What must change in the maps: a pure comparison of their content with the wanted nodes.
//!
//! A node keeps its index as long as its subnet is leased, so flows follow a node that moves to
//! another address without relearning. The order of the steps keeps every packet right:
//!
//! 1. routes go first, so nothing new is sent to a node that goes;
//! 2. nodes that stay are brought up to date, nodes that go are invalidated;
//! 3. the configuration, with another generation if flows may refer to what went;
//! 4. only then indexes are given out, freed ones last;
//! 5. a route is written after the node it points to.
//!
//! A crash between any two steps leaves maps that the next comparison completes.

use std::collections::{BTreeMap, BTreeSet};

use overlay_common::node::Node;

use crate::{
    datapath::maps::contents::{Limits, Tables, subnet_of},
    model::{Family, V4},
};

/// One write, or one group of writes to a single entry. What is wanted of a node is not copied: a large cluster has
/// tens of thousands of steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<'a, F: Family = V4> {
    RemoveRoute(F::Network),
    RemoveNode(u32),
    UpdateNode {
        index: u32,
        node: &'a Node<F>,
        /// The VTEP address, the MTU of the route to it or how it may be reached changes: the next
        /// hop has to be resolved again.
        moved: bool,
    },
    /// Write the configuration; with `flush` under another generation.
    Configure {
        flush: bool,
    },
    AddNode {
        index: u32,
        node: &'a Node<F>,
    },
    RemovePeer(F::Be),
    PutPeer {
        vtep: F::Be,
        index: u32,
    },
    PutRoute {
        subnet: F::Network,
        index: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPlan<'a, F: Family = V4> {
    pub steps: Vec<Step<'a, F>>,
    /// Nodes that found no room.
    pub left_to_kernel: Vec<F::Network>,
}

/// Compares `observed` with `wanted`, the valid node entry of each peer's subnet.
pub fn plan<'a, F: Family>(
    observed: &Tables<F>,
    wanted: &'a BTreeMap<F::Network, Node<F>>,
    limits: Limits,
) -> MapPlan<'a, F> {
    let room = limits.routes.min(limits.peers) as usize;
    let whole = Whole {
        tables: observed,
        limits,
        room,
    };
    plan_within(observed, wanted, &whole)
}

/// The tables of which a part is compared.
pub(super) struct Whole<'a, F: Family> {
    pub tables: &'a Tables<F>,
    pub limits: Limits,
    /// How many subnets the part may have.
    pub room: usize,
}

/// Compares a part of the tables with what is wanted of it.
pub(super) fn plan_within<'a, F: Family>(
    observed: &Tables<F>,
    wanted: &'a BTreeMap<F::Network, Node<F>>,
    whole: &Whole<'_, F>,
) -> MapPlan<'a, F> {
    let kept = kept_indexes(observed, wanted);
    let mut assigned = kept.clone();
    let left_to_kernel = assign_new(observed, wanted, whole, &mut assigned);

    // A route to an index that is freed goes, even if its subnet is given that very index again.
    let stale_routes: Vec<_> = observed
        .routes
        .iter()
        .filter(|&(subnet, index)| kept.get(subnet) != Some(index))
        .map(|(&subnet, _)| subnet)
        .collect();
    let stays =
        |subnet, index| kept.contains_key(subnet) && observed.routes.get(subnet) == Some(index);
    let new_routes: Vec<_> = assigned
        .iter()
        .filter(|&(subnet, index)| !stays(subnet, index))
        .map(|(&subnet, &index)| (subnet, index))
        .collect();
    let used: BTreeSet<u32> = kept.values().copied().collect();
    let stale_nodes = observed.nodes.keys().filter(|index| !used.contains(index));
    let peers = wanted_peers(observed, wanted, &assigned);

    // Flows to an address depend on the route to it: they are affected when that route goes, or
    // when a more specific one appears. A route to addresses that had none concerns no flow.
    let flush = !stale_routes.is_empty()
        || stale_nodes.clone().next().is_some()
        || new_routes
            .iter()
            .any(|&(subnet, _)| is_covered::<F>(subnet, &whole.tables.routes));

    let mut steps: Vec<Step<'a, F>> = stale_routes.into_iter().map(Step::RemoveRoute).collect();
    for (subnet, &index) in &kept {
        if let (Some(old), Some(node)) = (observed.nodes.get(&index), wanted.get(subnet))
            && old != node
        {
            steps.push(Step::UpdateNode {
                index,
                node,
                moved: (old.flags, old.vtep, old.route_mtu)
                    != (node.flags, node.vtep, node.route_mtu),
            });
        }
    }
    steps.extend(stale_nodes.map(|&index| Step::RemoveNode(index)));
    steps.push(Step::Configure { flush });
    for (subnet, &index) in &assigned {
        if let (false, Some(node)) = (kept.contains_key(subnet), wanted.get(subnet)) {
            steps.push(Step::AddNode { index, node });
        }
    }
    let gone = observed
        .peers
        .keys()
        .filter(|vtep| !peers.contains_key(vtep));
    steps.extend(gone.map(|&vtep| Step::RemovePeer(vtep)));
    let put = peers
        .iter()
        .filter(|&(vtep, index)| observed.peers.get(vtep) != Some(index));
    steps.extend(put.map(|(&vtep, &index)| Step::PutPeer { vtep, index }));
    steps.extend(
        new_routes
            .into_iter()
            .map(|(subnet, index)| Step::PutRoute { subnet, index }),
    );
    MapPlan {
        steps,
        left_to_kernel,
    }
}

/// The index of each wanted subnet that has one already. Of two entries for a subnet (a crash in
/// the middle of a change) the one with the route counts.
fn kept_indexes<F: Family>(
    observed: &Tables<F>,
    wanted: &BTreeMap<F::Network, Node<F>>,
) -> BTreeMap<F::Network, u32> {
    let mut kept = BTreeMap::new();
    for (&index, node) in observed.nodes.range(1..) {
        let Some(subnet) = subnet_of(node).filter(|subnet| wanted.contains_key(subnet)) else {
            continue;
        };
        if observed.routes.get(&subnet) == Some(&index) {
            kept.insert(subnet, index);
        } else {
            kept.entry(subnet).or_insert(index);
        }
    }
    kept
}

/// Gives an index to each wanted subnet without one, freed indexes last. Returns those that got
/// none.
fn assign_new<F: Family>(
    observed: &Tables<F>,
    wanted: &BTreeMap<F::Network, Node<F>>,
    whole: &Whole<'_, F>,
    assigned: &mut BTreeMap<F::Network, u32>,
) -> Vec<F::Network> {
    let used: BTreeSet<u32> = assigned.values().copied().collect();
    let never_used = unused(whole.tables, whole.limits);
    let freed = observed
        .nodes
        .keys()
        .copied()
        .filter(|index| *index != 0 && !used.contains(index));
    let mut free = never_used.chain(freed);
    let mut left = Vec::new();
    for &subnet in wanted.keys() {
        if assigned.contains_key(&subnet) {
            continue;
        }
        let index = if assigned.len() < whole.room {
            free.next()
        } else {
            None
        };
        match index {
            Some(index) => {
                assigned.insert(subnet, index);
            }
            None => left.push(subnet),
        }
    }
    left
}

/// The indexes that no node has, the lowest first.
fn unused<F: Family>(tables: &Tables<F>, limits: Limits) -> impl Iterator<Item = u32> {
    let nodes = tables.nodes.len() - usize::from(tables.nodes.contains_key(&0));
    let last = tables.nodes.last_key_value().map_or(0, |(&last, _)| last);
    // Mostly there is none below the last one: nobody need look at each of thousands for a single peer.
    let first = if last as usize == nodes { last + 1 } else { 1 };
    let used = tables.nodes.range(first..).map(|(index, _)| *index);
    let mut used = used.peekable();
    (first..limits.nodes).filter(move |index| used.next_if_eq(index).is_none())
}

/// The node behind each VTEP address. A node that leases two subnets has two entries: the one the
/// address already points to stays, else the first subnet's.
fn wanted_peers<F: Family>(
    observed: &Tables<F>,
    wanted: &BTreeMap<F::Network, Node<F>>,
    assigned: &BTreeMap<F::Network, u32>,
) -> BTreeMap<F::Be, u32> {
    let mut peers = BTreeMap::new();
    for (subnet, &index) in assigned {
        let Some(node) = wanted.get(subnet) else {
            continue;
        };
        if observed.peers.get(&node.vtep) == Some(&index) {
            peers.insert(node.vtep, index);
        } else {
            peers.entry(node.vtep).or_insert(index);
        }
    }
    peers
}

/// True if one of `routes` is a proper supernet of `subnet`.
fn is_covered<F: Family>(subnet: F::Network, routes: &BTreeMap<F::Network, u32>) -> bool {
    (0..F::prefix(subnet)).any(|prefix| {
        F::with_prefix(F::first(subnet), prefix)
            .and_then(|wider| F::with_prefix(F::first(wider), prefix))
            .is_some_and(|wider| routes.contains_key(&wider))
    })
}

#[cfg(test)]
mod tests {
    use ipnetwork::Ipv4Network;
    use overlay_common::{addr::Ipv4Be, node::NODE_VALID};
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        nodes: 8,
        routes: 16,
        peers: 8,
    };

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn node(subnet: Ipv4Network, vtep: [u8; 4]) -> Node {
        Node {
            flags: NODE_VALID,
            vtep: Ipv4Be { octets: vtep },
            subnet: subnet.network().into(),
            prefix_len: subnet.prefix(),
            ..Node::default()
        }
    }

    fn wanted(peers: &[(&str, [u8; 4])]) -> BTreeMap<Ipv4Network, Node> {
        peers
            .iter()
            .map(|&(subnet, vtep)| (net(subnet), node(net(subnet), vtep)))
            .collect()
    }

    /// What the executor does to the maps, with the checks it cannot make.
    fn run(tables: &mut Tables, plan: &MapPlan<'_>) {
        let mut configured = false;
        for step in &plan.steps {
            match *step {
                Step::RemoveRoute(subnet) => {
                    assert!(!configured, "routes go before the generation changes");
                    tables.routes.remove(&subnet).expect("the route is there");
                }
                Step::RemoveNode(index) => {
                    assert!(!configured, "nodes go before the generation changes");
                    assert!(
                        tables.routes.values().all(|&node| node != index),
                        "{index} is routed"
                    );
                    tables.nodes.remove(&index).expect("the node is there");
                }
                Step::UpdateNode { index, node, moved } => {
                    let old = tables
                        .nodes
                        .insert(index, *node)
                        .expect("the node is there");
                    assert_eq!(moved, old.vtep != node.vtep);
                }
                Step::Configure { .. } => configured = true,
                Step::AddNode { index, node } => {
                    assert!(
                        configured,
                        "an index is given out after the generation changed"
                    );
                    assert_ne!(index, 0);
                    assert_eq!(tables.nodes.insert(index, *node), None, "{index} is free");
                }
                Step::RemovePeer(vtep) => {
                    tables.peers.remove(&vtep).expect("the peer is there");
                }
                Step::PutPeer { vtep, index } => {
                    assert!(tables.nodes.contains_key(&index), "peer of a missing node");
                    tables.peers.insert(vtep, index);
                }
                Step::PutRoute { subnet, index } => {
                    assert!(tables.nodes.contains_key(&index), "route to a missing node");
                    tables.routes.insert(subnet, index);
                }
            }
        }
        assert!(configured);
    }

    fn converge<'a>(tables: &mut Tables, wanted: &'a BTreeMap<Ipv4Network, Node>) -> MapPlan<'a> {
        let change = plan(tables, wanted, LIMITS);
        run(tables, &change);
        assert_eq!(
            plan(tables, wanted, LIMITS).steps,
            [Step::Configure { flush: false }],
            "a second comparison finds nothing to do"
        );
        change
    }

    fn flushes(plan: &MapPlan<'_>) -> bool {
        plan.steps.contains(&Step::Configure { flush: true })
    }

    #[test]
    fn new_peers_get_a_node_a_peer_and_a_route_and_disturb_no_flow() {
        let mut tables = Tables::default();
        let two = wanted(&[("10.1.1.0/24", [9, 9, 9, 1]), ("10.1.2.0/24", [9, 9, 9, 2])]);
        let change = converge(&mut tables, &two);
        assert!(!flushes(&change));
        assert_eq!(
            tables.routes,
            [(net("10.1.1.0/24"), 1), (net("10.1.2.0/24"), 2)].into()
        );
        assert_eq!(tables.peers.len(), 2);
    }

    #[test]
    fn a_peer_that_moves_keeps_its_index_and_its_flows() {
        let mut tables = Tables::default();
        converge(&mut tables, &wanted(&[("10.1.1.0/24", [9, 9, 9, 1])]));
        let after = wanted(&[("10.1.1.0/24", [9, 9, 9, 7])]);
        let change = converge(&mut tables, &after);
        let node = &after[&net("10.1.1.0/24")];
        let vtep = |last| Ipv4Be {
            octets: [9, 9, 9, last],
        };
        assert_eq!(
            change.steps,
            [
                Step::UpdateNode {
                    index: 1,
                    node,
                    moved: true
                },
                Step::Configure { flush: false },
                Step::RemovePeer(vtep(1)),
                Step::PutPeer {
                    vtep: vtep(7),
                    index: 1
                },
            ]
        );
    }

    #[test]
    fn a_peer_that_goes_flushes_and_its_index_is_reused_last() {
        let mut tables = Tables::default();
        converge(
            &mut tables,
            &wanted(&[("10.1.1.0/24", [9, 9, 9, 1]), ("10.1.2.0/24", [9, 9, 9, 2])]),
        );
        let others = wanted(&[("10.1.2.0/24", [9, 9, 9, 2]), ("10.1.3.0/24", [9, 9, 9, 3])]);
        let change = converge(&mut tables, &others);
        assert!(flushes(&change));
        assert_eq!(
            tables.routes,
            [(net("10.1.2.0/24"), 2), (net("10.1.3.0/24"), 3)].into()
        );
    }

    #[test]
    fn a_more_specific_route_flushes_a_wider_one_does_not() {
        let mut tables = Tables::default();
        converge(&mut tables, &wanted(&[("10.1.0.0/16", [9, 9, 9, 1])]));
        let narrower = [("10.1.0.0/16", [9, 9, 9, 1]), ("10.1.2.0/24", [9, 9, 9, 2])];
        assert!(flushes(&converge(&mut tables, &wanted(&narrower))));
        let wider = [narrower[0], narrower[1], ("10.0.0.0/8", [9, 9, 9, 3])];
        assert!(!flushes(&converge(&mut tables, &wanted(&wider))));
    }

    #[test]
    fn when_the_maps_are_full_further_nodes_are_left_to_the_kernel() {
        let subnets: Vec<_> = (1..=9).map(|third| format!("10.1.{third}.0/24")).collect();
        let peers: Vec<_> = subnets
            .iter()
            .zip(1..)
            .map(|(subnet, last)| (subnet.as_str(), [9, 9, 9, last]))
            .collect();
        let mut tables = Tables::default();
        let all = wanted(&peers);
        let change = converge(&mut tables, &all);
        assert_eq!(
            change.left_to_kernel,
            [net("10.1.8.0/24"), net("10.1.9.0/24")]
        );
        let fewer = wanted(&peers[1..]);
        let change = converge(&mut tables, &fewer);
        assert_eq!(change.left_to_kernel, [net("10.1.9.0/24")]);
        assert_eq!(
            tables.routes[&net("10.1.8.0/24")],
            1,
            "the freed index serves another node"
        );
    }

    #[test]
    fn a_route_to_an_index_that_is_freed_goes_before_the_index() {
        let index_of_another = node(net("10.1.2.0/24"), [9, 9, 9, 2]);
        let mut tables = Tables {
            nodes: (1..LIMITS.nodes)
                .map(|index| (index, index_of_another))
                .collect(),
            routes: [(net("10.1.5.0/24"), 1)].into(),
            peers: BTreeMap::new(),
        };
        converge(&mut tables, &wanted(&[("10.1.5.0/24", [9, 9, 9, 5])]));
        let five = node(net("10.1.5.0/24"), [9, 9, 9, 5]);
        let served = tables.nodes[&tables.routes[&net("10.1.5.0/24")]];
        assert_eq!(served, five);
    }

    #[test]
    fn a_node_with_two_leases_is_one_peer_and_stays_the_same_one() {
        let mut tables = Tables::default();
        converge(&mut tables, &wanted(&[("10.1.5.0/24", [9, 9, 9, 1])]));
        let both = wanted(&[("10.1.5.0/24", [9, 9, 9, 1]), ("10.1.2.0/24", [9, 9, 9, 1])]);
        converge(&mut tables, &both);
        assert_eq!(
            tables.peers,
            [(
                Ipv4Be {
                    octets: [9, 9, 9, 1]
                },
                1
            )]
            .into()
        );
    }

    proptest! {
        #[test]
        fn any_maps_converge_to_what_is_wanted(
            nodes in prop::collection::btree_map(0u32..8, (0u8..6, 0u8..4), 0..8),
            routes in prop::collection::btree_map(0u8..6, 0u32..8, 0..6),
            peers in prop::collection::btree_map(0u8..4, 0u32..8, 0..4),
            want in prop::collection::btree_map(0u8..6, 0u8..4, 0..6),
        ) {
            let subnet = |third: u8| net(&format!("10.1.{third}.0/24"));
            let vtep = |last: u8| [9, 9, 9, last];
            let mut tables = Tables {
                nodes: nodes.into_iter().map(|(i, (s, v))| (i, node(subnet(s), vtep(v)))).collect(),
                routes: routes.into_iter().map(|(s, i)| (subnet(s), i)).collect(),
                peers: peers.into_iter().map(|(v, i)| (Ipv4Be { octets: vtep(v) }, i)).collect(),
            };
            let wanted = want.into_iter().map(|(s, v)| (subnet(s), node(subnet(s), vtep(v)))).collect();
            converge(&mut tables, &wanted);
            let routed: BTreeMap<_, _> =
                tables.routes.iter().map(|(&s, index)| (s, tables.nodes[index])).collect();
            prop_assert_eq!(routed, wanted);
            prop_assert_eq!(tables.nodes.len(), tables.routes.len());
        }
    }
}
