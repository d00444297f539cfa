//! Drivers and offloads, which `ethtool` knows: `/sys` may show the interfaces of another namespace.

use std::collections::BTreeMap;

use crate::{check::facts::Ethtool, filter::exec::Executor};

pub async fn ask(
    executor: &Executor,
    interfaces: impl Iterator<Item = String>,
    missing: &mut Vec<String>,
) -> BTreeMap<String, Ethtool> {
    let mut known = BTreeMap::new();
    let Some(command) = executor.find("ethtool") else {
        missing.push("drivers and offloads are left out: ethtool is not installed".to_owned());
        return known;
    };
    for name in interfaces {
        let features = executor.run_checked(&command, &["-k", &name], "").await;
        // A virtual device may have no driver to speak of.
        let driver = executor.run(&command, &["-i", &name], "").await;
        match features {
            Ok(features) => {
                let driver = driver.map(|answer| answer.stdout).unwrap_or_default();
                known.insert(name, parse(&driver, &features));
            }
            Err(error) => missing.push(format!("offloads of {name} are left out: {error}")),
        }
    }
    known
}

fn parse(driver: &str, features: &str) -> Ethtool {
    let driver = driver
        .lines()
        .find_map(|line| line.strip_prefix("driver: "));
    let on = features.lines().filter_map(|line| {
        let (name, value) = line.trim().split_once(": ")?;
        value.starts_with("on").then(|| name.to_owned())
    });
    Ethtool {
        driver: driver.unwrap_or_default().trim().to_owned(),
        on: on.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_is_on_whether_or_not_it_can_be_changed() {
        let features = "Features for eth0:\nrx-checksumming: on\ntx-checksumming: on\n\
                        \ttx-checksum-ipv4: off [fixed]\n\ttx-checksum-ip-generic: on\n\
                        rx-udp-gro-forwarding: off\nrx-gro-list: on [fixed]\n";
        let known = parse("driver: vmxnet3\nversion: 1.7\n", features);
        assert_eq!(known.driver, "vmxnet3");
        assert!(known.on.contains("tx-checksum-ip-generic") && known.on.contains("rx-gro-list"));
        assert!(!known.on.contains("rx-udp-gro-forwarding"));
    }
}
