//! What is to be changed among a cloud's routes, as it follows from what there is.

use ipnetwork::Ipv4Network;

/// A route of the cloud's, with an IPv4 destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub destination: Ipv4Network,
    /// The node that it leads to, in the cloud's words; none for gateways and the like.
    pub target: Option<String>,
    /// The target is gone.
    pub is_dead: bool,
}

/// This node, as routes see it.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    pub network: Ipv4Network,
    pub subnet: Option<Ipv4Network>,
    pub target: &'a str,
    pub take_over: bool,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Removed, because its target is gone, or because it leads to this node, which has another subnet now.
    Delete(Ipv4Network),
    Create(Ipv4Network),
    /// The route leads elsewhere, to what is named.
    Replace(Ipv4Network, String),
    /// As `Replace`, but it is left alone.
    Foreign(Ipv4Network, String),
}

/// The steps where these routes are, in their order: room is made first, for there are not many routes to a table.
pub fn plan(routes: &[Route], node: &Node<'_>) -> Vec<Step> {
    let is_own = |route: &&Route| node.subnet == Some(route.destination);
    let is_over = |route: &&Route| {
        let inside = is_inside(route.destination, node.network);
        inside && (route.is_dead || route.target.as_deref() == Some(node.target))
    };
    let others = routes.iter().filter(|route| !is_own(route));
    let over = others
        .filter(is_over)
        .map(|route| Step::Delete(route.destination));
    let own = node.subnet.and_then(|subnet| {
        let Some(route) = routes.iter().find(is_own) else {
            return Some(Step::Create(subnet));
        };
        let target = route.target.as_deref();
        if !route.is_dead && target == Some(node.target) {
            return None;
        }
        let target = target.unwrap_or("no node").to_owned();
        Some(if route.is_dead || node.take_over {
            Step::Replace(subnet, target)
        } else {
            Step::Foreign(subnet, target)
        })
    });
    over.chain(own).collect()
}

impl Step {
    /// What has been done, once it is: where, and to which target.
    pub fn done(&self, place: &str, target: &str) -> String {
        match self {
            Self::Delete(destination) => format!("removed the route of {destination} from {place}"),
            Self::Create(destination) => {
                format!("added the route of {destination} to {target} in {place}")
            }
            Self::Replace(destination, other) | Self::Foreign(destination, other) => {
                format!(
                    "the route of {destination} in {place} leads to {target} instead of {other}"
                )
            }
        }
    }
}

/// Why a route that leads elsewhere stays.
pub fn foreign(target: &str) -> String {
    format!(
        "the route leads to {target} since this node has started, and is left alone; restart the agent to \
         have it lead here"
    )
}

/// Whether a destination is a part of the network, and not the whole of it.
fn is_inside(destination: Ipv4Network, network: Ipv4Network) -> bool {
    destination.prefix() > network.prefix() && network.contains(destination.network())
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn route(destination: &str, target: Option<&str>) -> Route {
        Route {
            destination: net(destination),
            target: target.map(str::to_owned),
            is_dead: false,
        }
    }

    fn dead(destination: &str, target: &str) -> Route {
        Route {
            is_dead: true,
            ..route(destination, Some(target))
        }
    }

    fn node(take_over: bool) -> Node<'static> {
        Node {
            network: net("10.20.0.0/16"),
            subnet: Some(net("10.20.3.0/24")),
            target: "eni-own",
            take_over,
        }
    }

    fn own() -> Ipv4Network {
        net("10.20.3.0/24")
    }

    #[test]
    fn a_route_that_is_missing_is_made_and_one_that_is_right_is_left_alone() {
        let others = [
            route("10.0.0.0/16", None),
            route("10.20.4.0/24", Some("eni-other")),
            route("0.0.0.0/0", Some("eni-own")),
        ];
        assert_eq!(plan(&others, &node(true)), [Step::Create(own())]);
        let right = [route("10.20.3.0/24", Some("eni-own"))];
        assert_eq!(plan(&right, &node(true)), []);
        assert_eq!(plan(&right, &node(false)), []);
    }

    #[test]
    fn a_route_to_another_live_node_is_replaced_at_the_start_and_reported_later() {
        let theirs = [route("10.20.3.0/24", Some("eni-other"))];
        let target = "eni-other".to_owned();
        let replace = Step::Replace(own(), target.clone());
        assert_eq!(plan(&theirs, &node(true)), [replace]);
        assert_eq!(plan(&theirs, &node(false)), [Step::Foreign(own(), target)]);
    }

    #[test]
    fn a_dead_route_is_replaced_at_any_time_and_those_of_other_subnets_are_removed_first() {
        let routes = [
            dead("10.20.3.0/24", "eni-gone"),
            dead("10.20.9.0/24", "eni-gone"),
            dead("10.30.9.0/24", "eni-gone"),
        ];
        let expected = [
            Step::Delete(net("10.20.9.0/24")),
            Step::Replace(own(), "eni-gone".to_owned()),
        ];
        assert_eq!(plan(&routes, &node(false)), expected);
    }

    #[test]
    fn routes_of_a_subnet_that_the_node_no_longer_has_are_removed_unless_they_lead_elsewhere() {
        let routes = [
            route("10.20.7.0/24", Some("eni-own")),
            route("10.20.3.0/24", Some("eni-own")),
            route("10.20.8.0/24", Some("eni-other")),
            // The whole network to one node is somebody's own idea.
            route("10.20.0.0/16", Some("eni-own")),
        ];
        let former = Step::Delete(net("10.20.7.0/24"));
        assert_eq!(plan(&routes, &node(true)), slice::from_ref(&former));
        let without = Node {
            subnet: None,
            ..node(true)
        };
        let all = [former, Step::Delete(own())];
        assert_eq!(plan(&routes, &without), all);
    }
}
