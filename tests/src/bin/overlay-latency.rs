//! How long it takes from a lease written to etcd to the kernel's route, on one node of a lab, and in
//! how many batches a burst of leases is applied.
//!
//! Run it on an idle machine, with a release build of the agent:
//! `cargo build --release -p overlay-agent -p overlay-tests --bins && target/release/overlay-latency`.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use etcd_client::Client;
use overlay_tests::{
    lab::{Lab, store::PREFIX},
    requirements::require_root,
};
use rtnetlink::{
    constants::RTMGRP_IPV4_ROUTE,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        route::{RouteAddress, RouteAttribute},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

const CONFIG: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Args {
    /// Leases written one at a time
    #[arg(long, default_value_t = 300)]
    rounds: u32,
    /// Pause between two of them, in milliseconds
    #[arg(long, default_value_t = 50)]
    pause: u64,
    /// Peers there are before
    #[arg(long, default_value_t = 0)]
    peers: u32,
    /// Leases of the burst
    #[arg(long, default_value_t = 1_000)]
    burst: u32,
    /// Arguments of the agent
    #[arg(last = true)]
    agent: Vec<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    require_root();
    let lab = Lab::builder().nodes(1).config(CONFIG).build()?;
    let extra: Vec<_> = args.agent.iter().map(String::as_str).collect();
    lab.start_agents(&extra)?;
    let node = lab.node(0);
    let routes = node.namespace.enter(Routes::follow)?;

    if args.peers > 0 {
        let took = burst(&lab, &routes, 0..args.peers)?;
        println!("{} peers known after {took:.1?}", args.peers);
    }
    let first = args.peers;
    let (installed, answered) = one_by_one(&lab, &routes, first, &args)?;
    println!("{} leases, from the write", args.rounds);
    print("to etcd's answer", answered);
    print("to the route", installed);
    let before = batches(&lab)?;
    let first = first + args.rounds;
    let took = burst(&lab, &routes, first..first + args.burst)?;
    // The last batch is logged after its last route.
    std::thread::sleep(Duration::from_millis(500));
    let batches = batches(&lab)? - before;
    println!(
        "burst of {} leases: {took:.1?}, {batches} batches",
        args.burst
    );
    Ok(())
}

/// Writes leases one at a time; how long each took to become a route, and to be acknowledged.
fn one_by_one(
    lab: &Lab,
    routes: &Routes,
    first: u32,
    args: &Args,
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let endpoints = lab.store().endpoints();
    lab.underlay().router().enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut client = runtime.block_on(Client::connect([endpoints], None))?;
        let (mut installed, mut answered) = (Vec::new(), Vec::new());
        for index in first..first + args.rounds {
            std::thread::sleep(Duration::from_millis(args.pause));
            let (key, value) = record(index);
            let key = format!("{PREFIX}/subnets/{key}");
            let written = Instant::now();
            runtime.block_on(client.put(key, value, None))?;
            answered.push(written.elapsed());
            routes.wait_for(&mut [subnet(index)].into())?;
            installed.push(written.elapsed());
        }
        Ok((installed, answered))
    })
}

/// Writes leases as fast as etcd takes them; how long until the last one is a route.
fn burst(lab: &Lab, routes: &Routes, indexes: std::ops::Range<u32>) -> Result<Duration> {
    let mut wanted: BTreeSet<_> = indexes.clone().map(subnet).collect();
    let records: Vec<_> = indexes.map(record).collect();
    let written = Instant::now();
    lab.store().put_leases(&records)?;
    routes.wait_for(&mut wanted)?;
    Ok(written.elapsed())
}

/// How often the agent has changed the kernel tier.
fn batches(lab: &Lab) -> Result<usize> {
    let log = fs::read_to_string(lab.node(0).log_file())?;
    Ok(log.matches("kernel tier reconciled").count())
}

/// From 10.128.0.0 up: the agent's own subnet is random.
fn subnet(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a80_0000 | index << 8)
}

fn record(index: u32) -> (String, String) {
    let public_ip = Ipv4Addr::from(0xac20_0001 + index);
    let mac = index.to_be_bytes();
    let value = format!(
        r#"{{"PublicIP":"{public_ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:01:{:02x}:{:02x}:{:02x}:{:02x}"}}}}"#,
        mac[0], mac[1], mac[2], mac[3]
    );
    (format!("{}-24", subnet(index)), value)
}

fn print(what: &str, mut samples: Vec<Duration>) {
    samples.sort();
    let [p50, p90, p99, most] = [0.5, 0.9, 0.99, 1.0].map(|share| quantile(&samples, share));
    println!("{what}: p50 {p50:.2?}, p90 {p90:.2?}, p99 {p99:.2?}, most {most:.2?}");
}

fn quantile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "an index among a few hundred samples"
    )]
    let index = ((sorted.len().saturating_sub(1)) as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or_default()
}

/// The kernel's announcements of new routes.
struct Routes(Socket);

impl Routes {
    /// Of the calling thread's network namespace.
    fn follow() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_rx_buf_sz(4 << 20)?;
        socket.bind(&SocketAddr::new(0, RTMGRP_IPV4_ROUTE))?;
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Waits until each of these subnets has been announced.
    fn wait_for(&self, wanted: &mut BTreeSet<Ipv4Addr>) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        while !wanted.is_empty() {
            let datagram = match self.0.recv_from_full() {
                Ok((datagram, _)) => datagram,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    ensure!(Instant::now() < deadline, "no routes to {wanted:?}");
                    std::thread::sleep(Duration::from_micros(20));
                    continue;
                }
                Err(error) => return Err(error).context("routes are not announced"),
            };
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram)?;
            let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) =
                message.payload
            else {
                continue;
            };
            for attribute in route.attributes {
                if let RouteAttribute::Destination(RouteAddress::Inet(destination)) = attribute {
                    wanted.remove(&destination);
                }
            }
        }
        if !wanted.is_empty() {
            bail!("no routes to {wanted:?}");
        }
        Ok(())
    }
}
