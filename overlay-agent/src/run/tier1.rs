//! The eBPF tier as the daemon runs it: whether there is one, where its programs belong, and the
//! kernel settings it needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::Path,
};

use overlay_common::outcome::Hook;
use tokio::task::block_in_place;
use tracing::{debug, info, level_filters::LevelFilter, warn};

use super::{
    side::{Look, Side},
    sides::Sides,
};
use crate::{
    complaints::Complaints,
    config::{DatapathOptions, DatapathTier, Fastpath, Xdp},
    conntrack::translated,
    datapath::{
        self, Absence, Attachment, Datapath, DatapathError, Flusher, HostFacts, Lent, PermitTimes,
        PinDir, Serves, ShortWay, SlowFlows, XdpMode,
    },
    lifecycle::{Supervisor, privileges},
    model::{Family, TunnelKind, each_family},
    netlink::PodLink,
    object::{LOGGING_OBJECT, OBJECT},
};

/// Conntrack of this network namespace takes TCP segments outside the window it knows. It does not
/// see what the fast path carries, and the packets it sees again later must not look invalid.
const TCP_BE_LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

/// Conntrack of this network namespace, if there is any.
const CONNTRACK: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// The eBPF tier, if there is one.
pub enum Tier1 {
    Active {
        datapath: Box<Datapath>,
        fastpath: Fastpath,
        xdp: Xdp,
        /// Subnets of peers that found no room in the maps, by family.
        left_to_kernel: BTreeMap<&'static str, usize>,
        /// What was last complained about, so that each problem is logged once.
        complaints: Complaints,
        /// As that, about the underlay.
        unsummed: Complaints,
    },
    Absent {
        /// Held while this agent owns the pin directory, if there can be one.
        _lock: Option<File>,
    },
}

/// What came of attaching the programs.
#[derive(Default)]
pub struct Placed {
    /// What is not as it should be.
    pub problems: Vec<String>,
    /// Flows have to earn their permits again, because of a gateway.
    pub flushed: bool,
}

impl Tier1 {
    /// Loads the programs as the options ask: `auto` settles for the kernel tier where eBPF is
    /// refused, `ebpf` does not.
    pub fn open(
        options: &DatapathOptions,
        serves: Serves,
        tunnel: u8,
        supervisor: &Supervisor,
    ) -> Result<Self, DatapathError> {
        if options.tier == DatapathTier::Kernel {
            info!("kernel tier only, as --datapath=kernel asks");
            return Self::without(options, &Absence::Asked);
        }
        let opened = privileges::loading({
            let options = options.clone();
            move || load(&options, serves, tunnel)
        });
        if let Err(DatapathError::Verifier { program, log, .. }) = &opened {
            debug!(program, "the verifier's log:\n{log}");
        }
        match opened {
            Ok(mut datapath) => {
                if options.tcp_be_liberal {
                    be_liberal();
                }
                if let Some(log) = datapath.take_log() {
                    supervisor.spawn("packet log", move |stop| log.clone().forward(stop));
                }
                Ok(Self::Active {
                    datapath: Box::new(datapath),
                    fastpath: options.fastpath,
                    xdp: options.xdp,
                    left_to_kernel: BTreeMap::new(),
                    complaints: Complaints::default(),
                    unsummed: Complaints::default(),
                })
            }
            Err(error) if options.tier == DatapathTier::Ebpf || needs_operator(&error) => {
                Err(error)
            }
            Err(error) => {
                warn!(%error, "no eBPF tier: packets take the kernel tier alone");
                Self::without(options, &Absence::refused(&error))
            }
        }
    }

    /// Programs of an earlier agent must not go on forwarding by maps that nobody keeps. Where
    /// nothing can be noted, `status` will not know; that is no reason not to forward.
    fn without(options: &DatapathOptions, absence: &Absence) -> Result<Self, DatapathError> {
        let pins = PinDir::new(&options.pin_dir);
        let removed = pins.remove_all()?;
        // Maps may be those of an attempt that just failed.
        let links = removed.iter().filter(|path| path.starts_with(pins.links()));
        let links = links.count();
        if links > 0 {
            info!(links, "programs of an earlier agent detached");
        }
        let lock = pins.note_absence(absence);
        if let Err(error) = &lock {
            debug!(%error, "no note of why there is no eBPF tier");
        }
        Ok(Self::Absent { _lock: lock.ok() })
    }

    /// Brings the maps of a family to the desired state.
    pub fn apply<F: Family>(
        &mut self,
        look: Look,
        side: &Side<F>,
        permits: PermitTimes,
    ) -> Result<(), DatapathError> {
        let Self::Active {
            datapath, unsummed, ..
        } = self
        else {
            return Ok(());
        };
        let underlay = &side.desired.local.underlay;
        let facts = HostFacts::read(underlay, side.route_mtus.clone(), permits)?;
        let (desired, device) = (&side.desired, device(side));
        let slow = (has_tunnel(side) && !has_vxlan(side) && !facts.sums)
            .then(|| datapath::unsummed(&underlay.name));
        for why in unsummed.news(slow.as_slice()) {
            info!("nothing is fast: {why}");
        }
        let summary = match look {
            Look::Whole => datapath.apply(desired, device, &facts)?,
            Look::Peers => {
                let changed = side.before.keys().copied().collect();
                datapath.follow(desired, &changed, device, &facts)?
            }
        };
        self.note(&summary);
        Ok(())
    }

