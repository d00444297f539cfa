//! Docker hosts as the guides set them up: the agent leases a subnet, the helper turns it into options
//! for dockerd, and containers of different hosts reach each other by their own addresses.

use std::{
    fs,
    net::{IpAddr, SocketAddrV4, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{
    docker::{Container, Docker},
    lab::{Lab, Node, agent, scenario, subnet_env::SubnetEnv},
    netns::checked,
    traffic::{Endpoint, PATIENCE, connection::SteadyConnection, flow::SteadyFlow, ping, tcp},
    wait::wait_for,
};

const KEY: &str = "DOCKER_NETWORK_OPTIONS";
const DEADLINE: Duration = Duration::from_secs(30);

/// A node with its Docker daemon and a container.
struct Host<'lab> {
    node: &'lab Node,
    env: SubnetEnv,
    options: String,
    docker: Docker,
    container: Container,
}

/// Runs the helper on the subnet file, into the subnet file, as many units do; the options it wrote.
fn docker_options(node: &Node) -> Result<String> {
    let file = node.subnet_file.to_str().context("a path in UTF-8")?;
    let binary = agent::binary()?;
    let mut command = node.namespace.command(binary.to_str().context("UTF-8")?);
    command.args(["docker-opts", "-k", KEY, "-f", file, "-d", file]);
    checked(&mut command)?;
    let text = fs::read_to_string(file)?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(KEY)?.strip_prefix('='))
        .with_context(|| format!("no {KEY} in\n{text}"))?;
    Ok(value.trim_matches('"').to_owned())
}

fn docker_hosts<'lab>(lab: &'lab Lab, flags: &[&str]) -> Result<Vec<Host<'lab>>> {
    lab.start_agents(flags)?;
    lab.wait_converged()?;
    let mut hosts = Vec::new();
    for node in lab.nodes() {
        let env = node.subnet_env()?;
        let options = docker_options(node)?;
        // dockerd turns forwarding on, and then lets nothing pass but its own.
        node.namespace.set_sysctl("net/ipv4/ip_forward", "0")?;
        let docker = Docker::start(node, &options)?;
        let policy = node.cmd("iptables", ["-S", "FORWARD"])?;
        ensure!(policy.contains("-P FORWARD DROP"), "{policy}");
        let container = docker.start_container(node, "client")?;
        hosts.push(Host {
            node,
            env,
            options,
            docker,
            container,
        });
    }
    Ok(hosts)
}

/// The source address a server sees of a connection.
fn seen_source(client: &Endpoint, server: &Endpoint) -> Result<IpAddr> {
    let bound = SocketAddrV4::new(server.address, 0);
    let listener = server.namespace.enter(|| TcpListener::bind(bound))?;
    let address = listener.local_addr()?;
    let _client = client
        .namespace
        .enter(|| TcpStream::connect_timeout(&address, PATIENCE))
        .with_context(|| format!("connect {} to {}", client.address, server.address))?;
    Ok(listener.accept()?.1.ip())
}

