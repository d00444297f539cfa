//! The flow table: what is fast, and what is done to it.

use overlay_common::{
    addr::Address as _,
    family::WireFamily,
    flow::{FlowImage, FlowWords, MODE_BITS, word},
    outcome::Outcome,
};

use crate::{
    mac::Mac,
    maps::{self, Tables},
    words::Words,
};

/// An entry of the flow table.
#[derive(Clone, Copy)]
pub struct FlowEntry(Words<{ FLOW_WORDS }>);

const FLOW_WORDS: usize = size_of::<FlowImage>() / 8;

/// An end of a flow: an address, and a port as it stands in the packet.
#[derive(Clone, Copy)]
pub struct FlowEnd<F: WireFamily> {
    pub address: F::Be,
    pub port: u16,
}

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
    /// [`FlowPacket::header_bits`](crate::flow_packet::FlowPacket::header_bits) behind the host's hop.
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

    /// Generation, the index of the remote pod's node, and one of the `REWRITE_*` values.
    #[inline(always)]
    pub fn owner(self) -> (u32, u32, u8) {
        let word = self.0.get::<{ word::GENERATION_NODE }>();
        let node = (word >> 32) as u16;
        (word as u32, node.into(), (word >> 48) as u8)
    }

    /// What the remote end is rewritten to.
    #[inline(always)]
    pub fn rewrite<F: WireFamily>(self) -> FlowEnd<F> {
        let words = [
            self.0.get::<{ word::REWRITE_ADDRESS }>(),
            self.0.get::<{ word::REWRITE_ADDRESS_2 }>(),
        ];
        FlowEnd {
            address: F::Be::from_wide(words),
            port: self.0.get::<{ word::REWRITE_PORT }>() as u16,
        }
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
            mode: (source >> 48) as u8 & MODE_BITS,
            header: header_of(source),
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

    /// Source MAC of delivered frames, and mode and header bits of the ingress permit.
    #[inline(always)]
    pub fn deliver_and_mode(self) -> (Mac, u8, u16) {
        let word = self.0.get::<{ word::DELIVER_MODE }>();
        let mode = (word >> 48) as u8 & MODE_BITS;
        (Mac::from_low_bits(word), mode, header_of(word))
    }

    /// The pod's interface, and how often its MAC had moved when the permit was granted.
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

/// What a permit remembers of packets' headers, beside the mode.
#[inline(always)]
const fn header_of(word: u64) -> u16 {
    (word >> 48) as u16 & !(MODE_BITS as u16)
}

/// Removes the flow; the next packet of either direction takes the kernel path.
#[inline(always)]
pub fn forget<F: Tables>(words: FlowWords<F>) {
    F::remove_flow(&words.key());
}

/// The words of one direction: the deadline first.
pub const EGRESS: [usize; 7] = [
    word::EGRESS_UNTIL,
    word::GATEWAY_PORT,
    word::UNDERLAY,
    word::NEXT_HOP_MTU,
    word::UNDERLAY_MODE,
    word::VTEP_MARK,
    word::PRIORITY,
];
pub const INGRESS: [usize; 4] = [
    word::INGRESS_UNTIL,
    word::POD_MTU,
    word::DELIVER_MODE,
    word::POD_IFINDEX,
];

/// The words that both directions share beside [`word::GENERATION_NODE`].
const REWRITE: [usize; 3] = [
    word::REWRITE_ADDRESS,
    word::REWRITE_ADDRESS_2,
    word::REWRITE_PORT,
];

/// An entry in the making, in this CPU's own memory: on the stack there is no room for it.
#[derive(Clone, Copy)]
pub struct Draft {
    image: *mut FlowImage,
    words: Words<{ FLOW_WORDS }>,
}

impl Draft {
    /// All zeros.
    #[inline(always)]
    pub fn blank() -> Option<Self> {
        let image = maps::draft()?;
        let words = Words::of(image);
        let mut at = 0;
        while at < FLOW_WORDS {
            words.put_at(at, 0);
            at += 1;
        }
        Some(Self { image, words })
    }

    #[inline(always)]
    pub fn set<const INDEX: usize>(self, word: u64) {
        self.words.set::<INDEX>(word);
    }

    /// Puts what the draft says of one direction, in its words `granted`, into the entry of the flow, and
    /// keeps the `other` direction if it has the same owner and is rewritten to the same. An entry in
    /// which only the deadline changes is updated in place, any other is replaced whole, so that no
    /// reader sees a mixture.
    #[inline(always)]
    pub fn put<F: Tables, const N: usize, const M: usize>(
        self,
        words: FlowWords<F>,
        granted: &[usize; N],
        other: &[usize; M],
    ) -> Result<(), Outcome> {
        let key = words.key();
        let draft = self.words;
        self.set::<{ word::ID }>(words.id());
        if let Some(value) = F::flow(&key) {
            let entry = Words::<FLOW_WORDS>::of(value);
            // Word by word: a comparison of arrays becomes a call that the verifier cannot follow.
            let mut differing =
                entry.get::<{ word::GENERATION_NODE }>() ^ draft.get::<{ word::GENERATION_NODE }>();
            let mut at = 0;
            while at < REWRITE.len() {
                differing |= entry.at(REWRITE[at]) ^ draft.at(REWRITE[at]);
                at += 1;
            }
            let mut news = 0;
            at = 1;
            while at < N {
                news |= entry.at(granted[at]) ^ draft.at(granted[at]);
                at += 1;
            }
            at = 0;
            while at < M {
                draft.put_at(other[at], entry.at(other[at]));
                at += 1;
            }
            // Last, as a reader of the fast path does: the kernel may have given the entry to another
            // flow while it was copied.
            if differing | (entry.get::<{ word::ID }>() ^ words.id()) == 0 {
                if news == 0 {
                    return renew(entry, words, granted[0], draft.at(granted[0]));
                }
            } else {
                at = 0;
                while at < M {
                    draft.put_at(other[at], 0);
                    at += 1;
                }
            }
        }
        F::put_flow(&key, self.image)
    }
}

/// Prolongs a permit in place. Should the kernel just have given the entry to another flow, that one
/// earns its permit again.
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
