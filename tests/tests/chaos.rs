//! Random damage to clusters whose pods talk: `overlay_tests::chaos`. The seeds are fixed; others are run by
//! `cargo xtask chaos`.

use overlay_tests::{
    chaos::{self, Flavour, Plan},
    requirements::require_root,
};

const STEPS: usize = 12;

fn survive(seed: u64, flavour: Flavour) {
    require_root();
    let plan = Plan::new(seed, STEPS);
    assert_eq!(plan.flavour, flavour, "of seed {seed}");
    if let Err(error) = chaos::run(&plan) {
        panic!("{error:#}");
    }
}

#[test]
fn a_vxlan_cluster_survives_chaos() {
    survive(0, Flavour::Vxlan);
}

#[test]
fn a_cluster_with_direct_routes_survives_chaos() {
    survive(1, Flavour::DirectRouting);
}

#[test]
fn a_host_gw_cluster_survives_chaos() {
    survive(2, Flavour::HostGw);
}

#[test]
fn a_dual_stack_cluster_survives_chaos() {
    survive(3, Flavour::DualStack);
}
