//! Safe wrappers around the BPF helpers and the fields of `__sk_buff` that the programs use.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_INGRESS,
        BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        bpf_xfrm_state,
    },
    bpf_f_adj_room_encap_l2,
    helpers::{
        bpf_check_mtu, bpf_csum_level, bpf_csum_update, bpf_fib_lookup, bpf_get_hash_recalc,
        bpf_ktime_get_coarse_ns, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_peer,
        bpf_set_hash, bpf_skb_adjust_room, bpf_skb_get_xfrm_state, bpf_skb_load_bytes,
        bpf_skb_pull_data,
    },
    programs::TcContext,
};
use bytemuck::Pod;

use crate::packet::Packet;

/// `PACKET_HOST`: the frame is addressed to the interface's own MAC.
const PACKET_HOST: u32 = 0;

/// Value of `tc_index` on packets that a program redirects.
const FORWARDED: u32 = 0x4f56;
/// Value of `tc_index` on packets that were let pass unchanged to the vxlan device, which keeps it.
const LEAVING: u32 = 0x4f57;
/// Value of `tc_index` on packets that the tunnel device sends or receives to earn a node the short way.
const OPENING: u32 = 0x4f58;

/// What a program said of a packet that this host sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    None,
    /// `overlay_egress` sends it: nothing is to be learned from it.
    Forwarded,
    /// `overlay_confirm` let it pass to the vxlan device.
    Leaving,
    /// It passes the tunnel device, and may earn its node the short way.
    Opening,
}

/// The packet a program was called for.
#[derive(Clone, Copy)]
pub struct Skb {
    raw: *mut __sk_buff,
}

