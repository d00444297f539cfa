//! Pitfalls of a whole machine, which a network namespace cannot have: skipped but on a machine that nobody else
//! uses. `cargo xtask test --kernel VERSION` runs these in a virtual one.

use std::{env, fs, net::UdpSocket, time::Duration};

use anyhow::{Result, ensure};
use overlay_tests::{
    lab::{Lab, agent::judge, scenario, underlay::router_address},
    skip,
    wait::wait_for,
};

/// Set in virtual machines of the tests.
const OWN_MACHINE: &str = "OVERLAY_TEST_OWN_MACHINE";
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const DEADLINE: Duration = Duration::from_secs(20);
/// So many entries are to be had, and the share of them that is an error.
const ROOM: u32 = 64;
const TAKEN: u32 = 62;
/// Nobody listens there.
const PORT: u16 = 9;

#[test]
fn a_table_of_connections_that_is_nearly_full_is_named() {
    if env::var_os(OWN_MACHINE).is_none() {
        skip!("the size of conntrack's table is the whole machine's");
    }
    scenario(Lab::builder().nodes(1), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        let before = fs::read_to_string(MAX)?;
        let file = node.subnet_file_flag();
        let found = || -> Result<Vec<String>> {
            let (_, said) = judge(node, &["check", &file])?;
            let findings = said["findings"].as_array().into_iter().flatten();
            let named = |finding: &serde_json::Value| {
                let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
                format!("{} {}", text("severity"), text("name"))
            };
            Ok(findings.map(named).collect())
        };
        fs::write(MAX, ROOM.to_string())?;
        let taken = wait_for("check to find the table full", DEADLINE, || {
            node.enter(|| -> Result<()> {
                for _ in 0..TAKEN {
                    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
                    // What does not find room is refused.
                    let _ = socket.send_to(b"x", (router_address(0), PORT));
                }
                Ok(())
            })?;
            let found = found()?;
            ensure!(
                found.contains(&"error conntrack_full".to_owned()),
                "{found:?}"
            );
            Ok(())
        });
        fs::write(MAX, before)?;
        taken?;
        let found = found()?;
        ensure!(
            !found.iter().any(|name| name.ends_with("conntrack_full")),
            "{found:?}"
        );
        Ok(())
    });
}
