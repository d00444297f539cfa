//! `overlay-agent flush`: make every flow earn its lease again, for rules that changed without the
//! agent noticing.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use serde::Serialize;

use super::pinned::Pinned;
use crate::{datapath, output};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The generation flows have to be of from here on.
    pub generation: u32,
}

pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut maps = args.pinned.open()?;
    let generation = datapath::flush(&args.pinned.pins(), &mut maps)?;
    output::print(
        &Report {
            generation: generation.ipv4,
        },
        args.pinned.output,
        out,
    )?;
    Ok(ExitCode::SUCCESS)
}

impl output::Report for Report {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "every flow takes the kernel path until it is confirmed again (generation {})",
            self.generation
        )
    }
}
