//! The maps and the only ways to use them.

use aya_ebpf::{
    bindings::BPF_F_NO_COMMON_LRU,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use overlay_common::{
    addr::Ipv4Be,
    config::Config,
    flow::{Flow, FlowImage, FlowKey4, FlowWords, word},
    maps::{MAX_FLOWS, MAX_GATEWAYS, MAX_NODES, MAX_PODS, MAX_ROUTES},
    node::{self, Gateway, NODE_VALID, Nexthop, NexthopImage, Node, Peer, PodKey, PodPort},
    outcome::{COUNTERS, Counter, Hook, Outcome, slot},
    route::Route,
};

use crate::mac::Mac;

#[btf_map(name = "OVL_ROUTES4")]
static ROUTES4: LpmTrie<Ipv4Be, Route, MAX_ROUTES> = LpmTrie::new();

#[btf_map(name = "OVL_NODES")]
static NODES: Array<Node, MAX_NODES> = Array::new();

#[btf_map(name = "OVL_NEXTHOPS")]
static NEXTHOPS: Array<Nexthop, MAX_NODES> = Array::new();

#[btf_map(name = "OVL_PEERS4")]
static PEERS4: HashMap<Ipv4Be, Peer, MAX_NODES> = HashMap::new();

// Per-CPU LRU lists: eviction never takes a lock that other CPUs hold.
#[btf_map(name = "OVL_FLOWS4")]
static FLOWS4: LruHashMap<FlowKey4, Flow, MAX_FLOWS, { BPF_F_NO_COMMON_LRU as usize }> =
    LruHashMap::new();

#[btf_map(name = "OVL_GATEWAYS")]
static GATEWAYS: HashMap<u32, Gateway, MAX_GATEWAYS> = HashMap::new();

#[btf_map(name = "OVL_PODS")]
static PODS: LruHashMap<PodKey, PodPort, MAX_PODS> = LruHashMap::new();

#[btf_map(name = "OVL_CONFIG")]
static CONFIG: Array<Config, 1> = Array::new();

#[btf_map(name = "OVL_STATS")]
static STATS: PerCpuArray<Counter, COUNTERS> = PerCpuArray::new();

#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
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

/// Index of the node that owns `address`.
#[inline(always)]
pub fn node_of(address: Ipv4Be) -> Option<u32> {
    ROUTES4.get(&Key::new(32, address)).map(|route| route.node)
}

#[inline(always)]
pub fn node(index: u32) -> Option<&'static Node> {
    let node = NODES.get(index)?;
    (node.flags & NODE_VALID != 0).then_some(node)
}

#[inline(always)]
pub fn is_peer(address: Ipv4Be) -> bool {
    // SAFETY: only the presence of the entry is used, never its content.
    unsafe { PEERS4.get(address) }.is_some()
}

