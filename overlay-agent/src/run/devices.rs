//! The backend's devices of a running node, as far as decisions depend on them.

use crate::model::PerFamily;

/// The devices as they were last settled.
pub type Devices = PerFamily<Option<Device>>;

/// A device, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Device {
    pub ifindex: u32,
    /// What the lease says for the backend, which may be about the device.
    pub lease_data: Option<String>,
}
