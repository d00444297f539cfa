//! The daemon and its host: stopping, the subnet file, the blackhole route, tools that fail.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{
    http,
    lab::{Lab, Node, agent::Launch, scenario},
    traffic::flow::SteadyFlow,
    wait::wait_for,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// Far from the 30 s after which the daemon looks at everything: what is back by now was noticed when
/// it happened.
const SOON: Duration = Duration::from_secs(5);

fn readyz(node: &Node) -> Result<(u16, String)> {
    http::get(&node.namespace, ([127, 0, 0, 1], 2401).into(), "/readyz")
}

fn one_node(flags: &[&str], test: impl FnOnce(&Lab, &Node) -> Result<()>) {
    scenario(Lab::builder().nodes(1), |lab| {
        let node = lab.node(0);
        lab.start_agent(node, flags)?;
        node.with_agent(|agent| agent.wait_log("INFO node started", PATIENCE))?;
        test(lab, node)
    });
}

#[test]
fn forwarding_goes_on_after_every_stop_signal_without_loss() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let flow = SteadyFlow::start(
            &node.first_pod(),
            &peer.first_pod(),
            Duration::from_millis(2),
        )?;
        node.wait_fast()?;
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
            node.signal_agent(signal)?;
            let status = node.with_agent(|agent| agent.wait_exit(PATIENCE))?;
            ensure!(status.success(), "{signal}: {status}");
            // On the fast path, with nobody there.
            node.wait_fast()?;
            lab.start_agent(node, &[])?;
            wait_for("the agent to be back", PATIENCE, || {
                node.check_running()?;
                lab.check_converged(node)
            })?;
            node.wait_fast()?;
        }
        flow.stop()?.datagrams.ensure_lossless()
    });
}

#[test]
fn a_removed_subnet_file_is_back_at_once_and_what_others_wrote_stays() {
    one_node(&[], |_, node| {
        let file = &node.subnet_file;
        let before = fs::read_to_string(file)?;
        let mut fastest = Duration::MAX;
        for _ in 0..3 {
            fs::remove_file(file)?;
            let removed = Instant::now();
            wait_for("the subnet file to be back", SOON, || {
                let now = fs::read_to_string(file)?;
                ensure!(now == before, "{now}");
                Ok(())
            })?;
            fastest = fastest.min(removed.elapsed());
        }
        ensure!(fastest < Duration::from_secs(1), "back after {fastest:?}");

        let foreign = "DOCKER_OPTS=\" --mtu=1450\"\n";
        fs::write(file, foreign)?;
        node.signal_agent(Signal::SIGHUP)?;
        node.with_agent(|agent| agent.wait_log("INFO reloaded", PATIENCE))?;
        let now = fs::read_to_string(file)?;
        ensure!(now == foreign, "{now}");
        Ok(())
    });
}

#[test]
fn the_blackhole_route_is_kept_while_asked_for_and_goes_when_not() {
    one_node(&["--ip-blackhole-route"], |lab, node| {
        let subnet = node.subnet_env()?.subnet()?;
        let blackhole = || -> Result<bool> {
            let routes = node.cmd("ip", ["route", "show", "type", "blackhole"])?;
            Ok(routes.contains(&format!("blackhole {subnet} ")))
        };
        ensure!(blackhole()?, "no blackhole route to {subnet}");
        let route = format!("route delete blackhole {subnet}");
        node.cmd("ip", route.split(' '))?;
        wait_for("the blackhole route to be back", SOON, || {
            ensure!(blackhole()?, "it is not");
            Ok(())
        })?;
        node.stop_agent()?;
        ensure!(blackhole()?, "it went with the daemon");
        lab.start_agent(node, &[])?;
        wait_for("the blackhole route to go", PATIENCE, || {
            node.check_running()?;
            ensure!(!blackhole()?, "it is there");
            Ok(())
        })
    });
}

#[test]
fn a_packet_filter_tool_that_fails_makes_the_node_not_ready_until_it_works() {
    scenario(Lab::builder().nodes(1), |lab| {
        let node = lab.node(0);
        let dir = lab.dir().join("tools");
        fs::create_dir(&dir)?;
        let broken = dir.join("broken");
        let tool = dir.join("nft");
        fs::write(
            &tool,
            format!(
                "#!/bin/sh\n[ -e {} ] && {{ echo out of order >&2; exit 1; }}\nexec /usr/sbin/nft \"$@\"\n",
                broken.display()
            ),
        )?;
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755))?;
        let mut launch = Launch::new(
            lab.store(),
            &[
                "--healthz-port=2401",
                "--healthz-ip=localhost",
                "--iptables-resync=1",
            ],
        );
        launch.wrapper = vec![
            "env".to_owned(),
            format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display()),
        ];
        node.launch(&launch)?;
        let wait_answer = |status: u16, text: &str| {
            wait_for(&format!("{status} {text}"), PATIENCE, || {
                node.check_running()?;
                let answer = readyz(node)?;
                ensure!(answer.0 == status && answer.1.contains(text), "{answer:?}");
                Ok(())
            })
        };
        wait_answer(200, "flanneld is ready")?;
        fs::write(&broken, "")?;
        // Somebody else's change makes the agent look.
        node.cmd("/usr/sbin/nft", ["delete", "table", "ip", "overlay-agent"])?;
        wait_answer(503, "packet filter rules: ")?;
        wait_answer(503, "out of order")?;
        fs::remove_file(&broken)?;
        wait_answer(200, "flanneld is ready")
    });
}