/// Index of the node whose VTEP address is `address`.
#[inline(always)]
pub fn node_at(address: Ipv4Be) -> Option<u32> {
    let entry = PEERS4.get_ptr(address)?;
    // SAFETY: the pointer is to a live value that is one aligned u32. The agent may replace it
    // meanwhile: either index is one that this address had a moment ago.
    Some(unsafe { entry.cast::<u32>().read_volatile() })
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

/// Remembers on which interface pods use the MAC address. An address that has moved to another one
/// flushes the flow table: leases of its pod deliver to where it was.
#[inline(always)]
pub fn learn_pod(mac: Mac, ifindex: u32) {
    let before = pod_port(mac);
    if mac.is_multicast() || before == Some(ifindex) {
        return;
    }
    // A full table evicts its oldest entry; should it refuse, the address is learned another time.
    let _ = PODS.insert(pod_key(mac), PodPort { ifindex }, 0);
    if before.is_some()
        && let Some(config) = CONFIG.get_ptr_mut(0)
    {
        // SAFETY: the pointer is to the live value of the array map; the field is aligned. Another
        // writer that increments at the same time leaves a generation that is new as well.
        unsafe {
            let generation = &raw mut (*config).generation;
            generation.write_volatile(generation.read_volatile().wrapping_add(1));
        }
    }
}

/// The interface on which frames from `mac` were seen last.
#[inline(always)]
pub fn pod_port(mac: Mac) -> Option<u32> {
    // SAFETY: copied at once. An entry that is evicted and reused meanwhile yields another
    // address's interface: the frame then earns no lease, or the very one the kernel delivers to.
    unsafe { PODS.get(pod_key(mac)) }.map(|port| port.ifindex)
}

#[inline(always)]
fn pod_key(mac: Mac) -> PodKey {
    bytemuck::cast(mac.bits())
}

/// Words of a map value that other CPUs may be reading or writing. Each word is read and written
/// whole; what spans several words is protected by the protocols below.
#[derive(Clone, Copy)]
struct Words<const N: usize>(*mut u64);

impl<const N: usize> Words<N> {
    /// `T` is a map value type that consists of `N` words.
    #[inline(always)]
    const fn of<T>(value: *mut T) -> Self {
        const { assert!(size_of::<T>() == N * 8 && align_of::<T>() == 8) };
        Self(value.cast())
    }

    #[inline(always)]
    fn get<const INDEX: usize>(self) -> u64 {
        const { assert!(INDEX < N) };
        // SAFETY: the pointer came from a lookup of this map, so the value is readable while the
        // program runs; the index is in bounds and the word aligned, as asserted.
        unsafe { self.0.add(INDEX).read_volatile() }
    }

    #[inline(always)]
    fn set<const INDEX: usize>(self, word: u64) {
        const { assert!(INDEX < N) };
        // SAFETY: as in `get`; map values are plain data that programs may write.
        unsafe { self.0.add(INDEX).write_volatile(word) }
    }
}

const NEXTHOP_WORDS: usize = size_of::<NexthopImage>() / 8;

/// How to reach a node, as last resolved.
#[derive(Clone, Copy)]
pub struct NexthopEntry(Words<{ NEXTHOP_WORDS }>);

/// A copy of a next hop.
#[derive(Clone, Copy)]
pub struct NexthopCopy {
    pub vtep: u32,
    pub ifindex: u32,
    pub dst_mac: Mac,
    pub src_mac: Mac,
    pub mtu: u32,
    pub mode: u8,
}

impl NexthopEntry {
    #[inline(always)]
    pub fn find(node: u32) -> Option<Self> {
        NEXTHOPS
            .get_ptr_mut(node)
            .map(|value| Self(Words::of(value)))
    }

    /// A copy, whose `vtep` says for which address of the node it holds.
    #[inline(always)]
    pub fn get(self) -> NexthopCopy {
        let dst = self.0.get::<{ node::word::DST_MTU }>();
        let src = self.0.get::<{ node::word::SRC_MODE }>();
        let way = self.0.get::<{ node::word::VTEP_IFINDEX }>();
        NexthopCopy {
            vtep: way as u32,
            ifindex: (way >> 32) as u32,
            dst_mac: Mac::from_low_bits(dst),
            src_mac: Mac::from_low_bits(src),
            mtu: (dst >> 48) as u32,
            mode: (src >> 48) as u8,
        }
    }

    /// Replaces the entry, if it differs. Readers meanwhile see an address that matches no node,
    /// and leave their packets to the kernel.
    #[inline(always)]
    pub fn set(self, new: &NexthopCopy) {
        let way = u64::from(new.vtep) | u64::from(new.ifindex) << 32;
        let dst = new.dst_mac.bits() | u64::from(new.mtu as u16) << 48;
        let src = new.src_mac.bits() | u64::from(new.mode) << 48;
        if self.0.get::<{ node::word::VTEP_IFINDEX }>() == way
            && self.0.get::<{ node::word::DST_MTU }>() == dst
            && self.0.get::<{ node::word::SRC_MODE }>() == src
        {
            return;
        }
        self.invalidate();
        self.0.set::<{ node::word::DST_MTU }>(dst);
        self.0.set::<{ node::word::SRC_MODE }>(src);
        self.0.set::<{ node::word::VTEP_IFINDEX }>(way);
    }

    #[inline(always)]
    pub fn invalidate(self) {
        self.0.set::<{ node::word::VTEP_IFINDEX }>(0);
    }
}

/// An entry of the flow table.
#[derive(Clone, Copy)]
pub struct FlowEntry(Words<{ FLOW_WORDS }>);

const FLOW_WORDS: usize = size_of::<FlowImage>() / 8;

impl FlowEntry {
    #[inline(always)]
    pub fn find(words: FlowWords) -> Option<Self> {
        FLOWS4
            .get_ptr_mut(words.key())
            .map(|value| Self(Words::of(value)))
    }

    #[inline(always)]
    pub fn egress_until(self) -> u64 {
        self.0.get::<{ word::EGRESS_UNTIL }>()
    }

    #[inline(always)]
    pub fn ingress_until(self) -> u64 {
        self.0.get::<{ word::INGRESS_UNTIL }>()
    }

    /// Generation, and the index of the remote pod's node.
    #[inline(always)]
    pub fn generation_and_node(self) -> (u32, u32) {
        let word = self.0.get::<{ word::GENERATION_NODE }>();
        (word as u32, (word >> 32) as u32)
    }

    /// The gateway's MAC, and the UDP source port as it goes into the packet.
    #[inline(always)]
    pub fn gateway_and_port(self) -> (Mac, u16) {
        let word = self.0.get::<{ word::GATEWAY_PORT }>();
        (Mac::from_low_bits(word), (word >> 48) as u16)
    }

    /// The pod's MAC, and the MTU of its veth.
    #[inline(always)]
    pub fn pod_and_mtu(self) -> (Mac, u32) {
        let word = self.0.get::<{ word::POD_MTU }>();
        (Mac::from_low_bits(word), (word >> 48) as u32)
    }

    /// Source MAC of delivered frames, and the modes of the egress and the ingress lease.
    #[inline(always)]
    pub fn deliver_and_modes(self) -> (Mac, u8, u8) {
        let word = self.0.get::<{ word::DELIVER_MODES }>();
        (
            Mac::from_low_bits(word),
            (word >> 48) as u8,
            (word >> 56) as u8,
        )
    }

    #[inline(always)]
    pub fn pod_ifindex(self) -> u32 {
        self.0.get::<{ word::POD_IFINDEX }>() as u32
    }

    /// Whether all that was read from the entry before this call belongs to the flow `words`.
    #[inline(always)]
    pub fn is_still(self, words: FlowWords) -> bool {
        self.0.get::<{ word::ID }>() == words.id()
    }
}

/// Removes the flow; the next packet of either direction takes the kernel path.
#[inline(always)]
pub fn forget(words: FlowWords) {
    // The entry may well not exist; there is nothing to do about that.
    let _ = FLOWS4.remove(words.key());
}

/// A lease to grant or renew.
pub enum Lease {
    Egress {
        mode: u8,
        gateway: Mac,
        source_port: u16,
    },
    Ingress {
        mode: u8,
        pod: Mac,
        mtu: u16,
        from: Mac,
        ifindex: u32,
    },
}

/// Grants a lease of flow `words` with node `index` until the time `until`. An entry in which only
/// the deadline changes is updated in place, any other is replaced whole, so that no reader sees a
/// mixture.
#[inline(always)]
pub fn grant(
    words: FlowWords,
    generation: u32,
    index: u32,
    until: u64,
    lease: &Lease,
) -> Result<(), Outcome> {
    let key = words.key();
    let entry = FLOWS4.get_ptr_mut(&key).map(Words::<FLOW_WORDS>::of);
    let owner = u64::from(generation) | u64::from(index) << 32;
    let mut image: FlowImage = [0; FLOW_WORDS];
    if let Some(entry) = entry
        && entry.get::<{ word::GENERATION_NODE }>() == owner
        && entry.get::<{ word::ID }>() == words.id()
    {
        image = [
            entry.get::<0>(),
            entry.get::<1>(),
            entry.get::<2>(),
            entry.get::<3>(),
            entry.get::<4>(),
            entry.get::<5>(),
            entry.get::<6>(),
            entry.get::<7>(),
        ];
    }
    let before = image;
    image[word::ID] = words.id();
    image[word::GENERATION_NODE] = owner;
    let modes = image[word::DELIVER_MODES];
    match *lease {
        Lease::Egress {
            mode,
            gateway,
            source_port,
        } => {
            image[word::GATEWAY_PORT] = gateway.bits() | u64::from(source_port) << 48;
            image[word::DELIVER_MODES] = modes & !(0xff << 48) | u64::from(mode) << 48;
        }
        Lease::Ingress {
            mode,
            pod,
            mtu,
            from,
            ifindex,
        } => {
            image[word::POD_MTU] = pod.bits() | u64::from(mtu) << 48;
            image[word::DELIVER_MODES] = modes & (0xff << 48) | from.bits() | u64::from(mode) << 56;
            image[word::POD_IFINDEX] = u64::from(ifindex);
        }
    }
    // Word by word: a comparison of arrays becomes a call that the verifier cannot follow.
    let same = |index: usize| image[index] == before[index];
    let only_renewal = same(word::ID)
        && same(word::GATEWAY_PORT)
        && same(word::POD_MTU)
        && same(word::DELIVER_MODES)
        && same(word::POD_IFINDEX);
    match lease {
        Lease::Egress { .. } => image[word::EGRESS_UNTIL] = until,
        Lease::Ingress { .. } => image[word::INGRESS_UNTIL] = until,
    }
    if let Some(entry) = entry
        && only_renewal
    {
        match lease {
            Lease::Egress { .. } => entry.set::<{ word::EGRESS_UNTIL }>(until),
            Lease::Ingress { .. } => entry.set::<{ word::INGRESS_UNTIL }>(until),
        }
        return Ok(());
    }
    let flow: Flow = bytemuck::cast(image);
    FLOWS4
        .insert(&key, &flow, 0)
        .map_err(|_| Outcome::TableFull)
}
