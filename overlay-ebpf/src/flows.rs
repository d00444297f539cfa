//! The flow table: what is fast, and who says so.

use overlay_common::{
    flow::{Flow, FlowImage, FlowWords, word},
    outcome::Outcome,
};

use crate::{mac::Mac, maps::Tables, words::Words};

/// An entry of the flow table.
#[derive(Clone, Copy)]
pub struct FlowEntry(Words<{ FLOW_WORDS }>);

const FLOW_WORDS: usize = size_of::<FlowImage>() / 8;

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
        moves: u32,
    },
}

/// Grants a lease of flow `words` with node `index` until the time `until`. An entry in which only
/// the deadline changes is updated in place, any other is replaced whole, so that no reader sees a
/// mixture.
#[inline(always)]
pub fn grant<F: Tables>(
    words: FlowWords<F>,
    generation: u32,
    index: u32,
    until: u64,
    lease: &Lease,
) -> Result<(), Outcome> {
    let key = words.key();
    let entry = F::flow(&key).map(Words::<FLOW_WORDS>::of);
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
            moves,
        } => {
            image[word::POD_MTU] = pod.bits() | u64::from(mtu) << 48;
            image[word::DELIVER_MODES] = modes & (0xff << 48) | from.bits() | u64::from(mode) << 56;
            image[word::POD_IFINDEX] = u64::from(ifindex) | u64::from(moves) << 32;
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
    F::put_flow(&key, &flow)
}
