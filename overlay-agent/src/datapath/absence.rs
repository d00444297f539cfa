//! Why a node has no programs, and how an agent notes that.

use std::fmt;

const ASKED: &str = "asked";
const REFUSED: &str = "refused: ";
/// Bytes of a reason; the target of a link has room for a few more.
const MAX_REASON: usize = 1000;

/// Why a node has the kernel tier alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// `--datapath=kernel`.
    Asked,
    /// The kernel does not run the programs: what it said.
    Refused(String),
}

impl Absence {
    pub fn refused(error: &impl fmt::Display) -> Self {
        let text = error.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let mut reason = lines.join("; ").replace('\0', "");
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
        Self::Refused(reason)
    }

    pub(in crate::datapath) fn encode(&self) -> String {
        match self {
            Self::Asked => ASKED.to_owned(),
            Self::Refused(reason) => format!("{REFUSED}{reason}"),
        }
    }

    pub(in crate::datapath) fn decode(text: &str) -> Option<Self> {
        match text.strip_prefix(REFUSED) {
            Some(reason) => Some(Self::Refused(reason.to_owned())),
            None => (text == ASKED).then_some(Self::Asked),
        }
    }
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("as --datapath=kernel asks"),
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_to_what_fits() {
        let error = "ü\n".repeat(4000);
        let Absence::Refused(reason) = Absence::refused(&error) else {
            panic!("refused");
        };
        assert!(reason.len() <= MAX_REASON && reason.len() > MAX_REASON - 4);
        assert!(!reason.contains('\n'));
        assert_eq!(
            Absence::decode(&Absence::Refused(reason.clone()).encode()),
            Some(Absence::Refused(reason))
        );
    }
}
