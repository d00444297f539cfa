//! Where conntrack forgets flows soon, and rules let only flows pass that it knows: what a server pushes
//! to a client that says nothing arrives, with the fast path as without.

use std::{
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    lab::{Lab, Node, scenario},
    traffic::udp,
    wait::wait_for,
};

const DEADLINE: Duration = Duration::from_secs(15);
/// More than two of the longest permits.
const PUSHES: u32 = 400;
const BEAT: Duration = Duration::from_millis(100);

const UDP_TIMEOUTS: [&str; 2] = [
    "net/netfilter/nf_conntrack_udp_timeout",
    "net/netfilter/nf_conntrack_udp_timeout_stream",
];

fn set_timeouts(node: &Node, seconds: &str) -> Result<()> {
    UDP_TIMEOUTS
        .iter()
        .try_for_each(|key| node.namespace.set_sysctl(key, seconds))
}

fn wait_for_permit(node: &Node, protocol: &str, seconds: f64) -> Result<()> {
    wait_for("permits to follow the timeouts", DEADLINE, || {
        let status = node.operator_json(&["status"])?;
        let permit = status["datapath"]["permit_seconds"][protocol].as_f64();
        ensure!(permit == Some(seconds), "{protocol}: {permit:?}");
        Ok(())
    })
}

/// Has pods of the second node push to one of the first, through rules that accept what conntrack
/// knows. Returns how many pushes arrived, and the share of them that was fast at the server's node.
fn pushes_that_arrive(lab: &Lab) -> Result<(u32, f64)> {
    let pods = lab.pods();
    let [(_, client), (_, server)] = &pods[..] else {
        panic!("{pods:?}");
    };
    let (to_server, to_client) = (
        udp::bind(&client.endpoint())?,
        udp::bind(&server.endpoint())?,
    );
    let connect =
        |from: &UdpSocket, to: &UdpSocket| -> Result<()> { Ok(from.connect(to.local_addr()?)?) };
    connect(&to_server, &to_client)?;
    connect(&to_client, &to_server)?;
    for socket in [&to_server, &to_client] {
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    }
    let mut buffer = [0; 64];
    // Both directions, for longer than conntrack takes a flow for a short one.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        to_server.send(b"question")?;
        to_client.recv(&mut buffer).context("no question")?;
        to_client.send(b"answer")?;
        to_server.recv(&mut buffer).context("no answer")?;
        thread::sleep(BEAT);
    }
    for node in lab.nodes() {
        let known = ["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED"];
        let accept = [&["-I", "FORWARD"], &known[..], &["-j", "ACCEPT"]].concat();
        node.cmd("iptables-nft", accept)?;
        node.cmd("iptables-nft", ["-I", "FORWARD", "2", "-j", "DROP"])?;
    }

    let before = lab.node(1).counters()?;
    let receiver = thread::spawn(move || {
        let mut arrived = 0;
        while let Ok(len) = to_server.recv(&mut buffer) {
            arrived += u32::from(&buffer[..len] == b"push");
        }
        arrived
    });
    for _ in 0..PUSHES {
        to_client.send(b"push")?;
        thread::sleep(BEAT);
    }
    let arrived = receiver.join().expect("the receiver does not panic");
    let fast = lab.node(1).counters()?.since(&before).fast(Hook::Egress);
    #[expect(clippy::cast_precision_loss, reason = "a few hundred packets")]
    let share = fast as f64 / f64::from(PUSHES);
    Ok((arrived, share))
}

#[test]
fn no_push_is_lost_where_conntrack_forgets_udp_flows_after_10_s() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agents(&["--ip-masq"])?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.wait_attached()?;
        for node in lab.nodes() {
            set_timeouts(node, "10")?;
            wait_for_permit(node, "udp", 5.0)?;
        }
        let (arrived, fast) = pushes_that_arrive(lab)?;
        ensure!(arrived == PUSHES, "{arrived} of {PUSHES} pushes arrived");
        ensure!(fast > 0.9, "{fast} of the pushes were fast");
        Ok(())
    });
}

#[test]
fn no_push_is_lost_without_the_fast_path_either() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agents(&["--ip-masq", "--fastpath=off"])?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        for node in lab.nodes() {
            set_timeouts(node, "10")?;
        }
        let (arrived, fast) = pushes_that_arrive(lab)?;
        ensure!(arrived == PUSHES, "{arrived} of {PUSHES} pushes arrived");
        ensure!(fast == 0.0, "{fast} of the pushes were fast");
        Ok(())
    });
}

#[test]
fn permits_follow_sysctls_and_timeout_objects_and_one_protocol_can_be_never_fast() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        wait_for_permit(node, "udp", 15.0)?;
        for command in [
            "add table ip timeouts",
            "add ct timeout ip timeouts short { protocol udp; policy = { unreplied : 8, replied : 9 }; }",
        ] {
            node.cmd("nft", [command])?;
        }
        wait_for_permit(node, "udp", 4.0)?;
        wait_for_permit(node, "tcp", 15.0)?;
        set_timeouts(node, "6")?;
        wait_for_permit(node, "udp", 3.0)?;
        node.cmd("nft", ["delete table ip timeouts"])?;
        set_timeouts(node, "30")?;
        wait_for_permit(node, "udp", 15.0)?;

        set_timeouts(node, "1")?;
        wait_for_permit(node, "udp", 0.0)?;
        let said = node.operator(&["status"])?;
        ensure!(said.contains("udp never"), "{said}");
        let (pods, before) = (lab.pods(), node.counters()?);
        let [client, server] = [0, 1].map(|index| pods[index].1.endpoint());
        udp::echo_each(&client, &server, &[100], 200)?.ensure_lossless()?;
        let counters = node.counters()?.since(&before);
        let fast = [Hook::Egress, Hook::Ingress].map(|hook| counters.fast(hook));
        ensure!(fast == [0, 0], "fast: {fast:?}");
        Ok(())
    });
}
