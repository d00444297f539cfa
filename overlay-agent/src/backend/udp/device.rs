//! The TUN device in the kernel tier's terms.

use std::io;

use super::tun::Tun;
use crate::{
    model::{Family, Underlay},
    netlink::{Link, LinkKind, Netlink, NetlinkError, Vtep},
};

/// flannel asks for `flannel%d`, and gets this one unless somebody has it.
pub const NAME: &str = "flannel0";
/// Outer IP and UDP headers.
pub const OVERHEAD: u32 = 20 + 8;

/// Which of such devices the link is, whoever made it.
pub fn number(link: &Link) -> Option<u32> {
    let number = link.name.strip_prefix("flannel")?.parse().ok()?;
    (link.kind == LinkKind::Virtual("tun".to_owned())).then_some(number)
}

/// Has the device exist, and up. It stays when the process ends, with its routes; then nobody reads what is
/// sent by it.
pub async fn ensure<F: Family>(
    netlink: &Netlink,
    underlay: &Underlay<F>,
) -> Result<Vtep, NetlinkError> {
    let mtu = underlay.mtu.saturating_sub(OVERHEAD);
    if mtu < F::MIN_MTU {
        return Err(NetlinkError::MtuTooSmall {
            name: NAME.to_owned(),
            kind: "udp",
            mtu,
            overhead: OVERHEAD,
            family: F::NAME,
            least: F::MIN_MTU,
        });
    }
    match netlink.link_named(NAME).await? {
        Some(link) if number(&link).is_some() => {}
        Some(_) => return Err(refused("use", io::ErrorKind::AlreadyExists.into())),
        None => {
            Tun::attach(NAME).map_err(|source| refused("create", source))?;
        }
    }
    netlink.set_up(NAME, mtu).await
}

fn refused(what: &str, source: io::Error) -> NetlinkError {
    let reason = match source.kind() {
        io::ErrorKind::NotFound => {
            " (there is no /dev/net/tun: load the kernel's tun module with `modprobe tun`, and give a \
             container the device)"
        }
        io::ErrorKind::PermissionDenied => {
            " (that takes /dev/net/tun, open to the agent, and CAP_NET_ADMIN)"
        }
        io::ErrorKind::AlreadyExists => {
            " (an interface of this name is no TUN device: rename or delete it)"
        }
        _ => "",
    };
    NetlinkError::Refused {
        operation: format!("{what} {NAME}{reason}"),
        source,
    }
}
