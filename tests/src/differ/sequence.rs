//! Seeded random sequences of packets between four pods: mostly ordinary ones, so that flows get
//! fast, and every oddity that could be treated differently when they are.

use std::net::Ipv4Addr;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::packets::{
    DONT_FRAGMENT, ICMP, IP_LEN, Ip, MORE_FRAGMENTS, TCP, UDP, icmp, set_header_check, tcp, udp,
};
use crate::traffic::pattern;

/// The pods that take part: two on each of two nodes.
pub const PODS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 5, 1, 2),
    Ipv4Addr::new(10, 5, 1, 3),
    Ipv4Addr::new(10, 5, 2, 2),
    Ipv4Addr::new(10, 5, 2, 3),
];

/// A service with one backend: the port 8080 of the last pod.
pub const SERVICE: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 1), 80);
pub const BACKEND: (usize, u16) = (3, 8080);

/// Largest IP packet a pod can send.
const MTU: usize = 1450;

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
    /// Index in [`PODS`].
    pub sender: usize,
    pub dst: Mac,
    pub src: Mac,
    pub vlan: Option<u16>,
    /// The IP packet and what follows it.
    pub packet: Vec<u8>,
}

/// One end of a flow as the sending pod sees it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    sender: usize,
    destination: Ipv4Addr,
    protocol: u8,
    /// Source and destination port; of ICMP echo, whether it is the reply, and the identifier.
    ports: [u16; 2],
    /// Translated on its way: conntrack must see an ordinary flow, or it does what depends on time.
    translated: bool,
}

