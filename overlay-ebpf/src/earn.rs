//! Grants permits to flows of which the kernel let a packet pass. A permit says what to do with the next
//! packets: it is found by the tuple with which they enter the host, and remembers what the tuple was
//! where this one left it.

use overlay_common::{
    addr::Address as _,
    flow::{FlowWords, REWRITE_DESTINATION, REWRITE_NONE, REWRITE_SOURCE, word},
    outcome::Outcome,
};

use crate::{
    flow_packet::FlowPacket,
    flows::{Draft, EGRESS, INGRESS, Way},
    mac::Mac,
    maps::Tables,
};

/// A packet on its way through the host.
pub struct Passage<'a, F: Tables> {
    /// Its flow where it entered the host.
    pub entered: &'a FlowWords<F>,
    /// Its flow where it leaves: only the remote end may be another.
    pub left: &'a FlowWords<F>,
    /// Whether the two differ.
    pub is_translated: bool,
    /// Whether the flow is all that goes between the two pods.
    pub is_pair: bool,
    /// In which it was let pass.
    pub generation: u32,
}

/// What an ingress permit remembers.
pub struct IngressPermit {
    pub mode: u8,
    /// [`FlowPacket::header_bits`](crate::flow_packet::FlowPacket::header_bits) behind the host's hop.
    pub header: u16,
    pub pod: Mac,
    pub mtu: u16,
    pub from: Mac,
    pub ifindex: u32,
    pub moves: u32,
}

/// Grants an egress permit with node `index` until the time `until`.
#[inline(always)]
pub fn egress<F: Tables>(
    passage: &Passage<'_, F>,
    index: u32,
    until: u64,
    (gateway, source_port): (Mac, u16),
    way: &Way,
) -> Result<(), Outcome> {
    let draft = passage.draft(index, REWRITE_DESTINATION)?;
    draft.set::<{ word::EGRESS_UNTIL }>(until);
    draft.set::<{ word::GATEWAY_PORT }>(gateway.bits() | u64::from(source_port) << 48);
    draft.set::<{ word::UNDERLAY }>(u64::from(way.ifindex) | u64::from(way.path_changes) << 32);
    draft.set::<{ word::NEXT_HOP_MTU }>(way.next_hop.bits() | u64::from(way.mtu) << 48);
    draft.set::<{ word::UNDERLAY_MODE }>(way.source.bits() | bits_of(way.mode, way.header));
    draft.set::<{ word::VTEP_MARK }>(u64::from(way.vtep) | u64::from(way.mark) << 32);
    draft.set::<{ word::PRIORITY }>(u64::from(way.priority));
    draft.put(passage.key(), &EGRESS, &INGRESS)
}

/// Grants an ingress permit with node `index` until the time `until`.
#[inline(always)]
pub fn ingress<F: Tables>(
    passage: &Passage<'_, F>,
    index: u32,
    until: u64,
    to: &IngressPermit,
) -> Result<(), Outcome> {
    let draft = passage.draft(index, REWRITE_SOURCE)?;
    draft.set::<{ word::INGRESS_UNTIL }>(until);
    draft.set::<{ word::POD_MTU }>(to.pod.bits() | u64::from(to.mtu) << 48);
    draft.set::<{ word::DELIVER_MODE }>(to.from.bits() | bits_of(to.mode, to.header));
    draft.set::<{ word::POD_IFINDEX }>(u64::from(to.ifindex) | u64::from(to.moves) << 32);
    draft.put(passage.key(), &INGRESS, &EGRESS)
}

#[inline(always)]
fn bits_of(mode: u8, header: u16) -> u64 {
    u64::from(u16::from(mode) | header) << 48
}

impl<'a, F: Tables> Passage<'a, F> {
    /// Of a packet that leaves as it entered.
    #[inline(always)]
    pub const fn unchanged(flow: &'a FlowPacket<F>, generation: u32) -> Self {
        Self {
            entered: &flow.words,
            left: &flow.words,
            is_translated: false,
            is_pair: flow.is_pair,
            generation,
        }
    }

    /// What the next packets are found by.
    #[inline(always)]
    fn key(&self) -> FlowWords<F> {
        if self.is_pair {
            self.entered.pair()
        } else {
            *self.entered
        }
    }

    /// The beginning of an entry. What was translated is `rewritten` in the packets that follow.
    #[inline(always)]
    fn draft(&self, index: u32, rewritten: u8) -> Result<Draft, Outcome> {
        let draft = Draft::blank().ok_or(Outcome::Disabled)?;
        let mut rewrite = REWRITE_NONE;
        if self.is_translated {
            rewrite = rewritten;
            let [a, b] = self.left.remote().wide();
            draft.set::<{ word::REWRITE_ADDRESS }>(a);
            draft.set::<{ word::REWRITE_ADDRESS_2 }>(b);
            draft.set::<{ word::REWRITE_PORT }>(u64::from(self.left.remote_port()));
        }
        draft.set::<{ word::GENERATION_NODE }>(
            u64::from(self.generation) | u64::from(index as u16) << 32 | u64::from(rewrite) << 48,
        );
        Ok(draft)
    }
}
