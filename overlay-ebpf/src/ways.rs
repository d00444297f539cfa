//! The ways of nodes in `OVL_SHORT`: how tunnel packets that the host let pass a moment ago left the underlay,
//! and whether others came in.

use overlay_common::short::{CHECKED, SHORT_PERMIT_NS, ShortImage, step, word};

use crate::{helpers::now, ip::Ip, mac::Mac, words::Words};

const SHORT_WORDS: usize = size_of::<ShortImage>() / 8;

/// The entry of a node.
#[derive(Clone, Copy)]
pub struct Entry(Words<SHORT_WORDS>);

/// How tunnel packets to a node leave the underlay.
pub struct Way {
    pub ifindex: u32,
    pub next_hop: Mac,
    pub source: Mac,
    /// Largest inner packet, bytes.
    pub mtu: u32,
    pub mark: u32,
    pub priority: u32,
}

/// What a way is earned for.
pub struct Terms {
    pub generation: u32,
    /// The node's address, by its tag.
    pub vtep: u32,
    pub path_changes: u32,
    /// Mark and priority of the inner packet at the tunnel device; 0 where the tunnel packet has nothing of them.
    pub inner_mark: u32,
    pub inner_priority: u32,
}

impl Entry {
    /// Whether packets from the node may go the short way now.
    #[inline(always)]
    pub fn is_open_inwards(self, vtep: u32, generation: u32) -> bool {
        let until = self.0.get::<{ word::INGRESS_UNTIL }>();
        let owner = self.0.get::<{ word::INGRESS_OWNER }>();
        now() < until && owner ^ until == pair(vtep, generation)
    }

    #[inline(always)]
    pub fn open_inwards(self, vtep: u32, generation: u32) {
        let until = now() + SHORT_PERMIT_NS;
        self.0.set::<{ word::INGRESS_UNTIL }>(until);
        self.0
            .set::<{ word::INGRESS_OWNER }>(pair(vtep, generation) ^ until);
    }

    #[inline(always)]
    pub fn find<F: Ip>(index: u32) -> Option<Self> {
        F::short(index).map(|value| Self(Words::of(value)))
    }

    /// The way outwards that counts now.
    #[inline(always)]
    pub fn way(self, terms: &Terms) -> Option<Way> {
        let words = self.0;
        let until = words.get::<{ word::EGRESS_UNTIL }>();
        let generation = words.get::<{ word::GENERATION_IFINDEX }>();
        let next_hop = words.get::<{ word::NEXT_HOP_MTU }>();
        let source = words.get::<{ word::UNDERLAY_MAC }>();
        let vtep = words.get::<{ word::VTEP_CHANGES }>();
        let inner = words.get::<{ word::INNER }>();
        let outer = words.get::<{ word::OUTER }>();
        let check = checksum([until, generation, next_hop, source, vtep, inner, outer]);
        let counts = now() < until
            && generation as u32 == terms.generation
            && vtep == pair(terms.vtep, terms.path_changes)
            && inner == pair(terms.inner_mark, terms.inner_priority)
            && check == words.get::<{ word::CHECK }>();
        counts.then_some(Way {
            ifindex: (generation >> 32) as u32,
            next_hop: Mac::from_low_bits(next_hop),
            source: Mac::from_low_bits(source),
            mtu: (next_hop >> 48) as u32,
            mark: outer as u32,
            priority: (outer >> 32) as u32,
        })
    }

    #[inline(always)]
    pub fn open(self, terms: &Terms, way: &Way) {
        let words = self.0;
        let until = now() + SHORT_PERMIT_NS;
        let generation = pair(terms.generation, way.ifindex);
        let next_hop = way.next_hop.bits() | u64::from(way.mtu) << 48;
        let source = way.source.bits();
        let vtep = pair(terms.vtep, terms.path_changes);
        let inner = pair(terms.inner_mark, terms.inner_priority);
        let outer = pair(way.mark, way.priority);
        let check = checksum([until, generation, next_hop, source, vtep, inner, outer]);
        words.set::<{ word::EGRESS_UNTIL }>(until);
        words.set::<{ word::GENERATION_IFINDEX }>(generation);
        words.set::<{ word::NEXT_HOP_MTU }>(next_hop);
        words.set::<{ word::UNDERLAY_MAC }>(source);
        words.set::<{ word::VTEP_CHANGES }>(vtep);
        words.set::<{ word::INNER }>(inner);
        words.set::<{ word::OUTER }>(outer);
        words.set::<{ word::CHECK }>(check);
    }
}

/// What `checksum` of the map's type computes, from registers.
#[inline(always)]
fn checksum(words: [u64; CHECKED]) -> u64 {
    let [a, b, c, d, e, f, g] = words;
    step(step(step(step(step(step(step(1, a), b), c), d), e), f), g)
}

#[inline(always)]
const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}
