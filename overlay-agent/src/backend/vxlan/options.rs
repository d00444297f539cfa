//! The options of the vxlan backend in the network config.

use super::Vxlan;
use crate::{
    backend::{
        BackendError, Parsed, direct_routing,
        error::{OptionError, in_range},
    },
    go::json::Object,
};

/// What the families of the network leave of the options' ranges.
struct Limits {
    /// The longest name the kernel takes is 15 bytes, `flannel.` is 8 of them and `flannel-v6.` 11.
    vni: i64,
    vni_text: &'static str,
    /// An inner packet of the family's minimum MTU, 68 or 1280, and the bytes of encapsulation, 50
    /// or 70.
    mtu: i64,
    mtu_text: &'static str,
}

const IPV4: Limits = Limits {
    vni: 9_999_999,
    vni_text: "from 0 to 9999999",
    mtu: 118,
    mtu_text: "from 118 to 65535, or 0",
};

const IPV6: Limits = Limits {
    vni: 99_999,
    vni_text: "from 0 to 99999 with IPv6",
    mtu: 1350,
    mtu_text: "from 1350 to 65535 with IPv6, or 0",
};

pub fn parse(options: &str, with_ipv6: bool) -> Parsed<Vxlan> {
    let limits = if with_ipv6 { &IPV6 } else { &IPV4 };
    read(options, limits).map_err(|reason| BackendError::Options {
        backend: "VXLAN",
        reason,
    })
}

fn read(options: &str, limits: &Limits) -> Result<(Vxlan, Vec<String>), OptionError> {
    let object = Object::parse(options, "Backend")?;
    let vni = in_range(
        "VNI",
        object.integer("VNI", Vxlan::DEFAULT.vni.into())?,
        0..=limits.vni,
        limits.vni_text,
    )?;
    let port = in_range(
        "Port",
        object.integer("Port", 0)?,
        0..=65535,
        "from 0 to 65535",
    )?;
    let mtu = match object.integer("MTU", 0)? {
        0 => 0,
        mtu => in_range("MTU", mtu, limits.mtu..=65535, limits.mtu_text)?,
    };
    let mut warnings = object.whole_fractions(&["VNI", "Port", "MTU"]);
    let (direct_routing, warning) = direct_routing::read(&object)?;
    warnings.extend(warning);
    let backend = Vxlan {
        vni,
        port: Some(port).filter(|port| *port > 0),
        mtu: Some(mtu).filter(|mtu| *mtu > 0),
        gbp: object.boolean("GBP", Vxlan::DEFAULT.gbp)?,
        learning: object.boolean("Learning", Vxlan::DEFAULT.learning)?,
        direct_routing,
    };
    Ok((backend, warnings))
}
