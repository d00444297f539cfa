//! What an answer of etcd other than a success says: about the endpoint that gave it, or about the
//! request. Pure.

/// Which of the two it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This endpoint cannot serve the request, another one may.
    Endpoint {
        /// The request may have been carried out all the same.
        in_doubt: bool,
    },
    /// The login is stale: log in again and repeat.
    StaleLogin,
    /// This endpoint refuses the login. Another may know the user, if this one is of another
    /// cluster or has fallen behind.
    Login,
    /// The cluster denies the user the request.
    Denied,
    /// The cluster refuses the request; it is carried out nowhere.
    Refused,
}

/// gRPC status codes, as numbered there.
const CANCELLED: i32 = 1;
const UNKNOWN: i32 = 2;
const DEADLINE_EXCEEDED: i32 = 4;
const PERMISSION_DENIED: i32 = 7;
const ABORTED: i32 = 10;
const UNIMPLEMENTED: i32 = 12;
const INTERNAL: i32 = 13;
const UNAVAILABLE: i32 = 14;
const DATA_LOSS: i32 = 15;
const UNAUTHENTICATED: i32 = 16;

/// Judges a status that a server answered with.
pub fn of_status(code: i32, message: &str) -> Verdict {
    let says = |text: &str| message.contains(text);
    // The code of some answers depends on etcd's release, the text does not.
    if says("invalid auth token") || says("auth store is old") {
        return Verdict::StaleLogin;
    }
    if says("authentication failed") || says("user name is empty") {
        return Verdict::Login;
    }
    // A member without a vote refuses before it does anything, one that lags behind as well.
    if says("not supported for learner") || says("too many requests") {
        return Verdict::Endpoint { in_doubt: false };
    }
    match code {
        // Whatever listens there, it is no etcd of version 3.
        UNIMPLEMENTED => Verdict::Endpoint { in_doubt: false },
        CANCELLED | UNKNOWN | DEADLINE_EXCEEDED | ABORTED | INTERNAL | UNAVAILABLE | DATA_LOSS => {
            Verdict::Endpoint { in_doubt: true }
        }
        UNAUTHENTICATED => Verdict::Login,
        PERMISSION_DENIED => Verdict::Denied,
        // What the cluster as a whole, and so every member, says of the request: invalid argument,
        // not found, failed precondition, out of range, resource exhausted.
        _ => Verdict::Refused,
    }
}

/// Judges the reason of a cancelled watch, which comes without a code.
pub fn of_watch(reason: &str) -> Verdict {
    if reason.contains("permission denied") {
        of_status(PERMISSION_DENIED, reason)
    } else {
        of_status(UNAVAILABLE, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INVALID_ARGUMENT: i32 = 3;
    const NOT_FOUND: i32 = 5;
    const RESOURCE_EXHAUSTED: i32 = 8;
    const FAILED_PRECONDITION: i32 = 9;
    const OUT_OF_RANGE: i32 = 11;

    const ELSEWHERE: Verdict = Verdict::Endpoint { in_doubt: false };
    const IN_DOUBT: Verdict = Verdict::Endpoint { in_doubt: true };

    #[test]
    fn every_answer_of_etcd_is_about_the_endpoint_or_about_the_request() {
        for (code, message, verdict) in [
            // A learner's, in the codes of several releases.
            (
                UNAVAILABLE,
                "etcdserver: rpc not supported for learner",
                ELSEWHERE,
            ),
            (
                FAILED_PRECONDITION,
                "etcdserver: rpc not supported for learner",
                ELSEWHERE,
            ),
            (
                INVALID_ARGUMENT,
                "etcdserver: rpc not supported for learner",
                ELSEWHERE,
            ),
            (
                RESOURCE_EXHAUSTED,
                "etcdserver: too many requests",
                ELSEWHERE,
            ),
            (UNIMPLEMENTED, "unknown service etcdserverpb.KV", ELSEWHERE),
            (UNAVAILABLE, "etcdserver: no leader", IN_DOUBT),
            (UNAVAILABLE, "etcdserver: request timed out", IN_DOUBT),
            (UNAVAILABLE, "etcdserver: server stopped", IN_DOUBT),
            (DEADLINE_EXCEEDED, "context deadline exceeded", IN_DOUBT),
            (CANCELLED, "context canceled", IN_DOUBT),
            (UNKNOWN, "raft: stopped", IN_DOUBT),
            (INTERNAL, "stream terminated by RST_STREAM", IN_DOUBT),
            (DATA_LOSS, "etcdserver: corrupt cluster", IN_DOUBT),
            (
                UNAUTHENTICATED,
                "etcdserver: invalid auth token",
                Verdict::StaleLogin,
            ),
            (
                INVALID_ARGUMENT,
                "etcdserver: revision of auth store is old: auth store is old",
                Verdict::StaleLogin,
            ),
            (
                INVALID_ARGUMENT,
                "etcdserver: authentication failed, invalid user ID or password",
                Verdict::Login,
            ),
            (
                INVALID_ARGUMENT,
                "etcdserver: user name is empty",
                Verdict::Login,
            ),
            (
                PERMISSION_DENIED,
                "etcdserver: permission denied",
                Verdict::Denied,
            ),
            (
                RESOURCE_EXHAUSTED,
                "etcdserver: mvcc: database space exceeded",
                Verdict::Refused,
            ),
            (
                INVALID_ARGUMENT,
                "etcdserver: duplicate key given in txn request",
                Verdict::Refused,
            ),
            (
                FAILED_PRECONDITION,
                "etcdserver: authentication is not enabled",
                Verdict::Refused,
            ),
            (
                NOT_FOUND,
                "etcdserver: requested lease not found",
                Verdict::Refused,
            ),
            (
                OUT_OF_RANGE,
                "etcdserver: mvcc: required revision has been compacted",
                Verdict::Refused,
            ),
        ] {
            assert_eq!(of_status(code, message), verdict, "{code} {message}");
        }
    }

    #[test]
    fn a_cancelled_watch_is_opened_elsewhere_unless_it_is_denied() {
        assert_eq!(of_watch("etcdserver: no leader"), IN_DOUBT);
        assert_eq!(of_watch("closed by etcd"), IN_DOUBT);
        assert_eq!(of_watch("etcdserver: permission denied"), Verdict::Denied);
        assert_eq!(
            of_watch("etcdserver: invalid auth token"),
            Verdict::StaleLogin
        );
    }
}