    /// Takes note of whom the maps of the family have no room for.
    fn note<F: Family>(&mut self, summary: &datapath::Summary<F>) {
        let Self::Active { left_to_kernel, .. } = self else {
            return;
        };
        let left = summary.left_to_kernel.len();
        let before = left_to_kernel.insert(F::NAME, left).unwrap_or_default();
        if left > 0 && before == 0 {
            warn!(
                family = F::NAME,
                peers = summary.nodes,
                subnets = left,
                "the node map is full: these subnets have the kernel tier only"
            );
        } else if left == 0 && before > 0 {
            info!(
                family = F::NAME,
                peers = summary.nodes,
                "the node map has room for all peers again"
            );
        }
    }

    /// Attaches the programs to the underlay, the VTEPs and every pod interface, and to nothing else.
    /// What is not as it should be keeps the rest from nothing.
    pub fn attach(&mut self, sides: &Sides, pods: &BTreeMap<u32, PodLink>) -> Placed {
        let Self::Active {
            datapath,
            fastpath,
            xdp,
            complaints,
            ..
        } = self
        else {
            return Placed::default();
        };
        let gateways = pods
            .values()
            .map(|pod| (pod.gateway_ifindex, pod.gateway_mac))
            .collect();
        let written = datapath.set_gateways(&gateways);
        let summary = datapath.sync_links(&attachments(sides, pods, *fastpath, *xdp));
        if summary.created + summary.adopted + summary.removed > 0 {
            info!(
                created = summary.created,
                adopted = summary.adopted,
                removed = summary.removed,
                pods = pods.len(),
                "programs attached"
            );
        }
        let failed = summary.failed.into_iter().map(|(_, error)| error);
        let flushed = *written.as_ref().unwrap_or(&false);
        let errors = written.err().into_iter().chain(failed).chain(summary.left);
        let problems: Vec<_> = errors.map(|error| error.to_string()).collect();
        for problem in complaints.news(&problems) {
            warn!("{problem}");
        }
        Placed { problems, flushed }
    }

    /// In trusted mode, once the programs are attached: looks up what has been translated before. Returns whether the
    /// maps are to be applied again with that; where it cannot be known, all flows stay apart, as in strict mode.
    pub async fn learn_translations(&mut self) -> Result<bool, DatapathError> {
        let Self::Active { datapath, .. } = self else {
            return Ok(false);
        };
        if !datapath.asks_for_translations() {
            return Ok(false);
        }
        match translated::list().await {
            Ok(Some(connections)) => {
                block_in_place(|| datapath.note_translated(&connections))?;
                debug!(ends = connections.len(), "translated connections looked up");
                Ok(true)
            }
            Ok(None) if !Path::new(CONNTRACK).exists() => {
                block_in_place(|| datapath.note_translated(&[]))?;
                Ok(true)
            }
            Ok(None) => {
                datapath.forgo_pairs();
                warn!(
                    "--fastpath=trusted is as strict: this kernel does not list what conntrack knows \
                     (nf_conntrack_netlink)"
                );
                Ok(false)
            }
            Err(source) => Err(DatapathError::Conntrack { source }),
        }
    }

    /// The writing side of which flows are left to the kernel, if there is an eBPF tier.
    pub fn slow_flows(&self) -> Result<Option<SlowFlows>, DatapathError> {
        match self {
            Self::Active { datapath, .. } => datapath.slow_flows().map(Some),
            Self::Absent { .. } => Ok(None),
        }
    }

    /// What keeps the short way open or closed, if there is an eBPF tier.
    pub fn short_way(&self) -> Result<Option<ShortWay>, DatapathError> {
        match self {
            Self::Active { datapath, .. } => datapath.short_way().map(Some),
            Self::Absent { .. } => Ok(None),
        }
    }

    /// Whether the programs carry what they can of IPv4 packets.
    pub fn is_fast(&self) -> bool {
        match self {
            Self::Active { datapath, .. } => datapath.is_fast(),
            Self::Absent { .. } => false,
        }
    }

    /// A handle for flushes, which does not wait for what is done here.
    pub fn flusher(&self) -> Result<Option<Flusher>, DatapathError> {
        match self {
            Self::Active { datapath, .. } => datapath.flusher().map(Some),
            Self::Absent { .. } => Ok(None),
        }
    }

    /// From the next attaching on programs of another process run instead of the agent's own, or no longer. Returns
    /// whether that is a change.
    pub fn borrow_programs(&mut self, lent: Option<Lent>) -> bool {
        match self {
            Self::Active { datapath, .. } => datapath.borrow_programs(lent),
            Self::Absent { .. } => false,
        }
    }

    /// Reads the maps again before the next change, in case somebody else wrote to them.
    pub fn distrust(&mut self) {
        if let Self::Active { datapath, .. } = self {
            datapath.distrust_tables();
        }
    }
}

