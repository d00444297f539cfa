//! The load generator of the benchmark as a program: runs one load between two network namespaces
//! and prints what it cost as a line of JSON.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use overlay_tests::{
    bench::load::{self, Kind, Plan},
    netns::Namespace,
    traffic::Endpoint,
};

/// Runs one load between two network namespaces and prints what it cost as JSON.
#[derive(Parser)]
struct Args {
    #[arg(value_enum)]
    load: Kind,
    /// Name of a namespace below /run/netns, and an address it has: NAME/ADDRESS
    #[arg(long, value_parser = endpoint)]
    client: Endpoint<IpAddr>,
    #[arg(long, value_parser = endpoint)]
    server: Endpoint<IpAddr>,
    /// Port the server listens on
    #[arg(long, default_value_t = 7_000)]
    port: u16,
    /// What the client addresses, where something on the way translates it: ADDRESS:PORT
    #[arg(long)]
    target: Option<SocketAddr>,
    /// The core that is measured
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// The core that `flood` sends from
    #[arg(long, default_value_t = 0)]
    sender_cpu: usize,
    /// Seconds before the measurement
    #[arg(long, default_value_t = 0.3)]
    warm_up: f64,
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

fn endpoint(text: &str) -> Result<Endpoint<IpAddr>> {
    let (name, address) = text.split_once('/').context("not NAME/ADDRESS")?;
    let address: IpAddr = address.parse()?;
    Ok(Endpoint {
        namespace: Namespace::open(name)?,
        address,
    })
}

fn main() -> Result<()> {
    let args = Args::parse();
    let server = SocketAddr::new(args.server.address, args.port);
    let plan = Plan {
        client: args.client,
        server: args.server,
        port: args.port,
        target: args.target.unwrap_or(server),
        cpu: args.cpu,
        sender_cpu: args.sender_cpu,
        warm_up: Duration::try_from_secs_f64(args.warm_up)?,
        length: Duration::try_from_secs_f64(args.seconds)?,
    };
    println!("{}", load::run(args.load, &plan)?.to_json());
    Ok(())
}
