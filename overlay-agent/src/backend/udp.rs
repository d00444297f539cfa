//! flannel's first backend: pod packets in UDP datagrams, carried by a process between a TUN device and a
//! socket. Whatever the kernel can, a node with it can be; the price is that every packet that the programs do not
//! carry crosses from the kernel to the agent and back. What packets go through is in [`table`] and [`packet`], without I/O.

mod carrier;
mod counters;
mod device;
mod forwarder;
mod merge;
mod packet;
mod served;
#[expect(unsafe_code, reason = "many datagrams per system call, without copies")]
mod socket;
mod table;
#[expect(unsafe_code, reason = "TUN devices are made with ioctl(2)")]
mod tun;

use futures::future::{BoxFuture, FutureExt as _, ready};

pub use self::served::{Count, read as counted};
use self::{
    carrier::Carrier,
    device::{NAME, OVERHEAD},
};
use super::{
    BackendError, ChangedKeys, Kind, KnownDevice, LeaseData, Parsed, Runtime, Scene,
    error::{OptionError, in_range},
};
use crate::{
    go::json::Object,
    model::{
        DeviceRoute, Family, Forwarding, OwnDevice, PerFamily, Tunnel, TunnelKind, Underlay, V4,
    },
    netlink::{Link, Netlink, NetlinkError, Route, Vtep},
};

/// The udp backend, with its parameter as in the network config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// All nodes send from and to it.
    pub port: u16,
}

/// Of the route to the pod network. A flanneld that is started while the device of a stopped agent is still there
/// makes another, and its route, without a metric, comes before this one.
const METRIC: u32 = 241;

impl Udp {
    /// What a config that gives no options means.
    pub const DEFAULT: Self = Self { port: 8285 };
}

impl Kind for Udp {
    const TYPE: &'static str = "udp";
    /// flannel's writes none.
    const LEASE_TYPE: &'static str = "";

    fn parse(options: &str, with_ipv6: bool) -> Parsed<Self> {
        if with_ipv6 {
            return Err(BackendError::Ipv4Only {
                backend: Self::TYPE,
            });
        }
        read(options).map_err(|reason| BackendError::Options {
            backend: "UDP",
            reason,
        })
    }

    /// The port is that of all nodes.
    fn reload(&self, read: &Self, keys: &mut ChangedKeys) -> Self {
        if self.port != read.port {
            keys.postponed.push("Backend.Port");
        }
        *self
    }

    fn forwarding<F: Family>(&self) -> Forwarding {
        Forwarding {
            device: true,
            tunnel: Some(Tunnel {
                kind: TunnelKind::Udp,
                port: self.port,
            }),
            may_be_fast: true,
            overhead: OVERHEAD,
            ..Forwarding::NONE
        }
    }

    fn device_name<F: Family>(&self) -> Option<String> {
        Some(NAME.to_owned())
    }

    /// The first address of the subnet, alone, and one route to the pod network: the forwarder knows the
    /// subnets.
    fn own_device<F: Family>(
        &self,
        network: F::Network,
        subnet: F::Network,
    ) -> Option<OwnDevice<F>> {
        Some(OwnDevice {
            routes: vec![DeviceRoute {
                metric: Some(METRIC),
                ..DeviceRoute::to(network)
            }],
            ..OwnDevice::of_subnet(NAME, subnet)
        })
    }

    async fn ensure_device<F: Family>(
        &self,
        netlink: &Netlink,
        underlay: &Underlay<F>,
        _: &[String],
    ) -> Result<Option<Vtep>, NetlinkError> {
        device::ensure(netlink, underlay).await.map(Some)
    }

    const IS_IN_AGENT: bool = true;

    const USUAL_DEVICE: Option<u32> = Some(0);

    fn recognise<F: Family>(link: &Link) -> Option<KnownDevice> {
        let number = device::number(link).filter(|_| F::NUMBER == V4::NUMBER)?;
        Some(KnownDevice::numbered(number))
    }

    /// flannel's one route, to the whole pod network.
    fn is_flannels<F: Family>(route: &Route<F>) -> bool {
        F::NUMBER == V4::NUMBER && route.is_device_wide()
    }

    fn runtime(&self) -> Option<Box<dyn Runtime>> {
        Some(Box::new(Carrier::new(self.port)))
    }
}

impl Runtime for Carrier {
    /// Nothing is said in leases.
    fn prepare(&mut self, _: PerFamily<bool>) -> BoxFuture<'_, Result<LeaseData, BackendError>> {
        ready(Ok(LeaseData::default())).boxed()
    }

    fn keep<'a>(&'a mut self, scene: &'a Scene) -> BoxFuture<'a, Vec<String>> {
        let kept = scene
            .node
            .ipv4
            .as_ref()
            .map_or(Ok(()), |ipv4| self.keep(ipv4));
        let problem = kept.err().map(|error| error.to_string());
        ready(problem.into_iter().collect()).boxed()
    }

    fn heed_programs(&mut self, are_fast: bool) {
        self.keep_apart(are_fast);
    }
}

fn read(options: &str) -> Result<(Udp, Vec<String>), OptionError> {
    let object = Object::parse(options, "Backend")?;
    let port = object.integer("Port", Udp::DEFAULT.port.into())?;
    let port = in_range("Port", port, 1..=65535, "from 1 to 65535")?;
    Ok((Udp { port }, object.whole_fractions(&["Port"])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;

    fn parse(options: &str) -> Result<(Udp, Vec<String>), String> {
        Udp::parse(options, false).map_err(|error| error.to_string())
    }

    #[test]
    fn the_port_is_flannels_unless_the_config_has_another() {
        assert_eq!(parse("{}"), Ok((Udp { port: 8285 }, Vec::new())));
        let other = r#"{"Type":"udp","port":7890}"#;
        assert_eq!(parse(other), Ok((Udp { port: 7890 }, Vec::new())));
        for (port, problem) in [
            ("0", "Port is 0, it must be from 1 to 65535"),
            ("65536", "Port is 65536, it must be from 1 to 65535"),
        ] {
            let error = parse(&format!(r#"{{"Port":{port}}}"#)).unwrap_err();
            let expected = format!("error decoding UDP backend config: {problem}");
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn ipv6_is_refused_with_what_to_do_instead() {
        let error = Udp::parse("{}", true).unwrap_err().to_string();
        assert!(
            error.contains("EnableIPv6") && error.contains("vxlan"),
            "{error}"
        );
    }

    #[test]
    fn a_config_without_a_backend_means_udp_and_its_nodes_say_so_by_saying_nothing() {
        let (backend, warnings) = Backend::parse(None, None, false).unwrap();
        assert_eq!((backend.name(), warnings), ("udp", Vec::new()));
        assert_eq!(backend, Udp::DEFAULT.into());
        assert_eq!(backend.lease_type(), "");
        assert_eq!(backend.lease_data::<V4>(None), None);
    }

    #[test]
    fn pods_have_what_the_outer_headers_leave() {
        assert_eq!(Udp::DEFAULT.forwarding::<V4>().pod_mtu(1500), 1472);
    }
}
