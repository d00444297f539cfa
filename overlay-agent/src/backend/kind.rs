//! What a backend has to say.

use std::{
    fmt::Debug,
    future::{Future, ready},
};

use overlay_common::addr::MacAddr;

use super::{Backend, BackendError};
use crate::{
    model::{Family, Forwarding, Underlay},
    netlink::{Netlink, NetlinkError, Vtep},
};

/// A backend with its options, or why they cannot be used. With what is to be warned of.
pub type Parsed<B> = Result<(B, Vec<String>), BackendError>;

/// A kind of backend; the value is its options. They are compared and cloned with the network config,
/// so what runs (sockets, keys, tasks) is not part of them.
pub trait Kind: Clone + Debug + Eq + Into<Backend> + Send + Sync + 'static {
    /// `Type` in the network config.
    const TYPE: &'static str;

    /// `BackendType` in leases.
    const LEASE_TYPE: &'static str = Self::TYPE;

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

    /// Has the device exist, before this node has a lease. `known` is what peers may know of the node
    /// from an earlier run.
    fn ensure_device<F: Family>(
        &self,
        _netlink: &Netlink,
        _underlay: &Underlay<F>,
        _known: Option<NodeData>,
    ) -> impl Future<Output = Result<Option<Vtep>, NetlinkError>> + Send {
        ready(Ok(None))
    }

    /// Has the device of a running node be as its lease says.
    fn restore_device<F: Family>(
        &self,
        _netlink: &Netlink,
        _underlay: &Underlay<F>,
        _known: NodeData,
    ) -> impl Future<Output = Result<Option<Vtep>, NetlinkError>> + Send {
        ready(Ok(None))
    }

    /// Removes devices of this kind that a start which did not get far has left on the underlay, but
    /// for `current`. Returns their names.
    fn remove_unfinished<F: Family>(
        _netlink: &Netlink,
        _underlay: &Underlay<F>,
        _current: Option<&Vtep>,
    ) -> impl Future<Output = Result<Vec<String>, NetlinkError>> + Send {
        ready(Ok(Vec::new()))
    }

    /// Removes the devices of this kind on an underlay whose network does not have the family. Returns
    /// what there was.
    fn remove_devices<F: Family>(
        _netlink: &Netlink,
        _underlay_ifindex: u32,
    ) -> impl Future<Output = Result<Vec<String>, NetlinkError>> + Send {
        ready(Ok(Vec::new()))
    }

    /// `BackendData`, or `BackendV6Data`, of this node's lease.
    fn lease_data<F: Family>(&self, _node: NodeData) -> Option<String> {
        None
    }

    /// What the data of a lease says of its node; `None` if nobody can be reached by it.
    fn node_data<F: Family>(&self, said: Option<&str>) -> Option<NodeData>;

    /// Whether two data are of one node.
    fn is_same_node(_one: &str, _other: &str) -> bool {
        false
    }
}

/// What a lease says of a node's end of the tunnels of a family, beyond its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeData {
    /// Of its vxlan device.
    pub vtep_mac: MacAddr,
    /// Whether it takes packets over IPv6 with UDP checksum 0.
    pub zero_checksum: bool,
}

impl NodeData {
    /// Of backends whose leases say nothing more.
    pub const NONE: Self = Self {
        vtep_mac: MacAddr::ZERO,
        zero_checksum: false,
    };
}

/// Keys of the network config that differ from what is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangedKeys {
    /// They are taken over.
    pub applied: Vec<&'static str>,
    /// They come into force when the daemon is restarted.
    pub postponed: Vec<&'static str>,
}
