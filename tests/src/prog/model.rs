//! The rules of the programs, read plainly over the bytes of a packet and the fixture: what a
//! packet must become. Shares no code with the programs; the kernel's own decisions that a test run
//! shows (segments of no protocol are not encapsulated) are here too.

use overlay_common::{
    addr::{Ipv4Be, MacAddr},
    config::{Config, FASTPATH_TRUSTED},
    flow::{Flow, FlowKey4, FlowWords},
    node::{MODE_DIRECT, MODE_TUNNEL, NODE_VALID, Nexthop, Node},
    outcome::Hook,
};

use super::{
    Surroundings,
    fixture::{Fixture, OUTER_TTL, VNI, VXLAN_PORT},
    node::UNDERLAY_MAC,
    packet::{ETH_LEN, Local, Outer},
};

/// What must become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Pass,
    Drop,
    /// With the frame that is sent.
    Redirect(Vec<u8>),
}

pub struct Model<'a> {
    fixture: &'a Fixture,
    surroundings: &'a Surroundings,
}

/// An IPv4 packet of a flow.
struct FlowPacket<'a> {
    key: FlowKey4,
    /// TCP SYN, FIN or RST.
    control: bool,
    /// From the IP header to the end of the frame.
    ip: &'a [u8],
    headers_len: usize,
}

impl<'a> Model<'a> {
    pub const fn new(fixture: &'a Fixture, surroundings: &'a Surroundings) -> Self {
        Self {
            fixture,
            surroundings,
        }
    }

    /// What must become of `frame`. Leases are either without end or have run out long ago.
    pub fn decide(&self, hook: Hook, frame: &[u8]) -> Decision {
        let sent = match hook {
            Hook::Egress if self.is_injection(frame) => return Decision::Drop,
            Hook::Egress => self.egress(frame),
            Hook::Ingress => self.ingress(frame),
            Hook::Confirm | Hook::Arrive | Hook::Deliver | Hook::Guard => None,
        };
        sent.map_or(Decision::Pass, Decision::Redirect)
    }

    fn config(&self) -> &Config {
        &self.fixture.config
    }

    /// Whether a pod sends a tunnel packet to a node, or hides what it sends in priority tags.
    fn is_injection(&self, frame: &[u8]) -> bool {
        let Some(ip) = ipv4(frame) else {
            let is_tag = matches!(frame.get(12..14), Some([0x81, 0] | [0x88, 0xa8]));
            return is_tag
                && self
                    .surroundings
                    .vlan
                    .is_some_and(|tci| tci.trailing_zeros() >= 12);
        };
        let &[
            first,
            _,
            _,
            _,
            _,
            _,
            fragment,
            low,
            _,
            17,
            _,
            _,
            _,
            _,
            _,
            _,
            a,
            b,
            c,
            d,
            ..,
        ] = ip
        else {
            return false;
        };
        let dst = Ipv4Be {
            octets: [a, b, c, d],
        };
        let port = usize::from(first & 0xf) * 4 + 2;
        first >> 4 == 4
            && fragment_offset([fragment, low]) == 0
            && ip.get(port..port + 2) == Some(&VXLAN_PORT.to_be_bytes())
            && (dst == self.config().vtep || self.fixture.peers.contains_key(&dst))
    }

    fn egress(&self, frame: &[u8]) -> Option<Vec<u8>> {
        if self.surroundings.vlan.is_some() {
            return None;
        }
        let packet = flow(ipv4(frame)?, Local::Source)?;
        let flow = self.lease(&packet)?;
        let node = self.node(flow)?;
        let nexthop = self.fixture.nexthops.get(&flow.node)?;
        let allowed = flow.egress_until == u64::MAX
            && frame.starts_with(&flow.gateway_mac.octets)
            && nexthop.vtep == node.vtep.octets
            && nexthop.mode == flow.egress_mode
            && self.fits(&packet, nexthop.mtu);
        if !allowed {
            return None;
        }
        let inner = hop(packet.ip);
        match flow.egress_mode {
            MODE_TUNNEL if self.surroundings.gso_size == 0 => {
                Some(self.encapsulated(node, nexthop, flow, &inner))
            }
            MODE_DIRECT => Some(framed(nexthop.dst_mac, nexthop.src_mac, &inner)),
            _ => None,
        }
    }

