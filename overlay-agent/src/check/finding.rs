//! What an examination says.

use std::fmt::Display;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Pods do not reach each other, or will not.
    Error,
    /// It breaks something under circumstances that are not rare.
    Warning,
    /// Worth knowing when something else is wrong.
    Note,
}

/// A pitfall that this host is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable.
    pub name: &'static str,
    pub severity: Severity,
    /// What was seen, and what follows from it.
    pub seen: String,
    /// What to do about it.
    pub advice: String,
}

/// The first few of them.
pub fn first_few<T: Display>(items: &[T], most: usize) -> String {
    let shown: Vec<String> = items.iter().take(most).map(T::to_string).collect();
    let shown = shown.join(", ");
    match items.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl Severity {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

impl Finding {
    pub fn error(name: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::of(Severity::Error, name, seen, advice)
    }

    pub fn warning(name: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::of(Severity::Warning, name, seen, advice)
    }

    pub fn note(name: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::of(Severity::Note, name, seen, advice)
    }

    fn of(
        severity: Severity,
        name: &'static str,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            name,
            severity,
            seen: seen.into(),
            advice: advice.into(),
        }
    }
}
