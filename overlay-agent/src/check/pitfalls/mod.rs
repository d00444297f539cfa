//! One function for each pitfall, or few that belong together.

mod devices;
mod leases;
mod others;
mod rules;
mod settings;
#[cfg(test)]
mod tests;

use super::{facts::Facts, finding::Finding};

/// What looks for a pitfall.
pub type Look = fn(&Facts) -> Vec<Finding>;

pub const ALL: &[Look] = &[
    settings::forwarding,
    settings::bridged_packets,
    settings::reverse_path,
    settings::conntrack_room,
    settings::liberal_tracking,
    settings::programs,
    devices::checksum_offload,
    devices::gro_forwarding,
    devices::mac_address,
    devices::tunnel_mtu,
    devices::pod_mtu,
    devices::subnet_file,
    others::port_taken,
    others::other_cni,
    rules::forward,
    rules::port_blocked,
    rules::masquerade,
    rules::mixed,
    leases::duplicates,
    leases::clock,
];
