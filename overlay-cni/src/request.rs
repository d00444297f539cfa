//! What the runtime asks for.

use std::path::PathBuf;

use serde_json::Value;

use crate::{config::Network, error::Error};

/// Versions of the specification, oldest first.
pub const VERSIONS: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

/// For input that names none.
const OLDEST: &str = "0.1.0";

/// Longest interface name (`IFNAMSIZ` without the final zero).
const INTERFACE_NAME: usize = 15;

/// A call of the plugin.
#[derive(Debug)]
pub enum Request {
    Version { asked: String },
    Add(Call),
    Check(Call),
    Del(Call),
    Gc(Network),
    Status(Network),
}

/// A call for one container.
#[derive(Debug)]
pub struct Call {
    pub container: String,
    /// The pod's.
    pub interface: String,
    /// The pod's network namespace, which may be gone when the pod is deleted.
    pub sandbox: Option<PathBuf>,
    pub network: Network,
}

impl Request {
    pub fn new(env: impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<Self, Error> {
        let variable = |name: &str| {
            let value = env(name).filter(|value| !value.is_empty());
            value.ok_or_else(|| Error::Environment {
                reason: format!("the variable {name} is missing"),
            })
        };
        let verb = variable("CNI_COMMAND")?;
        if verb == "VERSION" {
            return Ok(Self::Version {
                asked: version(input),
            });
        }
        variable("CNI_PATH")?;
        if verb == "GC" || verb == "STATUS" {
            let network = Network::parse(input)?;
            return Ok(match verb.as_str() {
                "GC" => Self::Gc(network),
                _ => Self::Status(network),
            });
        }
        let container = variable("CNI_CONTAINERID")?;
        if !is_container(&container) {
            return Err(Error::Environment {
                reason: format!("CNI_CONTAINERID={container} is no name of a container"),
            });
        }
        let interface = variable("CNI_IFNAME")?;
        if !is_interface(&interface) {
            return Err(Error::Environment {
                reason: format!("CNI_IFNAME={interface} is no name of an interface"),
            });
        }
        let sandbox = env("CNI_NETNS").filter(|path| !path.is_empty());
        let call = |network| Call {
            container,
            interface,
            sandbox: sandbox.map(PathBuf::from),
            network,
        };
        match verb.as_str() {
            "DEL" => Ok(Self::Del(call(Network::parse(input)?))),
            "ADD" | "CHECK" => {
                variable("CNI_NETNS")?;
                let call = call(Network::parse(input)?);
                Ok(if verb == "ADD" {
                    Self::Add(call)
                } else {
                    Self::Check(call)
                })
            }
            _ => Err(Error::Environment {
                reason: format!(
                    "CNI_COMMAND={verb} is none of ADD, DEL, CHECK, GC, STATUS, VERSION"
                ),
            }),
        }
    }
}

/// The version that the input is in, for answers to whatever it is.
pub fn version(input: &[u8]) -> String {
    let value: Value = serde_json::from_slice(input).unwrap_or_default();
    let version = value.get("cniVersion").and_then(Value::as_str);
    version.unwrap_or(OLDEST).to_owned()
}

/// It becomes the name of a file.
fn is_container(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn is_interface(name: &str) -> bool {
    name.len() <= INTERFACE_NAME
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INPUT: &[u8] = br#"{"cniVersion":"1.0.0","name":"pods","type":"overlay-cni"}"#;

    fn request(variables: &[(&str, &str)]) -> Result<Request, Error> {
        let env = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Request::new(env, INPUT)
    }

    #[test]
    fn each_verb_needs_its_variables_and_says_which_is_missing() {
        let all = [
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/run/netns/x"),
        ];
        for (verb, needed) in [
            ("ADD", &all[..]),
            ("CHECK", &all[..]),
            ("DEL", &all[..3]),
            ("GC", &all[..1]),
            ("STATUS", &all[..1]),
            ("VERSION", &[]),
        ] {
            let with = |others: &[(&'static str, &'static str)]| {
                request(&[&[("CNI_COMMAND", verb)], others].concat())
            };
            assert!(with(needed).is_ok(), "{verb}");
            for index in 0..needed.len() {
                let mut without = needed.to_vec();
                let (name, _) = without.remove(index);
                let error = with(&without).expect_err(verb).to_string();
                assert!(error.contains(name), "{verb} without {name}: {error}");
            }
        }
        assert!(matches!(request(&[]), Err(Error::Environment { .. })));
    }

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        for container in ["../x", "a/b", "", ".hidden"] {
            let variables = [
                ("CNI_COMMAND", "DEL"),
                ("CNI_PATH", "/opt/cni/bin"),
                ("CNI_CONTAINERID", container),
                ("CNI_IFNAME", "eth0"),
            ];
            assert!(request(&variables).is_err(), "{container}");
        }
        assert!(!is_interface("a/b") && !is_interface("sixteen-letters-") && is_interface("eth0"));
    }

    #[test]
    fn an_input_without_a_version_is_of_the_oldest() {
        assert_eq!(version(b"{}"), "0.1.0");
        assert_eq!(version(b"junk"), "0.1.0");
        assert_eq!(version(INPUT), "1.0.0");
    }
}
