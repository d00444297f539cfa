//! Go's `strconv` and `net` texts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};

/// `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntError {
    #[error("not a whole number")]
    Syntax,
    #[error("value out of range")]
    Range,
}

/// `strconv.ParseInt(text, 0, 64)`: a sign, then decimal, `0x`, `0b`, `0o` or leading-zero octal.
pub fn parse_int(text: &str) -> Result<i64, IntError> {
    let (negative, magnitude) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, prefixed, digits) = radix_of(magnitude);
    let digits = without_underscores(digits, prefixed).ok_or(IntError::Syntax)?;
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(IntError::Syntax);
    }
    let magnitude = i128::from_str_radix(&digits, radix).map_err(|_| IntError::Range)?;
    let value = if negative { -magnitude } else { magnitude };
    i64::try_from(value).map_err(|_| IntError::Range)
}

/// Radix, whether a prefix announced it, and the digits.
fn radix_of(text: &str) -> (u32, bool, &str) {
    for (prefix, radix) in [
        ("0x", 16),
        ("0X", 16),
        ("0b", 2),
        ("0B", 2),
        ("0o", 8),
        ("0O", 8),
        ("0", 8),
    ] {
        match text.strip_prefix(prefix) {
            Some(digits) if !digits.is_empty() => return (radix, true, digits),
            _ => {}
        }
    }
    (10, false, text)
}

/// Go allows single underscores between digits, and between the base prefix and the first digit.
fn without_underscores(digits: &str, prefixed: bool) -> Option<String> {
    let misplaced =
        digits.ends_with('_') || digits.contains("__") || (digits.starts_with('_') && !prefixed);
    (!misplaced).then(|| digits.replace('_', ""))
}

/// `net.ParseIP`: an IPv4-mapped IPv6 address is an IPv4 address.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    match text.parse().ok()? {
        IpAddr::V6(address) => Some(
            address
                .to_ipv4_mapped()
                .map_or(IpAddr::V6(address), IpAddr::V4),
        ),
        address @ IpAddr::V4(_) => Some(address),
    }
}

/// A network in CIDR notation with the host bits dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cidr {
    V4(Ipv4Network),
    V6(Ipv6Network),
}

/// `net.ParseCIDR`.
pub fn parse_cidr(text: &str) -> Option<Cidr> {
    let (address, length) = text.split_once('/')?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let length: u8 = length
        .trim_start_matches('0')
        .parse()
        .or_else(|error| {
            if length.bytes().all(|byte| byte == b'0') {
                Ok(0)
            } else {
                Err(error)
            }
        })
        .ok()?;
    match address.parse().ok()? {
        IpAddr::V4(address) => masked_v4(address, length).map(Cidr::V4),
        IpAddr::V6(address) => masked_v6(address, length).map(Cidr::V6),
    }
}

fn masked_v4(address: Ipv4Addr, length: u8) -> Option<Ipv4Network> {
    let network = Ipv4Network::new(address, length).ok()?;
    Ipv4Network::new(network.network(), length).ok()
}

fn masked_v6(address: Ipv6Addr, length: u8) -> Option<Ipv6Network> {
    let network = Ipv6Network::new(address, length).ok()?;
    Ipv6Network::new(network.network(), length).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn booleans_are_those_of_go() {
        for text in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(parse_bool(text), Some(true), "{text}");
        }
        for text in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(parse_bool(text), Some(false), "{text}");
        }
        for text in ["", "yes", "tRUE", "on", "2"] {
            assert_eq!(parse_bool(text), None, "{text}");
        }
    }

    #[test]
    fn integers_are_those_of_go() {
        for (text, value) in [
            ("0", Ok(0)),
            ("60", Ok(60)),
            ("-7", Ok(-7)),
            ("+7", Ok(7)),
            ("0x10", Ok(16)),
            ("0b101", Ok(5)),
            ("0o17", Ok(15)),
            ("017", Ok(15)),
            ("1_000", Ok(1000)),
            ("0x_1f", Ok(31)),
            ("9223372036854775807", Ok(i64::MAX)),
            ("-9223372036854775808", Ok(i64::MIN)),
            ("9223372036854775808", Err(IntError::Range)),
            ("08", Err(IntError::Syntax)),
            ("", Err(IntError::Syntax)),
            ("0x", Err(IntError::Syntax)),
            ("1.0", Err(IntError::Syntax)),
            ("1__0", Err(IntError::Syntax)),
            ("--1", Err(IntError::Syntax)),
            (" 1", Err(IntError::Syntax)),
        ] {
            assert_eq!(parse_int(text), value, "{text:?}");
        }
    }

    #[test]
    fn a_cidr_drops_its_host_bits() {
        assert_eq!(
            parse_cidr("10.10.10.0/16"),
            Some(Cidr::V4("10.10.0.0/16".parse().unwrap()))
        );
        assert_eq!(
            parse_cidr("fc00::1/48"),
            Some(Cidr::V6("fc00::/48".parse().unwrap()))
        );
        assert_eq!(
            parse_cidr("10.0.0.0/08"),
            Some(Cidr::V4("10.0.0.0/8".parse().unwrap()))
        );
        assert_eq!(
            parse_cidr("10.0.0.0/00"),
            Some(Cidr::V4("0.0.0.0/0".parse().unwrap()))
        );
        for text in [
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0/8",
            "10.0.0.0/+8",
            "/8",
            "",
        ] {
            assert_eq!(parse_cidr(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_integer_survives_its_decimal_text(value: i64) {
            prop_assert_eq!(parse_int(&value.to_string()), Ok(value));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text: String) {
            let _ = (parse_bool(&text), parse_int(&text), parse_ip(&text), parse_cidr(&text));
        }
    }
}