macro_rules! fields {
    ($($(#[doc = $doc:literal])+ $name:ident;)+) => {$(
        $(#[doc = $doc])+
        #[inline(always)]
        pub fn $name(&self) -> u32 {
            // SAFETY: `raw` is the context pointer of the running program, valid until it returns;
            // the verifier allows reads of this field.
            unsafe { (*self.raw).$name }
        }
    )+};
}

impl Skb {
    #[inline(always)]
    pub const fn new(ctx: &TcContext) -> Self {
        Self { raw: ctx.skb.skb }
    }

    /// What another BPF function takes for the packet.
    #[inline(always)]
    pub const fn raw(self) -> *mut __sk_buff {
        self.raw
    }

    fields! {
        /// Length with the Ethernet header, bytes.
        len;
        /// The device the program runs on.
        ifindex;
        /// The device through which the packet last entered the host's IP layer.
        ingress_ifindex;
        /// Payload bytes per segment of a GSO packet, else 0.
        gso_size;
        /// The EtherType the kernel handles the packet by, network order.
        protocol;
        /// The packet's flow hash as last set; here, the stamp.
        hash;
        /// Not 0 if the packet carries a VLAN tag outside its bytes.
        vlan_present;
        /// Tag control information of that tag.
        vlan_tci;
        /// The mark that rules and routes go by.
        mark;
        /// The priority that queueing disciplines go by.
        priority;
    }

    /// Whether the frame is addressed to the interface's own MAC.
    #[inline(always)]
    pub fn is_to_host(&self) -> bool {
        // SAFETY: as in `fields!`.
        unsafe { (*self.raw).pkt_type == PACKET_HOST }
    }

    /// Marks a packet that this program itself sends, for [`Self::take_mark`]. `tc_index` is a
    /// field for classifiers that nothing else in the kernel reads.
    #[inline(always)]
    pub fn mark_forwarded(&self) {
        // SAFETY: as in `fields!`; the verifier allows writes of this field.
        unsafe { (*self.raw).tc_index = FORWARDED };
    }

    /// Marks a packet that was let pass to the vxlan device, for [`Self::take_mark`].
    #[inline(always)]
    pub fn mark_leaving(&self) {
        // SAFETY: as in `mark_forwarded`.
        unsafe { (*self.raw).tc_index = LEAVING };
    }

    /// Marks a packet that passes the tunnel device, for [`Self::take_mark`].
    #[inline(always)]
    pub fn mark_opening(&self) {
        // SAFETY: as in `mark_forwarded`.
        unsafe { (*self.raw).tc_index = OPENING };
    }

    /// What a program said of this packet. Takes the mark off: between namespaces of one host it would
    /// stay on.
    #[inline(always)]
    pub fn take_mark(&self) -> Mark {
        // SAFETY: as in `mark_forwarded`.
        let value = unsafe { (*self.raw).tc_index };
        let mark = match value {
            FORWARDED => Mark::Forwarded,
            LEAVING => Mark::Leaving,
            OPENING => Mark::Opening,
            _ => return Mark::None,
        };
        // SAFETY: as in `mark_forwarded`.
        unsafe { (*self.raw).tc_index = 0 };
        mark
    }

    /// Gives the packet what rules and routing gave the kernel's own packet on its way.
    #[inline(always)]
    pub fn set_mark_and_priority(&self, mark: u32, priority: u32) {
        // SAFETY: as in `fields!`; the verifier allows writes of these fields.
        unsafe {
            (*self.raw).mark = mark;
            (*self.raw).priority = priority;
        }
    }

    #[inline(always)]
    pub fn packet(&self) -> Packet {
        // SAFETY: as in `fields!`; the verifier turns the two fields into packet pointers.
        let (start, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        Packet::new(start, end)
    }

    /// The packet with at least `need` bytes in its linear part, if it is that long at all.
    #[inline(always)]
    pub fn packet_with(&self, need: u32) -> Packet {
        let packet = self.packet();
        let linear = packet.linear_len();
        if linear < need as usize && linear < self.len() as usize {
            let want = if self.len() < need { self.len() } else { need };
            // SAFETY: `raw` is this program's context. The call may move the packet: pointers are
            // taken again below. A failure leaves fewer linear bytes, which every read checks.
            unsafe { bpf_skb_pull_data(self.raw, want) };
            return self.packet();
        }
        packet
    }

    /// Copies bytes out of the packet, wherever they lie. For what is not in the fast path: direct
    /// access is cheaper.
    #[inline(always)]
    pub fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let mut value = T::zeroed();
        let to = (&raw mut value).cast();
        // SAFETY: `raw` is this program's context, and the helper writes as many bytes as `value` has,
        // of which any content is valid.
        let result =
            unsafe { bpf_skb_load_bytes(self.raw.cast(), offset, to, size_of::<T>() as u32) };
        (result == 0).then_some(value)
    }

    #[inline(always)]
    pub fn set_hash(&self, hash: u32) {
        // SAFETY: `raw` is this program's context; the helper only stores the value.
        unsafe { bpf_set_hash(self.raw, hash) };
    }

    /// The packet's hash, computed if it has none, which stays on it through the tunnel device; 0 if nothing
    /// can be computed.
    #[inline(always)]
    pub fn keep_hash(&self) -> u32 {
        // SAFETY: `raw` is this program's context; the helper computes what the field lacks.
        let hash = unsafe { bpf_get_hash_recalc(self.raw) };
        self.set_hash(hash);
        hash
    }

    /// Makes room for `len` bytes of vxlan encapsulation behind the Ethernet header; `ip_flag` tells what
    /// the outer header is. `L2_ETH` marks the inner protocol as Ethernet, as vxlan is.
    #[inline(always)]
    pub fn grow_for_encap(&self, len: u32, ip_flag: u32) -> Result<(), ()> {
        let inner = u64::from(BPF_F_ADJ_ROOM_ENCAP_L2_ETH) | bpf_f_adj_room_encap_l2(14);
        self.grow(len, u64::from(ip_flag) | inner)
    }

    /// Makes room for `len` bytes of outer IP and UDP headers behind the Ethernet header, which an IP packet
    /// follows; `ip_flag` tells what the outer header is.
    #[inline(always)]
    pub fn grow_for_datagram(&self, len: u32, ip_flag: u32) -> Result<(), ()> {
        self.grow(len, ip_flag.into())
    }

    /// `FIXED_GSO` keeps the segment size: pods' packets already leave room for the headers, and
    /// without the flag UDP segmentation offload would be refused. The encapsulation flags set the
    /// inner offsets that segmentation and checksum offload need.
    #[inline(always)]
    fn grow(&self, len: u32, encap: u64) -> Result<(), ()> {
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP) | encap;
        let by = len as i32;
        // SAFETY: `raw` is this program's context; callers take packet pointers again afterwards.
        let result = unsafe { bpf_skb_adjust_room(self.raw, by, BPF_ADJ_ROOM_MAC, flags) };
        if result == 0 { Ok(()) } else { Err(()) }
    }

    /// Removes `len` bytes of encapsulation behind the Ethernet header.
    ///
    /// `FIXED_GSO` again keeps the segment size; shrinking would otherwise enlarge it past what a
    /// short GRO packet holds. `NO_CSUM_RESET` keeps the receive checksum state, which with a zero
    /// outer UDP checksum describes the inner packet; `outer_checksum` says that one level of it
    /// belongs to the outer UDP header and goes with it.
    #[inline(always)]
    pub fn shrink_for_decap(&self, len: u32, outer_checksum: bool) -> Result<(), ()> {
        const FLAGS: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) as u64;
        if outer_checksum {
            // SAFETY: `raw` is this program's context; the helper changes only checksum state.
            unsafe { bpf_csum_level(self.raw, BPF_CSUM_LEVEL_DEC as u64) };
        }
        let by = -(len as i32);
        // SAFETY: `raw` is this program's context; callers take packet pointers again afterwards.
        let result = unsafe { bpf_skb_adjust_room(self.raw, by, BPF_ADJ_ROOM_MAC, FLAGS) };
        if result == 0 { Ok(()) } else { Err(()) }
    }

    /// Tells the checksum over the packet, if the device computed one (`CHECKSUM_COMPLETE`), that a
    /// 16-bit word of it was replaced; both in native order. The kernel gives such a checksum up when
    /// it forwards (`skb_forward_csum`).
    #[inline(always)]
    pub fn replace_in_checksum(&self, old: u16, new: u16) {
        self.add_to_checksum(u32::from(new) + u32::from(!old));
    }

    /// As [`Self::replace_in_checksum`], of words whose one's-complement sum changed by `difference`.
    #[inline(always)]
    pub fn add_to_checksum(&self, difference: u32) {
        // SAFETY: `raw` is this program's context; the helper changes only checksum state.
        unsafe { bpf_csum_update(self.raw, difference) };
    }

    /// Updates the transport checksum at `check` for addresses of the pseudo header whose sum changed by
    /// `difference`, whether it is complete or left to the device. Packet pointers have to be taken again
    /// afterwards.
    #[inline(always)]
    pub fn add_address_to_checksum(&self, check: u32, is_udp: bool, difference: u32) -> Option<()> {
        let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled(is_udp);
        // SAFETY: `raw` is this program's context; the helper checks the offset.
        let result = unsafe { bpf_l4_csum_replace(self.raw, check, 0, difference.into(), flags) };
        (result == 0).then_some(())
    }

    /// Updates the transport checksum at `check` for a port that was replaced; both as they stand in the
    /// packet. Packet pointers have to be taken again afterwards.
    #[inline(always)]
    pub fn replace_port_in_checksum(
        &self,
        check: u32,
        is_udp: bool,
        old: u16,
        new: u16,
    ) -> Option<()> {
        let flags = size_of::<u16>() as u64 | mangled(is_udp);
        // SAFETY: as in `add_address_to_checksum`.
        let result = unsafe { bpf_l4_csum_replace(self.raw, check, old.into(), new.into(), flags) };
        (result == 0).then_some(())
    }

    /// Whether the packet came out of IPsec.
    #[inline(always)]
    pub fn was_deciphered(&self) -> bool {
        let mut state = MaybeUninit::<bpf_xfrm_state>::uninit();
        let to = state.as_mut_ptr();
        // SAFETY: `raw` is this program's context, and the helper writes all of `state`.
        let result =
            unsafe { bpf_skb_get_xfrm_state(self.raw, 0, to, size_of_val(&state) as u32, 0) };
        result == 0
    }

    /// Asks the kernel's routing tables; `question` becomes the answer. Returns what the helper does.
    #[inline(always)]
    pub fn ask_fib(&self, question: &mut [u64; 8], flags: u32) -> i64 {
        // SAFETY: `raw` is this program's context, and the size given is that of the words.
        unsafe {
            bpf_fib_lookup(
                self.raw.cast(),
                question.as_mut_ptr().cast(),
                size_of_val(question) as i32,
                flags,
            )
        }
    }

    /// MTU of the device the program runs on, bytes.
    #[inline(always)]
    pub fn device_mtu(&self) -> u32 {
        let mut mtu = 0u32;
        // SAFETY: `raw` is this program's context; the helper writes the MTU to the one u32.
        unsafe { bpf_check_mtu(self.raw.cast(), 0, &raw mut mtu, 0, 0) };
        mtu
    }
}

/// A UDP checksum of 0 means that there is none, and stays so; none that is computed becomes 0.
#[inline(always)]
const fn mangled(is_udp: bool) -> u64 {
    if is_udp {
        BPF_F_MARK_MANGLED_0 as u64
    } else {
        0
    }
}

/// Sends the packet out of `ifindex`; its Ethernet header must be complete.
#[inline(always)]
pub fn redirect(ifindex: u32) -> i32 {
    // SAFETY: takes two integers; the kernel validates the index when the program has returned.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Has `ifindex` receive the packet; its Ethernet header must be complete.
#[inline(always)]
pub fn redirect_in(ifindex: u32) -> i32 {
    // SAFETY: as for `redirect`.
    unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) as i32 }
}

/// Hands the packet to the peer of the veth `ifindex`, inside its namespace.
#[inline(always)]
pub fn redirect_peer(ifindex: u32) -> i32 {
    // SAFETY: as for `redirect`.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}

/// The clock of the permits: monotonic, with the resolution of a timer tick, a few ns to read.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: takes nothing and returns an integer.
    unsafe { bpf_ktime_get_coarse_ns() }
}
