//! The BPF object inside the binary: one file to install, and the programs always match the agent.

/// The ELF object of `overlay-ebpf`, aligned as the loader needs it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("OVERLAY_OBJECT_PATH"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_object_is_a_little_endian_bpf_elf() {
        const ELF64_LITTLE_ENDIAN: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
        const EM_BPF: [u8; 2] = [247, 0];
        assert_eq!(OBJECT.get(..6), Some(&ELF64_LITTLE_ENDIAN[..]));
        assert_eq!(OBJECT.get(18..20), Some(&EM_BPF[..]));
    }
}
