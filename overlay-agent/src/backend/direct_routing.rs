//! The option `DirectRouting` of the backends that have a tunnel.

use crate::go::{
    json::{JsonError, Object},
    value::parse_bool,
};

/// The option, and what is to be warned of. Many guides write the value as a string, which flannel refuses.
pub fn read(object: &Object<'_>) -> Result<(bool, Option<String>), JsonError> {
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
