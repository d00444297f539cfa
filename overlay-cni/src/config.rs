//! The network's configuration, and the one of the plugin that does the work.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{error::Error, subnet::Subnet};

type Object = Map<String, Value>;

/// What a plugin that gives addresses reads.
const IPAM_KEYS: [&str; 4] = ["cniVersion", "name", "ipam", "runtimeConfig"];

const INTERFACE: &str = "interface";

/// What the runtime gives on standard input.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    #[serde(default)]
    pub cni_version: String,
    #[serde(default)]
    pub name: String,
    /// Where the agent writes this node's subnet.
    #[serde(default = "subnet_file")]
    pub subnet_file: PathBuf,
    /// Where the configurations of running pods' plugins are kept.
    #[serde(default = "data_dir")]
    pub data_dir: PathBuf,
    /// Settings of the plugin that does the work.
    #[serde(default)]
    delegate: Option<Object>,
    /// Settings of the plugin that gives addresses.
    #[serde(default)]
    ipam: Option<Object>,
    #[serde(default)]
    runtime_config: Option<Value>,
    /// The result of `ADD`, for `CHECK`.
    #[serde(default)]
    pub prev_result: Option<Value>,
    /// For `GC`: the attachments that are to stay.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<Attachment>>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Attachment {
    #[serde(rename = "containerID")]
    pub container: String,
    #[serde(flatten)]
    rest: Object,
}

fn subnet_file() -> PathBuf {
    "/run/flannel/subnet.env".into()
}

fn data_dir() -> PathBuf {
    "/var/lib/cni/flannel".into()
}

impl Network {
    pub fn parse(input: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(input).map_err(|error| Error::Decode {
            reason: error.to_string(),
        })
    }

    /// The configuration of the plugin that makes a pod's network on this node, as flannel makes it:
    /// what the network says wins over what follows from the subnet.
    pub fn delegate(&self, subnet: &Subnet) -> Result<Delegate, Error> {
        let mut delegate = self.delegate.clone().unwrap_or_default();
        for (key, why) in [
            ("name", "it is the network's"),
            ("ipam", "write it beside `delegate`"),
        ] {
            if delegate.contains_key(key) {
                return Err(Error::Config {
                    reason: format!("`delegate` must not have {key:?}: {why}"),
                });
            }
        }
        let plugin = kind(&mut delegate, "bridge", "delegate")?;
        delegate.insert("name".to_owned(), json!(self.name));
        if !self.cni_version.is_empty() {
            delegate.insert("cniVersion".to_owned(), json!(self.cni_version));
        }
        if let Some(config) = &self.runtime_config {
            delegate.insert("runtimeConfig".to_owned(), config.clone());
        }
        let mut preset = |key: &str, value: Value| {
            delegate.entry(key).or_insert(value);
        };
        // One of the two masquerades.
        preset("ipMasq", json!(!subnet.ip_masq));
        preset("mtu", json!(subnet.mtu));
        if plugin == "bridge" {
            preset("isGateway", json!(true));
        }
        delegate.insert("ipam".to_owned(), self.addresses(subnet)?.into());
        Ok(Delegate {
            plugin,
            config: delegate,
        })
    }

    /// Addresses are of the subnet, and the pod network is behind its gateway.
    fn addresses(&self, subnet: &Subnet) -> Result<Object, Error> {
        let mut ipam = self.ipam.clone().unwrap_or_default();
        kind(&mut ipam, "host-local", "ipam")?;
        let ranges = subnet.subnets.iter();
        let ranges: Vec<_> = ranges.map(|subnet| json!([{ "subnet": subnet }])).collect();
        ipam.insert("ranges".to_owned(), ranges.into());
        let routes = ipam.entry("routes").or_insert_with(|| json!([]));
        let Value::Array(routes) = routes else {
            return Err(Error::Config {
                reason: "`routes` in `ipam` is no list".to_owned(),
            });
        };
        let networks = subnet.networks.iter();
        routes.extend(networks.map(|network| json!({ "dst": network })));
        Ok(ipam)
    }
}

/// The plugin that `object` names, which is also the name of a file.
fn kind(object: &mut Object, default: &str, place: &str) -> Result<String, Error> {
    let kind = object.entry("type").or_insert_with(|| json!(default));
    let name = kind.as_str().filter(|name| is_file_name(name));
    let name = name.ok_or_else(|| Error::Config {
        reason: format!("\"type\" in `{place}` is {kind}, not the name of a plugin"),
    })?;
    Ok(name.to_owned())
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !matches!(name, "." | "..")
}

/// A plugin, and its configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Delegate {
    pub plugin: String,
    config: Object,
}

impl Delegate {
    /// The configuration that was used when a pod was made.
    pub fn kept(text: &[u8]) -> Option<Self> {
        let mut config: Object = serde_json::from_slice(text).ok()?;
        let plugin = kind(&mut config, "", "delegate").ok()?;
        Some(Self { plugin, config })
    }

    pub fn with_result(mut self, result: Option<Value>) -> Self {
        if let Some(result) = result {
            self.config.insert("prevResult".to_owned(), result);
        }
        self
    }

    pub fn with_interface(mut self, name: &str) -> Self {
        self.config.insert(INTERFACE.to_owned(), json!(name));
        self
    }

