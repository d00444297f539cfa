//! Reading `subnet.env`, as Docker units and the CNI plugin read it.

use std::{fs, net::Ipv4Addr, path::Path, str::FromStr};

use anyhow::{Context as _, Result};
use ipnetwork::Ipv4Network;

/// What a node tells container runtimes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    pub network: Ipv4Network,
    /// The gateway's address, with the subnet's prefix length.
    pub gateway: Ipv4Network,
    pub mtu: u32,
    pub ip_masq: bool,
}

impl SubnetEnv {
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self {
            network: variable(&text, "FLANNEL_NETWORK")?,
            gateway: variable(&text, "FLANNEL_SUBNET")?,
            mtu: variable(&text, "FLANNEL_MTU")?,
            ip_masq: variable(&text, "FLANNEL_IPMASQ")?,
        })
    }

    pub fn to_text(&self) -> String {
        format!(
            "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n",
            self.network, self.gateway, self.mtu, self.ip_masq
        )
    }

    /// The leased subnet.
    pub fn subnet(&self) -> Result<Ipv4Network> {
        Ok(Ipv4Network::new(
            self.gateway.network(),
            self.gateway.prefix(),
        )?)
    }

    /// The `index`-th pod's address: the ones after the gateway's.
    pub fn pod_address(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway.ip().to_bits() + 1 + index)
    }
}

pub(super) fn variable<T: FromStr>(text: &str, name: &str) -> Result<T> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.parse().ok())
        .with_context(|| format!("no usable {name} in\n{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_numbers_pods_after_the_gateway() {
        let env = SubnetEnv {
            network: "10.5.0.0/16".parse().unwrap(),
            gateway: "10.5.34.1/24".parse().unwrap(),
            mtu: 1450,
            ip_masq: false,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        fs::write(&path, env.to_text()).unwrap();
        let read = SubnetEnv::read(&path).unwrap();
        assert_eq!(read, env);
        assert_eq!(read.subnet().unwrap().to_string(), "10.5.34.0/24");
        assert_eq!(read.pod_address(0), Ipv4Addr::new(10, 5, 34, 2));
    }
}
