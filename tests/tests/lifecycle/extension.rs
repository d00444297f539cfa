//! The extension backend: commands of the network config make the network, here host-gw's.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    backends::check_traffic,
    lab::{Lab, Node, scenario},
    traffic::{flow::SteadyFlow, tcp},
    wait::wait_for,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Writes the commands, each of which notes what it was told, and returns the config that names them.
/// `SubnetAddCommand` fails as long as there is a file `fail`.
fn config(dir: &Path) -> Result<String> {
    let own = "own=$(ip -4 -brief addr show eth0 | awk '{print $3}'); own=${own%/*}\n";
    let note = |name: &str| {
        format!(
            "cd {}\n{own}read said\necho \"{name} $NETWORK $SUBNET $PUBLIC_IP $said\" >>$own.ran\n",
            dir.display()
        )
    };
    let script = |name: &str, then: &str| -> Result<String> {
        let path = dir.join(format!("{name}.sh"));
        fs::write(&path, format!("{}{then}\n", note(name)))?;
        Ok(format!("/bin/sh {}", path.display()))
    };
    let commands = [
        (
            "PreStartupCommand",
            script("pre", "echo \"  data of $own \"")?,
        ),
        ("PostStartupCommand", script("post", "")?),
        ("ShutdownCommand", script("end", "")?),
        (
            "SubnetAddCommand",
            script(
                "add",
                "if test -e fail; then echo not now; exit 7; fi\nip route replace $SUBNET via $PUBLIC_IP",
            )?,
        ),
        (
            "SubnetRemoveCommand",
            script("remove", "ip route del $1")? + " $SUBNET",
        ),
    ];
    let backend = commands
        .map(|(key, command)| format!(r#","{key}":"{command}""#))
        .concat();
    Ok(format!(
        r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"extension"{backend}}}}}"#
    ))
}

/// Runs `test` on two nodes that have the commands in a folder.
fn with_commands(test: impl FnOnce(&mut Lab, &Path) -> Result<()>) {
    let dir = tempfile::tempdir().expect("a folder");
    let config = config(dir.path()).expect("commands");
    scenario(Lab::builder().nodes(2).config(&config), |lab| {
        test(lab, dir.path())
    });
}

fn ran(dir: &Path, node: &Node) -> Vec<String> {
    let text = fs::read_to_string(dir.join(format!("{}.ran", node.address)));
    text.unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn commands_make_the_network_and_are_told_what_flannel_tells_them() {
    with_commands(|lab, dir| {
        lab.start_agents(&[])?;
        lab.add_pods(1)?;
        let (node, other) = (lab.node(0), lab.node(1));
        wait_for("pods to talk", PATIENCE, || lab.ping_matrix())?;
        let [from, to] = [node, other].map(|node| node.pods()[0].endpoint());
        tcp::transfer(&from, &to, tcp::Spec::bulk(1 << 20))?;
        ensure!(node.subnet_env()?.mtu == 1500);

        let (own, theirs) = (node.subnet_env()?.subnet()?, other.subnet_env()?.subnet()?);
        let expected = [
            "pre    ".to_owned(),
            format!("post 10.5.0.0/16 {own} {} ", node.address),
            format!("add  {theirs} {} data of {}", other.address, other.address),
        ];
        let found = ran(dir, node);
        ensure!(found == expected, "{found:#?}");
        let leases = lab.store().leases()?;
        let said = format!(
            r#""BackendType":"extension","BackendData":"data of {}""#,
            node.address
        );
        ensure!(
            leases.iter().any(|lease| lease.value.contains(&said)),
            "{leases:?}"
        );

        other.stop_agent()?;
        let end = format!("end 10.5.0.0/16 {theirs} {} ", other.address);
        ensure!(ran(dir, other).contains(&end), "{:#?}", ran(dir, other));
        lab.ping_matrix().context("forwarding goes on")?;
        lab.store()
            .delete_lease(&theirs.to_string().replace('/', "-"))?;
        let remove = format!(
            "remove  {theirs} {} data of {}",
            other.address, other.address
        );
        wait_for("the other node to be removed", PATIENCE, || {
            ensure!(ran(dir, node).contains(&remove), "{:#?}", ran(dir, node));
            let routes = node.cmd("ip", ["route"])?;
            ensure!(!routes.contains(&theirs.to_string()), "{routes}");
            Ok(())
        })
    });
}

#[test]
fn a_command_that_fails_is_reported_by_node_and_run_again() {
    with_commands(|lab, dir| {
        fs::write(dir.join("fail"), "")?;
        lab.start_agents(&[])?;
        lab.add_pods(1)?;
        let node = lab.node(0);
        let subnet = lab
            .node(1)
            .subnet_env()?
            .subnet()?
            .to_string()
            .replace('/', "-");
        let problem =
            format!("SubnetAddCommand for {subnet} failed: exit status: 7, output: \"not now\"");
        wait_for("the failure to be reported", PATIENCE, || {
            let log = node.with_agent(|agent| Ok(agent.log()))?;
            ensure!(log.contains(&problem), "{log}");
            Ok(())
        })?;
        fs::remove_file(dir.join("fail"))?;
        wait_for("pods to talk", PATIENCE, || lab.ping_matrix())
    });
}

/// Commands whose network outlives the agent are run again by the next one, and nobody is cut off.
#[test]
fn an_agent_that_is_killed_or_restarted_runs_the_commands_again_and_loses_no_packet() {
    with_commands(|lab, dir| {
        lab.start_agents(&[])?;
        lab.add_pods(1)?;
        wait_for("pods to talk", PATIENCE, || lab.ping_matrix())?;
        let node = lab.node(0);
        let [from, to] = [0, 1].map(|index| lab.node(index).first_pod());
        check_traffic(&from, &to, node.subnet_env()?.mtu)?;
        let gateway = node.subnet_env()?.gateway;
        let flow = SteadyFlow::start(&from, &to, Duration::from_millis(5))?;
        for (starts, end) in [
            (2, Node::kill_agent as fn(&Node) -> _),
            (3, Node::stop_agent),
        ] {
            end(node)?;
            lab.start_agent(node, &[])?;
            wait_for("the commands to be run again", PATIENCE, || {
                node.check_running()?;
                let ran = ran(dir, node);
                let added = ran.iter().filter(|line| line.starts_with("add ")).count();
                ensure!(added == starts, "{ran:#?}");
                Ok(())
            })?;
        }
        flow.stop()?.datagrams.ensure_lossless()?;
        ensure!(node.subnet_env()?.gateway == gateway, "another subnet");
        Ok(())
    });
}
