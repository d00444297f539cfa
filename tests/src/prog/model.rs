//! The rules of the programs, read plainly over the bytes of a packet and the fixture: what a
//! packet must become. Shares no code with the programs; the kernel's own decisions that a test run
//! shows (segments of no protocol are not encapsulated) are here too.

mod ipv4;
mod ipv6;

use overlay_common::{
    addr::{Address as _, MacAddr},
    config::{Config, FASTPATH_TRUSTED},
    family::V4,
    flow::{Flow, FlowKey, FlowWords},
    node::{MODE_DIRECT, MODE_TUNNEL, NODE_DIRECT, NODE_VALID, Node},
    outcome::Hook,
};

use super::{
    Surroundings,
    fixture::{Cluster, Fixture, OUTER_TTL, VNI, VXLAN_PORT},
    node::UNDERLAY_MAC,
    packet::{ETH_LEN, Local, Outer},
};

/// How the model reads and writes packets of a family.
pub trait Reading: Cluster {
    /// What an echo request and a reply begin with.
    const ECHO: [[u8; 2]; 2];

    /// The header of an IP packet, whatever else the packet is.
    fn read(ip: &[u8]) -> Option<Header<Self>>;

    /// Destination of a UDP datagram to the tunnels' port, or of a packet of which that cannot be
    /// told.
    fn tunnel_destination(ip: &[u8]) -> Option<Self::Be>;

    /// The IP packet one hop further.
    fn forwarded(ip: &[u8]) -> Vec<u8>;

    fn set_tos(ip: &mut [u8], tos: u8);

    /// What a program writes into an outer header.
    fn outer_extras() -> Self::Extras;

    /// Whether the node of the tests keeps what is for the address: its own addresses, broadcasts and
    /// the groups of all hosts, but also what it has no route to.
    fn is_kept(address: Self::Be) -> bool;
}

/// An IP header.
pub struct Header<F: Cluster> {
    pub src: F::Be,
    pub dst: F::Be,
    pub protocol: u8,
    pub ttl: u8,
    pub tos: u8,
    /// Length of the packet with this header.
    pub len: usize,
    /// Neither options nor a fragment, nor of another version.
    pub is_plain: bool,
}

/// What must become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Pass,
    Drop,
    /// With the frame that is sent.
    Redirect(Vec<u8>),
}

pub struct Model<'a, F: Cluster = V4> {
    fixture: &'a Fixture<F>,
    surroundings: &'a Surroundings,
}

/// An IP packet of a flow.
struct FlowPacket<'a, F: Cluster> {
    key: FlowKey<F>,
    header: Header<F>,
    /// TCP SYN, FIN or RST, or no ACK.
    control: bool,
    /// From the IP header to the end of the frame.
    ip: &'a [u8],
    headers_len: usize,
}

impl<'a, F: Reading> Model<'a, F> {
    pub const fn new(fixture: &'a Fixture<F>, surroundings: &'a Surroundings) -> Self {
        Self {
            fixture,
            surroundings,
        }
    }

    /// What must become of `frame`. Permits are either without end or have run out long ago.
    pub fn decide(&self, hook: Hook, frame: &[u8]) -> Decision {
        let sent = match hook {
            Hook::Egress if self.is_injection(frame) => return Decision::Drop,
            Hook::Egress => self.egress(frame),
            Hook::Ingress | Hook::Arrive if self.is_injected(hook, frame) => return Decision::Drop,
            Hook::Ingress => self.ingress(frame),
            Hook::Confirm | Hook::Arrive | Hook::Deliver | Hook::Guard => None,
        };
        sent.map_or(Decision::Pass, Decision::Redirect)
    }

    fn config(&self) -> &Config<F> {
        &self.fixture.config
    }

