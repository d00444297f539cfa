//! The eBPF tier as the daemon runs it: whether there is one, where its programs belong, and the
//! kernel settings it needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

use overlay_common::outcome::Hook;
use tracing::{info, warn};

use super::side::Side;
use crate::{
    config::{DatapathOptions, DatapathTier, Xdp},
    datapath::{self, Attachment, Datapath, DatapathError, HostFacts, PinDir, XdpMode},
    model::{Backend, Desired, Underlay},
    netlink::{PodLink, Vtep},
    object::OBJECT,
};

/// Conntrack of this network namespace takes TCP segments outside the window it knows. It does not
/// see what the fast path carries, and the packets it sees again later must not look invalid.
const TCP_BE_LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

/// The eBPF tier, if there is one.
pub enum Tier1 {
    Active {
        datapath: Box<Datapath>,
        xdp: Xdp,
        /// Subnets of peers that found no room in the maps.
        left_to_kernel: usize,
        /// Something was applied that attachments depend on.
        attach_due: bool,
    },
    Absent,
}

impl Tier1 {
    /// Loads the programs as the options ask: `auto` settles for the kernel tier where eBPF is
    /// refused, `ebpf` does not. The programs carry IPv4 packets.
    pub fn open(options: &DatapathOptions, serves_ipv4: bool) -> Result<Self, DatapathError> {
        if !serves_ipv4 {
            info!("kernel tier only: the network has no IPv4, and eBPF carries no IPv6 packets");
            return Self::detach(options);
        }
        if options.tier == DatapathTier::Kernel {
            info!("kernel tier only, as --datapath=kernel asks");
            return Self::detach(options);
        }
        let opened = Datapath::open(&datapath::Options {
            pin_dir: options.pin_dir.clone(),
            object: OBJECT,
            max_flows: options.flow_table_size,
            fastpath: options.fastpath,
            lease: datapath::LEASE,
        });
        match opened {
            Ok(datapath) => {
                if options.tcp_be_liberal {
                    be_liberal();
                }
                Ok(Self::Active {
                    datapath: Box::new(datapath),
                    xdp: options.xdp,
                    left_to_kernel: 0,
                    attach_due: true,
                })
            }
            Err(error) if options.tier == DatapathTier::Ebpf || needs_operator(&error) => {
                Err(error)
            }
            Err(error) => {
                warn!(%error, "no eBPF tier: packets take the kernel tier alone");
                Self::detach(options)
            }
        }
    }

    /// Programs of an earlier agent must not go on forwarding by maps that nobody keeps.
    fn detach(options: &DatapathOptions) -> Result<Self, DatapathError> {
        let removed = PinDir::new(&options.pin_dir).remove_all()?;
        if !removed.is_empty() {
            info!(
                pins = removed.len(),
                "programs of an earlier agent detached"
            );
        }
        Ok(Self::Absent)
    }

    /// Brings the maps to the desired state.
    pub fn apply(&mut self, side: &Side) -> Result<(), DatapathError> {
        let Self::Active {
            datapath,
            left_to_kernel,
            attach_due,
            ..
        } = self
        else {
            return Ok(());
        };
        let vtep = side.vtep.as_ref().map(|vtep| datapath::Vtep {
            ifindex: vtep.ifindex,
            mac: vtep.mac,
        });
        let facts = HostFacts {
            route_mtus: side.route_mtus.clone(),
            ..HostFacts::read()?
        };
        let summary = datapath.apply(&side.desired, vtep, &facts)?;
        let left = summary.left_to_kernel.len();
        *attach_due |= (left > 0) != (*left_to_kernel > 0);
        if left > 0 && *left_to_kernel == 0 {
            warn!(
                peers = summary.nodes,
                subnets = left,
                "the node map is full: these subnets have the kernel tier only, and the XDP guard, \
                 which would take their nodes for strangers, is off"
            );
        } else if left == 0 && *left_to_kernel > 0 {
            info!(
                peers = summary.nodes,
                "the node map has room for all peers again"
            );
        }
        *left_to_kernel = left;
        Ok(())
    }

    /// Whether programs belong elsewhere since [`Self::attach`] was called.
    pub const fn is_attach_due(&self) -> bool {
        matches!(
            self,
            Self::Active {
                attach_due: true,
                ..
            }
        )
    }

