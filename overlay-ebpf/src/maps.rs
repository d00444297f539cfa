//! The maps and the only ways to use them.

use aya_ebpf::{
    bindings::BPF_F_NO_COMMON_LRU,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use overlay_common::{
    addr::{Ipv4Be, Ipv6Be},
    config::Config,
    family::{V4, V6, WireFamily},
    flow::{Entered, Flow, FlowImage, FlowKey, FlowWords},
    maps::{
        ENTERED_SLOTS, LEARN_BUDGET, LEARN_PERIOD_BITS, MAX_FLOWS, MAX_GATEWAYS, MAX_NODES,
        MAX_PODS, MAX_ROUTES, PAIR_SLOTS, SEEN_SLOTS,
    },
    node::{
        Gateway, Leaving, MOVE_SLOTS, NODE_VALID, Nexthop, Node, Peer, PodKey, PodPort, move_slot,
    },
    outcome::{COUNTERS, Counter, Hook, Outcome, slot},
    pair,
    route::RouteEntry,
    short::{BULK_PERIOD_BITS, BULK_PERIODS, BULK_SLOTS, Short, bulk_slot},
    slow::{MAX_MATCHES, Match, Slow},
    stamp::seen_slot,
};

use crate::{helpers::now, mac::Mac};

#[btf_map(name = "OVL_ROUTES4")]
static ROUTES4: LpmTrie<Ipv4Be, RouteEntry, MAX_ROUTES> = LpmTrie::new();

#[btf_map(name = "OVL_NODES")]
static NODES: Array<Node, MAX_NODES> = Array::new();

#[btf_map(name = "OVL_NEXTHOPS")]
static NEXTHOPS: Array<Nexthop, MAX_NODES> = Array::new();

#[btf_map(name = "OVL_PEERS4")]
static PEERS4: HashMap<Ipv4Be, Peer, MAX_NODES> = HashMap::new();

// Per-CPU LRU lists: eviction never takes a lock that other CPUs hold.
#[btf_map(name = "OVL_FLOWS4")]
static FLOWS4: LruHashMap<FlowKey<V4>, Flow, MAX_FLOWS, { BPF_F_NO_COMMON_LRU as usize }> =
    LruHashMap::new();

#[btf_map(name = "OVL_CONFIG")]
static CONFIG: Array<Config, 1> = Array::new();

#[btf_map(name = "OVL_ROUTES6")]
static ROUTES6: LpmTrie<Ipv6Be, RouteEntry, MAX_ROUTES> = LpmTrie::new();

#[btf_map(name = "OVL_NODES6")]
static NODES6: Array<Node<V6>, MAX_NODES> = Array::new();

#[btf_map(name = "OVL_NEXTHOPS6")]
static NEXTHOPS6: Array<Nexthop, MAX_NODES> = Array::new();

#[btf_map(name = "OVL_PEERS6")]
static PEERS6: HashMap<Ipv6Be, Peer, MAX_NODES> = HashMap::new();

#[btf_map(name = "OVL_FLOWS6")]
static FLOWS6: LruHashMap<FlowKey<V6>, Flow, MAX_FLOWS, { BPF_F_NO_COMMON_LRU as usize }> =
    LruHashMap::new();

#[btf_map(name = "OVL_CONFIG6")]
static CONFIG6: Array<Config<V6>, 1> = Array::new();

#[btf_map(name = "OVL_SHORT")]
static SHORT: Array<Short, MAX_NODES> = Array::new();

#[btf_map(name = "OVL_SHORT6")]
static SHORT6: Array<Short, MAX_NODES> = Array::new();

#[btf_map(name = "OVL_BULK")]
static BULK: Array<u32, BULK_SLOTS> = Array::new();

#[btf_map(name = "OVL_GATEWAYS")]
static GATEWAYS: HashMap<u32, Gateway, MAX_GATEWAYS> = HashMap::new();

#[btf_map(name = "OVL_PODS")]
static PODS: LruHashMap<PodKey, PodPort, MAX_PODS> = LruHashMap::new();

#[btf_map(name = "OVL_LEARNED")]
static LEARNED: LruHashMap<u32, u64, MAX_PODS> = LruHashMap::new();

#[btf_map(name = "OVL_MOVES")]
static MOVES: Array<u32, MOVE_SLOTS> = Array::new();

#[btf_map(name = "OVL_LEAVING")]
static LEAVING: PerCpuArray<Leaving, 1> = PerCpuArray::new();

#[btf_map(name = "OVL_ENTERED")]
static ENTERED: PerCpuArray<Entered, ENTERED_SLOTS> = PerCpuArray::new();

#[btf_map(name = "OVL_ENTERED6")]
static ENTERED6: PerCpuArray<Entered<V6>, ENTERED_SLOTS> = PerCpuArray::new();

#[btf_map(name = "OVL_DRAFT")]
static DRAFT: PerCpuArray<FlowImage, 1> = PerCpuArray::new();

#[btf_map(name = "OVL_SEEN")]
static SEEN: Array<u32, SEEN_SLOTS> = Array::new();

#[btf_map(name = "OVL_TRANSLATED")]
static TRANSLATED: Array<u32, PAIR_SLOTS> = Array::new();

#[btf_map(name = "OVL_SLOW")]
static SLOW: Array<Slow, 1> = Array::new();

#[btf_map(name = "OVL_STATS")]
static STATS: PerCpuArray<Counter, COUNTERS> = PerCpuArray::new();

/// The maps of an address family.
pub trait Tables: WireFamily {
    fn config() -> Option<&'static Config<Self>>;

    /// Index of the node that owns `address`.
    fn node_of(address: Self::Be) -> Option<u32>;

    fn node(index: u32) -> Option<&'static Node<Self>>;

    fn nexthop(index: u32) -> Option<*mut Nexthop>;

    fn short(index: u32) -> Option<*mut Short>;

    fn peer(address: Self::Be) -> Option<*const Peer>;

    fn flow(key: &FlowKey<Self>) -> Option<*mut Flow>;

    fn put_flow(key: &FlowKey<Self>, flow: *const FlowImage) -> Result<(), Outcome>;

    fn remove_flow(key: &FlowKey<Self>);

    /// This CPU's note of the packets with such a stamp.
    fn entered(slot: u32) -> Option<*mut Entered<Self>>;

    /// How many matches of flows count that the packet filter judges packet by packet, and the
    /// matches.
    fn slow(slow: &'static Slow) -> (u32, &'static [Match<Self>; MAX_MATCHES]);

    #[inline(always)]
    fn is_peer(address: Self::Be) -> bool {
        Self::peer(address).is_some()
    }

    /// Index of the node whose VTEP address is `address`.
    #[inline(always)]
    fn node_at(address: Self::Be) -> Option<u32> {
        let entry = Self::peer(address)?;
        // SAFETY: the pointer is to a live value that is one aligned u32. The agent may replace it
        // meanwhile: either index is one that this address had a moment ago.
        Some(unsafe { entry.cast::<u32>().read_volatile() })
    }
}

macro_rules! tables {
    (
        $family:ty, $node_of:ident:
        $config:ident, $nodes:ident, $nexthops:ident, $short:ident, $peers:ident, $flows:ident, $entered:ident,
        $slow_count:ident, $slow:ident
    ) => {
        impl Tables for $family {
            #[inline(always)]
            fn config() -> Option<&'static Config<Self>> {
                $config.get(0)
            }

            #[inline(always)]
            fn node_of(address: Self::Be) -> Option<u32> {
                $node_of(address)
            }

            #[inline(always)]
            fn node(index: u32) -> Option<&'static Node<Self>> {
                let node = $nodes.get(index)?;
                (node.flags & NODE_VALID != 0).then_some(node)
            }

            #[inline(always)]
            fn nexthop(index: u32) -> Option<*mut Nexthop> {
                $nexthops.get_ptr_mut(index)
            }

            #[inline(always)]
            fn short(index: u32) -> Option<*mut Short> {
                $short.get_ptr_mut(index)
            }

            #[inline(always)]
            fn peer(address: Self::Be) -> Option<*const Peer> {
                $peers.get_ptr(address)
            }

            #[inline(always)]
            fn flow(key: &FlowKey<Self>) -> Option<*mut Flow> {
                $flows.get_ptr_mut(key)
            }

            #[inline(always)]
            fn put_flow(key: &FlowKey<Self>, flow: *const FlowImage) -> Result<(), Outcome> {
                // SAFETY: `flow` is this CPU's draft, which nothing else writes meanwhile; its words are
                // those of a `Flow`.
                let flow = unsafe { &*flow.cast::<Flow>() };
                $flows.insert(key, flow, 0).map_err(|_| Outcome::TableFull)
            }

            #[inline(always)]
            fn remove_flow(key: &FlowKey<Self>) {
                // The entry may well not exist; there is nothing to do about that.
                let _ = $flows.remove(key);
            }

            #[inline(always)]
            fn entered(slot: u32) -> Option<*mut Entered<Self>> {
                $entered.get_ptr_mut(slot)
            }

            #[inline(always)]
            fn slow(slow: &'static Slow) -> (u32, &'static [Match<Self>; MAX_MATCHES]) {
                (slow.$slow_count, &slow.$slow)
            }
        }
    };
}