/// Loads the programs, those that log if the options ask for them. That is an aid: a node that cannot
/// have it has the others.
fn load(options: &DatapathOptions, serves: Serves, tunnel: u8) -> Result<Datapath, DatapathError> {
    let quiet = datapath::Options {
        pin_dir: options.pin_dir.clone(),
        object: OBJECT,
        log: LevelFilter::OFF,
        max_flows: options.flow_table_size,
        serves,
        fastpath: options.fastpath,
        slow_mark: options.slow_mark,
        tunnel,
    };
    if options.log == LevelFilter::OFF {
        return Datapath::open(&quiet);
    }
    let Some(object) = LOGGING_OBJECT else {
        warn!(
            "--datapath-log has no effect: this overlay-agent was built without the programs that log, \
             which `cargo xtask build-ebpf --log` makes"
        );
        return Datapath::open(&quiet);
    };
    let logging = datapath::Options {
        object,
        log: options.log,
        ..quiet.clone()
    };
    match Datapath::open(&logging) {
        Err(error @ DatapathError::Verifier { .. }) => {
            warn!(
                %error,
                "--datapath-log has no effect: this kernel refuses the programs that log"
            );
            Datapath::open(&quiet)
        }
        opened => opened,
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

/// Whether the programs know the tunnel's packets.
fn has_tunnel<F: Family>(side: &Side<F>) -> bool {
    side.desired.local.forwarding.tunnel.is_some()
}

/// Whether they are vxlan's, which the guard knows.
fn has_vxlan<F: Family>(side: &Side<F>) -> bool {
    let tunnel = side.desired.local.forwarding.tunnel;
    tunnel.is_some_and(|tunnel| tunnel.kind != TunnelKind::Udp)
}

/// The tunnel's device as the maps name it.
fn device<F: Family>(side: &Side<F>) -> Option<datapath::LocalVtep> {
    let vtep = side.last_vtep().filter(|_| has_tunnel(side));
    vtep.map(|vtep| datapath::LocalVtep {
        ifindex: vtep.ifindex,
        mac: vtep.mac,
    })
}

/// Where each program belongs. Those that both families need are the same. Without a fast path there is nothing to learn,
/// and only those are attached that keep tunnel packets from whoever is no node.
fn attachments(
    sides: &Sides,
    pods: &BTreeMap<u32, PodLink>,
    fastpath: Fastpath,
    xdp: Xdp,
) -> BTreeSet<Attachment> {
    let mut wanted = BTreeSet::new();
    let mut learns = false;
    each_family!(sides.present(), side => {
        if let Some(side) = side {
            learns |= is_fast(side, fastpath);
            wanted.extend(underlay_attachments(side, fastpath, xdp));
        }
    });
    for pod in pods.values() {
        wanted.insert(at(Hook::Egress, pod.ifindex, &pod.name));
        if learns {
            wanted.insert(at(Hook::Deliver, pod.ifindex, &pod.name));
        }
    }
    wanted
}

fn is_fast<F: Family>(side: &Side<F>, fastpath: Fastpath) -> bool {
    fastpath.of(&side.desired.local) != Fastpath::Off
}

/// What one family wants on the underlay and its tunnel's device.
fn underlay_attachments<F: Family>(
    side: &Side<F>,
    fastpath: Fastpath,
    xdp: Xdp,
) -> Vec<Attachment> {
    let underlay = &side.desired.local.underlay;
    if !side.desired.local.forwarding.is_any() {
        return Vec::new();
    }
    let learns = is_fast(side, fastpath);
    let mut wanted = Vec::new();
    if underlay.ethernet {
        wanted.push(at(Hook::Ingress, underlay.ifindex, &underlay.name));
        if learns {
            wanted.push(at(Hook::Confirm, underlay.ifindex, &underlay.name));
        }
    }
    if let Some(vtep) = side.vtep.as_ref().filter(|_| has_tunnel(side)) {
        if learns {
            wanted.push(at(Hook::Confirm, vtep.ifindex, &vtep.name));
            wanted.push(at(Hook::Arrive, vtep.ifindex, &vtep.name));
        }
        let mode = guard_mode(xdp, underlay.hardware);
        let is_guarded = underlay.ethernet && has_vxlan(side);
        if let Some(mode) = mode.filter(|_| is_guarded) {
            wanted.push(Attachment {
                xdp: mode,
                ..at(Hook::Guard, underlay.ifindex, &underlay.name)
            });
        }
    }
    wanted
}

fn at(hook: Hook, ifindex: u32, name: &str) -> Attachment {
    Attachment {
        hook,
        ifindex,
        ifname: name.to_owned(),
        xdp: XdpMode::default(),
    }
}

/// How the guard is attached to the underlay, if at all. On virtual interfaces native XDP costs every
/// packet a copy and takes segmentation offload away, so there it has to be asked for.
fn guard_mode(xdp: Xdp, hardware: bool) -> Option<XdpMode> {
    match xdp {
        Xdp::Auto => hardware.then_some(XdpMode::NativeIfSupported),
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
