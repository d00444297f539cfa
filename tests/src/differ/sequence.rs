//! Seeded random sequences of packets between four pods: mostly ordinary ones, so that flows get
//! fast, and every oddity that could be treated differently when they are.

use std::marker::PhantomData;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    family::SequenceFamily,
    offload::Offload,
    packets::{Header as _, TCP, UDP, tcp, udp},
};
use crate::traffic::pattern;

/// Port of the service, and pod and port of its one backend.
pub const SERVICE_PORT: u16 = 80;
pub const BACKEND: (usize, u16) = (3, 8080);

/// Of the Ethernet header.
pub const ETH_LEN: usize = 14;

/// A MAC address in a frame. Its value depends on the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mac {
    Pod(usize),
    /// The gateway of the sending pod.
    Gateway,
    Broadcast,
    /// That of the group that packets are sent to.
    Multicast,
    /// One that nobody has. Bridges flood frames to it.
    Nobody,
    /// One that only appears as a source. Apart from [`Self::Nobody`], because a bridge learns
    /// where a source is from the frames that reach it, and fast ones do not.
    Stranger,
}

/// One frame to send.
#[derive(Clone, Debug)]
pub struct Step {
    /// Index in [`SequenceFamily::PODS`].
    pub sender: usize,
    pub dst: Mac,
    pub src: Mac,
    pub vlan: Option<u16>,
    /// The IP packet and what follows it.
    pub packet: Vec<u8>,
    /// What of it is left to the card.
    pub offload: Offload,
}

/// One end of a flow as the sending pod sees it.
#[derive(Clone, Copy, Debug)]
struct SentFlow<F: SequenceFamily> {
    sender: usize,
    destination: F::Address,
    protocol: u8,
    /// Source and destination port; of ICMP echo, whether it is the reply, and the identifier.
    ports: [u16; 2],
    /// Translated on its way: conntrack must see an ordinary flow, or it does what depends on time.
    translated: bool,
}

/// `count` steps and a few fragments more. The first ones start the translated flows.
pub fn generate<F: SequenceFamily>(seed: u64, count: usize) -> Vec<Step> {
    let mut generator = Generator::<F> {
        random: StdRng::seed_from_u64(seed),
        number: 0,
        steps: Vec::new(),
        family: PhantomData,
    };
    let flows = flows();
    for flow in flows.iter().filter(|flow| flow.destination == F::SERVICE) {
        generator.ordinary(*flow);
    }
    while generator.steps.len() < count {
        let flow = *flows.choose(&mut generator.random).expect("flows");
        // Flows are fast while nothing odd happens to them.
        match generator.random.random_range(0..100) {
            0..60 => generator.ordinary(flow),
            60..70 => generator.offloaded(flow),
            _ if flow.translated => generator.fragmented(flow),
            70..75 => generator.fragmented(flow),
            75..80 => generator.with_options(flow),
            80..85 => generator.low_ttl(flow),
            85..88 => generator.tcp_control(flow),
            88..92 => generator.damaged(flow),
            92..95 => generator.odd_frame(flow),
            95..97 => generator.odd_addresses(flow),
            97..98 => generator.fixed_length(flow),
            _ => generator.other_protocol(flow),
        }
    }
    generator.steps
}

fn flows<F: SequenceFamily>() -> Vec<SentFlow<F>> {
    let mut flows = Vec::new();
    for (sender, _) in F::PODS.iter().enumerate() {
        for (receiver, &destination) in F::PODS.iter().enumerate().filter(|(to, _)| *to != sender) {
            let across = (sender < 2) != (receiver < 2);
            let (low, high) = (sender.min(receiver), sender.max(receiver));
            let pair = u16::try_from(low * 4 + high).unwrap_or_default() * 16;
            // More flows between nodes than within one.
            for number in 0..if across { 4 } else { 1 } {
                let ends = [20_000 + pair + number, 30_000 + pair + number];
                let ports = if sender == low {
                    ends
                } else {
                    [ends[1], ends[0]]
                };
                for protocol in [TCP, UDP] {
                    flows.push(SentFlow {
                        sender,
                        destination,
                        protocol,
                        ports,
                        translated: false,
                    });
                }
                let echo = [u16::from(sender == high), 40_000 + pair + number];
                flows.push(SentFlow {
                    sender,
                    destination,
                    protocol: F::ICMP,
                    ports: echo,
                    translated: false,
                });
            }
        }
    }
    for protocol in [TCP, UDP] {
        for (client, &address_of_client) in F::PODS.iter().enumerate().take(2) {
            for port in [50_001, 50_002] {
                let (backend, backend_port) = BACKEND;
                let request = SentFlow {
                    sender: client,
                    destination: F::SERVICE,
                    protocol,
                    ports: [port, SERVICE_PORT],
                    translated: true,
                };
                let reply = SentFlow {
                    sender: backend,
                    destination: address_of_client,
                    ports: [backend_port, port],
                    ..request
                };
                flows.extend([request, reply]);
            }
        }
    }
    flows
}

