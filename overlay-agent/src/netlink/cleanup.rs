//! Finds and removes everything of ours, for `overlay-agent cleanup`.

use std::{fmt, io};

use super::{
    Netlink, NetlinkError,
    object::{LinkKind, Route},
    plan::ROUTE_PROTOCOL,
    request,
    vtep::Vtep,
};
use crate::model::{Underlay, VxlanBackend};

/// Something in the kernel that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owned {
    /// A route with our protocol number, blackhole routes included.
    Route(Route),
    /// The device `flannel.<VNI>`, with its address, neighbours and forwarding entries.
    Vtep { ifindex: u32, name: String },
}

impl fmt::Display for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(route) => write!(f, "route {route}"),
            Self::Vtep { name, .. } => write!(f, "interface {name}"),
        }
    }
}

impl Netlink {
    /// What is ours: routes with [`ROUTE_PROTOCOL`] and the vxlan devices of these VNIs under
    /// flannel's name for them.
    pub async fn owned(&self, vnis: &[u32]) -> Result<Vec<Owned>, NetlinkError> {
        let routes = self.routes().await?;
        let routes = routes
            .into_iter()
            .filter(|route| route.protocol == ROUTE_PROTOCOL);
        let links = self.links().await?;
        let devices = links.into_iter().filter_map(|link| match link.kind {
            LinkKind::Vxlan(vxlan)
                if vnis.contains(&vxlan.vni) && link.name == VxlanBackend::name_of(vxlan.vni) =>
            {
                Some(Owned::Vtep {
                    ifindex: link.ifindex,
                    name: link.name,
                })
            }
            _ => None,
        });
        Ok(routes.map(Owned::Route).chain(devices).collect())
    }

    /// Removes devices that a start which did not get far has left: under flannel's name, on this
    /// underlay, without an IPv4 address, and not `current`. Returns their names. Devices that were
    /// in use have an address, by which [`Netlink::reconcile`] knows them.
    pub async fn remove_unfinished_vteps(
        &self,
        underlay: &Underlay,
        current: Option<&Vtep>,
    ) -> Result<Vec<String>, NetlinkError> {
        let addresses = self.addresses().await?;
        let mut removed = Vec::new();
        for link in self.links().await? {
            let LinkKind::Vxlan(vxlan) = link.kind else {
                continue;
            };
            if link.name != VxlanBackend::name_of(vxlan.vni)
                || vxlan.underlay != Some(underlay.ifindex)
                || vxlan.local != Some(underlay.address)
                || current.is_some_and(|vtep| vtep.ifindex == link.ifindex)
                || addresses.iter().any(|a| a.ifindex == link.ifindex)
            {
                continue;
            }
            let operation = format!("delete {}", link.name);
            self.change(operation, request::delete_link(link.ifindex))
                .await?;
            removed.push(link.name);
        }
        Ok(removed)
    }

    /// Removes everything of ours and returns it. With `dry_run` it is only listed.
    pub async fn remove_everything(
        &self,
        vnis: &[u32],
        dry_run: bool,
    ) -> Result<Vec<Owned>, NetlinkError> {
        let owned = self.owned(vnis).await?;
        if dry_run {
            return Ok(owned);
        }
        let requests = owned
            .iter()
            .map(|object| match object {
                Owned::Route(route) => request::delete_route(route),
                Owned::Vtep { ifindex, .. } => request::delete_link(*ifindex),
            })
            .collect();
        let verdicts = self.transport.apply(requests).await?;
        for (object, verdict) in owned.iter().zip(verdicts) {
            match verdict {
                Err(source) if !is_gone(&source) => {
                    return Err(NetlinkError::Refused {
                        operation: format!("remove {object}"),
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(owned)
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ESRCH | libc::ENODEV | libc::ENOENT)
    )
}
