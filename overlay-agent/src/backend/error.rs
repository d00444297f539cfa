//! Why a backend cannot be used.

use std::ops::RangeInclusive;

use super::Backend;
use crate::go::json::JsonError;

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(
        "backend type {name} is not supported: use {instead}; the Type of the network config's Backend can \
         be: {supported}",
        supported = supported()
    )]
    Unsupported {
        name: String,
        /// What does in its place.
        instead: &'static str,
    },
    #[error("unknown backend type: {0} (supported: {supported})", supported = supported())]
    Unknown(String),
    #[error("error decoding {backend} backend config: {reason}")]
    Options {
        /// As flannel's texts write it.
        backend: &'static str,
        reason: OptionError,
    },
    #[error(
        "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which \
         is not supported by {backend} backend"
    )]
    Nat { backend: &'static str },
    #[error(
        "the {backend} backend carries IPv4 only: take EnableIPv6 out of the network config, or use \
         vxlan, host-gw or wireguard"
    )]
    Ipv4Only { backend: &'static str },
    #[error("{0}")]
    Runtime(String),
}

/// What is wrong with an option.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("{key} is {value}, it must be {expected}")]
    Range {
        key: &'static str,
        value: i64,
        expected: &'static str,
    },
    /// What was given may be a secret.
    #[error("{key} is not {expected}")]
    Unusable {
        key: &'static str,
        expected: &'static str,
    },
}

/// The value, if it is in the range.
pub(super) fn in_range<T: TryFrom<i64>>(
    key: &'static str,
    value: i64,
    range: RangeInclusive<i64>,
    expected: &'static str,
) -> Result<T, OptionError> {
    let error = OptionError::Range {
        key,
        value,
        expected,
    };
    if range.contains(&value) {
        T::try_from(value).map_err(|_| error)
    } else {
        Err(error)
    }
}

fn supported() -> String {
    Backend::TYPES.join(", ")
}
