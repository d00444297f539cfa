//! Our node and stand-ins for stock flannel nodes are peers of one cluster, in both directions.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, Result, ensure};
use ipnetwork::{IpNetwork, Ipv4Network};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    in_both_families,
    lab::{Lab, Node, Pod, family::LabFamily, scenario},
    traffic::{Endpoint, ping, tcp, udp},
};
use serde_json::Value;

in_both_families! { addresses:
    stock_nodes_and_ours_exchange_pings_tcp_and_udp_both_ways,
    the_device_is_the_one_flannel_makes,
}

/// What flannel's nodes have of a family.
trait Stock: LabFamily {
    /// The subnets of two of them, as leases write them.
    const SUBNETS: [&str; 2];
    /// The family's subnet of the first.
    const SUBNET: &str;
    const DEVICE: &str;
    const MTU: &str;
    /// What of its settings is another word on our device.
    const SETTING: [&str; 2];
    /// What else the kernel says of a route to a peer.
    const METRIC: &str;
    /// Sizes of datagrams. What fits the tunnel in IPv6: stock flannel's subnet file leaves no room for
    /// the larger outer header, so its pods lose the first datagram that needs it.
    const SIZES: &[usize];
    /// Whether a stock node takes what our programs send into the tunnel.
    const IS_FAST: bool;

    fn wait_converged(lab: &Lab) -> Result<()>;
    fn endpoint(node: &Node, pod: &Pod) -> Result<Endpoint<Self>>;
    fn underlay(node: &Node) -> Self;
    fn subnet(node: &Node) -> Result<IpNetwork>;
}

impl Stock for Ipv4Addr {
    const SUBNETS: [&str; 2] = ["10.5.200.0/24", "10.5.201.0/24"];
    const SUBNET: &str = "10.5.200.0/24";
    const DEVICE: &str = "flannel.1";
    const MTU: &str = "1450";
    const SETTING: [&str; 2] = ["noudp6zerocsumrx", "noudp6zerocsumrx"];
    const METRIC: &str = "";
    const SIZES: &[usize] = &[8, 100, 1422, 3000];
    const IS_FAST: bool = true;

    fn wait_converged(lab: &Lab) -> Result<()> {
        lab.wait_converged()
    }

    fn endpoint(_: &Node, pod: &Pod) -> Result<Endpoint> {
        Ok(pod.endpoint())
    }

    fn underlay(node: &Node) -> Self {
        node.address
    }

    fn subnet(node: &Node) -> Result<IpNetwork> {
        Ok(node.subnet_env()?.subnet()?.into())
    }
}

impl Stock for Ipv6Addr {
    const SUBNETS: [&str; 2] = [
        "10.5.200.0/24&fd00:10:5:200::/64",
        "10.5.201.0/24&fd00:10:5:201::/64",
    ];
    const SUBNET: &str = "fd00:10:5:200::/64";
    const DEVICE: &str = "flannel-v6.1";
    const MTU: &str = "1430";
    const SETTING: [&str; 2] = ["noudp6zerocsumrx", "udp6zerocsumrx"];
    const METRIC: &str = "metric 1024";
    const SIZES: &[usize] = &[8, 100, 1382];
    const IS_FAST: bool = false;

    fn wait_converged(lab: &Lab) -> Result<()> {
        lab.wait_converged()?;
        lab.wait_converged6()
    }

    fn endpoint(node: &Node, pod: &Pod) -> Result<Endpoint<Self>> {
        node.add_ipv6(pod)
    }

    fn underlay(node: &Node) -> Self {
        node.address6()
    }

    fn subnet(node: &Node) -> Result<IpNetwork> {
        Ok(node.subnet_env6()?.subnet()?.into())
    }
}

/// n1 runs the agent; n2, and n3 behind the router, are stand-ins.
fn stock_nodes_and_ours_exchange_pings_tcp_and_udp_both_ways<A: Stock>() {
    let builder = Lab::builder().nodes(2).routed_nodes(1).config(A::CONFIG);
    scenario(builder, |lab| {
        lab.start_agent(lab.node(0), &[])?;
        for (node, subnets) in lab.nodes()[1..].iter().zip(A::SUBNETS) {
            lab.start_stock(node, subnets)?;
        }
        lab.add_pods(1)?;
        A::wait_converged(lab)?;
        lab.ping_matrix()?;
        let mut pods = Vec::new();
        for (node, pod) in lab.pods() {
            pods.push(A::endpoint(node, &pod)?);
        }
        let (ours, stock) = pods.split_first().context("no pods")?;
        for theirs in stock {
            for (from, to) in [(ours, theirs), (theirs, ours)] {
                for _ in 0..10 {
                    A::ping(from, to.address)?;
                }
                tcp::transfer(from, to, tcp::Spec::bulk(16 << 20))?;
                tcp::transfer(from, to, tcp::Spec::small_writes(100_000, 100))?;
                udp::echo_each(from, to, A::SIZES, 20)?.ensure_lossless()?;
                udp::send_segmented(from, to, 1200, 40, 5)?.ensure_lossless()?;
            }
        }
        let counted = lab.node(0).counters()?;
        for hook in [Hook::Egress, Hook::Ingress] {
            let fast = counted.packets(hook, Outcome::FastTunnel);
            ensure!(
                fast > 500 || !A::IS_FAST,
                "our side hardly used its fast path:\n{counted}"
            );
        }
        Ok(())
    });
}

