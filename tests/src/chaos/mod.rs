//! Chaos: random damage to a cluster whose pods talk, and the proof that it ends as it began.
//!
//! A seed is a [`Plan`]: a flavour of network and a list of steps. [`World`] builds the cluster, has its
//! pods talk and takes the steps; after each one [`Judge`] waits until every node is as it should be,
//! and in the end tells what every step has cost each flow, and what is left over.
//!
//! Clocks that jump: a started agent gets clocks that are far ahead (a time namespace, which has offsets for
//! `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME`), and a running one is stopped for seconds. The clock of the day has
//! no namespace, and that of a running process cannot be moved: neither is tried.

mod damage;
mod deal;
mod etcd;
mod judge;
mod plan;
mod traffic;
mod world;

use anyhow::{Context as _, Result, bail};

pub use self::plan::{Flavour, Plan, SEEDS};
use self::{judge::Judge, world::World};
use crate::lab::Lab;

/// Steps of a plan, unless more or fewer are asked for: about a minute.
pub const STEPS: usize = 24;

/// Runs a plan. The error says what is not right; what every step cost is printed in any case.
pub fn run(plan: &Plan) -> Result<()> {
    println!("{plan}");
    let lab = Lab::builder()
        .nodes(plan::NODES - plan.flavour.routed_nodes())
        .routed_nodes(plan.flavour.routed_nodes())
        .config(plan.flavour.config())
        .build()
        .context("building the lab")?;
    let mut world = World::start(lab, plan.flavour)?;
    let result = live_through(&mut world, plan);
    let (costs, broken) = world.stop_traffic();
    let mut problems: Vec<_> = result
        .err()
        .iter()
        .map(|error| format!("{error:#}"))
        .collect();
    problems.extend(broken);
    println!("chaos: seed {}: datagrams lost by each flow", plan.seed);
    for (number, step) in plan.steps.iter().enumerate() {
        let Some(cost) = costs.get(number) else { break };
        let lost: Vec<_> = cost.lost.iter().map(ToString::to_string).collect();
        println!(
            "  {number:>2}: {:<30} {:>5.1} s  {step}",
            lost.join(" "),
            cost.time.as_secs_f32()
        );
        let most = cost.lost.iter().max().copied().unwrap_or_default();
        if most > traffic::datagrams_in(step.outage()) {
            problems.push(format!(
                "step {number} ({step}) lost {most} datagrams of a flow"
            ));
        }
    }
    if !problems.is_empty() {
        println!("{}", world.evidence());
        bail!("seed {}: {}\n{plan}", plan.seed, problems.join("\n"));
    }
    Ok(())
}

fn live_through(world: &mut World, plan: &Plan) -> Result<()> {
    let judge = Judge::new(world)?;
    for (number, step) in plan.steps.iter().enumerate() {
        world.begin_step()?;
        let taken = world.take(step).and_then(|()| judge.wait_in_order(world));
        taken.with_context(|| format!("step {number} ({step})"))?;
    }
    judge.ensure_nothing_is_left(world)
}