    fn encapsulated(&self, node: &Node, nexthop: &Nexthop, flow: &Flow, inner: &[u8]) -> Vec<u8> {
        let outer = Outer {
            eth_dst: nexthop.dst_mac,
            eth_src: nexthop.src_mac,
            src: self.config().vtep.into(),
            dst: node.vtep.into(),
            // Congestion experienced is sent as ECN-capable.
            tos: [0, 1, 2, 2][usize::from(inner[1] & 3)],
            ttl: OUTER_TTL,
            id: 0,
            src_port: u16::from_be_bytes(flow.source_port),
            dst_port: VXLAN_PORT,
            checksum: false,
            vxlan_flags: 8,
            vni: VNI,
        };
        outer.around(&framed(node.vtep_mac, self.config().vtep_mac, inner))
    }

    fn ingress(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let ip = ipv4(frame)?;
        if self.surroundings.vlan.is_some() || !frame.starts_with(&UNDERLAY_MAC.octets) {
            return None;
        }
        let (src, dst) = addresses(ip)?;
        if dst == self.config().vtep && ip[9] == 17 {
            return self.decapsulated(ip, src);
        }
        let packet = flow(ip, Local::Destination)?;
        let flow = self.lease(&packet)?;
        let allowed = flow.ingress_mode == MODE_DIRECT && self.may_deliver(&packet, flow);
        allowed.then(|| framed(flow.pod_mac, flow.deliver_mac, &hop(packet.ip)))
    }

    fn decapsulated(&self, ip: &[u8], src: Ipv4Be) -> Option<Vec<u8>> {
        let [0x45, tos, len_high, len_low, _, _, fragment, low, ..] = *ip else {
            return None;
        };
        let udp = ip.get(20..28)?;
        let headers = [
            &[8, 0, 0, 0][..],
            &(VNI << 8).to_be_bytes(),
            &self.config().vtep_mac.octets,
        ]
        .concat();
        let ours = !is_fragment([fragment, low])
            && udp[2..4] == VXLAN_PORT.to_be_bytes()
            && ip.get(28..42) == Some(headers.as_slice())
            && usize::from(u16::from_be_bytes([len_high, len_low])) == ip.len()
            && usize::from(u16::from_be_bytes([udp[4], udp[5]])) == ip.len() - 20;
        if !ours {
            return None;
        }
        let packet = flow(ipv4(&ip[36..])?, Local::Destination)?;
        let flow = self.lease(&packet)?;
        let allowed = flow.ingress_mode == MODE_TUNNEL
            && self.node(flow)?.vtep == src
            && self.may_deliver(&packet, flow)
            && self.surroundings.gso_size == 0;
        if !allowed {
            return None;
        }
        let mut inner = hop(packet.ip);
        match (tos & 3, inner[1] & 3) {
            (3, 0) => return None,
            (3, _) => set_tos(&mut inner, |tos| tos | 3),
            (1, 2) => set_tos(&mut inner, |tos| tos ^ 3),
            _ => {}
        }
        Some(framed(flow.pod_mac, flow.deliver_mac, &inner))
    }

    /// What both ways in ask for.
    fn may_deliver(&self, packet: &FlowPacket<'_>, flow: &Flow) -> bool {
        flow.ingress_until == u64::MAX && self.fits(packet, flow.pod_mtu)
    }

    /// The entry of the packet's flow, if it counts and the packet is one that may be fast.
    fn lease(&self, packet: &FlowPacket<'_>) -> Option<&Flow> {
        let config = self.config();
        let (local, remote) = (packet.key.local, packet.key.remote);
        let is_within = |address: Ipv4Be, base: Ipv4Be, mask: Ipv4Be| {
            address.to_u32() & mask.to_u32() == base.to_u32()
        };
        let in_subnet = |address| is_within(address, config.subnet, config.subnet_mask);
        let trusted = config.fastpath == FASTPATH_TRUSTED;
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
            && packet.ip[8] > 1;
        counts.then_some(flow)
    }

    fn node(&self, flow: &Flow) -> Option<&Node> {
        let node = self.fixture.nodes.get(&flow.node)?;
        (node.flags & NODE_VALID != 0).then_some(node)
    }

