//! What a network's configuration says of the pods.

use serde::Deserialize;

use crate::{config::Delegate, error::Error};

/// The oldest version of the specification whose results name interfaces.
const OLDEST: [u32; 2] = [0, 3];

/// The kind of the pair of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    Veth,
    /// From Linux 6.7 on.
    Netkit,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    #[serde(rename = "cniVersion", default)]
    pub version: String,
    pub mtu: u32,
    /// Whether what pods send to the outside is masqueraded here.
    pub ip_masq: bool,
    /// Without one, what the kernel has: a netkit if it can.
    #[serde(default)]
    pub device: Option<Device>,
}

impl Settings {
    pub fn of(delegate: &Delegate) -> Result<Self, Error> {
        let settings: Self =
            serde_json::from_value(delegate.value()).map_err(|error| Error::Config {
                reason: format!("`delegate`: {error}"),
            })?;
        let mut numbers = settings
            .version
            .split('.')
            .map_while(|word| word.parse().ok());
        let version = [(); 2].map(|()| numbers.next().unwrap_or(0));
        if version < OLDEST {
            return Err(Error::Version {
                version: settings.version,
            });
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settings(value: &Value) -> Result<Settings, Error> {
        let kept = Delegate::kept(value.to_string().as_bytes());
        Settings::of(&kept.expect("a configuration"))
    }

    #[test]
    fn the_network_may_say_which_devices_pods_hang_off() {
        let mut value = json!({
            "type": "overlay", "cniVersion": "1.0.0", "mtu": 1450, "ipMasq": false,
            "hairpinMode": true,
        });
        let wanted = Settings {
            version: "1.0.0".to_owned(),
            mtu: 1450,
            ip_masq: false,
            device: None,
        };
        assert_eq!(settings(&value).expect("settings"), wanted);
        for (name, device) in [("veth", Device::Veth), ("netkit", Device::Netkit)] {
            value["device"] = json!(name);
            let settings = settings(&value).expect("settings");
            assert_eq!(settings.device, Some(device));
        }
        value["device"] = json!("ipvlan");
        let error = settings(&value).expect_err("no such device").to_string();
        assert!(error.contains("netkit"), "{error}");
    }

    #[test]
    fn versions_without_interfaces_in_their_results_are_refused() {
        for (version, is_fine) in [
            ("", false),
            ("0.2.0", false),
            ("0.3.0", true),
            ("0.4.0", true),
            ("1.1.0", true),
        ] {
            let value =
                json!({ "type": "overlay", "cniVersion": version, "mtu": 1, "ipMasq": true });
            assert_eq!(settings(&value).is_ok(), is_fine, "{version}");
        }
    }
}
