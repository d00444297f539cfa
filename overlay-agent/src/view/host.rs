//! The host's interfaces, as far as they concern the tiers.

use std::net::IpAddr;

use overlay_common::config::FASTPATH_OFF;

use super::ebpf::EbpfTier;
use crate::{
    datapath::{leaves_open, unsummed},
    netlink::{LinkTable, Netlink, Unserved, unserved},
    underlay::{self, HostSnapshot, UnderlayLink},
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
        let mut links = tier.vteps().filter_map(|vtep| self.underlay(vtep));
        let bare = links.find(|link| !link.ethernet)?;
        Some(bare.name.clone())
    }

    fn underlay(&self, vtep: IpAddr) -> Option<&UnderlayLink> {
        let mut addresses = self.addresses.addresses.iter();
        let owner = addresses.find(|owned| owned.ip == vtep)?;
        let mut links = self.addresses.links.iter();
        links.find(|link| link.ifindex == owner.ifindex)
    }

    /// Why the udp backend's forwarder carries all packets; `None` if the programs carry what they can.
    pub fn forwards_alone(&self, tier: Option<&EbpfTier>) -> Option<String> {
        let Some(overlay) = tier.and_then(|tier| tier.ipv4.as_ref()) else {
            return Some("there are no programs".to_owned());
        };
        if overlay.config.fastpath != FASTPATH_OFF {
            return None;
        }
        let link = self.underlay(overlay.vtep());
        let link = link.filter(|link| leaves_open(&link.name, link.hardware));
        Some(link.map_or_else(
            || "the fast path is off".to_owned(),
            |link| unsummed(&link.name),
        ))
    }
}
