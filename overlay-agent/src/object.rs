//! The BPF objects inside the binary: one file to install, and the programs always match the agent.

/// The ELF object of `overlay-ebpf`, aligned as the loader needs it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("OVERLAY_OBJECT_PATH"));

/// The flavour whose programs log what becomes of packets, if there was one when the agent was built.
#[cfg(has_logging_object)]
pub static LOGGING_OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(env!(
    "OVERLAY_LOGGING_OBJECT_PATH"
)));
#[cfg(not(has_logging_object))]
pub static LOGGING_OBJECT: Option<&[u8]> = None;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_objects_are_little_endian_bpf_elves() {
        const ELF64_LITTLE_ENDIAN: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
        const EM_BPF: [u8; 2] = [247, 0];
        for object in std::iter::once(OBJECT).chain(LOGGING_OBJECT) {
            assert_eq!(object.get(..6), Some(&ELF64_LITTLE_ENDIAN[..]));
            assert_eq!(object.get(18..20), Some(&EM_BPF[..]));
        }
    }
}