    /// Attaches the programs to the underlay, the VTEP and every pod interface, and to nothing else.
    /// Returns whether every attachment is in place.
    pub fn attach(
        &mut self,
        desired: &Desired,
        vtep: Option<&Vtep>,
        pods: &BTreeMap<u32, PodLink>,
    ) -> Result<bool, DatapathError> {
        let Self::Active {
            datapath,
            xdp,
            left_to_kernel,
            attach_due,
        } = self
        else {
            return Ok(true);
        };
        *attach_due = false;
        let xdp = if *left_to_kernel > 0 { Xdp::Off } else { *xdp };
        let gateways = pods
            .values()
            .map(|pod| (pod.gateway_ifindex, pod.gateway_mac))
            .collect();
        datapath.set_gateways(&gateways)?;
        let summary = datapath.sync_links(&attachments(desired, vtep, pods, xdp))?;
        if summary.created + summary.adopted + summary.removed > 0 {
            info!(
                created = summary.created,
                adopted = summary.adopted,
                removed = summary.removed,
                pods = pods.len(),
                "programs attached"
            );
        }
        Ok(summary.failed.is_empty())
    }

    /// Makes every flow earn its lease again.
    pub fn flush(&mut self) -> Result<(), DatapathError> {
        match self {
            Self::Active { datapath, .. } => datapath.flush().map(drop),
            Self::Absent => Ok(()),
        }
    }

    /// Reads the maps again before the next change, in case somebody else wrote to them.
    pub fn distrust(&mut self) {
        if let Self::Active { datapath, .. } = self {
            datapath.distrust_tables();
        }
    }
}

/// Whether going on without the eBPF tier would only hide a mistake, or leave programs of another
/// agent in place.
fn needs_operator(error: &DatapathError) -> bool {
    matches!(
        error,
        DatapathError::InUse { .. }
            | DatapathError::ForeignDirectory { .. }
            | DatapathError::Layout { .. }
    )
}

/// Where each program belongs.
fn attachments(
    desired: &Desired,
    vtep: Option<&Vtep>,
    pods: &BTreeMap<u32, PodLink>,
    xdp: Xdp,
) -> BTreeSet<Attachment> {
    let at = |hook, ifindex, name: &str| Attachment {
        hook,
        ifindex,
        ifname: name.to_owned(),
        xdp: XdpMode::default(),
    };
    let mut wanted = BTreeSet::new();
    let underlay = &desired.local.underlay;
    let direct = match desired.local.backend {
        Backend::Alloc => return wanted,
        Backend::HostGw => true,
        Backend::Vxlan(vxlan) => vxlan.direct_routing,
    };
    wanted.insert(at(Hook::Ingress, underlay.ifindex, &underlay.name));
    if direct {
        wanted.insert(at(Hook::Confirm, underlay.ifindex, &underlay.name));
    }
    if let Some(vtep) = vtep {
        wanted.insert(at(Hook::Confirm, vtep.ifindex, &vtep.name));
        wanted.insert(at(Hook::Arrive, vtep.ifindex, &vtep.name));
        if let Some(mode) = guard_mode(xdp, underlay) {
            wanted.insert(Attachment {
                xdp: mode,
                ..at(Hook::Guard, underlay.ifindex, &underlay.name)
            });
        }
    }
    for pod in pods.values() {
        wanted.insert(at(Hook::Egress, pod.ifindex, &pod.name));
        wanted.insert(at(Hook::Deliver, pod.ifindex, &pod.name));
    }
    wanted
}

/// How the guard is attached to the underlay, if at all. On virtual interfaces native XDP costs every
/// packet a copy and takes segmentation offload away, so there it has to be asked for.
fn guard_mode(xdp: Xdp, underlay: &Underlay) -> Option<XdpMode> {
    match xdp {
        Xdp::Auto => underlay.hardware.then_some(XdpMode::NativeIfSupported),
        Xdp::Native => Some(XdpMode::Native),
        Xdp::Generic => Some(XdpMode::Generic),
        Xdp::Off => None,
    }
}

fn be_liberal() {
    match fs::read_to_string(TCP_BE_LIBERAL) {
        Ok(value) if value.trim() != "0" => {}
        // Without conntrack there is nothing to set.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Ok(_) | Err(_) => match fs::write(TCP_BE_LIBERAL, "1") {
            Ok(()) => info!("set nf_conntrack_tcp_be_liberal, as the fast path needs"),
            Err(error) => warn!(
                %error,
                "cannot set nf_conntrack_tcp_be_liberal: where a rule drops invalid packets, long \
                 TCP connections may stall; set it with sysctl, or use --fastpath=off"
            ),
        },
    }
}