/// `count` steps and a few fragments more. The first ones start the translated flows.
pub fn generate(seed: u64, count: usize) -> Vec<Step> {
    let mut generator = Generator {
        random: StdRng::seed_from_u64(seed),
        number: 0,
        steps: Vec::new(),
    };
    let flows = flows();
    for flow in flows.iter().filter(|flow| flow.destination == SERVICE.0) {
        generator.ordinary(*flow);
    }
    while generator.steps.len() < count {
        let flow = *flows.choose(&mut generator.random).expect("flows");
        // Flows are fast while nothing odd happens to them.
        match generator.random.random_range(0..100) {
            0..70 => generator.ordinary(flow),
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

fn flows() -> Vec<Flow> {
    let mut flows = Vec::new();
    for (sender, _) in PODS.iter().enumerate() {
        for (receiver, &destination) in PODS.iter().enumerate().filter(|(to, _)| *to != sender) {
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
                    flows.push(Flow {
                        sender,
                        destination,
                        protocol,
                        ports,
                        translated: false,
                    });
                }
                let echo = [u16::from(sender == high), 40_000 + pair + number];
                flows.push(Flow {
                    sender,
                    destination,
                    protocol: ICMP,
                    ports: echo,
                    translated: false,
                });
            }
        }
    }
    for protocol in [TCP, UDP] {
        for (client, &address_of_client) in PODS.iter().enumerate().take(2) {
            for port in [50_001, 50_002] {
                let (address, service_port) = SERVICE;
                let (backend, backend_port) = BACKEND;
                let request = Flow {
                    sender: client,
                    destination: address,
                    protocol,
                    ports: [port, service_port],
                    translated: true,
                };
                let reply = Flow {
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

struct Generator {
    random: StdRng,
    /// Packets so far; in the identification field it tells where a packet came from.
    number: u16,
    steps: Vec<Step>,
}

impl Generator {
    fn ip(&mut self, flow: Flow) -> Ip {
        self.number = self.number.wrapping_add(1);
        let fragment = if self.random.random() {
            DONT_FRAGMENT
        } else {
            0
        };
        Ip {
            source: PODS[flow.sender],
            destination: flow.destination,
            protocol: flow.protocol,
            ttl: *[64, 64, 64, 255, 128, 4]
                .choose(&mut self.random)
                .unwrap_or(&64),
            tos: if self.random.random() {
                0
            } else {
                self.random.random()
            },
            id: self.number,
            fragment,
            options: Vec::new(),
        }
    }

    fn push(&mut self, flow: Flow, packet: Vec<u8>) {
        self.steps.push(Step {
            sender: flow.sender,
            dst: Mac::Gateway,
            src: Mac::Pod(flow.sender),
            vlan: None,
            packet,
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
    fn segment(&mut self, flow: Flow, ip: &Ip, most: usize) -> Vec<u8> {
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
                if !flow.translated && self.random.random_range(0..20) == 0 {
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
                icmp(if reply == 1 { 0 } else { 8 }, 0, &rest)
            }
        }
    }

    fn ordinary(&mut self, flow: Flow) {
        let ip = self.ip(flow);
        let segment = self.segment(flow, &ip, MTU - IP_LEN);
        self.push(flow, ip.packet(&segment));
    }

    /// A datagram in fragments, in any order; now and then one is missing.
    fn fragmented(&mut self, flow: Flow) {
        let mut ip = self.ip(flow);
        ip.fragment = 0;
        let segment = self.segment(flow, &ip, 4_000);
        let size = self.random.random_range(1..=(MTU - IP_LEN) / 8) * 8;
        // No endless chains of tiny ones.
        let size = size
            .max(segment.len().div_ceil(6).next_multiple_of(8))
            .min((MTU - IP_LEN) / 8 * 8);
        let pieces: Vec<_> = segment.chunks(size).enumerate().collect();
        let last = pieces.len() - 1;
        let mut packets = Vec::new();
        for (index, piece) in pieces {
            let more = if index < last { MORE_FRAGMENTS } else { 0 };
            ip.fragment = u16::try_from(index * size / 8).unwrap_or_default() | more;
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

    fn with_options(&mut self, flow: Flow) {
        let mut ip = self.ip(flow);
        ip.options = match self.random.random_range(0..4) {
            0 => vec![1, 1, 1, 0],
            // Record route, with room for two addresses.
            1 => vec![7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            // Router alert.
            2 => vec![148, 4, 0, 0],
            // Loose source route to the destination itself.
            _ => [&[131, 7, 8][..], &flow.destination.octets(), &[0]].concat(),
        };
        let segment = self.segment(flow, &ip, 1_000);
        self.push(flow, ip.packet(&segment));
    }

    fn low_ttl(&mut self, flow: Flow) {
        let mut ip = self.ip(flow);
        ip.ttl = self.random.random_range(0..4);
        let segment = self.segment(flow, &ip, MTU - IP_LEN);
        self.push(flow, ip.packet(&segment));
    }

    /// Any TCP flags.
    fn tcp_control(&mut self, flow: Flow) {
        let flow = Flow {
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
    fn damaged(&mut self, flow: Flow) {
        let ip = self.ip(flow);
        let segment = self.segment(flow, &ip, 1_200);
        let mut packet = ip.packet(&segment);
        match self.random.random_range(0..7) {
            // A checksum of the transport header, or what it covers.
            0 => {
                let last = packet.len() - 1;
                packet[last] ^= 0x55;
            }
            1 => packet[10] ^= 0x55,
            2 => packet[0] = 0x65,
            3 => {
                packet[0] = 0x44;
                set_header_check(&mut packet);
            }
            // The header says more bytes than there are, or less.
            4 => {
                packet[2] ^= 0x02;
                set_header_check(&mut packet);
            }
            5 => packet.extend([0xee; 30]),
            // A reserved flag.
            _ => {
                packet[6] |= 0x80;
                set_header_check(&mut packet);
            }
        }
        packet.truncate(MTU);
        self.push(flow, packet);
    }

    /// Other MAC addresses than a router's client uses, or a VLAN tag.
    fn odd_frame(&mut self, flow: Flow) {
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
        step.packet.truncate(MTU - 4);
    }

    /// Addresses that the pod does not have, or that are no single host's.
    fn odd_addresses(&mut self, flow: Flow) {
        let mut ip = self.ip(flow);
        let neighbour = PODS[flow.sender ^ 1];
        let mut group = Mac::Gateway;
        match self.random.random_range(0..6) {
            0 => ip.source = neighbour,
            1 => ip.source = Ipv4Addr::new(10, 5, 9, 9),
            2 => ip.source = Ipv4Addr::new(192, 0, 2, 1),
            3 => {
                ip.destination = Ipv4Addr::BROADCAST;
                group = Mac::Broadcast;
            }
            4 => {
                ip.destination = Ipv4Addr::new(224, 0, 0, 251);
                group = Mac::Multicast;
            }
            _ => {
                // Of the pod's own subnet or the other node's.
                let [a, b, c, _] = ip.destination.octets();
                ip.destination = Ipv4Addr::new(a, b, c, 255);
                group = Mac::Broadcast;
            }
        }
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
    fn fixed_length(&mut self, flow: Flow) {
        let flow = Flow {
            protocol: UDP,
            ..flow
        };
        if flow.ports[0] <= 1 {
            return self.ordinary(flow);
        }
        let ip = self.ip(flow);
        let len = MTU - IP_LEN - 8 - self.random.random_range(0..3);
        let segment = udp(&ip, flow.ports, pattern::piece(0, len));
        self.push(flow, ip.packet(&segment));
    }

    /// What has no ports, and ICMP other than echo.
    fn other_protocol(&mut self, flow: Flow) {
        let mut ip = self.ip(flow);
        ip.protocol = *[132, 47, 50, 4, 253, ICMP]
            .choose(&mut self.random)
            .unwrap_or(&132);
        let payload = self.payload(800);
        let segment = if ip.protocol == ICMP {
            icmp(
                *[5, 13, 17].choose(&mut self.random).unwrap_or(&13),
                0,
                payload,
            )
        } else {
            payload.to_vec()
        };
        self.push(flow, ip.packet(&segment));
    }
}
