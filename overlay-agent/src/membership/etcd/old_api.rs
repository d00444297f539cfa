//! etcd's API v2, with which the guides of many years have people write the network config. The servers and ports
//! are those of v3, the keys another world: what one has written the other does not see.

use std::fmt::Write as _;

use ::http::{Response, StatusCode};
use axum::body::{Body, to_bytes};
use serde::{Deserialize, de::IgnoredAny};

use super::{http, options::quoted};
use crate::config::options::EtcdOptions;

/// More is no network config.
const LIMIT: usize = 64 << 10;

#[derive(Deserialize)]
struct Answer {
    node: Node,
}

#[derive(Deserialize)]
struct Node {
    /// Absent if the key is a directory.
    value: Option<String>,
}

/// What the servers have under a key; `None` also where they do not have the API, as etcd does not by default
/// since 3.4.
pub async fn value(options: &EtcdOptions, key: &str) -> Option<String> {
    http::ask(options, &path(key), read).await
}

async fn read(answer: Response<kube::client::Body>) -> Result<Option<String>, http::Failure> {
    if answer.status() != StatusCode::OK {
        return Ok(None);
    }
    let body = to_bytes(Body::new(answer.into_body()), LIMIT).await?;
    Ok(serde_json::from_slice::<Answer>(&body)?.node.value)
}

/// The path of a key, which always begins at the root there.
fn path(key: &str) -> String {
    let mut path = "/v2/keys/".to_owned();
    for byte in key.trim_start_matches('/').bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            path.push(byte.into());
        } else {
            // A String takes everything.
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path
}

/// What brings the config to where it is looked for. `etcdctl` is the beginning of a command, `key` the key of both
/// APIs, `old` what v2 has under it.
pub fn remedy(etcdctl: &str, key: &str, old: Option<&str>) -> String {
    let put = |value: &str| format!("{etcdctl} put {} {}", quoted(key), quoted(value));
    match old.map(compact) {
        None => format!(
            "create it with: {}",
            put(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#)
        ),
        Some(Some(config)) => format!(
            "etcd's v2 API has one under that key, which the v3 API does not see; copy it with: {}",
            put(&config)
        ),
        Some(None) => String::from(
            "etcd's v2 API has something under that key, which the v3 API does not see, but it is no JSON",
        ),
    }
}

/// A JSON text without the blanks that mean nothing, and with that in one line; `None` if it is no JSON.
fn compact(json: &str) -> Option<String> {
    serde_json::from_str::<IgnoredAny>(json).ok()?;
    let (mut in_string, mut escaped) = (false, false);
    let keep = |c: &char| {
        let is_quote = *c == '"' && !escaped;
        escaped = in_string && *c == '\\' && !escaped;
        in_string ^= is_quote;
        in_string || !c.is_ascii_whitespace()
    };
    Some(json.chars().filter(keep).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_path_below_the_root() {
        assert_eq!(
            path("/coreos.com/network/config"),
            "/v2/keys/coreos.com/network/config"
        );
        assert_eq!(path("a b/ü?/config"), "/v2/keys/a%20b/%C3%BC%3F/config");
    }

    #[test]
    fn an_answer_has_a_value_unless_the_key_is_a_directory() {
        let value =
            |text: &str| serde_json::from_str::<Answer>(text).map(|answer| answer.node.value);
        let config = r#"{"action":"get","node":{"key":"/c","value":"{\n}","modifiedIndex":4,"createdIndex":4}}"#;
        assert_eq!(value(config).unwrap().as_deref(), Some("{\n}"));
        let directory = r#"{"action":"get","node":{"key":"/c","dir":true,"nodes":[]}}"#;
        assert_eq!(value(directory).unwrap(), None);
        assert!(
            value(r#"{"errorCode":100,"message":"Key not found","cause":"/c","index":4}"#).is_err()
        );
    }

    #[test]
    fn a_config_becomes_one_line_that_means_the_same() {
        let old =
            "{\n  \"Network\": \"10.5.0.0/16\",\n\t\"Backend\": {\"Type\": \"a \\\" b\\\\\" }\n}\n";
        let new = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"a \" b\\"}}"#;
        assert_eq!(compact(old).as_deref(), Some(new));
        assert_eq!(compact("{"), None);
    }

    #[test]
    fn without_a_config_of_v2_one_is_made_and_what_is_no_json_is_not_copied() {
        let remedy = |old| remedy("etcdctl", "/a b/config", old);
        assert!(
            remedy(None).starts_with("create it with: etcdctl put '/a b/config' '{\"Network\":")
        );
        let copy = remedy(Some("{ \"Network\": \"10.1.0.0/16\" }"));
        let command = r#"copy it with: etcdctl put '/a b/config' '{"Network":"10.1.0.0/16"}'"#;
        assert!(copy.ends_with(command), "{copy}");
        assert!(remedy(Some("10.1.0.0/16")).ends_with("it is no JSON"));
    }
}
