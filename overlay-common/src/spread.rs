//! Multipliers for hashes.

/// Odd multipliers that spread every bit of a word over the upper half of the product.
pub(crate) const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
pub(crate) const SPREAD_2: u64 = 0xd6e8_feb8_6659_fd93;
