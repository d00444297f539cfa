//! Pods in the place of others.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use overlay_tests::{
    capture::Capture,
    differ::{
        in_both_modes,
        raw::{POD_INTERFACE, RawPort, mac_of},
    },
    lab::{Attachment, Lab},
};

use super::{
    common::{connect, pod, serve, warm},
    family::{addressed, announce},
};

#[test]
fn a_new_pod_with_the_address_of_a_dead_one_is_served_at_once() {
    in_both_modes(&Lab::builder().nodes(2), &[], |lab, mode| {
        lab.add_pods(2)?;
        lab.ping_matrix()?;
        let client = pod(lab, 1, "a")?.endpoint();
        let (old, bystander) = (pod(lab, 0, "a")?, pod(lab, 0, "b")?);
        let servers = serve(&old.endpoint())?;
        let [mut stream, mut datagrams] = connect(&client, old.address)?;
        warm(lab, mode, 0, &mut stream)?;
        warm(lab, mode, 0, &mut datagrams)?;
        let capture = Capture::start(&bystander.namespace, POD_INTERFACE)?;

        drop(servers);
        lab.node(0).remove_pod("a")?;
        let new = lab.node(0).add_pod("c", Attachment::Bridge)?;
        ensure!(
            new.address == old.address,
            "the new pod has {}",
            new.address
        );
        let _servers = serve(&new.endpoint())?;
        announce(lab, &RawPort::open(&new)?, new.address)?;
        let start = Instant::now();
        datagrams
            .exchange(2_000, 100)
            .context("datagrams to the new pod")?;
        ensure!(
            start.elapsed() < Duration::from_secs(5),
            "served only after {:?}",
            start.elapsed()
        );
        // The new pod knows nothing of the connection, and says so.
        let broken = stream.exchange(100, 100);
        ensure!(
            broken.is_err(),
            "the new pod goes on with the old one's connection"
        );
        for mut connection in connect(&client, new.address)? {
            warm(lab, mode, 0, &mut connection)?;
        }
        let mac = mac_of(&bystander.namespace, POD_INTERFACE)?;
        let stray = addressed(&capture.stop()?, mac, old.address);
        ensure!(stray == 0, "another pod got {stray} packets");
        Ok(())
    });
}
