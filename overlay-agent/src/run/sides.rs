//! The two families of a running node.

use super::{
    devices::{Device, Devices},
    side::Side,
};
use crate::{
    datapath::Serves,
    model::{DesiredNode, PerFamily, V6, each_family},
};

/// The families this node serves.
pub type Sides = PerFamily<Option<Side>, Option<Side<V6>>>;

impl Sides {
    pub fn serves(&self) -> Serves {
        each_family!(self.present(), side => side.is_some())
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

    /// Each family is to be like this from here on.
    pub fn want(&mut self, desired: DesiredNode) {
        each_family!(self.as_mut().zip(desired), (side, desired) => {
            if let Some((side, desired)) = side.as_mut().zip(desired) {
                side.desired = desired;
            }
        });
    }
}
