//! From a seed to a flavour of cluster and a list of steps. Pure: the same seed is the same plan, on
//! every machine.

use std::fmt;

use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

/// Nodes of a cluster.
pub const NODES: usize = 3;
/// The map layouts that are imitated: of an older and of a newer build.
const OTHER_LAYOUTS: [u32; 2] = [1, 9];

/// What the nodes' network is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    Vxlan,
    DirectRouting,
    HostGw,
    DualStack,
}

impl Flavour {
    pub const ALL: [Self; 4] = [
        Self::Vxlan,
        Self::DirectRouting,
        Self::HostGw,
        Self::DualStack,
    ];

    /// The network config.
    pub const fn config(self) -> &'static str {
        match self {
            Self::Vxlan => {
                r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"vxlan"}}"#
            }
            Self::DirectRouting => {
                r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"vxlan","DirectRouting":true}}"#
            }
            Self::HostGw => {
                r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"host-gw"}}"#
            }
            Self::DualStack => {
                r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#
            }
        }
    }

    /// Nodes behind the router: none where they could not be reached.
    pub const fn routed_nodes(self) -> u8 {
        match self {
            Self::HostGw => 0,
            Self::Vxlan | Self::DirectRouting | Self::DualStack => 1,
        }
    }

    pub const fn has_ipv6(self) -> bool {
        matches!(self, Self::DualStack)
    }

    /// The devices of its tunnels.
    pub const fn devices(self) -> &'static [&'static str] {
        match self {
            Self::HostGw => &[],
            Self::Vxlan | Self::DirectRouting => &["flannel.1"],
            Self::DualStack => &["flannel.1", "flannel-v6.1"],
        }
    }
}

/// What is done, and undone where nobody else would. After each step the cluster has to be as before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// kill -9, and again this many milliseconds after each of so many starts.
    Kill {
        node: usize,
        starts: Vec<u16>,
    },
    /// SIGTERM and a start.
    Restart {
        node: usize,
    },
    /// A start on pins of another build.
    Upgrade {
        node: usize,
        from: u32,
    },
    /// A start with clocks that are ahead by so many seconds.
    OtherTime {
        node: usize,
        monotonic: u32,
        boottime: u32,
    },
    /// The agent is stopped (SIGSTOP) for so many milliseconds.
    Freeze {
        node: usize,
        time: u16,
    },
    /// Something is the matter with etcd while a change is made.
    Etcd {
        trouble: Trouble,
        meanwhile: Box<Step>,
    },
    /// All revisions are compacted.
    Compact,
    /// Somebody deletes the lease of a node.
    LoseLease {
        node: usize,
    },
    /// Records that nobody can use, which go again.
    Junk(Junk),
    /// So many peers come and go.
    Peers {
        count: u8,
    },
    /// A pod comes, talks and goes.
    Pod {
        node: usize,
    },
    /// The underlay is gone for so many milliseconds: the interface is down, or its wire is out.
    Flap {
        node: usize,
        time: u16,
        is_wire: bool,
    },
    /// A device is deleted or gets another name.
    Device {
        node: usize,
        is_rename: bool,
    },
    Routes {
        node: usize,
    },
    Neighbours {
        node: usize,
    },
    Forwarding {
        node: usize,
    },
    Rules {
        node: usize,
    },
    /// All pinned links are deleted: no program is attached.
    Links {
        node: usize,
        remedy: Remedy,
    },
    /// A pinned map is deleted, which programs and agent have open. Only a start can tell.
    Map {
        node: usize,
        which: u8,
    },
    /// The routes in the maps are deleted.
    Entries {
        node: usize,
        remedy: Remedy,
    },
}

/// What is the matter with etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Stopped,
    Killed,
    Frozen,
    /// All nodes are refused.
    CutOff,
    /// What a node and etcd send each other is lost.
    Parted(usize),
    /// It comes back empty; somebody writes the network config again.
    LostData,
}

/// What has the agent look at everything sooner than in half a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    Reload,
    Restart,
}

/// Records that nobody can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Junk {
    NoJson,
    NoSubnet,
    OtherBackend,
    /// A lease with the address of a node that has another subnet.
    StolenAddress,
    Huge,
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub flavour: Flavour,
    pub steps: Vec<Step>,
}

/// The kinds of steps, each of which comes before any comes again.
type Kind = fn(&mut StdRng) -> Step;

const KINDS: [Kind; 24] = [
    kill, kill, restart, upgrade, other_time, freeze, etcd, etcd, etcd, etcd, compact, lose_lease,
    junk, peers, pod, flap, device, device, routes, neighbours, rules, links, map, entries,
];

impl Plan {
    pub fn new(seed: u64, length: usize) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let at = usize::try_from(seed % Flavour::ALL.len() as u64).unwrap_or_default();
        let flavour = Flavour::ALL[at];
        let mut steps = Vec::new();
        let mut deck: Vec<Kind> = Vec::new();
        while steps.len() < length {
            let kind = deck.pop().unwrap_or_else(|| {
                deck.extend(KINDS);
                deck.shuffle(&mut random);
                deck.pop().expect("kinds of steps")
            });
            let step = kind(&mut random);
            if step.is_possible(flavour) {
                steps.push(step);
            }
        }
        Self {
            seed,
            flavour,
            steps,
        }
    }
}

impl Step {
    /// Whether there is what it is about.
    fn is_possible(&self, flavour: Flavour) -> bool {
        match self {
            Self::Device { .. } | Self::Neighbours { .. } | Self::Forwarding { .. } => {
                !flavour.devices().is_empty()
            }
            Self::Etcd { meanwhile, .. } => meanwhile.is_possible(flavour),
            _ => true,
        }
    }

