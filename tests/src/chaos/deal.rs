//! How a random number becomes a step.

use rand::{Rng as _, RngCore as _, rngs::StdRng};

use super::plan::{Junk, NODES, Remedy, Step, Trouble};

/// The map layouts that are imitated: of an older and of a newer build.
const OTHER_LAYOUTS: [u32; 2] = [1, 9];

/// The kinds of steps, each of which comes before any comes again.
pub type Kind = fn(&mut StdRng) -> Step;

pub const KINDS: [Kind; 27] = [
    kill, kill, restart, upgrade, other_time, freeze, dead, dead, dead, etcd, etcd, etcd, etcd,
    compact, lose_lease, junk, peers, pod, flap, device, device, routes, neighbours, rules, links,
    map, entries,
];

fn node(random: &mut StdRng) -> usize {
    random.random_range(0..NODES.into())
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

fn dead(random: &mut StdRng) -> Step {
    let meanwhile = match random.random_range(0..8) {
        0 => device(random),
        1 => routes(random),
        2 => neighbours(random),
        3 => rules(random),
        4 => links(random),
        5 => entries(random),
        6 => lose_lease(random),
        _ => flap(random),
    };
    Step::Dead {
        node: node(random),
        meanwhile: Box::new(meanwhile),
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
    // With an etcd that answers others.
    let is_there = matches!(trouble, Trouble::CutOff | Trouble::Parted(_));
    let meanwhile = match random.random_range(0..6) {
        0 if is_there => compact(random),
        1 if is_there => lose_lease(random),
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