    /// Whether a pod sends a tunnel packet to a node, or hides what it sends in priority tags.
    fn is_injection(&self, frame: &[u8]) -> bool {
        let Some(ip) = packet::<F>(frame) else {
            let is_tag = matches!(frame.get(12..14), Some([0x81, 0] | [0x88, 0xa8]));
            return is_tag
                && self
                    .surroundings
                    .vlan
                    .is_some_and(|tci| tci.trailing_zeros() >= 12);
        };
        F::tunnel_destination(ip)
            .is_some_and(|dst| F::is_kept(dst) || self.fixture.peers.contains_key(&dst))
    }

    /// Whether a pod of another node sends a tunnel packet to this one.
    fn is_injected(&self, hook: Hook, frame: &[u8]) -> bool {
        let Some(ip) = packet::<F>(frame) else {
            return false;
        };
        let (Some(header), Some(dst)) = (F::read(ip), F::tunnel_destination(ip)) else {
            return false;
        };
        // On the underlay, what is for the VTEP comes from nodes.
        let is_judged = hook == Hook::Arrive
            || self.surroundings.vlan.is_none()
                && frame.starts_with(&UNDERLAY_MAC.octets)
                && dst != self.config().vtep;
        is_judged && self.config().is_remote_pod(header.src) && F::is_kept(dst)
    }

    fn egress(&self, frame: &[u8]) -> Option<Vec<u8>> {
        if self.surroundings.vlan.is_some() {
            return None;
        }
        let packet = flow::<F>(packet::<F>(frame)?, Local::Source)?;
        let flow = self.permit(&packet)?;
        let node = self.node(flow)?;
        let nexthop = self.fixture.nexthops.get(&flow.node.into())?;
        let allowed = flow.egress_until == u64::MAX
            && frame.starts_with(&flow.gateway_mac.octets)
            && is_station(&frame[6..12])
            && self.is_headed(&packet, flow.egress_mode, flow.egress_ttl)
            && flow.vtep == node.vtep.tag()
            && flow.path_changes == nexthop.path_changes
            && self.fits(&packet, flow.path_mtu);
        if !allowed {
            return None;
        }
        let inner = F::forwarded(packet.ip);
        match mode(flow.egress_mode) {
            MODE_TUNNEL if self.surroundings.gso_size == 0 && takes_tunnel_packets(node) => {
                let ecn = packet.header.tos & 3;
                Some(self.encapsulated(node, flow, ecn, &inner))
            }
            MODE_DIRECT if node.flags & NODE_DIRECT != 0 => {
                Some(framed::<F>(flow.next_hop_mac, flow.underlay_mac, &inner))
            }
            _ => None,
        }
    }

    fn encapsulated(&self, node: &Node<F>, flow: &Flow, ecn: u8, inner: &[u8]) -> Vec<u8> {
        let outer = Outer::<F> {
            eth_dst: flow.next_hop_mac,
            eth_src: flow.underlay_mac,
            src: self.config().vtep.into(),
            dst: node.vtep.into(),
            // Congestion experienced is sent as ECN-capable.
            tos: [0, 1, 2, 2][usize::from(ecn)],
            ttl: OUTER_TTL,
            ip: F::outer_extras(),
            src_port: u16::from_be_bytes(flow.source_port),
            dst_port: VXLAN_PORT,
            checksum: false,
            vxlan_flags: 8,
            vni: VNI,
        };
        outer.around(&framed::<F>(node.vtep_mac, self.config().vtep_mac, inner))
    }

    fn ingress(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let ip = packet::<F>(frame)?;
        if self.surroundings.vlan.is_some() || !frame.starts_with(&UNDERLAY_MAC.octets) {
            return None;
        }
        let header = F::read(ip)?;
        if header.dst == self.config().vtep && header.protocol == 17 {
            return self.decapsulated(ip, &header);
        }
        let packet = flow(ip, Local::Destination)?;
        let flow = self.permit(&packet)?;
        let allowed = mode(flow.ingress_mode) == MODE_DIRECT && self.may_deliver(&packet, flow);
        allowed.then(|| framed::<F>(flow.pod_mac, flow.deliver_mac, &F::forwarded(packet.ip)))
    }