    /// The pod's, of what was kept of a pod that this program has made.
    pub fn interface(&self) -> &str {
        let name = self.config.get(INTERFACE).and_then(Value::as_str);
        name.unwrap_or_default()
    }

    /// The plugin that gives addresses, and the part that is for it.
    pub fn addresses_of(&self) -> Result<Self, Error> {
        let ipam = self.config.get("ipam").and_then(Value::as_object);
        let plugin = kind(&mut ipam.cloned().unwrap_or_default(), "", "ipam")?;
        let mut config = self.config.clone();
        config.retain(|key, _| IPAM_KEYS.contains(&key.as_str()));
        Ok(Self { plugin, config })
    }

    pub fn value(&self) -> Value {
        self.config.clone().into()
    }

    pub fn with_attachments(mut self, attachments: &[Attachment]) -> Self {
        let list: Vec<Value> = attachments
            .iter()
            .map(|attachment| {
                let mut object = attachment.rest.clone();
                object.insert("containerID".to_owned(), json!(attachment.container));
                object.into()
            })
            .collect();
        let key = "cni.dev/valid-attachments";
        self.config.insert(key.to_owned(), list.into());
        self
    }

    pub fn json(&self) -> Vec<u8> {
        self.value().to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delegate(input: &Value) -> Result<Value, Error> {
        let network = Network::parse(input.to_string().as_bytes())?;
        let delegate = network.delegate(&Subnet::sample())?;
        Ok(serde_json::from_slice(&delegate.json()).expect("JSON"))
    }

    #[test]
    fn without_settings_it_is_a_bridge_with_addresses_of_the_subnet() {
        let made = delegate(&json!({ "cniVersion": "0.3.1", "name": "cbr0", "type": "flannel" }));
        let wanted = json!({
            "cniVersion": "0.3.1",
            "name": "cbr0",
            "type": "bridge",
            "mtu": 1450,
            "ipMasq": false,
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.5.34.0/24" }], [{ "subnet": "fd00:0:0:34::/64" }]],
                "routes": [{ "dst": "10.5.0.0/16" }, { "dst": "fd00::/48" }],
            },
        });
        assert_eq!(made.expect("a configuration"), wanted);
    }

    #[test]
    fn settings_of_the_network_win() {
        let made = delegate(&json!({
            "name": "cbr0",
            "delegate": { "type": "ptp", "mtu": 1400, "ipMasq": true, "hairpinMode": true },
            "ipam": { "type": "static", "routes": [{ "dst": "0.0.0.0/0" }] },
            "runtimeConfig": { "portMappings": [] },
        }))
        .expect("a configuration");
        for (key, value) in [
            ("type", json!("ptp")),
            ("mtu", json!(1400)),
            ("ipMasq", json!(true)),
            ("hairpinMode", json!(true)),
            ("runtimeConfig", json!({ "portMappings": [] })),
        ] {
            assert_eq!(made.get(key), Some(&value), "{key}");
        }
        assert_eq!(made.get("isGateway"), None);
        assert_eq!(made.get("cniVersion"), None);
        assert_eq!(made["ipam"]["type"], "static");
        assert_eq!(made["ipam"]["routes"][0], json!({ "dst": "0.0.0.0/0" }));
        assert_eq!(made["ipam"]["routes"][1], json!({ "dst": "10.5.0.0/16" }));
    }

    #[test]
    fn settings_that_cannot_be_are_named() {
        for (settings, part) in [
            (json!({ "delegate": { "name": "x" } }), "\"name\""),
            (json!({ "delegate": { "ipam": {} } }), "\"ipam\""),
            (json!({ "delegate": { "type": 7 } }), "`delegate`"),
            (json!({ "delegate": { "type": "../x" } }), "`delegate`"),
            (json!({ "ipam": { "type": "" } }), "`ipam`"),
            (json!({ "ipam": { "routes": 7 } }), "`routes`"),
            (json!(7), "not understood"),
        ] {
            let error = delegate(&settings).expect_err("it cannot be").to_string();
            assert!(error.contains(part), "{settings}: {error}");
        }
    }

    #[test]
    fn the_plugin_that_gives_addresses_reads_its_part_alone() {
        let input = json!({
            "cniVersion": "1.0.0", "name": "cbr0",
            "delegate": { "type": "overlay", "device": "netkit" },
            "ipam": { "dataDir": "/x" },
        });
        let network = Network::parse(input.to_string().as_bytes()).expect("a network");
        let made = network
            .delegate(&Subnet::sample())
            .expect("a configuration");
        let made = made.with_interface("eth0");
        let addresses = made.addresses_of().expect("a plugin");
        assert_eq!(addresses.plugin, "host-local");
        assert_eq!(addresses.value()["ipam"]["dataDir"], "/x");
        assert_eq!(addresses.value()["name"], "cbr0");
        assert_eq!(addresses.value().get("device"), None);
        let kept = Delegate::kept(&made.json()).expect("a configuration");
        assert_eq!(kept.interface(), "eth0");
    }

    #[test]
    fn what_was_kept_is_used_again_unless_it_is_damaged() {
        let network = Network::parse(br#"{"name":"cbr0"}"#).expect("a network");
        let made = network
            .delegate(&Subnet::sample())
            .expect("a configuration");
        assert_eq!(Delegate::kept(&made.json()), Some(made));
        assert_eq!(Delegate::kept(b"{\"type\":"), None);
        assert_eq!(Delegate::kept(b"{}"), None);
    }
}
