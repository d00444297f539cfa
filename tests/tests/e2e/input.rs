//! Wrong input and hostile surroundings: one clear message with the remedy; the daemon waits for what
//! may be mended while it waits and exits for the rest.

use std::time::Duration;

use anyhow::{Result, ensure};
use overlay_tests::{
    http,
    lab::{DEFAULT_CONFIG, Lab, Node, agent::Launch, scenario},
    seccomp::BpfDenial,
    traffic::tcp,
    wait::wait_for,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for all of `texts` in one line of the agent's log.
fn wait_line(node: &Node, texts: &[&str]) -> Result<()> {
    node.with_agent(|agent| {
        wait_for(&format!("a log line with {texts:?}"), DEADLINE, || {
            agent.check_running()?;
            let log = agent.log();
            let said = log
                .lines()
                .any(|line| texts.iter().all(|text| line.contains(text)));
            ensure!(said, "the log is\n{log}");
            Ok(())
        })
    })
}

/// How often a text occurs in the agent's log.
fn occurrences(node: &Node, text: &str) -> Result<usize> {
    node.with_agent(|agent| Ok(agent.log().matches(text).count()))
}

/// Runs the agent to its end, which must be a failure, and returns what it wrote.
fn fails(node: &Node, launch: &Launch) -> Result<String> {
    let (status, log) = node.run_to_end(launch, DEADLINE)?;
    ensure!(status.code() == Some(1), "{status}; the log is\n{log}");
    Ok(log)
}

fn ensure_says(log: &str, texts: &[&str]) -> Result<()> {
    let said = log
        .lines()
        .any(|line| texts.iter().all(|text| line.contains(text)));
    ensure!(said, "no line with {texts:?} in\n{log}");
    Ok(())
}

#[test]
fn a_missing_config_is_waited_for() {
    scenario(Lab::builder().nodes(1).without_config(), |lab| {
        let node = lab.node(0);
        node.start_agent(lab.store(), &[])?;
        let message = "flannel config not found in etcd store. \
                       Did you create your config using etcdv3 API?";
        wait_line(node, &[message, "/coreos.com/network/config", "etcdctl"])?;
        // Long enough for some retries: the message must not be repeated by them.
        std::thread::sleep(Duration::from_secs(3));
        ensure!(occurrences(node, message)? == 1, "the message is repeated");
        lab.store().set_config(DEFAULT_CONFIG)?;
        node.wait_ready().map(drop)
    });
}

#[test]
fn a_wrong_prefix_is_named_and_waited_for() {
    scenario(Lab::builder().nodes(1), |lab| {
        let node = lab.node(0);
        let wrong = Launch {
            prefix: "/wrong/place".to_owned(),
            ..Launch::new(lab.store(), &[])
        };
        node.launch(&wrong)?;
        wait_line(node, &["flannel config not found", "/wrong/place/config"])?;
        ensure!(node.subnet_env().is_err(), "a subnet came from nowhere");
        node.stop_agent()
    });
}

#[test]
fn a_broken_config_is_waited_for_until_it_is_mended() {
    scenario(
        Lab::builder()
            .nodes(1)
            .config(r#"{"Network":"10.5.0.0/16","#),
        |lab| {
            let node = lab.node(0);
            node.start_agent(lab.store(), &[])?;
            wait_line(
                node,
                &[
                    "Couldn't fetch network config",
                    "/coreos.com/network/config",
                ],
            )?;
            lab.store()
                .set_config(r#"{"Network":"10.5.0.0/29","Backend":{"Type":"vxlan"}}"#)?;
            wait_line(
                node,
                &["network is too small. Minimum useful network prefix is /28"],
            )?;
            lab.store()
                .set_config(r#"{"Network":"pods","Backend":{"Type":"vxlan"}}"#)?;
            wait_line(node, &["Network", "pods"])?;
            lab.store().set_config(DEFAULT_CONFIG)?;
            node.wait_ready().map(drop)
        },
    );
}

#[test]
fn an_absent_etcd_is_waited_for() {
    scenario(Lab::builder().nodes(1), |lab| {
        lab.store_mut().server().stop(0)?;
        let node = lab.node(0);
        node.start_agent(lab.store(), &[])?;
        wait_line(node, &["no etcd endpoint answered", "--etcd-endpoints"])?;
        lab.store_mut().server().restart(0)?;
        lab.node(0).wait_ready().map(drop)
    });
}

#[test]
fn an_agent_that_waits_for_etcd_stops_when_told() {
    scenario(Lab::builder().nodes(1), |lab| {
        lab.store_mut().server().freeze(0)?;
        let node = lab.node(0);
        node.start_agent(lab.store(), &[])?;
        wait_line(node, &["no etcd endpoint answered"])?;
        let stopped = node.stop_agent();
        lab.store_mut().server().thaw(0)?;
        stopped
    });
}

#[test]
fn an_absent_interface_ends_the_agent_with_its_name() {
    scenario(Lab::builder().nodes(1), |lab| {
        let launch = Launch {
            interface: Some("eth7".to_owned()),
            ..Launch::new(lab.store(), &[])
        };
        let log = fails(lab.node(0), &launch)?;
        ensure_says(&log, &["Failed to find interface", "eth7"])?;
        ensure!(
            lab.store().leases()?.is_empty(),
            "a lease was taken for nothing"
        );
        Ok(())
    });
}

#[test]
fn whatever_is_wrong_with_the_config_the_agent_waits_until_it_is_mended() {
    scenario(Lab::builder().nodes(1).without_config(), |lab| {
        let node = lab.node(0);
        node.start_agent(lab.store(), &["--healthz-port=2401"])?;
        let backend = |text: &str| format!(r#"{{"Network":"10.5.0.0/16","Backend":{text}}}"#);
        for (config, texts) in [
            (
                backend(r#"{"Type":"ipsec"}"#),
                ["backend type ipsec is not supported", "wireguard"],
            ),
            (
                backend(r#"{"Type":"carrier-pigeon"}"#),
                ["unknown backend type: carrier-pigeon", "vxlan"],
            ),
            (
                backend(r#"{"Type":"vxlan","VNI":1.5}"#),
                ["VNI must be a whole number, not 1.5", "revision"],
            ),
            (
                r#"{"EnableIPv4":false,"Backend":{"Type":"vxlan"}}"#.to_owned(),
                ["none defined stack", "EnableIPv6"],
            ),
            (
                r#""{\"Network\":\"10.5.0.0/16\"}""#.to_owned(),
                ["the network config is in quotes", "backslashes"],
            ),
        ] {
            lab.store().set_config(&config)?;
            wait_line(node, &texts)?;
            wait_for("the reason to be shown", DEADLINE, || {
                let address = ([127, 0, 0, 1], 2401).into();
                let (status, body) = http::get(&node.namespace, address, "/readyz")?;
                let reason = "lease: waiting for the network config: ";
                ensure!(status == 503 && body.contains(reason), "{status} {body}");
                ensure!(body.contains(texts[0]), "{body}");
                Ok(())
            })?;
            ensure!(
                occurrences(node, texts[0])? == 1,
                "said more than once: {}",
                texts[0]
            );
        }
        // What is meant beyond doubt starts the node.
        let meant = "\u{feff}{\"Network\":\"10.5.0.0/16\",\r\n\"Backend\":{\"Type\":\"vxlan\",\"VNI\":1.0}}";
        lab.store().set_config(meant)?;
        node.wait_ready()?;
        wait_line(node, &["WARN", "byte order mark"])?;
        wait_line(node, &["WARN", "VNI of the network config is 1.0"])
    });
}

#[test]
fn without_permission_for_bpf_the_kernel_tier_serves_and_says_so_once() {
    scenario(Lab::builder().nodes(2), |lab| {
        for node in lab.nodes() {
            let denial = Some(BpfDenial::Everything);
            node.launch(&Launch {
                denial,
                ..Launch::new(lab.store(), &[])
            })?;
            node.wait_ready()?;
        }
        lab.add_pods(1)?;
        wait_for("pods to talk", DEADLINE, || lab.ping_matrix())?;
        let [a, b] = [0, 1].map(|index| lab.node(index).pods()[0].endpoint());
        tcp::transfer(&a, &b, tcp::Spec::bulk(4 << 20))?;
        let message = "no eBPF tier";
        wait_line(lab.node(0), &[message, "seccomp"])?;
        ensure!(
            occurrences(lab.node(0), message)? == 1,
            "the message is repeated"
        );
        // Nothing of an earlier agent's was there.
        ensure!(occurrences(lab.node(0), "programs of an earlier agent")? == 0);
        let (code, text) = lab.node(0).status()?;
        ensure!(code == Some(1), "{code:?}: {text}");
        for part in ["degraded", "kernel tier alone", "seccomp", "running"] {
            ensure!(text.contains(part), "no {part} in {text}");
        }
        Ok(())
    });
}

#[test]
fn without_permission_for_bpf_an_agent_that_needs_it_ends() {
    scenario(Lab::builder().nodes(1), |lab| {
        let denial = Some(BpfDenial::Everything);
        let launch = Launch {
            denial,
            ..Launch::new(lab.store(), &["--datapath=ebpf"])
        };
        let log = fails(lab.node(0), &launch)?;
        ensure_says(&log, &["the kernel refuses BPF", "seccomp"])
    });
}

#[test]
fn without_capabilities_for_bpf_they_are_named() {
    scenario(Lab::builder().nodes(1), |lab| {
        let wrapper = [
            "setpriv",
            "--inh-caps=-all",
            "--bounding-set=-all,+net_admin,+dac_override",
        ];
        let launch = Launch {
            wrapper: wrapper.map(str::to_owned).to_vec(),
            ..Launch::new(lab.store(), &["--datapath=ebpf"])
        };
        let log = fails(lab.node(0), &launch)?;
        ensure_says(&log, &["no permission to use BPF", "CAP_BPF"])
    });
}

#[test]
fn a_kernel_without_tcx_and_without_room_for_filters_is_named_with_what_it_lacks() {
    scenario(Lab::builder().nodes(1), |lab| {
        lab.node(0)
            .cmd("tc", ["qdisc", "add", "dev", "lo", "ingress"])?;
        let denial = Some(BpfDenial::Links);
        let launch = Launch {
            denial,
            ..Launch::new(lab.store(), &["--datapath=ebpf"])
        };
        let log = fails(lab.node(0), &launch)?;
        ensure_says(
            &log,
            &["no tcx", "6.6", "qdisc ingress", "--datapath=kernel"],
        )
    });
}

#[test]
fn a_wrong_command_line_ends_with_status_2_and_the_flag() {
    scenario(Lab::builder().nodes(1).without_config(), |lab| {
        let launch = Launch::new(lab.store(), &["--bogus"]);
        let (status, log) = lab.node(0).run_to_end(&launch, DEADLINE)?;
        ensure!(status.code() == Some(2), "{status}\n{log}");
        ensure_says(&log, &["bogus"])
    });
}