    fn decapsulated(&self, ip: &[u8], outer: &Header<F>) -> Option<Vec<u8>> {
        let udp = ip.get(F::IP_LEN..F::IP_LEN + 8)?;
        let carried = &ip[F::IP_LEN + 8..];
        let headers = [
            &[8, 0, 0, 0][..],
            &(VNI << 8).to_be_bytes(),
            &self.config().vtep_mac.octets,
        ]
        .concat();
        let ours = outer.is_plain
            && udp[2..4] == VXLAN_PORT.to_be_bytes()
            && carried.starts_with(&headers)
            && outer.len == ip.len()
            && usize::from(u16::from_be_bytes([udp[4], udp[5]])) == ip.len() - F::IP_LEN;
        if !ours {
            return None;
        }
        let packet = flow(packet::<F>(&carried[8..])?, Local::Destination)?;
        let flow = self.permit(&packet)?;
        let allowed = mode(flow.ingress_mode) == MODE_TUNNEL
            && self.node(flow)?.vtep == outer.src
            && self.may_deliver(&packet, flow)
            && self.surroundings.gso_size == 0;
        if !allowed {
            return None;
        }
        let mut inner = F::forwarded(packet.ip);
        let tos = packet.header.tos;
        match (outer.tos & 3, tos & 3) {
            (3, 0) => return None,
            (3, _) => F::set_tos(&mut inner, tos | 3),
            (1, 2) => F::set_tos(&mut inner, tos ^ 3),
            _ => {}
        }
        Some(framed::<F>(flow.pod_mac, flow.deliver_mac, &inner))
    }

    /// Whether the packet has the DSCP and the TTL that its permit was earned with.
    fn is_headed(&self, packet: &FlowPacket<'_, F>, mode: u8, ttl: u8) -> bool {
        let header = &packet.header;
        self.config().fastpath == FASTPATH_TRUSTED
            || (header.tos >> 2, header.ttl.wrapping_sub(1)) == (mode >> 2, ttl)
    }

    /// What both ways in ask for.
    fn may_deliver(&self, packet: &FlowPacket<'_, F>, flow: &Flow) -> bool {
        flow.ingress_until == u64::MAX
            && self.is_headed(packet, flow.ingress_mode, flow.ingress_ttl)
            && self.fits(packet, flow.pod_mtu)
    }

    /// The entry of the packet's flow, if it counts and the packet is one that may be fast.
    fn permit(&self, packet: &FlowPacket<'_, F>) -> Option<&Flow> {
        let config = self.config();
        let (local, remote) = (packet.key.local, packet.key.remote);
        let is_within = |address: F::Be, base: F::Be, mask: F::Be| {
            let octets = |address| bytemuck::bytes_of(address).iter();
            let mut bits = octets(&address).zip(octets(&base)).zip(octets(&mask));
            bits.all(|((address, base), mask)| address & mask == *base)
        };
        let in_subnet = |address| is_within(address, config.subnet, config.subnet_mask);
        let trusted = config.fastpath == FASTPATH_TRUSTED
            && !self.fixture.translated.contains(&pair(packet.key));
        let key = if trusted {
            pair(packet.key)
        } else {
            packet.key
        };
        let flow = self.fixture.flows.get(&key)?;
        let counts = in_subnet(local)
            && is_within(remote, config.network, config.network_mask)
            && !in_subnet(remote)
            && flow.id == FlowWords::from(key).id()
            && flow.generation == config.generation
            && (trusted || !packet.control)
            && packet.header.ttl > 1;
        counts.then_some(flow)
    }

    fn node(&self, flow: &Flow) -> Option<&Node<F>> {
        let node = self.fixture.nodes.get(&flow.node.into())?;
        (node.flags & NODE_VALID != 0).then_some(node)
    }

    /// Whether the packet is as long as it says, and no longer than `mtu` on the wire.
    fn fits(&self, packet: &FlowPacket<'_, F>, mtu: u16) -> bool {
        let len = packet.ip.len();
        let on_wire = match self.surroundings.gso_size {
            0 => len,
            size => size as usize + packet.headers_len,
        };
        packet.header.len == len && on_wire <= usize::from(mtu)
    }
}

