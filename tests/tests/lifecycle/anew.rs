//! What a device that is deleted or renamed, and routes that are deleted, cost while they are put back:
//! flows that are fast lose nothing, as they need none of it, and those of the kernel tier as little as
//! possible.

use std::{net::Ipv6Addr, thread, time::Duration};

use anyhow::{Result, bail, ensure};
use overlay_tests::{
    lab::{Lab, Node, family::LabFamily, scenario},
    traffic::{Address, Endpoint, flow::SteadyFlow},
    wait::wait_for,
};

const PATIENCE: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(1);
/// Before and after each disturbance, flows get so many datagrams through. Together that is far less
/// than the life of a permit, which every disturbance renews: no flow needs the kernel in between.
const CALM: u32 = 500;
/// Of pods that are named so all packets take the kernel tier.
const SLOW: &str = "b";
const MARK: &str = "--slow-mark=0x100000/0x100000";

/// What is done, and whether the agent runs or is started afterwards.
const DISTURBANCES: [(&str, bool); 6] = [
    ("ip link delete flannel.1", true),
    ("ip link set flannel.1 name elsewhere", true),
    ("ip link delete flannel-v6.1", true),
    ("ip route flush proto 241", true),
    ("ip -6 route flush proto 241", true),
    ("ip link delete flannel.1", false),
];

/// Flows between two pods, one in either direction.
struct Pair {
    what: &'static str,
    flows: Vec<SteadyFlow>,
}

impl Pair {
    fn start<A: Address>(
        what: &'static str,
        one: &Endpoint<A>,
        other: &Endpoint<A>,
    ) -> Result<Self> {
        let flows = [(one, other), (other, one)]
            .map(|(from, to)| SteadyFlow::start(from, to, INTERVAL))
            .into_iter()
            .collect::<Result<_>>()?;
        Ok(Self { what, flows })
    }

    /// Ends the flows. Says how many datagrams were lost.
    fn stop(self) -> Result<usize> {
        let lost = |flow: SteadyFlow| Ok(flow.stop()?.datagrams.lost.len());
        let ends: Vec<_> = self
            .flows
            .into_iter()
            .map(|flow| thread::spawn(move || lost(flow)))
            .collect();
        let lost = ends
            .into_iter()
            .map(|end| end.join().expect("the end of a flow"));
        lost.sum()
    }
}

/// Has the pods named [`SLOW`] use the kernel tier alone.
fn slow_down(node: &Node, pods: &[(Endpoint, Endpoint<Ipv6Addr>)]) -> Result<()> {
    let mut rules = vec![
        "add table inet slow".to_owned(),
        "add chain inet slow forward { type filter hook forward priority -150; }".to_owned(),
    ];
    for (four, six) in pods {
        for source in [
            format!("ip saddr {}", four.address),
            format!("ip6 saddr {}", six.address),
        ] {
            rules.push(format!(
                "add rule inet slow forward {source} meta mark set 0x100000"
            ));
        }
    }
    let rules = rules.join("; ");
    node.cmd("nft", [rules.as_str()]).map(drop)
}

fn let_flow(pairs: &[Pair]) -> Result<()> {
    let flows = || pairs.iter().flat_map(|pair| &pair.flows);
    let before: Vec<_> = flows().map(SteadyFlow::sent).collect();
    wait_for("the flows to go on", PATIENCE, || {
        ensure!(
            flows()
                .zip(&before)
                .all(|(flow, before)| flow.sent() >= before + CALM)
        );
        Ok(())
    })
}

fn routes_and_devices(node: &Node) -> Result<String> {
    let mut text = String::new();
    for command in [
        "ip route show proto 241",
        "ip -6 route show proto 241",
        "ip neigh show dev flannel.1 nud permanent",
        "ip -6 neigh show dev flannel-v6.1 nud permanent",
        "bridge fdb show dev flannel.1",
        "bridge fdb show dev flannel-v6.1",
    ] {
        let mut words = command.split(' ');
        let output = node.cmd(words.next().unwrap_or_default(), words)?;
        let mut lines: Vec<_> = output.lines().map(str::trim).collect();
        lines.sort_unstable();
        text += &lines.join("\n");
    }
    Ok(text)
}

#[test]
fn while_the_device_is_made_anew_fast_flows_lose_nothing() {
    scenario(Lab::builder().nodes(2).config(Ipv6Addr::CONFIG), |lab| {
        lab.start_agents(&[MARK])?;
        lab.add_pods(2)?;
        lab.wait_converged()?;
        lab.wait_converged6()?;
        lab.wait_attached()?;
        let mut ends = Vec::new();
        for (node, pod) in lab.pods() {
            ends.push((pod.name.clone(), (pod.endpoint(), node.add_ipv6(&pod)?)));
        }
        let (slow, fast): (Vec<_>, Vec<_>) = ends.into_iter().partition(|(name, _)| name == SLOW);
        let ends = |named: Vec<(_, (Endpoint, Endpoint<Ipv6Addr>))>| -> Vec<_> {
            named.into_iter().map(|(_, ends)| ends).collect()
        };
        let (slow, fast) = (ends(slow), ends(fast));
        for node in lab.nodes() {
            slow_down(node, &slow)?;
        }
        for (disturbance, with_agent) in DISTURBANCES {
            let node = lab.node(0);
            let before = routes_and_devices(node)?;
            let pairs = [
                Pair::start("fast IPv4", &fast[0].0, &fast[1].0)?,
                Pair::start("fast IPv6", &fast[0].1, &fast[1].1)?,
                Pair::start("slow IPv4", &slow[0].0, &slow[1].0)?,
                Pair::start("slow IPv6", &slow[0].1, &slow[1].1)?,
            ];
            for node in lab.nodes() {
                node.wait_fast()?;
            }
            let_flow(&pairs)?;
            if !with_agent {
                node.kill_agent()?;
            }
            let mut words = disturbance.split(' ');
            node.cmd(words.next().unwrap_or_default(), words)?;
            if !with_agent {
                node.start_agent(lab.store(), &[MARK])?;
            }
            wait_for("all to be put back", PATIENCE, || {
                node.check_running()?;
                let now = routes_and_devices(node)?;
                ensure!(now == before, "before\n{before}\nnow\n{now}");
                Ok(())
            })?;
            let_flow(&pairs)?;
            let mut problems = Vec::new();
            let ends = pairs.map(|pair| (pair.what, thread::spawn(move || pair.stop())));
            for (what, end) in ends {
                let lost = end.join().expect("the end of a pair")?;
                println!(
                    "{disturbance}, agent running: {with_agent}: {what} lost {lost} datagrams"
                );
                if what.starts_with("fast") && lost > 0 {
                    problems.push(format!("{what} lost {lost}"));
                }
            }
            if !problems.is_empty() {
                bail!("{disturbance}: {}", problems.join(", "));
            }
        }
        Ok(())
    });
}
