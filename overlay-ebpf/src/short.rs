//! The short way: packets that netfilter has to see go past the tunnel device and what the host's IP layer
//! does below it. The inner packet meets the hooks it always met.
//!
//! Outwards the tunnel headers are written where the packet gets to the tunnel device; inwards they are
//! removed where it arrives at the underlay, and the tunnel device receives the rest. Either is done
//! only while the kernel's own tunnel packets were seen to pass, to this node or from it, within a second
//! and since the last flush: they alone earn the way, and one has to earn it again each second.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use overlay_common::{
    addr::Address as _,
    config::{Config, FASTPATH_OFF},
    ecn,
    maps::MAX_NODES,
    node::Node,
    outcome::Outcome,
    short::closed,
    slow::{EGRESS, INGRESS},
    stamp::source_port,
    wire::{IPPROTO_TCP, IPPROTO_UDP},
};

use crate::{
    Conclusion, Handled,
    act::{LEN_MAX, send_by},
    fib::{self, Lookup},
    helpers::{Mark, Skb, redirect_in},
    ip::{Fields, Header as _, Ip},
    leaving::{Leaving, Opening},
    mac::{Mac, read_pair, write_pair},
    maps,
    nexthop::NexthopEntry,
    packet::ETH_LEN,
    parse::Tunnel,
    slow,
    ways::{Entry, Terms, Way},
};

/// How many source ports the kernel is asked the route of: tunnel packets to a node have many, and the way
/// is to be that of all.
const ASKED: u32 = 4;

/// Bits of a node's index.
const INDEX_BITS: u32 = MAX_NODES.trailing_zeros();

/// A packet at the tunnel device, on its way to another node.
struct Outward<F: Ip> {
    ip: Fields<F::Be>,
    index: u32,
    node: &'static Node<F>,
    frame_len: u32,
    /// Bytes of the IP and transport headers of a GSO packet.
    headers_len: u32,
    gso_size: u32,
}

/// Sends the packet the short way, if its node has one. Returns what the program returns, or
/// `TC_ACT_UNSPEC` for a packet that the tunnel device takes.
#[inline(never)]
pub fn leave<F: Ip>(skb: Skb) -> i32 {
    send::<F>(&skb).map_or(TC_ACT_UNSPEC, |handled| handled.verdict)
}

/// What came of a packet, of which the short way returned `verdict`, and which else has `outcome`.
#[inline(always)]
pub fn concluded(verdict: i32, outcome: Outcome) -> Conclusion {
    let outcome = match verdict {
        TC_ACT_UNSPEC => outcome,
        TC_ACT_SHOT => Outcome::Rewrite,
        _ => Outcome::ShortWay,
    };
    Conclusion { outcome, verdict }
}

#[inline(always)]
fn send<F: Ip>(skb: &Skb) -> Option<Handled> {
    let config = F::config()?;
    let outward = Outward::<F>::read(skb, config)?;
    let hash = skb.keep_hash();
    let is_closed = config.fastpath == FASTPATH_OFF
        || config.closed & closed::OUTWARDS != 0
        || maps::slow()?.outer & u32::from(EGRESS) != 0;
    if hash == 0 || is_closed {
        return None;
    }
    slow::check(skb, config).ok()?;
    let (index, node) = (outward.index, outward.node);
    let terms = Terms {
        generation: maps::generation(config),
        vtep: u32::from_ne_bytes(node.vtep.tag()),
        path_changes: NexthopEntry::find::<F>(index)?.path_changes(),
        inner_mark: skb.mark(),
        inner_priority: skb.priority(),
    };
    let Some(way) = Entry::find::<F>(index)?.way(&terms) else {
        Leaving::on_this_cpu()?.note_opening(&Opening {
            hash,
            node: index,
            generation: terms.generation,
            mark: terms.inner_mark,
            priority: terms.inner_priority,
        });
        skb.mark_opening();
        return None;
    };
    let outer_len = outward.frame_len - ETH_LEN as u32 + F::ENCAP_LEN;
    if !outward.fits(way.mtu) || outer_len > LEN_MAX {
        return None;
    }
    let port = source_port(hash, config.source_port_min, config.source_port_span).to_be();
    skb.grow_for_encap(F::ENCAP_LEN, F::ENCAP_FLAG).ok()?;
    let packet = skb.packet();
    let written = F::write_encap(packet, outward.ip.tos, node, outer_len, port)
        .and_then(|()| write_pair(packet, way.next_hop, way.source));
    if written.is_none() {
        return Some(Handled::drop(Outcome::Rewrite));
    }
    let verdict = send_by(skb, way.ifindex, (way.mark, way.priority));
    Some(Handled::redirect(Outcome::ShortWay, verdict))
}

