//! Room on the disk. A linker that runs out of it dies of a signal and says nothing about the reason.

use std::{fmt, path::Path};

use crate::process::{command, output};

/// Less is too little for one more set of programs.
const LOW: u64 = 1 << 30;

/// What is left where the builds go.
#[derive(Debug, PartialEq, Eq)]
pub struct Free(u64);

impl Free {
    /// Nothing where `df` has no answer, so that this never hides the error that it is to explain.
    pub fn at(dir: &Path) -> Option<Self> {
        let mut df = command("df");
        df.args(["--output=avail", "--block-size=1"]).arg(dir);
        Self::read(&output(&mut df).ok()?)
    }

    fn read(table: &str) -> Option<Self> {
        table.lines().nth(1)?.trim().parse().ok().map(Self)
    }

    pub const fn is_low(&self) -> bool {
        self.0 < LOW
    }
}

impl fmt::Display for Free {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB free", self.0 >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_df_has_a_heading_and_one_number() {
        let free = Free::read("    Avail\n734003200\n").expect("a number");
        assert!(free.is_low());
        assert_eq!(free.to_string(), "700 MiB free");
        assert!(!Free(LOW).is_low());
        assert_eq!(Free::read("df: no such file\n"), None);
    }

    #[test]
    fn there_is_an_answer_for_a_folder_and_none_for_what_is_not_there() {
        assert!(Free::at(Path::new("/")).is_some());
        assert!(Free::at(Path::new("/no/such/folder")).is_none());
    }
}
