//! How many objects of the kernel were changed, by what they are.

use std::collections::BTreeMap;

/// Objects of one kind.
#[derive(Debug, Default)]
struct Changed {
    added: usize,
    removed: usize,
}

/// The objects that were changed, by their kinds as the metrics name them.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<&'static str, Changed>);

impl Tally {
    pub(super) fn note(&mut self, objects: &'static str, removed: bool) {
        let changed = self.0.entry(objects).or_default();
        if removed {
            changed.removed += 1;
        } else {
            changed.added += 1;
        }
    }

    /// How many of each kind were added and removed. Kinds of which nothing was changed are left out.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        let kinds = self.0.iter();
        kinds.map(|(objects, changed)| (*objects, changed.added, changed.removed))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn added(&self) -> usize {
        self.0.values().map(|changed| changed.added).sum()
    }

    pub fn removed(&self) -> usize {
        self.0.values().map(|changed| changed.removed).sum()
    }
}
