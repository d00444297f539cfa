//! SCTP between pods, where the kernel has it: skipped on one that lacks it. `cargo xtask test --kernel
//! VERSION` runs this on kernels that have it.

use std::time::Duration;

use anyhow::{Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    lab::{Lab, scenario},
    requirements::require_root,
    skip,
    traffic::sctp::{self, Association},
    wait::wait_for,
};

const PORT: u16 = 9899;
const MESSAGES: u8 = 20;
const DEADLINE: Duration = Duration::from_secs(15);

#[test]
fn an_association_between_pods_is_fast_and_every_message_arrives() {
    require_root();
    if let Err(error) = sctp::socket() {
        skip!("no SCTP: {error}");
    }
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        lab.wait_attached()?;
        let [client, server] = [0, 1].map(|node| lab.node(node).pods()[0].endpoint());
        let mut association = Association::open(&client, &server, PORT)?;
        let (seen, own) = (association.seen()?.ip(), client.address);
        ensure!(seen == own, "the server sees {seen}, not {own}");
        wait_for("the association to be fast", DEADLINE, || {
            let before = fast(lab)?;
            association.exchange(MESSAGES)?;
            let after = fast(lab)?;
            let added: Vec<_> = after.iter().zip(before).map(|(a, b)| a - b).collect();
            ensure!(
                added.iter().all(|&packets| packets >= MESSAGES.into()),
                "fast packets of {MESSAGES} messages each way: {added:?}"
            );
            Ok(())
        })
    });
}

/// At each hook of each node.
fn fast(lab: &Lab) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    for node in lab.nodes() {
        let counters = node.counters()?;
        counts.extend([Hook::Egress, Hook::Ingress].map(|hook| counters.fast(hook)));
    }
    Ok(counts)
}