/// Whether a frame can come from the MAC address.
fn is_station(mac: &[u8]) -> bool {
    mac[0] & 1 == 0 && mac.iter().any(|&octet| octet != 0)
}

fn takes_tunnel_packets<F: Cluster>(node: &Node<F>) -> bool {
    node.flags & F::NODE_FLAGS == F::NODE_FLAGS
}

/// The flow that all packets between two pods belong to in trusted mode.
pub fn pair<F: Cluster>(key: FlowKey<F>) -> FlowKey<F> {
    FlowKey {
        local: key.local,
        remote: key.remote,
        ..FlowKey::default()
    }
}

/// What follows the Ethernet header of a frame of the family.
fn packet<F: Cluster>(frame: &[u8]) -> Option<&[u8]> {
    let (eth, ip) = frame.split_at_checked(ETH_LEN)?;
    (eth[12..] == F::ETHERTYPE).then_some(ip)
}

/// The address at `at`.
fn address<F: Cluster>(ip: &[u8], at: usize) -> Option<F::Be> {
    let octets = ip.get(at..at + size_of::<F::Be>())?;
    bytemuck::try_pod_read_unaligned(octets).ok()
}

/// The flow of an IP packet, if it has one.
fn flow<F: Reading>(ip: &[u8], local: Local) -> Option<FlowPacket<'_, F>> {
    let header = F::read(ip).filter(|header| header.is_plain)?;
    let transport = &ip[F::IP_LEN..];
    let word = |at: usize| -> Option<[u8; 2]> { transport.get(at..at + 2)?.try_into().ok() };
    let protocol = header.protocol;
    let [request, reply] = F::ECHO;
    let (src_port, dst_port, header_len, control) = match protocol {
        6 => {
            let [offset, flags] = word(12)?;
            (
                word(0)?,
                word(2)?,
                usize::from(offset >> 4) * 4,
                flags & 0b111 != 0 || flags & 0b1_0000 == 0,
            )
        }
        17 => (word(0)?, word(2)?, 8, false),
        132 => (
            word(0)?,
            word(2)?,
            12,
            is_of_the_kernel(transport.get(12..)?),
        ),
        icmp if icmp == F::ICMP.0 => match (word(0)?, word(4)?) {
            (kind, id) if kind == request => (id, [0, 0], 8, false),
            (kind, id) if kind == reply => ([0, 0], id, 8, false),
            _ => return None,
        },
        _ => return None,
    };
    let (src, dst) = ((header.src, src_port), (header.dst, dst_port));
    let (local, remote) = match local {
        Local::Source => (src, dst),
        Local::Destination => (dst, src),
    };
    Some(FlowPacket {
        key: FlowKey {
            local: local.0,
            remote: remote.0,
            local_port: local.1,
            remote_port: remote.1,
            protocol,
            ..FlowKey::default()
        },
        header,
        control,
        ip,
        headers_len: F::IP_LEN + header_len,
    })
}

/// Whether SCTP's chunks are others than data and acknowledgements of either kind.
fn is_of_the_kernel(chunks: &[u8]) -> bool {
    let Some(&[kind, _, high, low]) = chunks.first_chunk() else {
        return true;
    };
    let len = chunks.len();
    let chunk_len = usize::from(u16::from_be_bytes([high, low]));
    match kind {
        0 | 64 => false,
        3..=5 => {
            let is_alone = (chunk_len..chunk_len + 4).contains(&len);
            let is_before_data = chunk_len == 16 && matches!(chunks.get(16), Some(0 | 64));
            !is_alone && !is_before_data
        }
        _ => true,
    }
}

fn framed<F: Cluster>(dst: MacAddr, src: MacAddr, ip: &[u8]) -> Vec<u8> {
    [&dst.octets[..], &src.octets, &F::ETHERTYPE, ip].concat()
}

/// The mode in a byte that has the DSCP beside it.
const fn mode(byte: u8) -> u8 {
    byte & 0b11
}
