//! The lab itself, without the software under test: a cluster of stand-ins for stock flannel nodes
//! is a working flannel network, and nothing of a lab stays behind.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};
use overlay_tests::{
    decode::{decode_vxlan, is_udp_to},
    lab::{Attachment, Lab, Wire, scenario},
    requirements::require_root,
    traffic::{ping, tcp, udp},
};

fn start_stand_ins(lab: &Lab) -> Result<()> {
    for (node, third) in lab.nodes().iter().zip(1..) {
        lab.start_stock(node, &format!("10.5.{third}.0/24"))?;
    }
    lab.wait_converged()
}

#[test]
fn stand_ins_form_a_flannel_network_across_the_router() {
    scenario(Lab::builder().nodes(2).routed_nodes(1), |lab| {
        start_stand_ins(lab)?;
        lab.add_pods(2)?;
        lab.ping_matrix()?;
        let pods = lab.pods();
        let (from, to) = (pods[0].1.endpoint(), pods[4].1.endpoint());
        tcp::transfer(&from, &to, tcp::Spec::bulk(8 << 20))?;
        tcp::transfer(&from, &to, tcp::Spec::small_writes(20_000, 100))?;
        udp::echo_each(&from, &to, &[8, 100, 1422], 20)?.ensure_lossless()?;
        udp::send_segmented(&from, &to, 1200, 20, 5)?.ensure_lossless()
    });
}

#[test]
fn point_to_point_pods_and_bridged_pods_reach_each_other() {
    scenario(Lab::builder().nodes(2), |lab| {
        start_stand_ins(lab)?;
        lab.node(0).add_pod("a", Attachment::PointToPoint)?;
        lab.node(0).add_pod("b", Attachment::PointToPoint)?;
        lab.node(1).add_pod("a", Attachment::Bridge)?;
        lab.ping_matrix()
    });
}

#[test]
fn a_segmented_wire_carries_what_a_network_card_would_send() {
    scenario(Lab::builder().nodes(2).wire(Wire::Segmented), |lab| {
        start_stand_ins(lab)?;
        lab.add_pods(1)?;
        let pods = lab.pods();
        let capture = lab.node(0).capture_wire()?;
        let (from, to) = (pods[0].1.endpoint(), pods[1].1.endpoint());
        tcp::transfer(&from, &to, tcp::Spec::upload(1 << 20))?;
        ping::all(&from, to.address, 3)?;
        let mut tunnelled = 0;
        for frame in capture
            .stop()?
            .iter()
            .filter(|frame| is_udp_to(&frame.bytes, 8472))
        {
            let packet = decode_vxlan(&frame.bytes)?;
            ensure!(
                frame.bytes.len() <= 1514,
                "a frame of {} bytes",
                frame.bytes.len()
            );
            ensure!(
                packet.inner.has_valid_header_checksum(),
                "inner header checksum: {packet:?}"
            );
            ensure!(
                packet.inner.has_valid_payload_checksum()?,
                "inner checksum: {packet:?}"
            );
            tunnelled += 1;
        }
        ensure!(
            tunnelled > 700,
            "1 MiB crossed the wire in {tunnelled} tunnel packets"
        );
        Ok(())
    });
}

#[test]
fn nothing_of_a_lab_stays_behind() {
    require_root();
    let lab = Lab::builder().nodes(1).build().unwrap();
    let (dir, namespace) = (
        lab.dir().to_owned(),
        lab.node(0).namespace.name().to_owned(),
    );
    let netns = Path::new("/run/netns").join(&namespace);
    assert!(dir.exists() && netns.exists());
    drop(lab);
    assert!(
        !dir.exists() && !netns.exists(),
        "{} or {namespace} exists",
        dir.display()
    );
    let left = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let command = fs::read_to_string(entry.ok()?.path().join("cmdline")).ok()?;
        command.contains(dir.to_str()?).then_some(command)
    });
    assert_eq!(left.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn a_lab_whose_process_was_killed_is_removed_by_the_next() {
    require_root();
    let mut owner = Command::new(env!("CARGO_BIN_EXE_overlay-demo"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(owner.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let dir = said
        .find_map(|line| Some(line.split_once("state in ")?.1.to_owned()))
        .unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    let next = Lab::builder().nodes(1).build().unwrap();
    assert!(!Path::new(&dir).exists(), "{dir} is still there");
    drop(next);
}
