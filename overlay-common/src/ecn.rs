//! Explicit congestion notification across the tunnel, bit for bit as the kernel's vxlan device
//! does it (`include/net/inet_ecn.h`: `INET_ECN_encapsulate`, `__INET_ECN_decapsulate`).

/// Mask of the ECN field in the IPv4 TOS byte or the IPv6 traffic class.
pub const MASK: u8 = 0b11;
/// The sender does not take part in ECN.
pub const NOT_ECT: u8 = 0b00;
pub const ECT1: u8 = 0b01;
pub const ECT0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// ECN field of the outer header: the inner one, but CE is sent as ECT(0), so that the tunnel
/// reports only congestion of its own path.
#[inline(always)]
pub const fn encapsulate(inner_tos: u8) -> u8 {
    let ecn = inner_tos & MASK;
    if ecn == CE { ECT0 } else { ecn }
}

/// TOS byte of the delivered packet, or `None` where the kernel drops it: the outer header says CE
/// and the inner sender does not understand ECN.
#[inline(always)]
pub const fn decapsulate(outer_tos: u8, inner_tos: u8) -> Option<u8> {
    let outer = outer_tos & MASK;
    let inner = inner_tos & MASK;
    match (outer, inner) {
        (CE, NOT_ECT) => None,
        (CE, _) => Some(inner_tos | CE),
        // ECT(0) becomes ECT(1) by flipping both bits.
        (ECT1, ECT0) => Some(inner_tos ^ MASK),
        _ => Some(inner_tos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6040 figure 4 with the kernel's choice for its two reserved cells.
    #[test]
    fn decapsulation_matches_the_kernel_in_all_sixteen_combinations() {
        let ecn = [NOT_ECT, ECT0, ECT1, CE];
        let want = [
            // outer:    Not-ECT        ECT(0)         ECT(1)         CE
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT0), Some(ECT0), Some(ECT1), Some(CE)],
            [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)],
            [Some(CE), Some(CE), Some(CE), Some(CE)],
        ];
        for (row, &inner) in ecn.iter().enumerate() {
            for (column, &outer) in ecn.iter().enumerate() {
                let dscp = 0xb8;
                let got = decapsulate(outer, dscp | inner);
                assert_eq!(
                    got,
                    want[row][column].map(|e| dscp | e),
                    "{inner:02b} in {outer:02b}"
                );
            }
        }
    }

    #[test]
    fn encapsulation_copies_ecn_but_never_ce() {
        assert_eq!([0, 1, 2, 3].map(encapsulate), [NOT_ECT, ECT1, ECT0, ECT0]);
        assert_eq!(encapsulate(0xb8 | ECT1), ECT1);
    }
}
