//! `overlay-agent flush`: make every flow earn its permit again, for rules that changed without the
//! agent noticing.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context as _;
use serde::Serialize;

use super::pinned::{Generations, Pinned};
use crate::{
    datapath::{Flushed, Flusher},
    model::{PerFamily, each_family},
    output,
};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Of flows from here on.
    #[serde(flatten)]
    pub generations: Generations,
}

pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let maps = args.pinned.open()?;
    let Flushed {
        generations: flushed,
        contested,
    } = Flusher::open(&args.pinned.pins())?.flush()?;
    if let Some(error) = contested {
        return Err(error).context("flows were flushed, but the flush may be undone");
    }
    let overlays = maps.overlays.as_ref().zip(flushed);
    let PerFamily { ipv4, ipv6 } = each_family!(overlays, (maps, generation) => {
        maps.served_config()?.map(|_| generation)
    });
    let generations = Generations { ipv4, ipv6 };
    output::print(&Report { generations }, args.pinned.output, out)?;
    Ok(ExitCode::SUCCESS)
}

impl output::Report for Report {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "every flow takes the kernel path until it is confirmed again ({})",
            self.generations
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn the_generations_of_the_families_served_are_printed() {
        let text = |ipv4, ipv6, format| {
            let report = Report {
                generations: Generations { ipv4, ipv6 },
            };
            let mut text = Vec::new();
            output::print(&report, format, &mut text).unwrap();
            String::from_utf8(text).unwrap()
        };
        let said = |ipv4, ipv6| {
            let text = text(ipv4, ipv6, Format::Table);
            text.split_once("again ").unwrap().1.to_owned()
        };
        assert_eq!(said(Some(5), None), "(generation 5)\n");
        assert_eq!(
            said(Some(5), Some(3)),
            "(generation 5, IPv6 generation 3)\n"
        );
        assert_eq!(said(None, Some(3)), "(IPv6 generation 3)\n");
        assert_eq!(
            text(Some(5), None, Format::Json),
            "{\n  \"generation\": 5,\n  \"ipv6_generation\": null\n}\n"
        );
    }
}
