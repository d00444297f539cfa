//! What etcd and the way to it can have against a request.

use thiserror::Error;

use crate::model::StoreError;

/// Why a request failed. All but `Options` may go away by themselves.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EtcdError {
    #[error("etcd options: {reason}")]
    Options { reason: String },
    #[error("no etcd endpoint answered: {failures}; check --etcd-endpoints and that etcd runs")]
    Unreachable { failures: String },
    #[error(
        "TLS to etcd failed: {failures}; check --etcd-cafile against the CA that signed the \
         server's certificate, and --etcd-certfile and --etcd-keyfile if etcd asks for a client \
         certificate"
    )]
    Tls { failures: String },
    #[error("etcd refused the login: {reason}; check --etcd-username and --etcd-password")]
    Login { reason: String },
    #[error(
        "etcd denied {operation}: {reason}; the user needs read permission on {prefix}/config and \
         readwrite permission on keys with the prefix {prefix}/subnets/"
    )]
    Denied {
        operation: &'static str,
        prefix: String,
        reason: String,
    },
    #[error("etcd failed to {operation}: {reason}")]
    Rejected {
        operation: &'static str,
        reason: String,
    },
}

impl From<EtcdError> for StoreError {
    fn from(error: EtcdError) -> Self {
        Self {
            reason: error.to_string(),
        }
    }
}
