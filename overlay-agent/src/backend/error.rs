//! Why a backend cannot be used.

use std::ops::RangeInclusive;

use super::Backend;
use crate::go::json::JsonError;

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(
        "the {backend} backend carries IPv4 only: leave EnableIPv6 and IPv6Network out of the network \
         config, or set the Type of its Backend to vxlan or host-gw, which carry both"
    )]
    Ipv4Only { backend: &'static str },
    #[error(
        "backend type {0} is not supported; set the Type of the network config's Backend to one of: \
         {supported}",
        supported = supported()
    )]
    Unsupported(String),
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
