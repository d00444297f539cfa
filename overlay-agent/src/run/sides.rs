//! The two families of a running node.

use overlay_common::config::TUNNEL_VXLAN;

use super::{
    devices::{Device, Devices},
    side::{Order, Side},
};
use crate::{
    datapath::Serves,
    model::{DesiredNode, PerFamily, V4, V6, each_family},
};

/// The families this node serves.
pub type Sides = PerFamily<Option<Side>, Option<Side<V6>>>;

/// What is desired of each of them.
pub type Orders = PerFamily<Option<Order<V4>>, Option<Order<V6>>>;

impl Sides {
    pub fn serves(&self) -> Serves {
        each_family!(self.present(), side => side.is_some())
    }

    /// Whose packets the programs are to know: one of the `TUNNEL_*` values.
    pub fn tunnel(&self) -> u8 {
        let tunnels = each_family!(self.present(), side => {
            side.and_then(|side| side.desired.local.forwarding.tunnel)
        });
        let tunnel = tunnels.ipv4.or(tunnels.ipv6);
        tunnel.map_or(TUNNEL_VXLAN, |tunnel| tunnel.kind.of_config())
    }

    pub fn desired(&self) -> DesiredNode {
        each_family!(self.present(), side => side.map(|side| side.desired.clone()))
    }

    pub fn devices(&self) -> Devices {
        each_family!(self.present(), side => {
            side.and_then(|side| Some(Device {
                ifindex: side.vtep.as_ref()?.ifindex,
                lease_data: side.desired.local.lease_data.clone(),
            }))
        })
    }

    /// Takes over what is desired from here on.
    pub fn want(&mut self, orders: Orders) {
        each_family!(self.as_mut().zip(orders), (side, order) => {
            if let Some((side, order)) = side.as_mut().zip(order) {
                side.want(order);
            }
        });
    }
}
