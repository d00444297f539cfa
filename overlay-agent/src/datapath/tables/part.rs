//! What must change in the maps when some peers have changed and the maps hold exactly what is wanted of
//! all others: work for those peers alone, however many others there are. Pure.

use std::collections::{BTreeMap, BTreeSet};

use overlay_common::node::Node;

use super::plan::{MapPlan, Whole, plan_within};
use crate::{
    datapath::maps::contents::{Limits, Tables},
    model::Family,
};

/// The addresses that several nodes have: of those nodes each may concern the others.
pub fn shared<F: Family>(nodes: &BTreeMap<F::Network, Node<F>>) -> BTreeSet<F::Be> {
    let mut seen = BTreeSet::new();
    let vteps = nodes.values().map(|node| node.vtep);
    vteps.filter(|vtep| !seen.insert(*vtep)).collect()
}

/// Compares what `tables` have of some `subnets` with what is `wanted` of them. `None` if that concerns
/// other subnets, or there is no room.
pub fn plan_part<'a, F: Family>(
    tables: &Tables<F>,
    subnets: &BTreeSet<F::Network>,
    wanted: &'a BTreeMap<F::Network, Node<F>>,
    shared: &BTreeSet<F::Be>,
    limits: Limits,
) -> Option<MapPlan<'a, F>> {
    let mut part = Tables::default();
    for &subnet in subnets {
        if let Some(&index) = tables.routes.get(&subnet) {
            part.routes.insert(subnet, index);
            part.nodes.insert(index, *tables.nodes.get(&index)?);
        }
    }
    if !self::shared(wanted).is_empty() {
        return None;
    }
    let vteps = part.nodes.values().chain(wanted.values());
    for vtep in vteps.map(|node| node.vtep).collect::<BTreeSet<_>>() {
        if shared.contains(&vtep) {
            return None;
        }
        if let Some(&index) = tables.peers.get(&vtep) {
            part.nodes.contains_key(&index).then_some(())?;
            part.peers.insert(vtep, index);
        }
    }
    let others = tables.routes.len() - part.routes.len();
    let room = limits.routes.min(limits.peers) as usize;
    let whole = Whole {
        tables,
        limits,
        room: room.saturating_sub(others),
    };
    let plan = plan_within(&part, wanted, &whole);
    plan.left_to_kernel.is_empty().then_some(plan)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use ipnetwork::Ipv4Network;
    use overlay_common::node::NODE_VALID;
    use proptest::prelude::*;

    use super::*;
    use crate::datapath::tables::plan::{Step, plan};

    const LIMITS: Limits = Limits {
        nodes: 10,
        routes: 16,
        peers: 12,
    };

    type Nodes = BTreeMap<Ipv4Network, Node>;

    /// Subnets of two lengths, some within others.
    fn subnet(number: u8) -> Ipv4Network {
        let prefix = if number.is_multiple_of(4) { 22 } else { 24 };
        Ipv4Network::new(Ipv4Addr::new(10, 1, number, 0), prefix).unwrap()
    }

    fn node((number, vtep): (u8, u8)) -> (Ipv4Network, Node) {
        let subnet = subnet(number);
        let node = Node {
            flags: NODE_VALID,
            vtep: Ipv4Addr::new(192, 0, 2, vtep).into(),
            subnet: subnet.network().into(),
            prefix_len: subnet.prefix(),
            ..Node::default()
        };
        (subnet, node)
    }

    fn run(tables: &mut Tables, plan: &MapPlan<'_>) {
        for step in &plan.steps {
            match *step {
                Step::RemoveRoute(subnet) => drop(tables.routes.remove(&subnet)),
                Step::RemoveNode(index) => drop(tables.nodes.remove(&index)),
                Step::UpdateNode { index, node, .. } | Step::AddNode { index, node } => {
                    tables.nodes.insert(index, *node);
                }
                Step::Configure { .. } => {}
                Step::RemovePeer(vtep) => drop(tables.peers.remove(&vtep)),
                Step::PutPeer { vtep, index } => drop(tables.peers.insert(vtep, index)),
                Step::PutRoute { subnet, index } => drop(tables.routes.insert(subnet, index)),
            }
        }
    }

    #[test]
    fn a_change_of_one_peer_needs_no_look_at_others() {
        let wanted: Nodes = (1..8).map(|number| node((number, number))).collect();
        let mut tables = Tables::default();
        let first = plan(&tables, &wanted, LIMITS);
        run(&mut tables, &first);
        let changed = [subnet(3), subnet(9)].into();
        let after: Nodes = [node((3, 30)), node((9, 9))].into();
        let plan = plan_part(&tables, &changed, &after, &BTreeSet::new(), LIMITS);
        assert!(plan.is_some_and(|plan| plan.steps.len() == 7));
    }

    proptest! {
        #[test]
        fn a_part_changes_as_the_whole_would(
            start in prop::collection::btree_map(0u8..12, 0u8..14, 0..12),
            changes in prop::collection::vec(
                prop::collection::btree_map(0u8..12, prop::option::of(0u8..14), 1..4),
                1..8,
            ),
        ) {
            let mut tables = Tables::default();
            let mut wanted: Nodes = start.into_iter().map(node).collect();
            let first = plan(&tables, &wanted, LIMITS);
            run(&mut tables, &first);
            let mut is_complete = first.left_to_kernel.is_empty();
            for change in changes {
                let several = shared(&wanted);
                let subnets: BTreeSet<_> = change.keys().map(|number| subnet(*number)).collect();
                for (number, vtep) in change {
                    match vtep {
                        Some(vtep) => wanted.extend([node((number, vtep))]),
                        None => drop(wanted.remove(&subnet(number))),
                    }
                }
                let of_part = |(subnet, _): &(&Ipv4Network, &Node)| subnets.contains(subnet);
                let some: Nodes = wanted.iter().filter(of_part).map(|(s, n)| (*s, *n)).collect();
                let part = plan_part(&tables, &subnets, &some, &several, LIMITS);
                let whole = plan(&tables, &wanted, LIMITS);
                if let Some(part) = part.filter(|_| is_complete) {
                    prop_assert_eq!(&part, &whole);
                }
                is_complete = whole.left_to_kernel.is_empty();
                run(&mut tables, &whole);
            }
        }
    }
}
