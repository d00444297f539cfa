//! Payload that betrays bytes which are missing, repeated, moved or changed.

use std::{iter, sync::LazyLock};

use anyhow::{Result, bail};

/// Length after which the pattern repeats: prime, so that no shift by a segment, page or buffer
/// size goes unnoticed.
const PERIOD: usize = 65_521;

/// Longest piece that can be had at once.
pub const MAX_PIECE: usize = PERIOD;

/// Two periods, so that a piece of any length up to one is contiguous.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let period: Vec<u8> = iter::repeat_with(|| {
        // xorshift64: any generator without structure at byte level does.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[3]
    })
    .take(PERIOD)
    .collect();
    [period.as_slice(), period.as_slice()].concat()
});

/// `len` bytes of the payload from `offset` on; at most [`MAX_PIECE`].
#[expect(
    clippy::cast_possible_truncation,
    reason = "the remainder is below the period"
)]
pub fn piece(offset: u64, len: usize) -> &'static [u8] {
    let start = (offset % PERIOD as u64) as usize;
    &PATTERN[start..start + len]
}

/// An error that says where and how, unless `received` is the payload from `offset` on.
pub fn verify(offset: u64, received: &[u8]) -> Result<()> {
    for (index, chunk) in received.chunks(MAX_PIECE).enumerate() {
        let at = offset + (index * MAX_PIECE) as u64;
        let sent = piece(at, chunk.len());
        if chunk == sent {
            continue;
        }
        let wrong = iter::zip(chunk, sent)
            .take_while(|(got, want)| got == want)
            .count();
        bail!(
            "payload differs at byte {}: received {:02x?}…, sent {:02x?}…",
            at + wrong as u64,
            &chunk[wrong..chunk.len().min(wrong + 8)],
            &sent[wrong..sent.len().min(wrong + 8)],
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_itself_passes_at_any_offset() {
        for offset in [0, 1, PERIOD as u64 - 1, 1 << 40] {
            verify(offset, piece(offset, 1400)).unwrap();
        }
    }

    #[test]
    fn a_changed_byte_is_found_where_it_is() {
        let mut bytes = piece(7, 100).to_vec();
        bytes[42] ^= 1;
        let error = verify(7, &bytes).unwrap_err().to_string();
        assert!(error.contains("at byte 49"), "{error}");
    }

    #[test]
    fn shifts_by_common_sizes_are_found() {
        for shift in [1, 1398, 1400, 1448, 4096, 65536] {
            assert!(verify(shift, piece(0, 64)).is_err(), "shift {shift}");
        }
    }
}
