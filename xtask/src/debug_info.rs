//! Takes the debug information out of a BPF object: four fifths of it, and read by nobody. What loaders and
//! bpftool read are types and lines in BTF, which stay.

use anyhow::{Context as _, Result};
use object::{
    build::elf::{Builder, SectionData},
    elf,
};

pub fn remove(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the object cannot be read")?;
    for section in &mut builder.sections {
        section.delete = is_debug(section.name.as_slice());
    }
    builder.delete_orphans();
    // LLVM has one section for all names. Who writes here wants the sections' in one of their own.
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = elf::SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut written = Vec::new();
    builder
        .write(&mut written)
        .context("the object cannot be written")?;
    Ok(written)
}

/// With the relocations of such a section.
fn is_debug(name: &[u8]) -> bool {
    name.starts_with(b".debug_") || name.starts_with(b".rel.debug_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_code_stay() {
        for (name, is_gone) in [
            (".debug_info", true),
            (".rel.debug_info", true),
            (".BTF", false),
            (".rel.BTF.ext", false),
            ("classifier", false),
        ] {
            assert_eq!(is_debug(name.as_bytes()), is_gone, "{name}");
        }
        assert!(remove(b"no object").is_err());
    }
}
