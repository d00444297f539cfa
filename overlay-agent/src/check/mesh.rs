//! What the nodes say of each other.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use super::finding::{Finding, first_few};
use crate::probe::{Mesh, Verdict};

/// Names that are shown of a set.
const SHOWN: usize = 3;

/// A finding for each node that others do not reach, and for each way in which they do not.
pub fn examine(mesh: &Mesh) -> Vec<Finding> {
    let mut by_target: BTreeMap<(IpNetwork, Verdict), Vec<IpNetwork>> = BTreeMap::new();
    for pair in &mesh.troubles {
        by_target
            .entry((pair.to, pair.state))
            .or_default()
            .push(pair.from);
    }
    let mut findings: Vec<Finding> = by_target
        .into_iter()
        .map(|((to, verdict), from)| {
            let node = match mesh.address_of(to) {
                Some(address) => format!("{to} at {address}"),
                None => to.to_string(),
            };
            Finding::error(
                "mesh",
                format!(
                    "{node} is {} for {}",
                    verdict.name(),
                    first_few(&from, SHOWN)
                ),
                verdict.describe(),
            )
        })
        .collect();
    let silent: Vec<IpNetwork> = mesh.silent().map(|node| node.subnet).collect();
    if !silent.is_empty() {
        findings.push(Finding::note(
            "mesh",
            format!("{} did not tell whom they reach", first_few(&silent, SHOWN)),
            "nodes with stock flanneld, or with an agent that does not ask its peers or is stopped, cannot; for others \
             see `overlay-agent peers`",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::Severity,
        probe::{MeshNode, Pair},
    };

    fn subnet(last: u8) -> IpNetwork {
        format!("10.1.{last}.0/24").parse().unwrap()
    }

    fn node(last: u8, answered: bool) -> MeshNode {
        MeshNode {
            subnet: subnet(last),
            public_ip: [192, 168, 0, last].into(),
            answered,
        }
    }

    fn pair(from: u8, to: u8, verdict: Verdict) -> Pair {
        Pair {
            from: subnet(from),
            to: subnet(to),
            state: verdict,
        }
    }

    #[test]
    fn nodes_that_all_reach_each_other_have_no_finding() {
        let mesh = Mesh {
            nodes: vec![node(1, true), node(2, true)],
            ways: 2,
            ..Mesh::default()
        };
        assert_eq!(examine(&mesh), []);
    }

    #[test]
    fn one_finding_names_all_that_do_not_reach_a_node_for_one_reason() {
        let mesh = Mesh {
            nodes: (1..=6).map(|last| node(last, last != 6)).collect(),
            ways: 25,
            in_trouble: 6,
            troubles: (1..=5)
                .map(|from| pair(from, 6, Verdict::Blocked))
                .chain([pair(1, 2, Verdict::PathMtu)])
                .collect(),
        };
        let found = examine(&mesh);
        let seen: Vec<_> = { found.iter() }
            .map(|finding| (finding.severity, finding.seen.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (
                    Severity::Error,
                    "10.1.2.0/24 at 192.168.0.2 is path_mtu for 10.1.1.0/24"
                ),
                (
                    Severity::Error,
                    "10.1.6.0/24 at 192.168.0.6 is blocked for 10.1.1.0/24, 10.1.2.0/24, 10.1.3.0/24 and 2 more"
                ),
                (Severity::Note, "10.1.6.0/24 did not tell whom they reach"),
            ]
        );
    }
}
