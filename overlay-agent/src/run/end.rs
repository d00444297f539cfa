//! This node's end of the tunnels of one family: its underlay and its device, which exist before the
//! node has a lease and follow the host afterwards.

use overlay_common::addr::MacAddr;
use tracing::{info, warn};

use super::convert::Advertised;
use crate::{
    backend::{self, Backend, BackendError},
    model::{Desired, Family, LocalNode, Underlay},
    netlink::{Netlink, Vtep},
};

/// One family's underlay and device, before the node has a lease.
pub struct TunnelEnd<F: Family> {
    underlay: Underlay<F>,
    pub vtep: Option<Vtep>,
    lease_data: Option<String>,
}

impl<F: Family> TunnelEnd<F> {
    /// Has the family's device exist, on its underlay. `None` without an underlay: the network does
    /// not have the family. `said`: what the lease says for the backend beside what it says of the device.
    pub async fn prepare(
        netlink: &Netlink,
        backend: &Backend,
        underlay: Option<Underlay<F>>,
        known: &[String],
        said: Option<String>,
    ) -> anyhow::Result<Option<Self>> {
        let Some(underlay) = underlay else {
            return Ok(None);
        };
        report(&underlay, "underlay chosen");
        if !backend.forwarding::<F>().may_be_fast {
            info!(
                backend = backend.name(),
                family = F::NAME,
                "the programs do nothing for such a backend: nothing is fast, the kernel alone forwards"
            );
        }
        backend.check(&underlay)?;
        let vtep = backend.ensure_device(netlink, &underlay, known).await?;
        Ok(Some(Self {
            underlay,
            lease_data: backend.lease_data::<F>(vtep.as_ref()).or(said),
            vtep,
        }))
    }

    /// Has the device be the one that a lease says the node has.
    pub async fn become_assigned(
        mut self,
        netlink: &Netlink,
        backend: &Backend,
        data: Option<&str>,
    ) -> anyhow::Result<Self> {
        if data.is_some() && data != self.lease_data.as_deref() {
            self.vtep = backend
                .restore_device(netlink, &self.underlay, data)
                .await?;
            if let Some(said) = backend.lease_data::<F>(self.vtep.as_ref()) {
                self.lease_data = Some(said);
            }
        }
        Ok(self)
    }

    pub fn advertised(&self) -> Advertised<F> {
        Advertised {
            public_ip: self.underlay.public_ip,
            data: self.lease_data.clone(),
        }
    }

    pub fn local(
        &self,
        network: F::Network,
        subnet: F::Network,
        backend: &Backend,
    ) -> LocalNode<F> {
        let vtep = self.vtep.as_ref();
        LocalNode {
            network,
            subnet,
            underlay: self.underlay.clone(),
            forwarding: backend.forwarding::<F>(),
            device: backend.own_device(network, subnet),
            vtep_mac: vtep.map_or(MacAddr::ZERO, |vtep| vtep.mac),
            lease_data: self.lease_data.clone(),
        }
    }
}

/// Removes what an earlier start has left of a family: all of it, if the network config does not have the
/// family, else devices that were not made use of. `current`: the devices of both families.
pub async fn sweep<F: Family>(
    netlink: &Netlink,
    end: Option<&TunnelEnd<F>>,
    underlay_ifindex: u32,
    current: &[u32],
) -> anyhow::Result<()> {
    if let Some(end) = end {
        for name in backend::remove_unfinished(netlink, &end.underlay, current).await? {
            info!(device = name, "removed what an unfinished start had left");
        }
        return Ok(());
    }
    let mut removed = netlink.remove_routes::<F>().await?;
    removed.extend(backend::remove_devices::<F>(netlink, underlay_ifindex, current).await?);
    for name in removed {
        info!(family = F::NAME, %name, "removed: the network config does not have this family");
    }
    Ok(())
}

/// Takes over the underlay as it is selected now. Returns whether it changed.
pub fn follow<F: Family>(
    side: &mut Option<Desired<F>>,
    selected: Option<Underlay<F>>,
    backend: &Backend,
) -> Result<bool, BackendError> {
    let (Some(Desired { local, .. }), Some(underlay)) = (side, selected) else {
        return Ok(false);
    };
    backend.check(&underlay)?;
    let changed = underlay != local.underlay;
    if changed {
        report(&underlay, "underlay changed");
        local.underlay = underlay;
    }
    Ok(changed)
}

/// Takes over the options of the backend.
pub fn set_backend<F: Family>(side: &mut Option<Desired<F>>, backend: &Backend) {
    if let Some(side) = side {
        side.local.forwarding = backend.forwarding::<F>();
    }
}

fn report<F: Family>(underlay: &Underlay<F>, what: &str) {
    info!(
        interface = underlay.name,
        address = %underlay.address,
        public_ip = %underlay.public_ip,
        mtu = underlay.mtu,
        "{what}"
    );
    if !underlay.ethernet {
        warn!(
            interface = underlay.name,
            "the interface has no Ethernet headers, as tun and WireGuard have none: nothing is fast, the \
             kernel tier forwards as flannel does"
        );
    }
}
