//! From the text of a flag to its value.

use std::path::PathBuf;

use crate::{
    config::options::SlowMark,
    go::value::{parse_bool, parse_int},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueError {
    /// Not of the flag's type.
    Syntax(String),
    /// Of the flag's type, but not usable.
    Invalid(String),
}

pub fn boolean(value: &str) -> Result<bool, ValueError> {
    parse_bool(value).ok_or_else(|| ValueError::Syntax("give true or false".to_owned()))
}

pub fn integer(value: &str) -> Result<i64, ValueError> {
    parse_int(value).map_err(|error| ValueError::Syntax(error.to_string()))
}

/// `None` for 0 and below.
pub fn port(value: &str) -> Result<Option<u16>, ValueError> {
    let port = u16::try_from(integer(value)?.max(0))
        .map_err(|_| ValueError::Invalid("give a port from 1 to 65535, or 0".to_owned()))?;
    Ok(Some(port).filter(|port| *port > 0))
}

pub fn path(value: &str) -> Option<PathBuf> {
    (!value.is_empty()).then(|| PathBuf::from(value))
}

pub fn no_path() -> ValueError {
    ValueError::Invalid("give a path".to_owned())
}

pub fn not_an_address() -> ValueError {
    ValueError::Invalid("give an IPv4 or IPv6 address".to_owned())
}

/// flannel takes an empty value as not given.
pub fn optional<T>(
    value: &str,
    parse: impl Fn(&str) -> Result<T, ValueError>,
) -> Result<Option<T>, ValueError> {
    if value.is_empty() {
        Ok(None)
    } else {
        parse(value).map(Some)
    }
}

pub fn choice<T: Copy>(value: &str, choices: &[(&str, T)]) -> Result<T, ValueError> {
    choices
        .iter()
        .find(|(name, _)| *name == value)
        .map(|(_, choice)| *choice)
        .ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            ValueError::Invalid(format!("give one of {}", names.join(", ")))
        })
}

/// The value without quotes around it, which a shell would have taken away.
pub fn within_quotes(value: &str) -> Option<&str> {
    let inner = |quote| value.trim().strip_prefix(quote)?.strip_suffix(quote);
    inner('"').or_else(|| inner('\''))
}

/// Splits on commas and forgives blanks and empty entries.
pub fn list(value: &str) -> impl Iterator<Item = &str> {
    let entries = value.split(',').map(str::trim);
    entries.filter(|entry| !entry.is_empty())
}

/// The URLs of a list, and warnings; an endpoint without a scheme is http, as in etcd's own client.
pub fn endpoints(value: &str) -> Result<(Vec<String>, Vec<String>), ValueError> {
    let mut warnings = Vec::new();
    let endpoints = list(value)
        .map(|text| endpoint(text, &mut warnings))
        .collect::<Result<Vec<_>, _>>()?;
    if endpoints.is_empty() {
        return Err(ValueError::Invalid(
            "give at least one URL, such as http://127.0.0.1:2379".to_owned(),
        ));
    }
    Ok((endpoints, warnings))
}

fn endpoint(text: &str, warnings: &mut Vec<String>) -> Result<String, ValueError> {
    let parts: Vec<_> = text
        .split([';', ' ', '\t', '\n'])
        .filter(|part| !part.is_empty())
        .collect();
    if parts.len() > 1 {
        return Err(ValueError::Invalid(format!(
            "endpoints are parted by commas; write {}",
            parts.join(",")
        )));
    }
    let (given, rest) = text.split_once("://").unwrap_or(("http", text));
    let scheme = given.to_ascii_lowercase();
    if scheme != given && matches!(&*scheme, "http" | "https") {
        warnings.push(format!(
            "{given}:// of an etcd endpoint is taken for {scheme}://; write it so"
        ));
    }
    let usable = matches!(&*scheme, "http" | "https")
        && !rest.is_empty()
        && !rest.starts_with(['/', ':'])
        && !rest.contains(char::is_whitespace);
    usable.then(|| format!("{scheme}://{rest}")).ok_or_else(|| {
        ValueError::Invalid(format!(
            "{text:?} is not an etcd endpoint; write it as http://HOST:PORT or https://HOST:PORT"
        ))
    })
}

/// `VALUE/MASK`, each decimal or, after `0x`, hexadecimal.
pub fn slow_mark(value: &str) -> Result<SlowMark, ValueError> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (wanted, mask) = value
        .split_once('/')
        .and_then(|(wanted, mask)| Some((number(wanted)?, number(mask)?)))
        .ok_or_else(|| ValueError::Syntax("give VALUE/MASK, as in 0x100000/0x100000".to_owned()))?;
    if mask == 0 {
        return Err(ValueError::Invalid(
            "every packet has this mark: give a mask of at least one bit".to_owned(),
        ));
    }
    if wanted & !mask != 0 {
        return Err(ValueError::Invalid(
            "no packet has this mark: the value has bits that the mask has not".to_owned(),
        ));
    }
    Ok(SlowMark {
        value: wanted,
        mask,
    })
}
