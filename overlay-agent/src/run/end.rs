//! This node's end of the tunnels of one family: its underlay and its device, which exist before the
//! node has a lease and follow the host afterwards.

use tracing::{info, warn};

use super::convert::Advertised;
use crate::{
    backend::{self, Backend, BackendError, NodeData},
    model::{Desired, Family, LocalNode, Underlay},
    netlink::{Netlink, Vtep},
};

/// One family's underlay and device, before the node has a lease.
pub struct TunnelEnd<F: Family> {
    underlay: Underlay<F>,
    pub vtep: Option<Vtep>,
}

impl<F: Family> TunnelEnd<F> {
    /// Has the family's device exist, on its underlay. `None` without an underlay: the network does
    /// not have the family.
    pub async fn prepare(
        netlink: &Netlink,
        backend: &Backend,
        underlay: Option<Underlay<F>>,
        known: Option<NodeData>,
    ) -> anyhow::Result<Option<Self>> {
        let Some(underlay) = underlay else {
            return Ok(None);
        };
        report(&underlay, "underlay chosen");
        backend.check(&underlay)?;
        let vtep = backend.ensure_device(netlink, &underlay, known).await?;
        if let Some(vtep) = &vtep {
            report_checksums::<F>(vtep);
        }
        for name in backend::remove_unfinished(netlink, &underlay, vtep.as_ref()).await? {
            info!(device = name, "removed what an unfinished start had left");
        }
        Ok(Some(Self { underlay, vtep }))
    }

    fn data(&self) -> NodeData {
        self.vtep.as_ref().map_or(NodeData::NONE, |vtep| NodeData {
            vtep_mac: vtep.mac,
            zero_checksum: vtep.zero_checksum,
        })
    }

    pub fn advertised(&self) -> Advertised<F> {
        Advertised {
            public_ip: self.underlay.public_ip,
            data: self.data(),
        }
    }

    pub fn local(
        &self,
        network: F::Network,
        subnet: F::Network,
        backend: &Backend,
    ) -> LocalNode<F> {
        let data = self.data();
        LocalNode {
            network,
            subnet,
            underlay: self.underlay.clone(),
            forwarding: backend.forwarding::<F>(),
            vtep_mac: data.vtep_mac,
            zero_checksum: data.zero_checksum,
        }
    }
}

/// Says of a device that does not take all that peers could send it what would help. The device is
/// kept: to create it anew would lose packets of pods that run.
pub fn report_checksums<F: Family>(vtep: &Vtep) {
    if F::CHECKSUM_IS_REQUIRED && !vtep.zero_checksum {
        info!(
            device = %vtep.name,
            "the device lacks udp6zerocsumrx, which only a new one can get, so this node does not \
             say that it takes IPv6 tunnel packets with UDP checksum 0; `ip link delete {}` has it \
             made anew within a second, with a moment's loss, and so has a reboot",
            vtep.name
        );
    }
}

/// Removes what is left of a family that the network config has not.
pub async fn sweep<F: Family>(
    netlink: &Netlink,
    end: Option<&TunnelEnd<F>>,
    underlay_ifindex: u32,
) -> anyhow::Result<()> {
    if end.is_some() {
        return Ok(());
    }
    let mut removed = netlink.remove_routes::<F>().await?;
    removed.extend(backend::remove_devices::<F>(netlink, underlay_ifindex).await?);
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
