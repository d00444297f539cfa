//! Bounds-checked access to packet bytes.
//!
//! A [`Packet`] is a pair of pointers that any helper which changes the packet makes stale; it is
//! taken again from the [`Skb`](crate::helpers::Skb) after each such call.

use bytemuck::Pod;

/// Bytes of an Ethernet header.
pub const ETH_LEN: usize = 14;

/// The linear part of a packet.
#[derive(Clone, Copy)]
pub struct Packet {
    start: usize,
    end: usize,
}

impl Packet {
    #[inline(always)]
    pub const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    #[inline(always)]
    pub const fn linear_len(self) -> usize {
        self.end - self.start
    }

    /// Copies a `T` out of the packet, or `None` if it does not lie in the linear part.
    #[inline(always)]
    pub fn read<T: Pod>(self, offset: usize) -> Option<T> {
        let at = self.start + offset;
        if at + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: the comparison above proves [at, at + size) to lie between data and data_end,
        // which is also what the verifier checks; `T: Pod` has no invalid bit patterns, and an
        // unaligned read needs no alignment.
        Some(unsafe { (at as *const T).read_unaligned() })
    }

    /// Writes `value` into the packet, or returns `None` and changes nothing.
    #[inline(always)]
    #[must_use]
    pub fn write<T: Pod>(self, offset: usize, value: T) -> Option<()> {
        let at = self.start + offset;
        if at + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: as for `read`; the bytes belong to this packet alone while a TC program runs,
        // since the kernel unshares the head of any skb whose program writes to it.
        unsafe { (at as *mut T).write_unaligned(value) };
        Some(())
    }
}
