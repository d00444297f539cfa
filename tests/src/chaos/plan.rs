//! From a seed to a flavour of cluster and a list of steps. Pure: the same seed is the same plan, on
//! every machine.

use std::fmt;

use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use super::deal::{KINDS, Kind};

/// The seeds of the tests: one of each flavour, and together every kind of step.
pub const SEEDS: [u64; 4] = [28, 13, 6, 23];

/// Nodes of a cluster.
pub const NODES: u8 = 3;

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
    /// The agent is killed, and started after a change.
    Dead {
        node: usize,
        meanwhile: Box<Step>,
    },
    /// Something is the matter with etcd while a change is made.
    Etcd {
        trouble: Trouble,
        meanwhile: Box<Step>,
    },
    /// Something is written, and all revisions are compacted.
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
            Self::Etcd { meanwhile, .. } | Self::Dead { meanwhile, .. } => {
                meanwhile.is_possible(flavour)
            }
            _ => true,
        }
    }

    /// Whether it stays as it is without an agent, to the loss of packets.
    fn needs_agent(&self) -> bool {
        self.outage() > 0 || matches!(self, Self::LoseLease { .. })
    }

    /// How long packets may be lost, milliseconds. Most steps cost none.
    pub fn outage(&self) -> u32 {
        match self {
            Self::Device { .. }
            | Self::Routes { .. }
            | Self::Neighbours { .. }
            | Self::Forwarding { .. } => 3_000,
            Self::Flap { time, .. } => u32::from(*time) + 8_000,
            // An agent believes the first list it gets: without the others' leases they are no peers until
            // they have written them again (ADR 14).
            Self::Etcd {
                trouble: Trouble::LostData,
                meanwhile,
            } if matches!(**meanwhile, Self::Kill { .. } | Self::Restart { .. }) => 3_000,
            Self::Etcd { meanwhile, .. } => meanwhile.outage(),
            // Until the agent has started. Others let go a node whose lease is gone for so long.
            Self::Dead { meanwhile, .. } if meanwhile.needs_agent() => meanwhile.outage() + 8_000,
            _ => 0,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etcd { trouble, meanwhile } => write!(f, "etcd {trouble:?}, and {meanwhile}"),
            Self::Dead { node, meanwhile } => write!(f, "agent {node} dead, and {meanwhile}"),
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, mem};

    use super::*;
    use crate::chaos::STEPS;

    const ALL_KINDS: usize = 21;

    fn kinds(seeds: impl IntoIterator<Item = u64>, length: usize) -> BTreeSet<String> {
        let plans = seeds.into_iter().map(|seed| Plan::new(seed, length));
        let steps = plans.flat_map(|plan| plan.steps);
        let discriminant = |step: Step| format!("{:?}", mem::discriminant(&step));
        steps.map(discriminant).collect()
    }

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
        for seed in 0..4 {
            let without = match Plan::new(seed, 0).flavour {
                Flavour::HostGw => 3,
                _ => 1,
            };
            let kinds = kinds([seed], KINDS.len() * 2);
            assert!(kinds.len() >= ALL_KINDS - without, "{kinds:?}");
        }
    }

    #[test]
    fn the_seeds_of_the_tests_are_one_of_each_flavour_and_have_every_kind_of_step() {
        let flavours = SEEDS.map(|seed| Plan::new(seed, 0).flavour);
        assert_eq!(flavours, Flavour::ALL);
        let kinds = kinds(SEEDS, STEPS);
        assert_eq!(kinds.len(), ALL_KINDS, "{kinds:?}");
        for plan in SEEDS.map(|seed| Plan::new(seed, STEPS)) {
            assert!(!waits_for_peers(&plan), "{plan}");
        }
    }

    /// Whether peers go after leases vanished unseen: they stay for 90 s, as they might come back.
    fn waits_for_peers(plan: &Plan) -> bool {
        let vanish = |step: &Step| match step {
            Step::Etcd { trouble, meanwhile } => {
                *trouble == Trouble::LostData || matches!(**meanwhile, Step::LoseLease { .. })
            }
            _ => false,
        };
        let mut after = plan.steps.iter().skip_while(|step| !vanish(step));
        after.any(|step| matches!(step, Step::Peers { .. } | Step::Junk(Junk::StolenAddress)))
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
