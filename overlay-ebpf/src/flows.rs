//! The flow table: what is fast, and who says so.

use overlay_common::{
    flow::{Flow, FlowImage, FlowWords, MODE_BITS, word},
    outcome::Outcome,
};

use crate::{mac::Mac, maps::Tables, words::Words};

/// An entry of the flow table.
#[derive(Clone, Copy)]
pub struct FlowEntry(Words<{ FLOW_WORDS }>);

const FLOW_WORDS: usize = size_of::<FlowImage>() / 8;

/// How packets leave the underlay, as the kernel's own packet did.
pub struct Way {
    /// The node's VTEP address, by its tag.
    pub vtep: u32,
    pub ifindex: u32,
    pub next_hop: Mac,
    pub source: Mac,
    /// Largest pod packet, bytes.
    pub mtu: u16,
    /// `MODE_TUNNEL` or `MODE_DIRECT`.
    pub mode: u8,
    /// [`Flow::header_bits`](crate::parse::Flow::header_bits) behind the host's hop.
    pub header: u16,
    /// Of the node's next hop.
    pub path_changes: u32,
    /// `skb->mark` and `skb->priority`.
    pub mark: u32,
    pub priority: u32,
}

impl FlowEntry {
    #[inline(always)]
    pub fn find<F: Tables>(words: FlowWords<F>) -> Option<Self> {
        F::flow(&words.key()).map(|value| Self(Words::of(value)))
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

    #[inline(always)]
    pub fn way(self) -> Way {
        let underlay = self.0.get::<{ word::UNDERLAY }>();
        let next_hop = self.0.get::<{ word::NEXT_HOP_MTU }>();
        let source = self.0.get::<{ word::UNDERLAY_MODE }>();
        let vtep = self.0.get::<{ word::VTEP_MARK }>();
        Way {
            vtep: vtep as u32,
            ifindex: underlay as u32,
            next_hop: Mac::from_low_bits(next_hop),
            source: Mac::from_low_bits(source),
            mtu: (next_hop >> 48) as u16,
            mode: ((source >> 48) as u16 & MODE_BITS) as u8,
            header: (source >> 48) as u16 & !MODE_BITS,
            path_changes: (underlay >> 32) as u32,
            mark: (vtep >> 32) as u32,
            priority: self.0.get::<{ word::PRIORITY }>() as u32,
        }
    }

    /// The pod's MAC, and the MTU of its veth.
    #[inline(always)]
    pub fn pod_and_mtu(self) -> (Mac, u32) {
        let word = self.0.get::<{ word::POD_MTU }>();
        (Mac::from_low_bits(word), (word >> 48) as u32)
    }

    /// Source MAC of delivered frames, and mode and header bits of the ingress lease.
    #[inline(always)]
    pub fn deliver_and_mode(self) -> (Mac, u8, u16) {
        let word = self.0.get::<{ word::DELIVER_MODE }>();
        let bits = (word >> 48) as u16;
        let mode = (bits & MODE_BITS) as u8;
        (Mac::from_low_bits(word), mode, bits & !MODE_BITS)
    }

    /// The pod's interface, and how often its MAC had moved when the lease was granted.
    #[inline(always)]
    pub fn pod_ifindex_and_moves(self) -> (u32, u32) {
        let word = self.0.get::<{ word::POD_IFINDEX }>();
        (word as u32, (word >> 32) as u32)
    }

    /// Whether all that was read from the entry before this call belongs to the flow `words`.
    #[inline(always)]
    pub fn is_still<F: Tables>(self, words: FlowWords<F>) -> bool {
        self.0.get::<{ word::ID }>() == words.id()
    }
}

/// Removes the flow; the next packet of either direction takes the kernel path.
#[inline(always)]
pub fn forget<F: Tables>(words: FlowWords<F>) {
    F::remove_flow(&words.key());
}

/// What an ingress lease remembers.
pub struct Delivery {
    pub mode: u8,
    /// [`Flow::header_bits`](crate::parse::Flow::header_bits) behind the host's hop.
    pub header: u16,
    pub pod: Mac,
    pub mtu: u16,
    pub from: Mac,
    pub ifindex: u32,
    pub moves: u32,
}

/// The words of one direction: the deadline first.
const EGRESS: [usize; 7] = [
    word::EGRESS_UNTIL,
    word::GATEWAY_PORT,
    word::UNDERLAY,
    word::NEXT_HOP_MTU,
    word::UNDERLAY_MODE,
    word::VTEP_MARK,
    word::PRIORITY,
];
const INGRESS: [usize; 4] = [
    word::INGRESS_UNTIL,
    word::POD_MTU,
    word::DELIVER_MODE,
    word::POD_IFINDEX,
];

/// Grants an egress lease of flow `words` with node `index` until the time `until`.
#[inline(always)]
pub fn grant_egress<F: Tables>(
    words: FlowWords<F>,
    generation: u32,
    index: u32,
    until: u64,
    (gateway, source_port): (Mac, u16),
    way: &Way,
) -> Result<(), Outcome> {
    let mut image: FlowImage = [0; FLOW_WORDS];
    image[word::EGRESS_UNTIL] = until;
    image[word::GATEWAY_PORT] = gateway.bits() | u64::from(source_port) << 48;
    image[word::UNDERLAY] = u64::from(way.ifindex) | u64::from(way.path_changes) << 32;
    image[word::NEXT_HOP_MTU] = way.next_hop.bits() | u64::from(way.mtu) << 48;
    image[word::UNDERLAY_MODE] = way.source.bits() | bits_of(way.mode, way.header);
    image[word::VTEP_MARK] = u64::from(way.vtep) | u64::from(way.mark) << 32;
    image[word::PRIORITY] = u64::from(way.priority);
    put(words, generation, index, image, &EGRESS, &INGRESS)
}

/// Grants an ingress lease of flow `words` with node `index` until the time `until`.
#[inline(always)]
pub fn grant_ingress<F: Tables>(
    words: FlowWords<F>,
    generation: u32,
    index: u32,
    until: u64,
    to: &Delivery,
) -> Result<(), Outcome> {
    let mut image: FlowImage = [0; FLOW_WORDS];
    image[word::INGRESS_UNTIL] = until;
    image[word::POD_MTU] = to.pod.bits() | u64::from(to.mtu) << 48;
    image[word::DELIVER_MODE] = to.from.bits() | bits_of(to.mode, to.header);
    image[word::POD_IFINDEX] = u64::from(to.ifindex) | u64::from(to.moves) << 32;
    put(words, generation, index, image, &INGRESS, &EGRESS)
}

#[inline(always)]
fn bits_of(mode: u8, header: u16) -> u64 {
    u64::from(u16::from(mode) | header) << 48
}

/// Puts what `image` says of one direction, in its words `granted`, into the entry of the flow, and
/// keeps the `other` direction. An entry in which only the deadline changes is updated in place, any
/// other is replaced whole, so that no reader sees a mixture.
#[inline(always)]
fn put<F: Tables, const N: usize, const M: usize>(
    words: FlowWords<F>,
    generation: u32,
    index: u32,
    mut image: FlowImage,
    granted: &[usize; N],
    other: &[usize; M],
) -> Result<(), Outcome> {
    let key = words.key();
    let owner = u64::from(generation) | u64::from(index) << 32;
    image[word::ID] = words.id();
    image[word::GENERATION_NODE] = owner;
    if let Some(value) = F::flow(&key) {
        let entry = Words::<FLOW_WORDS>::of(value);
        // Word by word: a comparison of arrays becomes a call that the verifier cannot follow.
        let mut is_renewal = true;
        let mut at = 1;
        while at < N {
            is_renewal &= entry.at(granted[at]) == image[granted[at]];
            at += 1;
        }
        let mut kept = [0; M];
        at = 0;
        while at < M {
            kept[at] = entry.at(other[at]);
            at += 1;
        }
        // Last, as a reader of the fast path does: the kernel may have given the entry to another flow
        // while it was copied.
        let is_ours = entry.get::<{ word::GENERATION_NODE }>() == owner
            && entry.get::<{ word::ID }>() == words.id();
        if is_ours {
            if is_renewal {
                return renew(entry, words, granted[0], image[granted[0]]);
            }
            at = 0;
            while at < M {
                image[other[at]] = kept[at];
                at += 1;
            }
        }
    }
    let flow: Flow = bytemuck::cast(image);
    F::put_flow(&key, &flow)
}

/// Prolongs a lease in place. Should the kernel just have given the entry to another flow, that one
/// earns its lease again.
#[inline(always)]
fn renew<F: Tables>(
    entry: Words<FLOW_WORDS>,
    words: FlowWords<F>,
    deadline: usize,
    until: u64,
) -> Result<(), Outcome> {
    entry.put_at(deadline, until);
    if entry.get::<{ word::ID }>() != words.id() {
        entry.put_at(deadline, 0);
    }
    Ok(())
}
