//! Internet checksum arithmetic (RFC 1071) and incremental updates (RFC 1624).
//!
//! Three facts carry this module:
//! 1. The one's-complement sum does not depend on the byte order of the words, as long as all are
//!    read and the result is written in the same order. Sums here are over native-order words.
//! 2. Sums can be kept in 32 bits and folded to 16 at the end.
//! 3. Replacing a word `old` by `new` changes the checksum to `~(~check + ~old + new)` (RFC 1624
//!    equation 3).

/// Adds the 16-bit words of `bytes` in native order to `sum`. An odd last byte counts as if a zero
/// byte followed.
pub const fn add_bytes(mut sum: u32, bytes: &[u8]) -> u32 {
    let mut index = 0;
    while index + 1 < bytes.len() {
        sum += u16::from_ne_bytes([bytes[index], bytes[index + 1]]) as u32;
        index += 2;
    }
    if index < bytes.len() {
        sum += u16::from_ne_bytes([bytes[index], 0]) as u32;
    }
    sum
}

/// Folds a 32-bit sum to 16 bits with end-around carry.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum field, in native order, for a native-order sum.
#[inline(always)]
pub const fn finish(sum: u32) -> u16 {
    !fold(sum)
}

/// The checksum field after one 16-bit word changed from `old` to `new` (all in native order).
#[inline(always)]
pub const fn replace_word(check: u16, old: u16, new: u16) -> u16 {
    finish(!check as u32 + !old as u32 + new as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checksum(header: &[u8; 20]) -> u16 {
        finish(add_bytes(0, header))
    }

    proptest! {
        #[test]
        fn an_incremental_update_equals_a_full_recomputation(
            header: [u8; 20], word in 0usize..10, new: u16,
        ) {
            prop_assume!(word != 5);
            let mut header = header;
            header[10..12].fill(0);
            // A header of only zeros has no one's-complement representation of its sum to update.
            prop_assume!(header.iter().any(|&b| b != 0));
            let before = checksum(&header);
            let old = u16::from_ne_bytes([header[2 * word], header[2 * word + 1]]);
            header[2 * word..2 * word + 2].copy_from_slice(&new.to_ne_bytes());
            prop_assume!(header.iter().any(|&b| b != 0));
            prop_assert_eq!(replace_word(before, old, new), checksum(&header));
        }

        #[test]
        fn a_header_with_its_checksum_sums_to_all_ones(header: [u8; 20]) {
            let mut header = header;
            header[10..12].fill(0);
            prop_assume!(header.iter().any(|&b| b != 0));
            let check = checksum(&header);
            header[10..12].copy_from_slice(&check.to_ne_bytes());
            prop_assert_eq!(fold(add_bytes(0, &header)), 0xffff);
        }
    }
}