tables!(V4, ipv4_node_of: CONFIG, NODES, NEXTHOPS, SHORT, PEERS4, FLOWS4, ENTERED, ipv4_count, ipv4);
tables!(V6, ipv6_node_of: CONFIG6, NODES6, NEXTHOPS6, SHORT6, PEERS6, FLOWS6, ENTERED6, ipv6_count, ipv6);

#[inline(always)]
fn ipv4_node_of(address: Ipv4Be) -> Option<u32> {
    ROUTES4.get(&Key::new(32, address)).map(|route| route.node)
}

#[inline(always)]
fn ipv6_node_of(address: Ipv6Be) -> Option<u32> {
    /// The address is written to the stack by 8 bytes, which the verifier wants aligned.
    #[repr(C, align(8))]
    struct Aligned {
        _pad: u32,
        key: Key<Ipv6Be>,
    }
    let aligned = Aligned {
        _pad: 0,
        key: Key::new(128, address),
    };
    ROUTES6.get(&aligned.key).map(|route| route.node)
}

/// What the packet filter judges packet by packet.
#[inline(always)]
pub fn slow() -> Option<&'static Slow> {
    SLOW.get(0)
}

/// The generation there is now. What is decided by it must read it once: the agent may increment it at
/// any time.
#[inline(always)]
pub fn generation<F: WireFamily>(config: &Config<F>) -> u32 {
    // SAFETY: the reference is to a live, aligned value of the array map, which is read once, whole.
    unsafe { (&raw const config.generation).read_volatile() }
}

