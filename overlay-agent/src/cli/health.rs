//! What commands that judge a node come to, and the codes they exit with.

use std::process::ExitCode;

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Healthy,
    Degraded,
    Unknown,
}

impl Health {
    /// Of something that may have problems.
    pub const fn of(problems: &[String]) -> Self {
        if problems.is_empty() {
            Self::Healthy
        } else {
            Self::Degraded
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
        }
    }

    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Healthy => 0,
            Self::Degraded => 1,
            Self::Unknown => 2,
        })
    }
}