impl<F: Ip> Outward<F> {
    /// `None` for what only the tunnel device takes: other than plain IP packets, and what is not
    /// addressed as a node's packets are.
    #[inline(always)]
    fn read(skb: &Skb, config: &Config<F>) -> Option<Self> {
        let packet = skb.packet_with(ETH_LEN as u32 + F::FLOW_LEN);
        let header: F::Header = packet.read(ETH_LEN)?;
        header.is_plain().ok()?;
        let ip = header.fields();
        let index = F::node_of(ip.dst)?;
        let node = F::node(index)?;
        let frame_len = skb.len();
        let gso_size = skb.gso_size();
        let is_regular = packet.read(12) == Some(F::ETHERTYPE)
            && skb.vlan_present() == 0
            && Mac::read(packet, 0)? == Mac::of(&node.vtep_mac)
            && Mac::read(packet, 6)? == Mac::of(&config.vtep_mac)
            && node.takes_tunnel_packets()
            && ip.total_len + ETH_LEN as u32 == frame_len;
        if !is_regular {
            return None;
        }
        let headers_len = match ip.protocol {
            _ if gso_size == 0 => 0,
            IPPROTO_TCP => {
                let data_offset: u8 = packet.read(ETH_LEN + F::LEN + 12)?;
                F::LEN as u32 + u32::from(data_offset >> 4) * 4
            }
            IPPROTO_UDP => F::LEN as u32 + 8,
            _ => return None,
        };
        Some(Self {
            ip,
            index,
            node,
            frame_len,
            headers_len,
            gso_size,
        })
    }

    #[inline(always)]
    const fn fits(&self, mtu: u32) -> bool {
        if self.gso_size == 0 {
            self.frame_len - ETH_LEN as u32 <= mtu
        } else {
            self.gso_size + self.headers_len <= mtu
        }
    }
}

