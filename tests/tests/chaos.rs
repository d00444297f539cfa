//! Random damage to clusters whose pods talk: `overlay_tests::chaos`. The seeds are fixed; others are run by
//! `cargo xtask chaos`.

use overlay_tests::{
    chaos::{self, Flavour, Plan, SEEDS},
    requirements::require_root,
};

fn survives(flavour: Flavour) {
    require_root();
    let mut plans = SEEDS.map(|seed| Plan::new(seed, chaos::STEPS)).into_iter();
    let plan = plans.find(|plan| plan.flavour == flavour);
    let plan = plan.expect("a seed of each flavour");
    if let Err(error) = chaos::run(&plan) {
        panic!("{error:#}");
    }
}

#[test]
fn a_vxlan_cluster_survives_chaos() {
    survives(Flavour::Vxlan);
}

#[test]
fn a_cluster_with_direct_routes_survives_chaos() {
    survives(Flavour::DirectRouting);
}

#[test]
fn a_host_gw_cluster_survives_chaos() {
    survives(Flavour::HostGw);
}

#[test]
fn a_dual_stack_cluster_survives_chaos() {
    survives(Flavour::DualStack);
}