/// Adds one packet to the counter of `outcome` at `hook`.
#[inline(always)]
pub fn count(hook: Hook, outcome: Outcome, bytes: u32) {
    if let Some(counter) = STATS.get_ptr_mut(slot(hook, outcome)) {
        // SAFETY: the pointer is this CPU's own slot, which no other CPU writes; TC programs of
        // one CPU do not interrupt each other.
        let counter = unsafe { &mut *counter };
        counter.packets += 1;
        counter.bytes += u64::from(bytes);
    }
}

/// This CPU's packet on its way from the vxlan device to the underlay. TC programs of one CPU do not
/// interrupt each other.
#[inline(always)]
pub fn leaving() -> Option<*mut Leaving> {
    LEAVING.get_ptr_mut(0)
}

/// Whether a packet with this stamp was seen before in the direction; from here on it was. A slot that
/// another stamp has taken meanwhile says no once more.
#[inline(always)]
pub fn was_seen(stamp: u32, is_inbound: bool) -> bool {
    let Some(seen) = SEEN.get_ptr_mut(seen_slot(stamp, is_inbound)) else {
        return true;
    };
    // SAFETY: the pointer is to the live, aligned value of the array map; each access is of the whole.
    let before = unsafe { seen.read_volatile() };
    if before == stamp {
        return true;
    }
    // SAFETY: as above. Of two writers at the same time one counts.
    unsafe { seen.write_volatile(stamp) };
    false
}

/// Whether a translation may connect the pods of a flow.
#[inline(always)]
pub fn is_translated<F: WireFamily>(words: FlowWords<F>) -> bool {
    let Some(marked) = TRANSLATED.get_ptr(pair::slot(words)) else {
        return true;
    };
    // SAFETY: the pointer is to the live, aligned value of the array map, which is read once, whole.
    unsafe { marked.read_volatile() == pair::MARKED }
}

/// From here on a translation may connect the pods of a flow.
#[inline(always)]
pub fn mark_translated<F: WireFamily>(words: FlowWords<F>) {
    if let Some(marked) = TRANSLATED.get_ptr_mut(pair::slot(words)) {
        // SAFETY: as in `is_translated`; all writers write the same.
        unsafe {
            if marked.read_volatile() != pair::MARKED {
                marked.write_volatile(pair::MARKED);
            }
        }
    }
}

/// Number of the present period of `OVL_BULK`.
#[inline(always)]
fn bulk_period() -> u32 {
    (now() >> BULK_PERIOD_BITS) as u32
}

/// Notes that GRO merges packets of the flow of node `index` with this UDP source port.
#[inline(always)]
pub fn note_bulk(index: u32, source_port: u16) {
    if let Some(noted) = BULK.get_ptr_mut(bulk_slot(index, source_port)) {
        // SAFETY: the pointer is to the live, aligned value of the array map, written whole.
        unsafe { noted.write_volatile(bulk_period()) };
    }
}

