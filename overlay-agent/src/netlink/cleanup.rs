//! Finds and removes everything of ours, for `overlay-agent cleanup`.

use std::{collections::BTreeSet, fmt, io};

use rtnetlink::packet_route::route::RouteMessage;

use super::{
    Netlink, NetlinkError,
    object::{Link, Route},
    request,
};
use crate::model::{Family, V4, V6};

/// Something in the kernel that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owned {
    /// A route of either family with a protocol number of ours, blackhole routes included.
    Route { text: String, message: RouteMessage },
    /// A backend's device, with its address, neighbours and forwarding entries.
    Vtep { ifindex: u32, name: String },
}

impl Owned {
    fn route<F: Family>(route: Route<F>) -> Self {
        Self::Route {
            text: route.to_string(),
            message: request::encode_route(&route),
        }
    }
}

impl fmt::Display for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route { text, .. } => write!(f, "route {text}"),
            Self::Vtep { name, .. } => write!(f, "interface {name}"),
        }
    }
}

impl Netlink {
    /// What is ours: routes with our protocols, and the links that are.
    pub async fn owned(&self, is_ours: impl Fn(&Link) -> bool) -> Result<Vec<Owned>, NetlinkError> {
        let routes = self.own_routes::<V4>().await?.into_iter().map(Owned::route);
        let routes6 = self.own_routes::<V6>().await?.into_iter().map(Owned::route);
        let links = self.links().await?;
        let devices = links.into_iter().filter(is_ours).map(|link| Owned::Vtep {
            ifindex: link.ifindex,
            name: link.name,
        });
        Ok(routes.chain(routes6).chain(devices).collect())
    }

    async fn own_routes<F: Family>(&self) -> Result<Vec<Route<F>>, NetlinkError> {
        let mut routes = self.routes::<F>().await?;
        routes.retain(Route::is_ours);
        Ok(routes)
    }

    /// Removes devices that a start which did not get far has left: of this node's, without an address.
    /// Returns their names. Devices that were in use have an address, by which [`Netlink::reconcile`] knows
    /// them.
    pub async fn remove_unfinished(
        &self,
        is_of_node: impl Fn(&Link) -> bool,
    ) -> Result<Vec<String>, NetlinkError> {
        let mut in_use: BTreeSet<u32> = BTreeSet::new();
        let addresses = self.addresses::<V4>().await?.into_iter();
        let addresses = addresses.filter(|address| !address.is_link_local());
        in_use.extend(addresses.map(|address| address.ifindex));
        let addresses = self.addresses::<V6>().await?.into_iter();
        let addresses = addresses.filter(|address| !address.is_link_local());
        in_use.extend(addresses.map(|address| address.ifindex));
        let mut removed = Vec::new();
        for link in self.links().await? {
            if is_of_node(&link) && !in_use.contains(&link.ifindex) {
                self.delete_device(&link).await?;
                removed.push(link.name);
            }
        }
        Ok(removed)
    }

    /// Removes our routes of a family. Returns what there was.
    pub async fn remove_routes<F: Family>(&self) -> Result<Vec<String>, NetlinkError> {
        let mut removed = Vec::new();
        for route in self.own_routes::<F>().await? {
            let text = format!("route {route}");
            let request = request::delete_route(&route);
            self.change(format!("delete {text}"), request).await?;
            removed.push(text);
        }
        Ok(removed)
    }

    /// Removes these devices. Returns what there was.
    pub async fn remove_devices(
        &self,
        is_one: impl Fn(&Link) -> bool,
    ) -> Result<Vec<String>, NetlinkError> {
        let mut removed = Vec::new();
        for link in self.links().await?.into_iter().filter(is_one) {
            self.delete_device(&link).await?;
            removed.push(format!("interface {}", link.name));
        }
        Ok(removed)
    }

    async fn delete_device(&self, link: &Link) -> Result<(), NetlinkError> {
        let operation = format!("delete {}", link.name);
        self.change(operation, request::delete_link(link.ifindex))
            .await
    }

    /// Removes everything of ours and returns it. With `dry_run` it is only listed.
    pub async fn remove_everything(
        &self,
        is_ours: impl Fn(&Link) -> bool,
        dry_run: bool,
    ) -> Result<Vec<Owned>, NetlinkError> {
        let owned = self.owned(is_ours).await?;
        if dry_run {
            return Ok(owned);
        }
        let requests = owned.iter().map(|object| match object {
            Owned::Route { message, .. } => request::delete_encoded_route(message.clone()),
            Owned::Vtep { ifindex, .. } => request::delete_link(*ifindex),
        });
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
