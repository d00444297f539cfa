//! What the operator commands have in common: they read the pinned maps, agent or no agent.

use std::{fmt, path::PathBuf};

use serde::Serialize;

use crate::{
    datapath::{DEFAULT_PIN_DIR, DatapathError, Maps, PinDir},
    output::Format,
};

/// Where to read, and how to print.
#[derive(Clone, Debug, clap::Args)]
pub struct Pinned {
    /// Directory on a BPF file system where the agent pins its maps and links
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

impl Pinned {
    pub fn pins(&self) -> PinDir {
        PinDir::new(&self.pin_dir)
    }

    pub fn open(&self) -> Result<Maps, DatapathError> {
        Maps::open(&self.pins())
    }
}

/// The generations that flows have to be of; `None` (JSON `null`) for a family the node does not
/// serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Generations {
    #[serde(rename = "generation")]
    pub ipv4: Option<u32>,
    #[serde(rename = "ipv6_generation")]
    pub ipv6: Option<u32>,
}

impl fmt::Display for Generations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ipv4, self.ipv6) {
            (Some(ipv4), None) => write!(f, "generation {ipv4}"),
            (Some(ipv4), Some(ipv6)) => write!(f, "generation {ipv4}, IPv6 generation {ipv6}"),
            (None, Some(ipv6)) => write!(f, "IPv6 generation {ipv6}"),
            (None, None) => f.write_str("not configured yet"),
        }
    }
}