    /// Whether the packet is as long as it says, and no longer than `mtu` on the wire.
    fn fits(&self, packet: &FlowPacket<'_>, mtu: u16) -> bool {
        let len = packet.ip.len();
        let on_wire = match self.surroundings.gso_size {
            0 => len,
            size => size as usize + packet.headers_len,
        };
        usize::from(u16::from_be_bytes([packet.ip[2], packet.ip[3]])) == len
            && on_wire <= usize::from(mtu)
    }
}

/// The flow that all packets between two pods belong to in trusted mode.
pub fn pair(key: FlowKey4) -> FlowKey4 {
    FlowKey4 {
        local: key.local,
        remote: key.remote,
        ..FlowKey4::default()
    }
}

/// What follows the Ethernet header of an IPv4 frame.
fn ipv4(frame: &[u8]) -> Option<&[u8]> {
    let (eth, ip) = frame.split_at_checked(ETH_LEN)?;
    (eth[12..] == [8, 0]).then_some(ip)
}

fn addresses(ip: &[u8]) -> Option<(Ipv4Be, Ipv4Be)> {
    let address = |at: usize| -> Option<Ipv4Be> {
        let octets = ip.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Be { octets })
    };
    Some((address(12)?, address(16)?))
}

/// From the header field that holds it.
const fn fragment_offset(field: [u8; 2]) -> u16 {
    u16::from_be_bytes(field) & 0x1fff
}

/// Whether it has an offset or the more-fragments flag.
const fn is_fragment(field: [u8; 2]) -> bool {
    fragment_offset(field) != 0 || field[0] & 0x20 != 0
}

/// The flow of an IP packet, if it has one.
fn flow(ip: &[u8], local: Local) -> Option<FlowPacket<'_>> {
    let (src, dst) = addresses(ip)?;
    if ip[0] != 0x45 || is_fragment([ip[6], ip[7]]) {
        return None;
    }
    let transport = &ip[20..];
    let word = |at: usize| -> Option<[u8; 2]> { transport.get(at..at + 2)?.try_into().ok() };
    let protocol = ip[9];
    let (src_port, dst_port, header_len, control) = match protocol {
        6 => {
            let [offset, flags] = word(12)?;
            (
                word(0)?,
                word(2)?,
                usize::from(offset >> 4) * 4,
                flags & 0b111 != 0,
            )
        }
        17 => (word(0)?, word(2)?, 8, false),
        1 => match (word(0)?, word(4)?) {
            ([8, 0], id) => (id, [0, 0], 8, false),
            ([0, 0], id) => ([0, 0], id, 8, false),
            _ => return None,
        },
        _ => return None,
    };
    let (local, remote) = match local {
        Local::Source => ((src, src_port), (dst, dst_port)),
        Local::Destination => ((dst, dst_port), (src, src_port)),
    };
    Some(FlowPacket {
        key: FlowKey4 {
            local: local.0,
            remote: remote.0,
            local_port: local.1,
            remote_port: remote.1,
            protocol,
            ..FlowKey4::default()
        },
        control,
        ip,
        headers_len: 20 + header_len,
    })
}

/// The IP packet one hop further: `ip_decrease_ttl` of the kernel's `include/net/ip.h`. Unlike a
/// new checksum it keeps a wrong one wrong.
fn hop(ip: &[u8]) -> Vec<u8> {
    let mut ip = ip.to_vec();
    let check = u32::from(u16::from_be_bytes([ip[10], ip[11]])) + 0x100;
    let check = check + u32::from(check >= 0xffff);
    ip[10..12].copy_from_slice(&check.to_be_bytes()[2..]);
    ip[8] -= 1;
    ip
}

/// Changes the TOS byte, and the checksum as RFC 1624 equation 3 says.
fn set_tos(ip: &mut [u8], change: impl FnOnce(u8) -> u8) {
    let word = |ip: &[u8], at: usize| u32::from(u16::from_be_bytes([ip[at], ip[at + 1]]));
    let (check, old) = (word(ip, 10), word(ip, 0));
    ip[1] = change(ip[1]);
    let mut sum = (check ^ 0xffff) + (old ^ 0xffff) + word(ip, 0);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    ip[10..12].copy_from_slice(&(sum ^ 0xffff).to_be_bytes()[2..]);
}

fn framed(dst: MacAddr, src: MacAddr, ip: &[u8]) -> Vec<u8> {
    [&dst.octets[..], &src.octets, &[8, 0], ip].concat()
}
