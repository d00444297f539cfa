//! What can go wrong with the kernel, and what to do about it.

use std::io;

use overlay_common::addr::MacAddr;
use thiserror::Error;

/// Why the kernel tier could not do something.
#[derive(Debug, Error)]
pub enum NetlinkError {
    #[error(
        "cannot open a netlink socket: {source}; if a sandbox limits address families, \
         allow AF_NETLINK (systemd: RestrictAddressFamilies=AF_NETLINK)"
    )]
    Open { source: io::Error },
    #[error("answers of the kernel were lost, or the netlink connection broke; it is opened again")]
    Closed,
    #[error("the kernel did not answer a netlink request within {seconds} s: {operation}")]
    Timeout {
        operation: &'static str,
        seconds: u64,
    },
    #[error("cannot {operation}: {source}{}", remedy(source))]
    Refused {
        operation: String,
        source: io::Error,
    },
    #[error(
        "`{name}` cannot be an interface name (1 to 15 bytes, no slash or blank); \
         choose a smaller VNI: IPv4 takes up to 9999999, IPv6 up to 99999"
    )]
    BadName { name: String },
    #[error("underlay interface {ifindex} is gone; it is picked up again when it returns")]
    UnderlayGone { ifindex: u32 },
    #[error("interface {name} (index {ifindex}) is gone and has to be created again")]
    VtepGone { name: String, ifindex: u32 },
    #[error("interface {name} disappears while it is being set up; another program manages it")]
    VtepVanished { name: String },
    #[error(
        "{name} would have an MTU of {mtu}; {kind} takes {overhead} bytes and {family} needs {least}: \
         raise the MTU of the underlay interface or of the network config"
    )]
    MtuTooSmall {
        name: String,
        kind: &'static str,
        mtu: u32,
        overhead: u32,
        family: &'static str,
        least: u32,
    },
    #[error(
        "cannot create {name}: this kernel has no {kind} devices; load their module (modprobe {kind}), \
         boot a kernel that has it, or set another Type of the network config's Backend"
    )]
    NoSuchKind { name: String, kind: String },
    #[error("the backend needs its device before peers can be programmed")]
    VtepMissing,
    #[error(
        "{name} keeps MAC address {found} instead of {wanted}; something rewrites it, for \
         example systemd's MACAddressPolicy: set MACAddressPolicy=none for {name} in a .link file"
    )]
    MacOverridden {
        name: String,
        wanted: MacAddr,
        found: MacAddr,
    },
    #[error(
        "cannot create {name}: interface {other} already uses {}; \
         remove it (ip link delete {other}) or {}", collision.claim, collision.remedy
    )]
    Taken {
        name: String,
        other: String,
        collision: Collision,
    },
}

/// What two devices cannot both have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collision {
    pub claim: String,
    /// What helps beside the removal of the other device.
    pub remedy: &'static str,
}

fn remedy(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; run as root or grant CAP_NET_ADMIN",
        Some(libc::EOPNOTSUPP) => "; the kernel lacks the feature",
        Some(libc::ENETUNREACH) => "; the gateway is not on-link",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permission_error_names_the_capability() {
        let error = NetlinkError::Refused {
            operation: "create flannel.1".to_owned(),
            source: io::Error::from_raw_os_error(libc::EPERM),
        };
        let text = error.to_string();
        assert!(
            text.contains("flannel.1") && text.contains("CAP_NET_ADMIN"),
            "{text}"
        );
    }
}
