//! Two labs that differ in one thing: in one the fast path is on, in the other it is off. What
//! happens in them must not differ.

pub mod family;
mod ipv4;
mod ipv6;
pub mod offload;
pub mod packets;
pub mod packets6;
pub mod raw;
pub mod replay;
pub mod sequence;

use std::{fmt::Display, fs, panic::resume_unwind, thread};

use anyhow::{Result, ensure};

use crate::lab::{Builder, Lab, Node, scenario, stock::Cluster};

/// MTU of pods: that of the underlay without the tunnel's headers, of which IPv6 has the larger.
const POD_MTU: u32 = 1450;
const POD_MTU6: u32 = 1430;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Fast,
    Trusted,
    Off,
}

impl Mode {
    const fn argument(self) -> &'static str {
        match self {
            Self::Fast => "--fastpath=strict",
            Self::Trusted => "--fastpath=trusted",
            Self::Off => "--fastpath=off",
        }
    }
}

/// Runs `test` in two labs at a time; what it returned with the fast path, and without. Both labs
/// have the same pod addresses: node `n<i>` has the subnets 10.5.i.0/24 and fd00:10:5:i::/64.
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
        let cluster = lab.cluster()?;
        for (node, number) in lab.nodes().iter().zip(1..) {
            // A node keeps the subnets it finds in its file.
            fs::write(&node.subnet_file, pinned_subnets(&cluster, number))?;
            node.start_agent(lab.store(), &arguments)?;
        }
        lab.wait_converged()?;
        lab.wait_converged6()?;
        for (node, number) in lab.nodes().iter().zip(1..) {
            if cluster.ipv4 {
                ensure_pinned(node, node.subnet_env()?.gateway, &pinned(number))?;
            }
            if cluster.ipv6 {
                ensure_pinned(node, node.subnet_env6()?.gateway, &pinned6(number))?;
            }
        }
        returned = Some(test(lab, mode)?);
        Ok(())
    });
    returned.expect("a scenario that passed has run its test")
}

/// The gateway of node `n<number>`, with the length of its subnet's prefix.
fn pinned(number: u8) -> String {
    format!("10.5.{number}.1/24")
}

fn pinned6(number: u8) -> String {
    format!("fd00:10:5:{number}::1/64")
}

/// The subnet file of node `n<number>`.
fn pinned_subnets(cluster: &Cluster, number: u8) -> String {
    let (mut lines, mut mtu) = (Vec::new(), POD_MTU);
    if cluster.ipv4 {
        lines.push("FLANNEL_NETWORK=10.5.0.0/16".to_owned());
        lines.push(format!("FLANNEL_SUBNET={}", pinned(number)));
    }
    if cluster.ipv6 {
        lines.push("FLANNEL_IPV6_NETWORK=fd00:10:5::/48".to_owned());
        lines.push(format!("FLANNEL_IPV6_SUBNET={}", pinned6(number)));
        mtu = POD_MTU6;
    }
    lines.push(format!("FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n"));
    lines.join("\n")
}

fn ensure_pinned(node: &Node, gateway: impl Display, pinned: &str) -> Result<()> {
    let gateway = gateway.to_string();
    ensure!(
        gateway == pinned,
        "{} has {gateway}, not {pinned}",
        node.name
    );
    Ok(())
}