fn the_device_is_the_one_flannel_makes<A: Stock>() {
    scenario(Lab::builder().nodes(2).config(A::CONFIG), |lab| {
        let (node, stock) = (lab.node(0), lab.node(1));
        lab.start_agent(node, &[])?;
        lab.start_stock(stock, A::SUBNETS[0])?;
        A::wait_converged(lab)?;
        let device = A::DEVICE;
        let describe = |node: &Node| -> Result<(String, String)> {
            let link = node.cmd("ip", ["-d", "link", "show", device])?;
            let settings = link.lines().find(|line| line.contains("vxlan id"));
            let settings = settings.with_context(|| format!("no vxlan settings in\n{link}"))?;
            let settings = settings.replace(&A::underlay(node).to_string(), "LOCAL");
            let mut words = link.split_whitespace().skip_while(|word| *word != "mtu");
            Ok((settings, words.nth(1).unwrap_or_default().to_owned()))
        };
        let (ours, theirs) = (describe(node)?, describe(stock)?);
        let [flannels, own] = A::SETTING;
        ensure!(
            theirs.0.contains(flannels)
                && ours == (theirs.0.replace(flannels, own), theirs.1.clone()),
            "ours\n{ours:?}\nflannel's\n{theirs:?}"
        );
        ensure!(ours.1 == A::MTU, "MTU {}", ours.1);

        // And what is programmed for the peer: the same, whoever does it.
        let mac = stock.mac(device)?;
        let subnet: IpNetwork = A::SUBNET.parse()?;
        let base = subnet.network();
        let neighbours = node.cmd("ip", [A::IP, "neigh", "show", "dev", device])?;
        ensure!(
            neighbours.contains(&format!("{base} lladdr {mac} PERMANENT")),
            "{neighbours}"
        );
        let fdb = node.cmd("bridge", ["fdb", "show", "dev", device])?;
        let address = A::underlay(stock);
        ensure!(fdb.contains(&format!("{mac} dst {address}")), "{fdb}");
        let routes = node.cmd("ip", [A::IP, "route", "show", A::SUBNET])?;
        ensure!(
            routes.contains(&format!("via {base} dev {device} proto 241"))
                && routes.contains(A::METRIC)
                && routes.contains("onlink"),
            "{routes}"
        );
        let addresses = node.cmd("ip", [A::IP, "addr", "show", "dev", device])?;
        let own = IpNetwork::from(A::subnet(node)?.network());
        ensure!(addresses.contains(&own.to_string()), "{addresses}");
        let accept_ra = format!("/proc/sys/net/ipv6/conf/{device}/accept_ra");
        let accept_ra = node.enter(|| fs::read_to_string(accept_ra))?;
        ensure!(accept_ra.trim() == "0", "accept_ra is {accept_ra}");
        Ok(())
    });
}

#[test]
fn a_stock_node_reads_our_lease_as_one_of_its_own() {
    scenario(Lab::builder().nodes(1), |lab| {
        lab.start_agent(lab.node(0), &[])?;
        let [lease] = &lab.store().leases()?[..] else {
            anyhow::bail!("not one lease")
        };
        let subnet: Ipv4Network = lease.subnet_key.replace('-', "/").parse()?;
        ensure!(subnet == lab.node(0).subnet_env()?.subnet()?, "{lease:?}");
        let value: Value = serde_json::from_str(&lease.value)?;
        let mac = value["BackendData"]["VtepMAC"]
            .as_str()
            .context("no VtepMAC")?;
        ensure!(
            lab.node(0).mac("flannel.1")?.to_string() == mac,
            "{lease:?}"
        );
        let exact = format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#,
            lab.node(0).address
        );
        ensure!(
            lease.value == exact,
            "flannel writes\n{exact}\nthe agent wrote\n{}",
            lease.value
        );
        let ttl = lab.store().lease_ttl(&lease.subnet_key)?;
        ensure!(
            ttl.is_some_and(|ttl| (86_000..=86_400).contains(&ttl)),
            "TTL {ttl:?}"
        );
        Ok(())
    });
}

#[test]
fn a_changed_vtep_mac_of_a_stock_node_is_followed() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agent(lab.node(0), &[])?;
        lab.start_stock(lab.node(1), "10.5.200.0/24")?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.ping_matrix()?;
        // What a reboot of the stock node does: the device comes back with another MAC.
        let stock = lab.node(1);
        stock.cmd("ip", ["link", "delete", "flannel.1"])?;
        lab.start_stock(stock, "10.5.200.0/24")?;
        lab.wait_converged()?;
        let ours = lab.node(0).first_pod();
        overlay_tests::wait::wait_for(
            "pods to talk through the new device",
            std::time::Duration::from_secs(5),
            || ping::all(&ours, stock.first_pod().address, 3).map(drop),
        )
    });
}