/// Whether such packets were seen a moment ago.
#[inline(always)]
pub fn is_bulk(index: u32, source_port: u16) -> bool {
    let Some(noted) = BULK.get_ptr(bulk_slot(index, source_port)) else {
        return true;
    };
    // SAFETY: as in `note_bulk`, read whole.
    let noted = unsafe { noted.read_volatile() };
    noted != 0 && bulk_period().wrapping_sub(noted) <= BULK_PERIODS
}

/// This CPU's memory for an entry in the making.
#[inline(always)]
pub fn draft() -> Option<*mut FlowImage> {
    DRAFT.get_ptr_mut(0)
}

/// MAC address of the gateway whose IP layer received a pod's packet.
#[inline(always)]
pub fn gateway(ifindex: u32) -> Option<Mac> {
    let entry = GATEWAYS.get_ptr(ifindex)?;
    // SAFETY: the pointer is to a live value of 8 bytes, aligned to 8. The agent replaces entries
    // but never gives one to another interface without a flush, after which what was read here
    // grants nothing.
    let word = unsafe { entry.cast::<u64>().read_volatile() };
    Some(Mac::from_low_bits(word))
}

/// Whether frames on the interface have no addresses, as on a netkit in mode L3: there is nobody but the host and
/// one pod.
#[inline(always)]
pub fn has_no_addresses(ifindex: u32) -> bool {
    gateway(ifindex) == Some(Mac::NONE)
}

/// Remembers on which interface pods use the MAC address. That of an address that has moved is counted:
/// permits of its pod deliver to where it was.
#[inline(always)]
pub fn learn_pod(mac: Mac, ifindex: u32) {
    let before = pod_port(mac);
    if !mac.is_station() || before == Some(ifindex) {
        return;
    }
    if before.is_none() && !may_learn(ifindex) {
        return;
    }
    // A full table evicts its oldest entry; should it refuse, the address is learned another time.
    let _ = PODS.insert(pod_key(mac), PodPort { ifindex }, 0);
    if before.is_some()
        && let Some(moves) = MOVES.get_ptr_mut(move_slot(mac.bits()))
    {
        // SAFETY: the pointer is to the live, aligned value of the array map. Another writer that
        // increments at the same time leaves a number that is new as well.
        unsafe { moves.write_volatile(moves.read_volatile().wrapping_add(1)) };
    }
}

/// Whether another address may be learned on the interface now. What a pod floods its veth with must not
/// evict the addresses of others faster than these are seen again, which is once in a permit's time.
#[inline(always)]
fn may_learn(ifindex: u32) -> bool {
    let fresh = (now() >> LEARN_PERIOD_BITS) << 32;
    let Some(learned) = LEARNED.get_ptr_mut(ifindex) else {
        return LEARNED.insert(ifindex, fresh | 1, 0).is_ok();
    };
    // SAFETY: the pointer is to a live, aligned value. Writers on several CPUs may count one address
    // for two; an entry that is evicted and reused meanwhile belongs to another interface, whose count
    // starts anew.
    let before = unsafe { learned.read_volatile() };
    // How many were learned in this period; far more than any budget if the count is of another one.
    let count = before.wrapping_sub(fresh);
    if count == LEARN_BUDGET {
        return false;
    }
    let next = if count < LEARN_BUDGET { count + 1 } else { 1 };
    // SAFETY: as above.
    unsafe { learned.write_volatile(fresh | next) };
    true
}

/// How often an address of this one's slot has moved. To be read before [`pod_port`], so that a permit
/// of an address that moves meanwhile does not count.
#[inline(always)]
pub fn moves(mac: Mac) -> u32 {
    let Some(moves) = MOVES.get_ptr(move_slot(mac.bits())) else {
        return 0;
    };
    // SAFETY: as in `learn_pod`.
    unsafe { moves.read_volatile() }
}

/// The interface on which frames from `mac` were seen last.
#[inline(always)]
pub fn pod_port(mac: Mac) -> Option<u32> {
    // SAFETY: copied at once. An entry that is evicted and reused meanwhile yields another
    // address's interface: the frame then earns no permit, or the very one the kernel delivers to.
    unsafe { PODS.get(pod_key(mac)) }.map(|port| port.ifindex)
}

#[inline(always)]
fn pod_key(mac: Mac) -> PodKey {
    bytemuck::cast(mac.bits())
}
