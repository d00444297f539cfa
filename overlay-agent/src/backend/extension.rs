//! Commands of the network config make the network: flannel's backend for what it has no backend for.

mod command;
mod options;
mod runtime;

pub use self::options::Extension;
use super::{ChangedKeys, Kind, Parsed, Runtime};
use crate::model::{Family, Forwarding};

impl Kind for Extension {
    const TYPE: &'static str = "extension";

    fn parse(options: &str, _: bool) -> Parsed<Self> {
        options::parse(options)
    }

    /// What the other commands have made was made by those in force.
    fn reload(&self, read: &Self, keys: &mut ChangedKeys) -> Self {
        keys.postponed.extend(self.differing(read));
        self.clone()
    }

    /// The commands bring it about.
    fn forwarding<F: Family>(&self) -> Forwarding {
        Forwarding::NONE
    }

    fn runtime(&self) -> Option<Box<dyn Runtime>> {
        Some(Box::new(runtime::Commands::new(self.clone())))
    }
}
