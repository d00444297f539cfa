//! The `Backend` object of the network config.

use crate::{
    go::{
        json::{JsonError, Object},
        value::parse_bool,
    },
    model::{Backend, VxlanBackend},
};

pub(super) const SUPPORTED: &str = "vxlan, host-gw, alloc";

/// Backends that some release of flannel has and this daemon has not.
const UNSUPPORTED: [&str; 9] = [
    "udp",
    "ipip",
    "ipsec",
    "wireguard",
    "extension",
    "tencent-vpc",
    "ali-vpc",
    "aws-vpc",
    "gce",
];

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

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("error decoding VXLAN backend config: {0}")]
    Vxlan(#[from] JsonError),
    #[error("error decoding VXLAN backend config: {key} is {value}, it must be {expected}")]
    VxlanRange {
        key: &'static str,
        value: i64,
        expected: &'static str,
    },
    #[error(
        "the network config has no Backend, which means flannel's udp backend, and that is not \
         supported; add \"Backend\": {{\"Type\": \"vxlan\"}} (supported: {SUPPORTED})"
    )]
    Missing,
    #[error(
        "backend type {0} is not supported; set the Type of the network config's Backend to one of: \
         {SUPPORTED}"
    )]
    Unsupported(String),
    #[error("unknown backend type: {0} (supported: {SUPPORTED})")]
    Unknown(String),
}

/// The lower-cased type; `None` if the key is absent.
pub(super) fn type_of(backend: Option<&str>) -> Result<Option<String>, JsonError> {
    let Some(text) = backend else {
        return Ok(None);
    };
    let name = Object::parse(text, "Backend")?.string("Type")?;
    Ok(Some(name.to_lowercase()))
}

/// The backend of that type with its options, and warnings.
pub(super) fn parse(
    name: Option<String>,
    options: Option<&str>,
    with_ipv6: bool,
) -> Result<(Backend, Vec<String>), BackendError> {
    let name = name.ok_or(BackendError::Missing)?;
    match name.as_str() {
        "vxlan" => vxlan(
            options.unwrap_or("{}"),
            if with_ipv6 { &IPV6 } else { &IPV4 },
        ),
        "host-gw" => Ok((Backend::HostGw, Vec::new())),
        "alloc" => Ok((Backend::Alloc, Vec::new())),
        known if UNSUPPORTED.contains(&known) => Err(BackendError::Unsupported(name)),
        _ => Err(BackendError::Unknown(name)),
    }
}

fn vxlan(options: &str, limits: &Limits) -> Result<(Backend, Vec<String>), BackendError> {
    let object = Object::parse(options, "Backend")?;
    let vni = in_range(
        "VNI",
        object.integer("VNI", 1)?,
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
    let (direct_routing, warning) = direct_routing(&object)?;
    warnings.extend(warning);
    let backend = VxlanBackend {
        vni,
        port: Some(port).filter(|port| *port > 0),
        mtu: Some(mtu).filter(|mtu| *mtu > 0),
        gbp: object.boolean("GBP", false)?,
        learning: object.boolean("Learning", false)?,
        direct_routing,
    };
    Ok((Backend::Vxlan(backend), warnings))
}

/// Many guides write the value as a string, which flannel refuses.
fn direct_routing(object: &Object<'_>) -> Result<(bool, Option<String>), JsonError> {
    const KEY: &str = "DirectRouting";
    let mut quoted = None;
    let mut value = false;
    for text in object.every(KEY).filter(|text| *text != "null") {
        let inner = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'));
        value = parse_boolean(inner, text)
            .ok_or_else(|| JsonError::of_type(KEY, "true or false", text))?;
        quoted = inner.map(|_| text);
    }
    let warning = quoted.map(|text| {
        format!(
            "{KEY} of the network config is the string {text}; it is taken for {value}, but flannel \
             refuses it: write it without quotes"
        )
    });
    Ok((value, warning))
}

fn parse_boolean(quoted: Option<&str>, text: &str) -> Option<bool> {
    match (quoted, text) {
        (Some(inner), _) => parse_bool(inner),
        (None, "true") => Some(true),
        (None, "false") => Some(false),
        (None, _) => None,
    }
}

fn in_range<T: TryFrom<i64>>(
    key: &'static str,
    value: i64,
    range: std::ops::RangeInclusive<i64>,
    expected: &'static str,
) -> Result<T, BackendError> {
    let error = BackendError::VxlanRange {
        key,
        value,
        expected,
    };
    if range.contains(&value) {
        T::try_from(value).map_err(|_| error)
    } else {
        Err(error)
    }
}
