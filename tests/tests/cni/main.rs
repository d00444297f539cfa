//! Pods that a container runtime makes by the CNI plugin, which has Debian's `bridge` make them or makes them
//! itself, with addresses of Debian's `host-local`.

mod cnitool;
mod container;
mod delegated;
mod own;

use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);
