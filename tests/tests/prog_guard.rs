//! What the XDP guard drops and what it lets pass, by test run of the program. Needs root.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, PerCpuArray},
    programs::Xdp,
};
use etherparse::PacketBuilder;
use overlay_common::{
    addr::Ipv4Be,
    config::{Config, FASTPATH_STRICT},
    maps,
    node::Peer,
    outcome::{Counter, Hook, Outcome, slot},
};

const VTEP: [u8; 4] = [192, 168, 77, 1];
const PEER: [u8; 4] = [192, 168, 77, 2];
const STRANGER: [u8; 4] = [192, 168, 77, 66];
const PORT: u16 = 8472;
const VNI: [u8; 3] = [0, 0, 1];

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

struct Guard {
    ebpf: Ebpf,
}

impl Guard {
    fn load() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "this test needs root");
        let mut ebpf = EbpfLoader::new().load(overlay_agent::object::OBJECT)?;
        let mut config: Array<_, Config> = ebpf
            .map_mut(maps::CONFIG)
            .context("no config map")?
            .try_into()?;
        let ours = Config {
            fastpath: FASTPATH_STRICT,
            vtep: Ipv4Be { octets: VTEP },
            vxlan_port: PORT.to_be_bytes(),
            vni: VNI,
            ..Config::default()
        };
        config.set(0, ours, 0)?;
        let mut peers: HashMap<_, Ipv4Be, Peer> = ebpf
            .map_mut(maps::PEERS4)
            .context("no peers map")?
            .try_into()?;
        peers.insert(Ipv4Be { octets: PEER }, Peer { node: 1 }, 0)?;
        let program: &mut Xdp = ebpf
            .program_mut("overlay_guard")
            .context("no guard")?
            .try_into()?;
        program.load()?;
        Ok(Self { ebpf })
    }

    /// Verdict, and the counter that moved.
    fn run(&mut self, frame: &[u8]) -> Result<(u32, Vec<Outcome>)> {
        let before = self.counters()?;
        let program: &Xdp = self
            .ebpf
            .program("overlay_guard")
            .context("no guard")?
            .try_into()?;
        let options = TestRunOptions {
            data_in: Some(frame),
            ..TestRunOptions::default()
        };
        let verdict = program.test_run(options)?.return_value;
        let after = self.counters()?;
        let moved = Outcome::ALL
            .iter()
            .zip(before.iter().zip(&after))
            .filter(|(_, (before, after))| before != after)
            .map(|(&outcome, _)| outcome)
            .collect();
        Ok((verdict, moved))
    }

    fn counters(&self) -> Result<Vec<u64>> {
        let stats: PerCpuArray<_, Counter> = self
            .ebpf
            .map(maps::STATS)
            .context("no stats map")?
            .try_into()?;
        Outcome::ALL
            .iter()
            .map(|&outcome| {
                let cpus = stats.get(&slot(Hook::Guard, outcome), 0)?;
                Ok(cpus.iter().map(|counter| counter.packets).sum())
            })
            .collect()
    }
}

fn vxlan(flags: u8, vni: [u8; 3]) -> Vec<u8> {
    let [a, b, c] = vni;
    let mut payload = vec![flags, 0, 0, 0, a, b, c, 0];
    payload.extend([0u8; 40]);
    payload
}

fn udp(src: [u8; 4], dst: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(src, dst, 64)
        .udp(40_000, port);
    let mut frame = Vec::new();
    builder
        .write(&mut frame, payload)
        .expect("writing to memory");
    frame
}

/// The frame with `count` words of IP options.
fn with_options(frame: &[u8], words: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[14] = 0x45 + words;
    frame.splice(34..34, vec![1; usize::from(words) * 4]);
    frame
}

#[test]
fn the_guard_drops_what_no_peer_sent_and_counts_why() -> Result<()> {
    let mut guard = Guard::load()?;
    let tunnel = |src| udp(src, VTEP, PORT, &vxlan(0x08, VNI));
    let dropped = [
        ("from a stranger", tunnel(STRANGER), Outcome::GuardPeer),
        (
            "from a stranger, behind IP options",
            with_options(&tunnel(STRANGER), 10),
            Outcome::GuardPeer,
        ),
        (
            "without a valid VNI",
            udp(PEER, VTEP, PORT, &vxlan(0, VNI)),
            Outcome::GuardHeader,
        ),
        (
            "with half a VXLAN header",
            udp(PEER, VTEP, PORT, &[8, 0, 0, 0]),
            Outcome::GuardTruncated,
        ),
        (
            "with a VXLAN header and nothing in it",
            udp(PEER, VTEP, PORT, &vxlan(0x08, VNI)[..8]),
            Outcome::GuardTruncated,
        ),
    ];
    for (what, frame, outcome) in dropped {
        let got = guard.run(&frame)?;
        ensure!(got == (XDP_DROP, vec![outcome]), "{what}: {got:?}");
    }
    Ok(())
}

#[test]
fn everything_else_passes_untouched() -> Result<()> {
    let mut guard = Guard::load()?;
    let fragment = |offset: u16| {
        let mut frame = udp(STRANGER, VTEP, PORT, &vxlan(0x08, VNI));
        frame[20..22].copy_from_slice(&offset.to_be_bytes());
        frame
    };
    let mut tagged = udp(STRANGER, VTEP, PORT, &vxlan(0x08, VNI));
    tagged.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
    let passed = [
        (
            "a peer",
            udp(PEER, VTEP, PORT, &vxlan(0x08, VNI)),
            Outcome::Passed,
        ),
        (
            "another network on the same port",
            udp(STRANGER, VTEP, PORT, &vxlan(0x08, [0, 0, 2])),
            Outcome::VxlanHeader,
        ),
        (
            "another UDP port",
            udp(STRANGER, VTEP, 53, &vxlan(0x08, VNI)),
            Outcome::NotOverlay,
        ),
        (
            "another destination",
            udp(STRANGER, [192, 168, 77, 9], PORT, &vxlan(0x08, VNI)),
            Outcome::NotOverlay,
        ),
        ("a first fragment", fragment(0x2000), Outcome::Fragment),
        ("a later fragment", fragment(0x0007), Outcome::Fragment),
        ("a VLAN", tagged, Outcome::NotIp),
    ];
    for (what, frame, outcome) in passed {
        let got = guard.run(&frame)?;
        ensure!(got == (XDP_PASS, vec![outcome]), "{what}: {got:?}");
    }
    Ok(())
}

#[test]
fn no_frame_is_too_short_to_be_judged() -> Result<()> {
    let mut guard = Guard::load()?;
    let whole = udp(STRANGER, VTEP, PORT, &vxlan(0x08, VNI));
    for len in 14..whole.len() {
        let (verdict, moved) = guard.run(&whole[..len])?;
        ensure!(
            (verdict == XDP_DROP || verdict == XDP_PASS) && moved.len() == 1,
            "{len} bytes: {verdict} {moved:?}"
        );
    }
    Ok(())
}
