//! The kernel tier: flannel's own data plane, programmed through route netlink.
//!
//! It owns what the backend says: its device with an address, and the neighbours, forwarding entries and
//! routes of peers, in whatever shape ([`DeviceSpec`], [`ViaDevice`](crate::model::ViaDevice)); and
//! the view of the host's interfaces from which pods are found. It carries every packet the
//! eBPF tier declines. The two address families are programmed apart from each other, by one text
//! that is generic over them.
//!
//! Everything is reconciled: observe, compare, apply. The comparison is pure ([`admit`], [`plan`],
//! [`device`], [`pods`]); only [`Netlink`] talks to the kernel. What is not recognisably ours or
//! flannel's is never touched ([`plan`] has the rules).
//!
//! A socket belongs to the network namespace of the thread that opens it, so agents of several
//! namespaces can live in one process: enter the namespace, then [`Netlink::connect`] and
//! [`Netlink::watch`].

mod admit;
pub mod blocking;
mod bulk;
mod cleanup;
mod datagram;
mod device;
mod dump;
mod ensure;
mod error;
mod groups;
mod lookup;
mod object;
mod plan;
mod pods;
mod reconcile;
mod request;
mod route_mtu;
mod standing;
mod tally;
mod tc_watch;
mod transport;
mod watch;

pub use admit::{Admission, OnLink, PeerPath, Refusal, RefusalReason, admit};
pub use cleanup::Owned;
pub use datagram::messages;
pub use device::{DeviceSpec, Marks, Vtep};
pub use error::{Collision, NetlinkError};
pub use lookup::{RouteAnswer, RouteQuestion};
pub use object::{Address, FdbEntry, Link, LinkKind, Neighbour, Route, VxlanLink};
#[cfg(test)]
pub use plan::peer_route;
pub use plan::{
    Leftover, ObjectChange, ObjectPlan, ObservedObjects, ROUTE_PROTOCOL, Wanted, diff, want,
};
pub use pods::{LinkDump, LinkTable, PodLink, Subnets, Unserved, pod_links, unserved};
pub use reconcile::{Failure, Summary};
pub use standing::{Before, Standing};
pub use tally::Tally;
pub use tc_watch::TcWatch;
pub use transport::TIMEOUT;
pub use watch::{IpEvent, KernelEvent, Watch};

use transport::Transport;

/// The connection to the kernel of one network namespace. Clones share it.
#[derive(Clone, Debug)]
pub struct Netlink {
    transport: Transport,
}

impl Netlink {
    /// Opens a connection in the network namespace of the calling thread. Needs a tokio runtime.
    pub fn connect() -> Result<Self, NetlinkError> {
        Ok(Self {
            transport: Transport::open()?,
        })
    }
}
