//! What a backend has to say.

use std::{
    fmt::Debug,
    future::{Future, ready},
    net::IpAddr,
};

use overlay_common::addr::MacAddr;

use super::{BackendError, Runtime};
use crate::{
    model::{Family, Forwarding, OwnDevice, Peer, Underlay},
    netlink::{Link, Netlink, NetlinkError, Route, Vtep},
};

/// A backend with its options, or why they cannot be used. With what is to be warned of.
pub type Parsed<B> = Result<(B, Vec<String>), BackendError>;

/// A kind of backend; the value is its options. They are compared and cloned with the network config,
/// so what runs (sockets, keys, tasks) is not part of them.
pub trait Kind: Clone + Debug + Eq + Send + Sync + 'static {
    /// `Type` in the network config.
    const TYPE: &'static str;

    /// `BackendType` in leases.
    const LEASE_TYPE: &'static str = Self::TYPE;

    /// When flannel's Kubernetes subnet manager annotates a Node with its IPv4 data and address.
    const ANNOTATED_V4: Annotated = Annotated::Always;

    /// The same of IPv6.
    const ANNOTATED_V6: Annotated = Annotated::Never;

    /// Reads the options: the `Backend` object of the network config.
    fn parse(options: &str, with_ipv6: bool) -> Parsed<Self>;

    /// The options of a running node after a reload that has read others: what can be taken over with
    /// pods running, is.
    #[must_use]
    fn reload(&self, read: &Self, keys: &mut ChangedKeys) -> Self;

    /// What the tiers have to know.
    fn forwarding<F: Family>(&self) -> Forwarding;

    /// Whether it works over this underlay.
    fn check<F: Family>(&self, _underlay: &Underlay<F>) -> Result<(), BackendError> {
        Ok(())
    }

    /// Name of its device, if it has one.
    fn device_name<F: Family>(&self) -> Option<String> {
        None
    }

    /// What comes with its device on the node that leases `subnet`.
    fn own_device<F: Family>(
        &self,
        _network: F::Network,
        _subnet: F::Network,
    ) -> Option<OwnDevice<F>> {
        None
    }

    /// Has the device exist, before this node has a lease. `known` is what leases that may be the
    /// node's, from an earlier run, say for the backend.
    fn ensure_device<F: Family>(
        &self,
        _netlink: &Netlink,
        _underlay: &Underlay<F>,
        _known: &[String],
    ) -> impl Future<Output = Result<Option<Vtep>, NetlinkError>> + Send {
        ready(Ok(None))
    }

    /// Has the device of a running node be as its lease says.
    fn restore_device<F: Family>(
        &self,
        netlink: &Netlink,
        underlay: &Underlay<F>,
        _known: Option<&str>,
    ) -> impl Future<Output = Result<Option<Vtep>, NetlinkError>> + Send {
        self.ensure_device(netlink, underlay, &[])
    }

    /// Whether the agent itself carries the packets, as long as it runs.
    const IS_IN_AGENT: bool = false;

    /// Number of the device of a config without options.
    const USUAL_DEVICE: Option<u32> = None;

    /// What a link is, if it is a device of this kind, whoever made it.
    fn recognise<F: Family>(_link: &Link) -> Option<KnownDevice> {
        None
    }

    /// Whether flannel has such a route to a peer through a device of this kind.
    fn is_flannels<F: Family>(_route: &Route<F>) -> bool {
        false
    }

    /// What the lease of the node with this subnet says where nodes do not write it themselves, as in a file
    /// that is the same on all of them.
    fn assigned_data<F: Family>(
        &self,
        _subnet: F::Network,
        _assigned: Assigned,
    ) -> Result<Option<String>, NoKey> {
        Ok(None)
    }

    /// `BackendData`, or `BackendV6Data`, of this node's lease.
    fn lease_data<F: Family>(&self, _device: Option<&Vtep>) -> Option<String> {
        None
    }

    /// What of it runs in the agent, if anything does.
    fn runtime(&self) -> Option<Box<dyn Runtime>> {
        None
    }

    /// The peer of a lease, with what reaching it takes in both tiers; `None` if nobody can be reached
    /// by what the lease says for the backend.
    fn peer<F: Family>(
        &self,
        subnet: F::Network,
        public_ip: F::Address,
        _said: Option<&str>,
    ) -> Option<Peer<F>> {
        Some(Peer::plain(subnet, public_ip))
    }

    /// Whether two data are of one node.
    fn is_same_node(_one: &str, _other: &str) -> bool {
        false
    }
}

/// When one family of a lease is written to a Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Annotated {
    Always,
    WithData,
    Never,
}

impl Annotated {
    /// Whether a lease that says this of the family has it written.
    pub const fn is_due(self, data: Option<&str>) -> bool {
        match self {
            Self::Always => true,
            Self::WithData => data.is_some(),
            Self::Never => false,
        }
    }
}

/// What is said of a node's device by others than the node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Assigned {
    /// The MAC address that it is to have; else one follows from the subnet.
    pub mac: Option<MacAddr>,
    /// The public part of the key that the node has made.
    pub wireguard_key: Option<[u8; 32]>,
}

/// Nodes of the kind make a key, and nobody has said this one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoKey;

/// A device of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownDevice {
    /// What tells it from others of its kind: a vxlan device's VNI.
    pub number: u32,
    /// The interface it sends by, where the device says it.
    pub underlay: Option<u32>,
    /// The address it sends from, where the device says it.
    pub local: Option<IpAddr>,
}

impl KnownDevice {
    /// A device that says no more than which one it is.
    pub const fn numbered(number: u32) -> Self {
        Self {
            number,
            underlay: None,
            local: None,
        }
    }
}

/// Devices of a kind with one number, of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceId {
    /// [`Kind::TYPE`].
    pub kind: &'static str,
    pub number: u32,
}

/// Keys of the network config that differ from what is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangedKeys {
    /// They are taken over.
    pub applied: Vec<&'static str>,
    /// They come into force when the daemon is restarted.
    pub postponed: Vec<&'static str>,
}