/// Gives the node the short way by which the kernel's own tunnel packet leaves the underlay here.
#[inline(never)]
pub fn open<F: Ip>(skb: Skb) -> Outcome {
    match opened::<F>(&skb) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn opened<F: Ip>(skb: &Skb) -> Result<Outcome, Outcome> {
    let config = F::config().ok_or(Outcome::Disabled)?;
    let opening = Leaving::on_this_cpu().ok_or(Outcome::Disabled)?.opening();
    let generation = maps::generation(config);
    let hash = skb.hash();
    // Another packet overtook this one, or the flow table was flushed meanwhile.
    if hash == 0 || opening.hash != hash || opening.generation != generation {
        return Err(Outcome::OtherPath);
    }
    let index = opening.node;
    let node = F::node(index).ok_or(Outcome::Nexthop)?;
    let nexthop = NexthopEntry::find::<F>(index).ok_or(Outcome::Nexthop)?;
    let terms = Terms {
        generation,
        vtep: u32::from_ne_bytes(node.vtep.tag()),
        path_changes: nexthop.path_changes(),
        inner_mark: opening.mark,
        inner_priority: opening.priority,
    };
    let inner = ETH_LEN + F::ENCAP_LEN as usize;
    let packet = skb.packet_with(inner as u32 + F::FLOW_LEN);
    let header: F::Header = packet.read(inner).ok_or(Outcome::OtherPath)?;
    let tunnel =
        Tunnel::sent(packet, config, node, header.fields().tos).ok_or(Outcome::OtherPath)?;
    let (first, span) = (config.source_port_min, config.source_port_span);
    if u16::from_be(tunnel.source_port) != source_port(hash, first, span) {
        return Err(Outcome::OtherPath);
    }
    let (next_hop, source) = read_pair(packet).ok_or(Outcome::OtherPath)?;
    let mut mtu = config.pod_mtu;
    let mut asked = 0;
    while asked < ASKED {
        let port = source_port(hash.rotate_left(asked * 8), first, span);
        let room = room_of::<F>(*skb, index, port);
        mtu = if room < mtu { room } else { mtu };
        asked += 1;
    }
    if mtu == 0 {
        return Err(Outcome::OtherPath);
    }
    let way = Way {
        ifindex: skb.ifindex(),
        next_hop,
        source,
        mtu,
        mark: skb.mark(),
        priority: skb.priority(),
    };
    let entry = Entry::find::<F>(index).ok_or(Outcome::Nexthop)?;
    entry.open(&terms, &way);
    Ok(Outcome::WayOpened)
}

/// How large an inner packet may be if tunnel packets to the node with this source port take the way that
/// this one takes; else 0.
#[inline(never)]
fn room_of<F: Ip>(skb: Skb, index: u32, port: u16) -> u32 {
    let Some((config, node)) = F::config().zip(F::node(index)) else {
        return 0;
    };
    let Some(next_hop) = Mac::read(skb.packet(), 0) else {
        return 0;
    };
    let lookup = Lookup::of_tunnel(&skb, config, node, port.to_be());
    match fib::mtu_of_way(&skb, &lookup, next_hop) {
        Some(mtu) => node.room(mtu, F::ENCAP_LEN),
        None => 0,
    }
}

/// Takes a tunnel packet the short way in, if the node it is from has one. Returns what the program returns, or
/// `TC_ACT_UNSPEC` for a packet that the kernel's tunnel takes.
#[inline(never)]
pub fn enter<F: Ip>(skb: Skb) -> i32 {
    receive::<F>(&skb).map_or(TC_ACT_UNSPEC, |handled| handled.verdict)
}

#[inline(always)]
fn receive<F: Ip>(skb: &Skb) -> Option<Handled> {
    let config = F::config()?;
    let inner = ETH_LEN + F::ENCAP_LEN as usize;
    let packet = skb.packet_with(inner as u32 + F::FLOW_LEN);
    let tunnel = Tunnel::read(packet, config, config.vtep_mac).ok()?;
    let inner_source = Mac::read(packet, inner - ETH_LEN + 6)?;
    let header: F::Header = packet.read(inner)?;
    let ip = header.fields();
    let index = F::node_at(tunnel.source)?;
    let node = F::node(index)?;
    let outer_len = skb.len() - ETH_LEN as u32;
    // What was marked before it got here is for the host's rules to know, and a frame of its own address
    // the tunnel device takes for a loop.
    let is_regular = config.closed & closed::INWARDS == 0
        && maps::slow()?.outer & u32::from(INGRESS) == 0
        && skb.mark() == 0
        && inner_source != Mac::of(&config.vtep_mac)
        && node.vtep == tunnel.source
        && tunnel.len == outer_len
        && tunnel.udp_len == outer_len - F::LEN as u32
        && config.is_local_pod(ip.dst)
        && F::node_of(ip.src) == Some(index);
    if !is_regular {
        return None;
    }
    let vtep = u32::from_ne_bytes(node.vtep.tag());
    let generation = maps::generation(config);
    if !Entry::find::<F>(index)?.is_open_inwards(vtep, generation) {
        // What IPsec let pass says nothing of what comes in clear.
        if !skb.was_deciphered() {
            skb.set_hash(token(index, generation));
            skb.mark_opening();
        }
        return None;
    }
    // Once BPF has removed the headers, the kernel cannot split a GSO packet any more. What follows one
    // must not overtake it.
    if skb.gso_size() != 0 {
        maps::note_bulk(index, tunnel.source_port);
        return None;
    }
    let is_same_ecn = ecn::decapsulate(tunnel.tos, ip.tos) == Some(ip.tos);
    if !is_same_ecn || maps::is_bulk(index, tunnel.source_port) {
        return None;
    }
    skb.shrink_for_decap(F::ENCAP_LEN, tunnel.checksum).ok()?;
    if write_pair(skb.packet(), Mac::of(&config.vtep_mac), inner_source).is_none() {
        return Some(Handled::drop(Outcome::Rewrite));
    }
    let verdict = redirect_in(config.vtep_ifindex);
    Some(Handled::redirect(Outcome::ShortWay, verdict))
}

/// What a tunnel packet of node `index` carries as its hash to the tunnel device.
#[inline(always)]
const fn token(index: u32, generation: u32) -> u32 {
    index | generation << INDEX_BITS
}

/// At the tunnel device: gives the node the short way in if this is the kernel's own packet from it, as it
/// left the underlay.
#[inline(always)]
pub fn open_inwards<F: Ip>(skb: &Skb, config: &Config<F>) -> Option<()> {
    if skb.take_mark() != Mark::Opening || skb.mark() != 0 || skb.priority() != 0 {
        return None;
    }
    let generation = maps::generation(config);
    let hash = skb.hash();
    let index = hash % MAX_NODES as u32;
    if hash != token(index, generation) {
        return None;
    }
    let vtep = u32::from_ne_bytes(F::node(index)?.vtep.tag());
    Entry::find::<F>(index)?.open_inwards(vtep, generation);
    Some(())
}
