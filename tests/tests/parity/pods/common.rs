//! Connections between pods.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    differ::Mode,
    lab::{Lab, Pod},
    rules::Protocol,
    services::{Connection, Server},
    traffic::{Address, Endpoint},
    wait::wait_for,
};

pub const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
pub const PORT: u16 = 8080;
pub const DEADLINE: Duration = Duration::from_secs(15);

pub fn pod(lab: &Lab, node: usize, name: &str) -> Result<Pod> {
    let pods = lab.node(node).pods();
    let pod = pods.into_iter().find(|pod| pod.name == name);
    pod.with_context(|| format!("no pod {name}"))
}

pub fn serve<A: Address>(on: &Endpoint<A>) -> Result<Vec<Server>> {
    PROTOCOLS
        .iter()
        .map(|&protocol| Server::start(on, protocol, PORT))
        .collect()
}

pub fn connect<A: Address>(from: &Endpoint<A>, to: A) -> Result<[Connection; 2]> {
    let target = SocketAddr::new(to.into(), PORT);
    Ok([
        Connection::open(from, Protocol::Tcp, target, 0)?,
        Connection::open(from, Protocol::Udp, target, 0)?,
    ])
}

/// Uses the connection until the node of its server delivers it by the fast path, if there is one.
pub fn warm(lab: &Lab, mode: Mode, server: usize, connection: &mut Connection) -> Result<()> {
    wait_for("the fast path to carry a connection", DEADLINE, || {
        let before = lab.node(server).counters()?.fast(Hook::Ingress);
        connection.exchange(1_000, 100)?;
        let fast = lab.node(server).counters()?.fast(Hook::Ingress) - before;
        ensure!(
            mode == Mode::Off || fast >= 8,
            "{fast} of 10 packets were fast"
        );
        Ok(())
    })
}
