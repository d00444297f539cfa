//! Addresses that pods hand on, or lie about.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use overlay_common::addr::MacAddr;
use overlay_tests::{
    capture::Capture,
    differ::{
        in_both_modes,
        raw::{POD_INTERFACE, RawPort, mac_of},
    },
    in_both_families,
    lab::{Lab, pod::BRIDGE},
    traffic::Endpoint,
};

use super::{
    common::{PORT, connect, serve, warm},
    family::{Frames, addressed, announce},
};

/// A MAC address that nobody has.
const NOBODY: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 9]);

/// Pods `a` and `b` of the first node, and pod `a` of the second.
fn pods<A: Frames>(lab: &Lab) -> Result<[Endpoint<A>; 3]> {
    let pods = A::add_pods(lab, &['a', 'b'])?;
    for node in lab.nodes() {
        node.wait_attached("vetha")?;
    }
    let [first, second, far, _] = <[_; 4]>::try_from(pods).ok().context("four pods")?;
    Ok([first, second, far])
}

fn an_address_that_moves_between_live_pods_takes_its_flows_with_it<A: Frames>() {
    let nodes = Lab::builder().nodes(2).config(A::CONFIG);
    in_both_modes(&nodes, &[], |lab, mode| {
        let [before, after, client] = pods::<A>(lab)?;
        let address = before.address;
        let servers = serve(&before)?;
        let [_, mut datagrams] = connect(&client, address)?;
        warm(lab, mode, 0, &mut datagrams)?;

        drop(servers);
        let text = format!("{address}{} dev {POD_INTERFACE}", A::PREFIX);
        before.namespace.ip_batch(&format!("addr del {text}\n"))?;
        after
            .namespace
            .ip_batch(&format!("addr add {text} {}\n", A::AT_ONCE))?;
        let moved = Endpoint {
            namespace: after.namespace.clone(),
            address,
        };
        let _servers = serve(&moved)?;
        announce(lab, &RawPort::at(&after.namespace, POD_INTERFACE)?, address)?;
        let learned = Instant::now();
        datagrams
            .exchange(1_000, 100)
            .context("datagrams after the move")?;
        ensure!(
            learned.elapsed() < Duration::from_secs(3),
            "served only after {:?}",
            learned.elapsed()
        );
        let capture = Capture::start(&before.namespace, POD_INTERFACE)?;
        warm(lab, mode, 0, &mut datagrams)?;
        let mac = mac_of(&before.namespace, POD_INTERFACE)?;
        let stray = addressed(&capture.stop()?, mac, address);
        ensure!(
            stray == 0,
            "the pod that had the address got {stray} packets"
        );
        Ok(())
    });
}

fn a_pod_that_sends_with_anothers_address_gets_none_of_its_packets<A: Frames>() {
    let nodes = Lab::builder().nodes(2).config(A::CONFIG);
    in_both_modes(&nodes, &[], |lab, mode| {
        let [honest, liar, server] = pods::<A>(lab)?;
        let _servers = serve(&server)?;
        let [_, mut datagrams] = connect(&honest, server.address)?;
        warm(lab, mode, 0, &mut datagrams)?;

        let port = RawPort::at(&liar.namespace, POD_INTERFACE)?;
        let gateway = mac_of(&lab.node(0).namespace, BRIDGE)?;
        let ports = [datagrams.served.source.port(), PORT];
        let captures = [&liar, &honest].map(|pod| Capture::start(&pod.namespace, POD_INTERFACE));
        let [at_liar, at_honest] = captures;
        let (at_liar, at_honest) = (at_liar?, at_honest?);
        for source in [port.mac, NOBODY] {
            let ends = [honest.address, server.address];
            let frame = A::datagram([source, gateway], ends, ports, b"not mine");
            for _ in 0..20 {
                port.send(&frame)?;
            }
            datagrams.exchange(2_000, 100)?;
        }
        warm(lab, mode, 0, &mut datagrams)?;
        let stolen = addressed(&at_liar.stop()?, port.mac, honest.address);
        let mac = mac_of(&honest.namespace, POD_INTERFACE)?;
        let answers = addressed(&at_honest.stop()?, mac, honest.address);
        ensure!(stolen == 0, "the pod got {stolen} packets of the other");
        ensure!(
            answers >= 80,
            "the owner of the address got {answers} packets"
        );
        Ok(())
    });
}

in_both_families! { addresses:
    an_address_that_moves_between_live_pods_takes_its_flows_with_it,
    a_pod_that_sends_with_anothers_address_gets_none_of_its_packets,
}
