//! What the XDP guard drops and what it lets pass, by test run of the program. Needs root.

use std::marker::PhantomData;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, PerCpuArray},
    programs::Xdp,
};
use etherparse::IpNumber;
use overlay_common::{
    config::Config,
    family::{V4, V6},
    maps,
    node::Peer,
    outcome::{Counter, Hook, Outcome, slot},
};
use overlay_tests::{
    in_both_families,
    prog::{
        fixture::{Cluster, Fixture, VTEP_MAC, VXLAN_PORT},
        node::Interfaces,
        packet::{Extension, Outer, Packet, Transport},
    },
};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// The guard, and the same for kernels whose XDP programs know no frames of several buffers.
const PROGRAMS: [&str; 2] = ["overlay_guard", "overlay_guard_1"];

/// The guard does not look at them.
const INTERFACES: Interfaces = Interfaces {
    underlay: 1,
    tunnel: 1,
    wire: 1,
    gateway: 1,
    pod: 1,
    eth0: 1,
};

/// The guard on a node that serves one family.
struct Guard<F: Cluster> {
    ebpf: Ebpf,
    family: PhantomData<F>,
}

impl<F: Cluster> Guard<F> {
    fn load() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "this test needs root");
        let mut ebpf = EbpfLoader::new().load(overlay_agent::object::OBJECT)?;
        let fixture = Fixture::<F>::new(INTERFACES);
        let mut config: Array<_, Config<F>> = ebpf
            .map_mut(F::MAPS.config)
            .context("no config map")?
            .try_into()?;
        config.set(0, fixture.config, 0)?;
        let mut peers: HashMap<_, F::Be, Peer> = ebpf
            .map_mut(F::MAPS.peers)
            .context("no peers map")?
            .try_into()?;
        for (address, peer) in &fixture.peers {
            peers.insert(address, peer, 0)?;
        }
        for name in PROGRAMS {
            let program: &mut Xdp = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load()?;
        }
        Ok(Self {
            ebpf,
            family: PhantomData,
        })
    }

    /// Runs every frame and compares verdict and counter.
    fn check(&mut self, verdict: u32, rows: &[(&str, Vec<u8>, Outcome)]) -> Result<()> {
        for (what, frame, outcome) in rows {
            let got = self.run(frame)?;
            ensure!(got == (verdict, vec![*outcome]), "{what}: {got:?}");
        }
        Ok(())
    }

    /// Verdict, and the counter that moved.
    fn run(&mut self, frame: &[u8]) -> Result<(u32, Vec<Outcome>)> {
        let [with_fragments, without] = PROGRAMS;
        let (got, other) = (
            self.run_one(with_fragments, frame)?,
            self.run_one(without, frame)?,
        );
        ensure!(got == other, "{got:?}, and {other:?} without fragments");
        Ok(got)
    }

    fn run_one(&mut self, name: &'static str, frame: &[u8]) -> Result<(u32, Vec<Outcome>)> {
        let before = self.counters()?;
        let program: &Xdp = self.ebpf.program(name).context(name)?.try_into()?;
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

/// A tunnel packet from an address.
fn from<F: Cluster>(source: F::Octets) -> Outer<F> {
    Outer {
        src: source.into(),
        ..F::TUNNELLED.outer()
    }
}

/// A tunnel packet with these headers.
fn tunnel<F: Cluster>(outer: &Outer<F>) -> Vec<u8> {
    outer.around(&[0; 40])
}

/// A datagram to the tunnels' port with this payload.
fn datagram<F: Cluster>(payload: &[u8]) -> Vec<u8> {
    let transport = Transport::Udp {
        src: 40_000,
        dst: VXLAN_PORT,
    };
    Packet::<F>::new(F::TUNNELLED.vtep, F::VTEP, transport)
        .with(|p| p.payload = payload.to_vec())
        .bytes()
}

fn the_guard_drops_what_no_peer_sent_and_counts_why<F: Cluster>() -> Result<()> {
    let header = [
        &[8, 0, 0, 0][..],
        &F::TUNNELLED.outer().vni.to_be_bytes()[1..],
        &[0],
    ]
    .concat();
    let mut without_vni = F::TUNNELLED.outer();
    without_vni.vxlan_flags = 0;
    Guard::<F>::load()?.check(
        XDP_DROP,
        &[
            (
                "from a stranger",
                tunnel(&from::<F>(F::STRANGER)),
                Outcome::GuardPeer,
            ),
            (
                "from a stranger, to everybody",
                from::<F>(F::STRANGER).around(&[0xff; 40]),
                Outcome::GuardPeer,
            ),
            (
                "from a pod",
                tunnel(&from::<F>(F::TUNNELLED.pod)),
                Outcome::GuardPeer,
            ),
            (
                "without a valid VNI",
                tunnel(&without_vni),
                Outcome::GuardHeader,
            ),
            (
                "with half a VXLAN header",
                datagram::<F>(&header[..4]),
                Outcome::GuardTruncated,
            ),
            (
                "with a VXLAN header and nothing in it",
                datagram::<F>(&header),
                Outcome::GuardTruncated,
            ),
            (
                "with not quite an Ethernet header",
                datagram::<F>(&[&header[..], &[0; 13]].concat()),
                Outcome::GuardTruncated,
            ),
        ],
    )
}

fn everything_else_passes_untouched<F: Cluster>() -> Result<()> {
    let stranger = from::<F>(F::STRANGER);
    let mut tagged = tunnel(&stranger);
    tagged.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
    let mut other_version = tunnel(&stranger);
    other_version[14] ^= 0x20;
    Guard::<F>::load()?.check(
        XDP_PASS,
        &[
            ("a peer", tunnel(&F::TUNNELLED.outer()), Outcome::Passed),
            (
                "a peer's packet with a UDP checksum",
                tunnel(&Outer {
                    checksum: true,
                    ..F::TUNNELLED.outer()
                }),
                Outcome::Passed,
            ),
            (
                "a stranger who knows the VTEP MAC address",
                from::<F>(F::STRANGER).around(&[&VTEP_MAC.octets[..], &[0; 34]].concat()),
                Outcome::UnknownPeer,
            ),
            (
                "another network on the same port",
                tunnel(&Outer {
                    vni: 2,
                    ..stranger.clone()
                }),
                Outcome::VxlanHeader,
            ),
            (
                "another UDP port",
                tunnel(&Outer {
                    dst_port: 53,
                    ..stranger.clone()
                }),
                Outcome::NotOverlay,
            ),
            (
                "another destination",
                tunnel(&Outer {
                    dst: F::DIRECT.vtep.into(),
                    ..stranger.clone()
                }),
                Outcome::NotOverlay,
            ),
            (
                "another protocol",
                Packet::<F>::new(F::STRANGER, F::VTEP, Transport::Other(IpNumber::SCTP)).bytes(),
                Outcome::NotOverlay,
            ),
            (
                "the other version than the type says",
                other_version,
                Outcome::NotOverlay,
            ),
            ("a VLAN", tagged, Outcome::NotIp),
        ],
    )
}

fn no_frame_is_too_short_to_be_judged<F: Cluster>() -> Result<()> {
    let mut guard = Guard::<F>::load()?;
    let whole = tunnel(&from::<F>(F::STRANGER));
    for len in 14..whole.len() {
        let (verdict, moved) = guard.run(&whole[..len])?;
        ensure!(
            (verdict == XDP_DROP || verdict == XDP_PASS) && moved.len() == 1,
            "{len} bytes: {verdict} {moved:?}"
        );
    }
    Ok(())
}

fn a_family_that_the_node_does_not_serve_passes<F: Cluster>() -> Result<()> {
    let stranger = from::<F>(F::STRANGER);
    let mut guard = Guard::<F>::load()?;
    let mut config: Array<_, Config<F>> = guard
        .ebpf
        .map_mut(F::MAPS.config)
        .context("no config map")?
        .try_into()?;
    config.set(0, Config::default(), 0)?;
    let passes = [("a stranger", tunnel(&stranger), Outcome::NotOverlay)];
    guard.check(XDP_PASS, &passes)
}

in_both_families! {
    the_guard_drops_what_no_peer_sent_and_counts_why,
    everything_else_passes_untouched,
    no_frame_is_too_short_to_be_judged,
    a_family_that_the_node_does_not_serve_passes,
}

/// A stranger's tunnel packet with other extras.
fn altered<F: Cluster>(change: impl FnOnce(&mut F::Extras)) -> Vec<u8> {
    let mut outer = from::<F>(F::STRANGER);
    change(&mut outer.ip);
    tunnel(&outer)
}

#[test]
fn ipv4_options_do_not_hide_a_tunnel_packet_and_fragments_pass() -> Result<()> {
    let mut guard = Guard::<V4>::load()?;
    let options = altered::<V4>(|ip| ip.options = vec![1; 40]);
    guard.check(
        XDP_DROP,
        &[("behind IP options", options, Outcome::GuardPeer)],
    )?;
    let first = altered::<V4>(|ip| ip.more_fragments = true);
    let later = altered::<V4>(|ip| ip.fragment_offset = 7);
    guard.check(
        XDP_PASS,
        &[
            ("a first fragment", first, Outcome::Fragment),
            ("a later fragment", later, Outcome::Fragment),
        ],
    )
}

#[test]
fn ipv6_packets_with_extension_headers_pass() -> Result<()> {
    let behind = |extension| altered::<V6>(|ip| ip.extensions = vec![extension]);
    let options = |kind| behind(Extension::options(kind, 8));
    Guard::<V6>::load()?.check(
        XDP_PASS,
        &[
            (
                "a first fragment",
                behind(Extension::fragment(0, true)),
                Outcome::Fragment,
            ),
            (
                "a later fragment",
                behind(Extension::fragment(7, false)),
                Outcome::Fragment,
            ),
            (
                "behind hop-by-hop options",
                options(IpNumber::IPV6_HEADER_HOP_BY_HOP),
                Outcome::NotOverlay,
            ),
            (
                "behind destination options",
                options(IpNumber::IPV6_DESTINATION_OPTIONS),
                Outcome::NotOverlay,
            ),
        ],
    )
}