struct Generator<F: SequenceFamily> {
    random: StdRng,
    /// Packets so far; the packet has it where it tells where a packet came from.
    number: u16,
    steps: Vec<Step>,
    family: PhantomData<F>,
}

impl<F: SequenceFamily> Generator<F> {
    fn ip(&mut self, flow: SentFlow<F>) -> F::Ip {
        self.number = self.number.wrapping_add(1);
        let mut ip = F::header(
            &mut self.random,
            self.number,
            [F::PODS[flow.sender], flow.destination],
            flow.protocol,
        );
        // Packets of a flow have one TTL and one DSCP, mostly: to a permit others are another flow's.
        let of_flow = usize::from(flow.ports[0]);
        let mut pick = |values: &[u8]| {
            let index = if self.random.random_ratio(1, 30) {
                self.random.random_range(0..values.len())
            } else {
                of_flow % values.len()
            };
            values[index]
        };
        let (ttl, dscp) = (pick(&[64, 64, 64, 255, 128, 4]), pick(&[0, 0, 46, 63, 10]));
        ip.set_ttl(ttl);
        ip.set_dscp(dscp);
        ip
    }

    fn push(&mut self, flow: SentFlow<F>, packet: Vec<u8>) {
        self.steps.push(Step {
            sender: flow.sender,
            dst: Mac::Gateway,
            src: Mac::Pod(flow.sender),
            vlan: None,
            packet,
            offload: Offload::default(),
        });
    }