/// Every container reaches every other one, and each sees the other's own address.
fn check_containers(hosts: &[Host<'_>]) -> Result<()> {
    for from in hosts {
        for to in hosts {
            if from.node.name == to.node.name {
                continue;
            }
            let (client, server) = (from.container.endpoint(), to.container.endpoint());
            ping::once(&client, server.address)?;
            let answer = from.docker.exec(
                &from.container,
                &["ping", "-c", "1", "-W", "5", &server.address.to_string()],
            )?;
            ensure!(answer.contains("0% packet loss"), "{answer}");
            let seen = seen_source(&client, &server)?;
            ensure!(
                seen == client.address,
                "{} sees {seen} instead of {}",
                server.address,
                client.address
            );
            tcp::transfer(&client, &server, tcp::Spec::bulk(1 << 20))?;
        }
    }
    Ok(())
}

/// Packets between containers take the fast path, out of the one host and into the other.
fn check_fast(from: &Host<'_>, to: &Host<'_>) -> Result<()> {
    let ends = (from.container.endpoint(), to.container.endpoint());
    from.node.wait_fast_echoes(&ends.0, to.node, &ends.1)
}

/// Masquerading: the outside sees the node, whatever the container's address is.
fn check_outside(lab: &Lab, host: &Host<'_>) -> Result<()> {
    let seen = seen_source(&host.container.endpoint(), &lab.outside())?;
    ensure!(
        seen == host.node.address,
        "the outside sees {seen} instead of {}",
        host.node.address
    );
    Ok(())
}

#[test]
fn containers_of_three_docker_hosts_reach_each_other_by_their_own_addresses() {
    scenario(Lab::builder().nodes(2).routed_nodes(1), |lab| {
        let hosts = docker_hosts(lab, &["--ip-masq"])?;
        for host in &hosts {
            let Host { node, env, .. } = host;
            let (bip, mtu) = (env.gateway, env.mtu);
            ensure!(mtu == 1450, "{env:?}");
            let wanted = format!("--bip={bip} --ip-masq=false --mtu={mtu}");
            ensure!(host.options.trim() == wanted, "{}", host.options);
            let bridge = node.cmd("ip", ["-4", "-brief", "address", "show", "docker0"])?;
            ensure!(bridge.contains(&format!(" {bip} ")), "{bridge}");
            let pod = host
                .docker
                .exec(&host.container, &["ip", "link", "show", "eth0"])?;
            ensure!(pod.contains(&format!(" mtu {mtu} ")), "{pod}");
            ensure!(env.subnet()?.contains(host.container.address), "{pod}");
        }
        check_containers(&hosts)?;
        check_fast(&hosts[0], &hosts[1])?;
        check_fast(&hosts[2], &hosts[0])?;
        for host in &hosts {
            check_outside(lab, host)?;
            // The other nodes' flannel.1 has the first address of their subnet.
            for peer in hosts.iter().filter(|peer| peer.node.name != host.node.name) {
                let base = peer.env.gateway.network().to_string();
                host.node.cmd("ping", ["-c", "1", "-W", "5", &base])?;
            }
        }
        Ok(())
    });
}

#[test]
fn dockers_own_masquerading_does_not_hide_containers_from_each_other() {
    scenario(Lab::builder().nodes(2), |lab| {
        let hosts = docker_hosts(lab, &[])?;
        for host in &hosts {
            ensure!(host.options.contains("--ip-masq=true"), "{}", host.options);
            let rules = host
                .node
                .cmd("iptables", ["-t", "nat", "-S", "POSTROUTING"])?;
            ensure!(rules.contains("! -o docker0 -j MASQUERADE"), "{rules}");
        }
        check_containers(&hosts)?;
        check_fast(&hosts[0], &hosts[1])?;
        hosts.iter().try_for_each(|host| check_outside(lab, host))
    });
}

#[test]
fn docker_options_in_the_subnet_file_stay_and_containers_talk_on_through_a_restart() {
    scenario(Lab::builder().nodes(2), |lab| {
        let hosts = docker_hosts(lab, &["--ip-masq"])?;
        let (node, here) = (hosts[0].node, hosts[0].container.endpoint());
        let there = hosts[1].container.endpoint();
        let flow = SteadyFlow::start(&here, &there, Duration::from_millis(2))?;
        let connection = SteadyConnection::open(&there, &here, Duration::from_millis(5))?;
        let file = || fs::read_to_string(&node.subnet_file);
        let options = file()?;
        ensure!(options.contains(KEY), "{options}");

        // A reload and a change of the underlay's MTU leave the options alone.
        let log = |text: &str, times: usize| {
            wait_for(&format!("`{text}` in the log"), DEADLINE, || {
                node.check_running()?;
                let log = node.with_agent(|agent| Ok(agent.log()))?;
                ensure!(log.matches(text).count() == times, "{log}");
                Ok(())
            })
        };
        node.signal_agent(Signal::SIGHUP)?;
        log("INFO reloaded", 1)?;
        ensure!(file()? == options, "after a reload:\n{}", file()?);

        // A restart writes the file afresh, for the unit to run the helper again.
        node.stop_agent()?;
        lab.start_agent(node, &["--ip-masq"])?;
        log("INFO node started", 2)?;
        let again = node.subnet_env()?;
        ensure!(again == hosts[0].env, "{again:?}");
        ensure!(docker_options(node)? == hosts[0].options, "{}", file()?);
        ensure!(file()? == options, "after a restart:\n{}", file()?);

        flow.stop()?.datagrams.ensure_lossless()?;
        let report = connection.close()?;
        ensure!(report.exchanges > 50, "{report:?}");
        check_containers(&hosts)
    });
}
