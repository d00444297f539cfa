//! This node's end of the tunnels of one family: its underlay and its vxlan device, which exist
//! before the node has a lease and follow the host afterwards.

use anyhow::bail;
use overlay_common::addr::MacAddr;
use tracing::{info, warn};

use super::convert;
use crate::{
    model::{Backend, Desired, Family, LocalNode, Underlay},
    netlink::{Netlink, Vtep, VtepSpec},
};

/// One family's underlay and vxlan device, before the node has a lease.
pub struct End<F: Family> {
    underlay: Underlay<F>,
    pub vtep: Option<Vtep>,
}

impl<F: Family> End<F> {
    /// Has the family's device exist, on its underlay. `None` without an underlay: the network does
    /// not have the family.
    pub async fn prepare(
        netlink: &Netlink,
        backend: &Backend,
        underlay: Option<Underlay<F>>,
        recorded_mac: Option<MacAddr>,
    ) -> anyhow::Result<Option<Self>> {
        let Some(underlay) = underlay else {
            return Ok(None);
        };
        report(&underlay, "underlay chosen");
        let vtep = match backend {
            Backend::Vxlan(backend) => {
                let spec = VtepSpec::new(backend, &underlay);
                let vtep = netlink.ensure_vtep(&spec, recorded_mac).await?;
                report_checksums::<F>(&vtep);
                Some(vtep)
            }
            Backend::HostGw => {
                refuse_nat(&underlay)?;
                None
            }
            Backend::Alloc => None,
        };
        for name in netlink
            .remove_unfinished_vteps(&underlay, vtep.as_ref())
            .await?
        {
            info!(device = name, "removed what an unfinished start had left");
        }
        Ok(Some(Self { underlay, vtep }))
    }

    fn vtep_mac(&self) -> MacAddr {
        self.vtep.as_ref().map_or(MacAddr::ZERO, |vtep| vtep.mac)
    }

    fn zero_checksum(&self) -> bool {
        self.vtep.as_ref().is_some_and(|vtep| vtep.zero_checksum)
    }

    pub fn advertised(&self) -> convert::End<F> {
        convert::End {
            public_ip: self.underlay.public_ip,
            vtep_mac: self.vtep_mac(),
            zero_checksum: self.zero_checksum(),
        }
    }

    pub fn local(&self, network: F::Network, subnet: F::Network, backend: Backend) -> LocalNode<F> {
        LocalNode {
            network,
            subnet,
            underlay: self.underlay.clone(),
            backend,
            vtep_mac: self.vtep_mac(),
            zero_checksum: self.zero_checksum(),
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
pub async fn sweep<F: Family>(netlink: &Netlink, underlay_ifindex: u32) -> anyhow::Result<()> {
    for name in netlink.remove_family::<F>(underlay_ifindex).await? {
        info!(family = F::NAME, %name, "removed: the network config does not have this family");
    }
    Ok(())
}

/// Takes over the underlay as it is selected now. Returns whether it changed.
pub fn follow<F: Family>(
    side: &mut Option<Desired<F>>,
    selected: Option<Underlay<F>>,
) -> anyhow::Result<bool> {
    let (Some(Desired { local, .. }), Some(underlay)) = (side, selected) else {
        return Ok(false);
    };
    if local.backend == Backend::HostGw {
        refuse_nat(&underlay)?;
    }
    let changed = underlay != local.underlay;
    if changed {
        report(&underlay, "underlay changed");
        local.underlay = underlay;
    }
    Ok(changed)
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

fn refuse_nat<F: Family>(underlay: &Underlay<F>) -> anyhow::Result<()> {
    if underlay.public_ip != underlay.address {
        bail!(
            "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which \
             is not supported by host-gw backend"
        );
    }
    Ok(())
}
