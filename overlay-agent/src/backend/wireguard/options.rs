//! The options of the wireguard backend in the network config.

use std::num::NonZero;

use super::key::Secret;
use crate::{
    backend::{BackendError, Parsed, error::OptionError},
    go::json::Object,
};

/// The wireguard backend, with its parameters as in the network config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireGuard {
    /// UDP port of the first device.
    pub port: u16,
    /// UDP port of the device that IPv6 has for itself.
    pub port_v6: u16,
    /// Underlay MTU to assume instead of the interface's.
    pub mtu: Option<u32>,
    /// Mixed into the handshakes of all nodes.
    pub psk: Option<Secret>,
    /// Seconds; `None`: none are sent.
    pub keepalive: Option<NonZero<u16>>,
    pub mode: Mode,
}

/// What the tunnels of the two families have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: a device each, over the underlay of its family.
    Separate,
    /// One device; per peer, IPv4 or IPv6 is chosen for the outer packets.
    Auto,
    /// One device, and outer packets are IPv4.
    Ipv4,
    Ipv6,
}

impl WireGuard {
    /// The keys that cannot be taken over with pods running.
    pub fn differing(&self, other: &Self) -> impl Iterator<Item = &'static str> {
        [
            ("Backend.ListenPort", self.port != other.port),
            ("Backend.ListenPortV6", self.port_v6 != other.port_v6),
            ("Backend.PSK", self.psk != other.psk),
            (
                "Backend.PersistentKeepaliveInterval",
                self.keepalive != other.keepalive,
            ),
            ("Backend.Mode", self.mode != other.mode),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
    }
}

/// The least that leaves room for the smallest packet of the family within the encryption.
const LEAST_MTU: (i64, &str) = (148, "from 148 to 65535, or 0");
const LEAST_MTU_V6: (i64, &str) = (1360, "from 1360 to 65535 with IPv6, or 0");

pub fn parse(options: &str, with_ipv6: bool) -> Parsed<WireGuard> {
    read(options, with_ipv6).map_err(|reason| BackendError::Options {
        backend: "wireguard",
        reason,
    })
}

fn read(options: &str, with_ipv6: bool) -> Result<(WireGuard, Vec<String>), OptionError> {
    const KEEPALIVE: &str = "PersistentKeepaliveInterval";
    let object = Object::parse(options, "Backend")?;
    let number = |key, default, least, expected| {
        let value = object.integer(key, default)?;
        let number = u16::try_from(value).ok().filter(|_| value >= least);
        number.ok_or(OptionError::Range {
            key,
            value,
            expected,
        })
    };
    let port = |key, default| number(key, default, 1, "from 1 to 65535");
    let (least, mtu_text) = if with_ipv6 { LEAST_MTU_V6 } else { LEAST_MTU };
    let mtu = match object.integer("MTU", 0)? {
        0 => 0,
        _ => number("MTU", 0, least, mtu_text)?,
    };
    let psk = object.string("PSK")?;
    let psk = match psk.trim() {
        "" => None,
        text => Some(Secret::parse(text).ok_or(OptionError::Unusable {
            key: "PSK",
            expected: "the base64 text of 32 bytes, as `wg genpsk` makes them",
        })?),
    };
    let backend = WireGuard {
        port: port("ListenPort", 51820)?,
        port_v6: port("ListenPortV6", 51821)?,
        mtu: Some(mtu.into()).filter(|mtu| *mtu > 0),
        psk,
        keepalive: NonZero::new(number(KEEPALIVE, 0, 0, "from 0 to 65535 seconds")?),
        mode: mode(&object.string("Mode")?, with_ipv6)?,
    };
    let keys = ["ListenPort", "ListenPortV6", "MTU", KEEPALIVE];
    Ok((backend, object.whole_fractions(&keys)))
}

fn mode(text: &str, with_ipv6: bool) -> Result<Mode, OptionError> {
    match text {
        "" | "separate" => Ok(Mode::Separate),
        "auto" => Ok(Mode::Auto),
        "ipv4" => Ok(Mode::Ipv4),
        "ipv6" if with_ipv6 => Ok(Mode::Ipv6),
        "ipv6" => Err(OptionError::Unusable {
            key: "Mode",
            expected: "possible without IPv6: set EnableIPv6, or another mode",
        }),
        _ => Err(OptionError::Unusable {
            key: "Mode",
            expected: "one of separate, auto, ipv4, ipv6",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PSK: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn what_is_left_out_is_as_in_flannel() {
        let (backend, warnings) = parse("{}", false).unwrap();
        let expected = WireGuard {
            port: 51820,
            port_v6: 51821,
            mtu: None,
            psk: None,
            keepalive: None,
            mode: Mode::Separate,
        };
        assert_eq!((backend, warnings.len()), (expected, 0));
    }

    #[test]
    fn every_option_is_read() {
        let text = format!(
            r#"{{"ListenPort":1,"listenportv6":2,"MTU":1400,"PSK":"{PSK}","PersistentKeepaliveInterval":25,"Mode":"ipv6"}}"#
        );
        let (backend, _) = parse(&text, true).unwrap();
        assert_eq!((backend.port, backend.port_v6), (1, 2));
        assert_eq!((backend.mtu, backend.mode), (Some(1400), Mode::Ipv6));
        assert_eq!(backend.keepalive.map(NonZero::get), Some(25));
        assert!(backend.psk.is_some());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            r#"{"ListenPort":0}"#,
            r#"{"ListenPortV6":65536}"#,
            r#"{"MTU":100}"#,
            r#"{"PersistentKeepaliveInterval":-1}"#,
            r#"{"Mode":"Separate"}"#,
            r#"{"Mode":"ipv6"}"#,
        ] {
            assert!(parse(text, false).is_err(), "{text}");
        }
    }

    #[test]
    fn the_pre_shared_key_is_in_no_text() {
        let text = format!(r#"{{"PSK":"{PSK}"}}"#);
        let (backend, _) = parse(&text, false).unwrap();
        let shown = format!(
            "{backend:?} {:?}",
            crate::backend::Backend::from(backend.clone())
        );
        assert!(
            !shown.contains("AAEC") && !shown.contains("1, 2, 3"),
            "{shown}"
        );
        let error = parse(r#"{"PSK":"secret"}"#, false).unwrap_err();
        assert!(
            !format!("{error} {error:?}").contains("secret"),
            "{error:?}"
        );
    }
}