    fn payload(&mut self, most: usize) -> &'static [u8] {
        let len = match self.random.random_range(0..10) {
            0 => most,
            1 => most.saturating_sub(self.random.random_range(0..60)),
            2..6 => self.random.random_range(0..=most),
            _ => self.random.random_range(0..200.min(most)),
        };
        pattern::piece(u64::from(self.number), len)
    }

    /// The transport segment of an ordinary packet, at most `most` bytes.
    fn segment(&mut self, flow: SentFlow<F>, ip: &F::Ip, most: usize) -> Vec<u8> {
        match flow.protocol {
            TCP => {
                let options: &[u8] = match self.random.random_range(0..4) {
                    0 => &[],
                    // Timestamps, and now and then selective acknowledgement.
                    1..3 => &[1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4],
                    _ => &[1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9],
                };
                let flags = *[0x10, 0x18, 0x10, 0x18, 0x50, 0x90, 0x30]
                    .choose(&mut self.random)
                    .unwrap_or(&0x10);
                let payload = self.payload(most - 20 - options.len());
                let numbers = [self.random.random(), self.random.random()];
                tcp(ip, flow.ports, flags, numbers, options, payload)
            }
            UDP => {
                let payload = self.payload(most - 8);
                let mut segment = udp(ip, flow.ports, payload);
                if self.random.random_range(0..20) == 0 {
                    // No checksum.
                    segment[6..8].fill(0);
                }
                segment
            }
            _ => {
                let [reply, id] = flow.ports;
                let mut rest = id.to_be_bytes().to_vec();
                rest.extend(self.number.to_be_bytes());
                rest.extend(self.payload(most - 8));
                ip.icmp(F::ECHO[usize::from(reply)], 0, &rest)
            }
        }
    }

    fn ordinary(&mut self, flow: SentFlow<F>) {
        let ip = self.ip(flow);
        let segment = self.segment(flow, &ip, F::MTU - F::LEN);
        self.push(flow, ip.packet(&segment));
    }

    /// As pods' own kernels send: the checksum is left to the card, and so is the cut of TCP into segments.
    fn offloaded(&mut self, flow: SentFlow<F>) {
        if flow.protocol != TCP && flow.protocol != UDP {
            return self.ordinary(flow);
        }
        let ip = self.ip(flow);
        let is_large = flow.protocol == TCP && self.random.random();
        let single = F::MTU - F::LEN;
        let mut segment = self.segment(flow, &ip, if is_large { 12_000 } else { single });
        // Headers of TCP have 32 bytes at most here.
        let most = u16::try_from(single - 32).unwrap_or(u16::MAX);
        let cut = self.random.random_range(200..=most);
        let is_cut = is_large && segment.len() > single;
        let offset = ETH_LEN + F::LEN;
        let offload = Offload::leave(
            &mut segment,
            &ip,
            flow.protocol,
            offset,
            is_cut.then_some(cut),
        );
        self.push(flow, ip.packet(&segment));
        if let Some(step) = self.steps.last_mut() {
            step.offload = offload;
        }
    }

    /// A datagram in fragments, in any order; now and then one is missing.
    fn fragmented(&mut self, flow: SentFlow<F>) {
        let ip = self.ip(flow);
        let segment = self.segment(flow, &ip, 4_000);
        let most = (F::MTU - F::LEN - F::FRAGMENT_LEN) / 8;
        let size = self.random.random_range(1..=most) * 8;
        // No endless chains of tiny ones.
        let size = size
            .max(segment.len().div_ceil(6).next_multiple_of(8))
            .min(most * 8);
        let pieces: Vec<_> = segment.chunks(size).enumerate().collect();
        let last = pieces.len() - 1;
        let mut packets = Vec::new();
        for (index, piece) in pieces {
            let offset = u16::try_from(index * size / 8).unwrap_or_default();
            let ip = F::fragment(&ip, self.number, offset, index < last);
            packets.push(ip.packet(piece));
        }
        if self.random.random() {
            packets.reverse();
        }
        if packets.len() > 2 && self.random.random_range(0..10) == 0 {
            packets.remove(1);
        }
        for packet in packets {
            self.push(flow, packet);
        }
    }

    fn with_options(&mut self, flow: SentFlow<F>) {
        let mut ip = self.ip(flow);
        F::add_options(&mut self.random, &mut ip);
        let segment = self.segment(flow, &ip, 1_000);
        self.push(flow, ip.packet(&segment));
    }

    fn low_ttl(&mut self, flow: SentFlow<F>) {
        let mut ip = self.ip(flow);
        ip.set_ttl(self.random.random_range(0..4));
        let segment = self.segment(flow, &ip, F::MTU - F::LEN);
        self.push(flow, ip.packet(&segment));
    }

    /// Any TCP flags.
    fn tcp_control(&mut self, flow: SentFlow<F>) {
        let flow = SentFlow {
            protocol: TCP,
            ..flow
        };
        if flow.ports[0] <= 1 {
            return self.ordinary(flow);
        }
        let ip = self.ip(flow);
        let flags = match self.random.random_range(0..5) {
            0 => 0x02,
            1 => 0x12,
            2 => 0x11,
            3 => 0x04,
            _ => self.random.random(),
        };
        let numbers = [self.random.random(), self.random.random()];
        let payload = self.payload(500);
        let segment = tcp(&ip, flow.ports, flags, numbers, &[], payload);
        self.push(flow, ip.packet(&segment));
    }

    /// One thing is wrong.
    fn damaged(&mut self, flow: SentFlow<F>) {
        let ip = self.ip(flow);
        let segment = self.segment(flow, &ip, 1_200);
        let mut packet = ip.packet(&segment);
        F::damage(&mut self.random, &mut packet);
        packet.truncate(F::MTU);
        self.push(flow, packet);
    }

    /// Other MAC addresses than a router's client uses, or a VLAN tag.
    fn odd_frame(&mut self, flow: SentFlow<F>) {
        self.ordinary(flow);
        let neighbour = flow.sender ^ 1;
        let choice = self.random.random_range(0..6);
        let Some(step) = self.steps.last_mut() else {
            return;
        };
        match choice {
            0 => step.dst = Mac::Broadcast,
            1 => step.dst = Mac::Nobody,
            2 => step.dst = Mac::Pod(neighbour),
            // Not the neighbour's: the bridge would learn that it has moved.
            3 => step.src = Mac::Stranger,
            4 => step.vlan = Some(0),
            _ => step.vlan = Some(5),
        }
        step.packet.truncate(F::MTU - 4);
    }

    /// Addresses that the pod does not have, or that are no single host's.
    fn odd_addresses(&mut self, flow: SentFlow<F>) {
        let mut ip = self.ip(flow);
        let neighbour = F::PODS[flow.sender ^ 1];
        let group = F::odd_addresses(&mut self.random, &mut ip, neighbour);
        let segment = self.segment(flow, &ip, 600);
        self.push(flow, ip.packet(&segment));
        // Sent as a host would, or to the gateway as if it were a host's.
        if self.random.random()
            && let Some(step) = self.steps.last_mut()
        {
            step.dst = group;
        }
    }

    /// The largest packet there may be, and its neighbours.
    fn fixed_length(&mut self, flow: SentFlow<F>) {
        let flow = SentFlow {
            protocol: UDP,
            ..flow
        };
        if flow.ports[0] <= 1 {
            return self.ordinary(flow);
        }
        let ip = self.ip(flow);
        let len = F::MTU - F::LEN - 8 - self.random.random_range(0..3);
        let segment = udp(&ip, flow.ports, pattern::piece(0, len));
        self.push(flow, ip.packet(&segment));
    }

    /// What has no ports, and ICMP other than echo.
    fn other_protocol(&mut self, flow: SentFlow<F>) {
        let mut ip = self.ip(flow);
        let payload = self.payload(800);
        let segment = F::other_protocol(&mut self.random, &mut ip, payload);
        self.push(flow, ip.packet(&segment));
    }
}
