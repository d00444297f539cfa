//! What AWS refuses, and why.

use aws_sdk_ec2::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

use crate::exchange::Problem;

/// What follows is for whoever may decode it, and long.
const ENCODED: &str = " Encoded authorization failure message";

/// Names the action, which is the permission, too, and what it was about.
pub fn problem<E, R>(action: &'static str, object: &str, error: &SdkError<E, R>) -> Problem
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
    R: std::fmt::Debug,
{
    let (code, message) = (error.code(), error.message());
    let reason = match (code, message) {
        (Some(code), Some(message)) => format!("{code}: {}", short(message)),
        (Some(code), None) => code.to_owned(),
        _ => DisplayErrorContext(error).to_string(),
    };
    Problem {
        action: action.to_owned(),
        object: object.to_owned(),
        reason,
        permission: code
            .is_some_and(is_denial)
            .then(|| format!("the permission {action}")),
    }
}

fn short(message: &str) -> &str {
    message.split(ENCODED).next().unwrap_or(message)
}

fn is_denial(code: &str) -> bool {
    [
        "UnauthorizedOperation",
        "AccessDenied",
        "AccessDeniedException",
    ]
    .contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_message_is_left_out_and_denials_are_told_from_other_errors() {
        let message = "You are not authorized. Encoded authorization failure message: abc";
        assert_eq!(short(message), "You are not authorized.");
        assert_eq!(short("No such table."), "No such table.");
        assert!(is_denial("UnauthorizedOperation"));
        assert!(!is_denial("InvalidRouteTableID.NotFound"));
    }
}
