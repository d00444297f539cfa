//! The two families of a running node.

use super::{devices::Devices, side::Side};
use crate::{
    datapath::Serves,
    model::{DesiredNode, V6},
};

/// The families this node serves.
pub struct Sides {
    pub ipv4: Option<Side>,
    pub ipv6: Option<Side<V6>>,
}

impl Sides {
    pub fn serves(&self) -> Serves {
        Serves {
            ipv4: self.ipv4.is_some(),
            ipv6: self.ipv6.is_some(),
        }
    }

    pub fn desired(&self) -> DesiredNode {
        DesiredNode {
            ipv4: self.ipv4.as_ref().map(|side| side.desired.clone()),
            ipv6: self.ipv6.as_ref().map(|side| side.desired.clone()),
        }
    }

    pub fn devices(&self) -> Devices {
        Devices {
            ipv4: self
                .ipv4
                .as_ref()
                .and_then(|side| side.vtep.as_ref())
                .map(Into::into),
            ipv6: self
                .ipv6
                .as_ref()
                .and_then(|side| side.vtep.as_ref())
                .map(Into::into),
        }
    }

    /// Each family is to be like this from here on.
    pub fn want(&mut self, desired: DesiredNode) {
        if let Some((side, desired)) = self.ipv4.as_mut().zip(desired.ipv4) {
            side.desired = desired;
        }
        if let Some((side, desired)) = self.ipv6.as_mut().zip(desired.ipv6) {
            side.desired = desired;
        }
    }
}