    /// How long packets may be lost, milliseconds. Most steps cost none.
    pub fn outage(&self) -> u32 {
        match self {
            Self::Device { .. }
            | Self::Routes { .. }
            | Self::Neighbours { .. }
            | Self::Forwarding { .. } => 3_000,
            Self::Flap { time, .. } => u32::from(*time) + 8_000,
            Self::Etcd { meanwhile, .. } => meanwhile.outage(),
            _ => 0,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etcd { trouble, meanwhile } => write!(f, "etcd {trouble:?}, and {meanwhile}"),
            step => write!(f, "{step:?}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "chaos: seed {}, {:?}", self.seed, self.flavour)?;
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "  {number:>2}: {step}")?;
        }
        Ok(())
    }
}

fn node(random: &mut StdRng) -> usize {
    random.random_range(0..NODES)
}

fn kill(random: &mut StdRng) -> Step {
    let count = random.random_range(0..=3);
    Step::Kill {
        node: node(random),
        starts: (0..count).map(|_| random.random_range(0..600)).collect(),
    }
}

fn restart(random: &mut StdRng) -> Step {
    Step::Restart { node: node(random) }
}

fn upgrade(random: &mut StdRng) -> Step {
    Step::Upgrade {
        node: node(random),
        from: OTHER_LAYOUTS[random.random_range(0..OTHER_LAYOUTS.len())],
    }
}

fn other_time(random: &mut StdRng) -> Step {
    Step::OtherTime {
        node: node(random),
        monotonic: random.next_u32() % 10_000_000,
        boottime: random.next_u32() % 10_000_000,
    }
}

fn freeze(random: &mut StdRng) -> Step {
    Step::Freeze {
        node: node(random),
        time: random.random_range(100..3_000),
    }
}

fn etcd(random: &mut StdRng) -> Step {
    let trouble = match random.random_range(0..6) {
        0 => Trouble::Stopped,
        1 => Trouble::Killed,
        2 => Trouble::Frozen,
        3 => Trouble::CutOff,
        4 => Trouble::Parted(node(random)),
        _ => Trouble::LostData,
    };
    let meanwhile = match random.random_range(0..6) {
        0 => kill(random),
        1 => restart(random),
        2 => freeze(random),
        3 => device(random),
        4 => routes(random),
        _ => pod(random),
    };
    Step::Etcd {
        trouble,
        meanwhile: Box::new(meanwhile),
    }
}

fn compact(_: &mut StdRng) -> Step {
    Step::Compact
}

fn lose_lease(random: &mut StdRng) -> Step {
    Step::LoseLease { node: node(random) }
}

fn junk(random: &mut StdRng) -> Step {
    Step::Junk(match random.random_range(0..5) {
        0 => Junk::NoJson,
        1 => Junk::NoSubnet,
        2 => Junk::OtherBackend,
        3 => Junk::StolenAddress,
        _ => Junk::Huge,
    })
}

fn peers(random: &mut StdRng) -> Step {
    Step::Peers {
        count: random.random_range(1..40),
    }
}

fn pod(random: &mut StdRng) -> Step {
    Step::Pod { node: node(random) }
}

fn flap(random: &mut StdRng) -> Step {
    Step::Flap {
        node: node(random),
        time: random.random_range(10..1_000),
        is_wire: random.random(),
    }
}

fn device(random: &mut StdRng) -> Step {
    Step::Device {
        node: node(random),
        is_rename: random.random(),
    }
}

fn routes(random: &mut StdRng) -> Step {
    Step::Routes { node: node(random) }
}

fn neighbours(random: &mut StdRng) -> Step {
    let node = node(random);
    if random.random() {
        Step::Neighbours { node }
    } else {
        Step::Forwarding { node }
    }
}

fn rules(random: &mut StdRng) -> Step {
    Step::Rules { node: node(random) }
}

fn remedy(random: &mut StdRng) -> Remedy {
    if random.random() {
        Remedy::Reload
    } else {
        Remedy::Restart
    }
}

fn links(random: &mut StdRng) -> Step {
    Step::Links {
        node: node(random),
        remedy: remedy(random),
    }
}

fn map(random: &mut StdRng) -> Step {
    Step::Map {
        node: node(random),
        which: random.random_range(0..32),
    }
}

fn entries(random: &mut StdRng) -> Step {
    Step::Entries {
        node: node(random),
        remedy: remedy(random),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, mem};

    use super::*;

    #[test]
    fn a_seed_is_the_same_plan_every_time_and_another_seed_another_one() {
        for seed in 0..50 {
            let plan = Plan::new(seed, 30);
            assert_eq!(plan, Plan::new(seed, 30));
            assert_eq!(plan.to_string(), Plan::new(seed, 30).to_string());
            assert_ne!(plan.steps, Plan::new(seed + 4, 30).steps);
            assert_eq!(plan.steps[..10], Plan::new(seed, 10).steps);
        }
    }

    #[test]
    fn every_kind_of_step_comes_soon_in_every_flavour() {
        let kinds = |seed| -> BTreeSet<_> {
            let steps = Plan::new(seed, KINDS.len() * 2).steps.into_iter();
            let discriminant = |step: Step| format!("{:?}", mem::discriminant(&step));
            steps.map(discriminant).collect()
        };
        for seed in 0..4 {
            let without = match Plan::new(seed, 0).flavour {
                Flavour::HostGw => 3,
                _ => 1,
            };
            assert!(kinds(seed).len() >= 20 - without, "{:?}", kinds(seed));
        }
    }

    #[test]
    fn nothing_is_done_to_devices_where_there_are_none() {
        let plan = Plan::new(2, 200);
        assert_eq!(plan.flavour, Flavour::HostGw);
        let text = plan.to_string();
        assert!(
            !text.contains("Device") && !text.contains("Neighbours"),
            "{text}"
        );
    }
}
