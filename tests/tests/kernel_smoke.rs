//! What any kernel must do with the programs, in few steps: these tests run on the machine's own
//! kernel, and by `cargo xtask test` on others, in virtual machines that are about ten times slower.

use anyhow::{Result, bail, ensure};
use aya::{EbpfLoader, programs::Program};
use overlay_agent::object::OBJECT;
use overlay_tests::requirements::require_root;

/// Lines of a verifier log that say why it refuses.
const REASON: usize = 6;

#[test]
fn the_verifier_takes_every_program() -> Result<()> {
    require_root();
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    let mut refusals = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            _ => bail!("{name} is of another type"),
        };
        if let Err(error) = loaded {
            let text = format!("{:#}", anyhow::Error::from(error));
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(REASON)..].join("\n");
            refusals.push(format!("{name}: {tail}"));
        }
    }
    ensure!(refusals.is_empty(), "{}", refusals.join("\n"));
    Ok(())
}
