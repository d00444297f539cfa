//! What Compute Engine refuses, and why.

use google_cloud_gax::error::Error;

use crate::exchange::Problem;

const SCOPE: &str = "the access scope https://www.googleapis.com/auth/compute";

/// Names the method and what it was about; the permission is that of the method, unless the answer names one.
pub fn problem(action: &str, permission: &str, object: &str, error: &Error) -> Problem {
    let said = error.status().map(|status| status.message.clone());
    let reason = said
        .filter(|message| !message.is_empty())
        .unwrap_or_else(|| chain(error));
    let is_denied = error.http_status_code() == Some(403);
    Problem {
        action: action.to_owned(),
        object: object.to_owned(),
        permission: is_denied.then(|| lacking(&reason, permission)),
        reason,
    }
}

/// What is lacking where a request is forbidden.
pub fn lacking(reason: &str, permission: &str) -> String {
    if reason.contains("authentication scopes") {
        return SCOPE.to_owned();
    }
    let named = reason.split('\'').nth(1);
    let named = named.filter(|_| reason.contains("permission"));
    format!("the permission {}", named.unwrap_or(permission))
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_a_scope_or_the_permission_that_the_answer_names() {
        let scope = "Request had insufficient authentication scopes.";
        assert_eq!(lacking(scope, "compute.routes.list"), SCOPE);
        let named = "Required 'compute.networks.updatePolicy' permission for 'projects/p/global/networks/n'";
        assert_eq!(
            lacking(named, "compute.routes.create"),
            "the permission compute.networks.updatePolicy"
        );
        assert_eq!(
            lacking("Forbidden", "compute.routes.create"),
            "the permission compute.routes.create"
        );
    }
}
