//! Two labs that differ in one thing: in one the fast path is on, in the other it is off. What
//! happens in them must not differ.

pub mod packets;
pub mod raw;
pub mod sequence;

use std::{fs, panic::resume_unwind, thread};

use anyhow::{Result, ensure};

use crate::lab::{Builder, Lab, scenario, subnet_env::SubnetEnv};

/// MTU of pods: that of the underlay without the tunnel's headers.
pub const POD_MTU: u32 = 1450;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Fast,
    Off,
}

impl Mode {
    const fn argument(self) -> &'static str {
        match self {
            Self::Fast => "--fastpath=strict",
            Self::Off => "--fastpath=off",
        }
    }
}

/// Runs `test` in two labs at a time; what it returned with the fast path, and without. Both labs
/// have the same pod addresses: node `n<i>` has the subnet 10.5.i.0/24.
pub fn in_both_modes<T: Send>(
    builder: &Builder,
    arguments: &[&str],
    test: impl Fn(&Lab, Mode) -> Result<T> + Sync,
) -> [T; 2] {
    thread::scope(|scope| {
        let test = &test;
        let runs = [Mode::Fast, Mode::Off]
            .map(|mode| scope.spawn(move || in_mode(builder, arguments, mode, test)));
        runs.map(|run| run.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Runs `test` in one of the two.
pub fn in_mode<T>(
    builder: &Builder,
    arguments: &[&str],
    mode: Mode,
    test: impl FnOnce(&Lab, Mode) -> Result<T>,
) -> T {
    let mut returned = None;
    scenario(builder.clone(), |lab| {
        let arguments = [arguments, &[mode.argument()]].concat();
        let mut pinned = Vec::new();
        for (node, third) in lab.nodes().iter().zip(1..) {
            let env = SubnetEnv {
                network: "10.5.0.0/16".parse()?,
                gateway: format!("10.5.{third}.1/24").parse()?,
                mtu: POD_MTU,
                ip_masq: false,
            };
            // A node keeps the subnet it finds in its file.
            fs::write(&node.subnet_file, env.to_text())?;
            node.start_agent(lab.store(), &arguments)?;
            pinned.push(env.gateway);
        }
        lab.wait_converged()?;
        for (node, pinned) in lab.nodes().iter().zip(pinned) {
            let gateway = node.subnet_env()?.gateway;
            ensure!(
                gateway == pinned,
                "{} has {gateway}, not {pinned}",
                node.name
            );
        }
        returned = Some(test(lab, mode)?);
        Ok(())
    });
    returned.expect("a scenario that passed has run its test")
}
