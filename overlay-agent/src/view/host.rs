//! The host's interfaces, as far as they concern the tiers.

use super::ebpf::EbpfTier;
use crate::{
    netlink::{LinkTable, Netlink, Unserved, unserved},
    underlay::{self, HostSnapshot},
};

/// The interfaces of the network namespace.
#[derive(Default)]
pub struct Host {
    links: LinkTable,
    addresses: HostSnapshot,
    /// What could not be read, in sentences.
    pub missing: Vec<String>,
}

impl Host {
    /// Asks the kernel.
    pub async fn read() -> Self {
        let mut host = Self::default();
        match async { Netlink::connect()?.dump_links().await }.await {
            Ok(links) => host.links.replace(links),
            Err(error) => {
                let what = format!("pods without programs are left out: {error}");
                host.missing.push(what);
            }
        }
        match underlay::snapshot(None).await {
            Ok(addresses) => host.addresses = addresses,
            Err(error) => {
                let what = format!("the underlay's kind is left out: {error}");
                host.missing.push(what);
            }
        }
        host
    }

    /// Pods that the programs do not serve.
    pub fn unserved(&self, tier: &EbpfTier) -> Vec<Unserved> {
        unserved(&self.links, tier.subnets())
    }

    /// The underlay interface, if it has no Ethernet headers.
    pub fn bare_underlay(&self, tier: &EbpfTier) -> Option<String> {
        tier.vteps().find_map(|vtep| {
            let mut addresses = self.addresses.addresses.iter();
            let owner = addresses.find(|owned| owned.ip == vtep)?;
            let mut links = self.addresses.links.iter();
            let link = links.find(|link| link.ifindex == owner.ifindex)?;
            (!link.ethernet).then(|| link.name.clone())
        })
    }
}
