//! Leases of nodes that do not exist, and who writes them.

use std::{net::Ipv4Addr, time::Instant};

use anyhow::Result;
use etcd_client::{Client, Txn, TxnOp};
use ipnetwork::Ipv4Network;
use tokio::runtime::Runtime;

use crate::{
    lab::{Lab, store::PREFIX},
    netns::Namespace,
};

/// A network with room for the largest cluster; agents take their subnets from its beginning.
pub const CONFIG: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,
    "SubnetMin":"10.1.0.0","SubnetMax":"10.3.255.0","Backend":{"Type":"vxlan"}}"#;

/// A lab of so many nodes, in which no disk is measured.
pub fn lab(nodes: u8) -> Result<Lab> {
    Lab::builder()
        .nodes(nodes)
        .config(CONFIG)
        .etcd_in_memory()
        .build()
}

/// Where the invented nodes begin.
const FIRST_SUBNET: u32 = u32::from_be_bytes([10, 64, 0, 0]);
const FIRST_ADDRESS: u32 = u32::from_be_bytes([172, 16, 0, 10]);

/// Operations of one transaction: etcd's limit is 128.
const CHUNK: usize = 100;

/// An invented node. Its device has another MAC address in each generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ghost {
    pub index: u32,
    pub generation: u8,
}

impl Ghost {
    pub fn new(index: u32) -> Self {
        Self {
            index,
            generation: 0,
        }
    }

    pub fn subnet(self) -> Ipv4Network {
        let first = Ipv4Addr::from(FIRST_SUBNET + (self.index << 8));
        Ipv4Network::new(first, 24).expect("24 bits are possible")
    }

    /// Of the tunnel end.
    pub fn mac(self) -> String {
        let [_, high, middle, low] = self.index.to_be_bytes();
        let generation = self.generation;
        format!("02:00:{generation:02x}:{high:02x}:{middle:02x}:{low:02x}")
    }

    pub fn key(self) -> String {
        format!("{PREFIX}/subnets/{}-24", self.subnet().ip())
    }

    pub fn value(self) -> String {
        let address = Ipv4Addr::from(FIRST_ADDRESS + self.index);
        let mac = self.mac();
        format!(
            r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    }
}

/// Whether a subnet is one of an invented node.
pub fn is_ghost(subnet: Ipv4Network) -> bool {
    u32::from(subnet.ip()) >= FIRST_SUBNET
}

/// Writes leases over one connection.
pub struct Writer {
    router: Namespace,
    runtime: Runtime,
    client: Client,
}

impl Writer {
    pub fn connect(lab: &Lab) -> Result<Self> {
        let router = lab.underlay().router().clone();
        let endpoints = lab.store().endpoints();
        let (runtime, client) = router.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let client = runtime.block_on(async {
                let mut client = Client::connect([endpoints], None).await?;
                client.get(PREFIX, None).await?;
                anyhow::Ok(client)
            })?;
            anyhow::Ok((runtime, client))
        })?;
        Ok(Self {
            router,
            runtime,
            client,
        })
    }

    /// Writes a lease. Returns when the request was sent and when it was answered.
    pub fn put(&self, ghost: Ghost) -> Result<(Instant, Instant)> {
        let mut client = self.client.clone();
        self.router.enter(|| {
            self.runtime.block_on(async {
                let sent = Instant::now();
                client.put(ghost.key(), ghost.value(), None).await?;
                Ok((sent, Instant::now()))
            })
        })
    }

    /// Writes many leases.
    pub fn put_all(&self, ghosts: impl IntoIterator<Item = Ghost>) -> Result<()> {
        let put = |ghost: Ghost| TxnOp::put(ghost.key(), ghost.value(), None);
        let puts: Vec<_> = ghosts.into_iter().map(put).collect();
        self.all(&puts)
    }

    pub fn delete_all(&self, ghosts: impl IntoIterator<Item = Ghost>) -> Result<()> {
        let delete = |ghost: Ghost| TxnOp::delete(ghost.key(), None);
        let deletions: Vec<_> = ghosts.into_iter().map(delete).collect();
        self.all(&deletions)
    }

    fn all(&self, operations: &[TxnOp]) -> Result<()> {
        let mut client = self.client.clone();
        self.router.enter(|| {
            self.runtime.block_on(async {
                for chunk in operations.chunks(CHUNK) {
                    client.txn(Txn::new().and_then(chunk)).await?;
                }
                Ok(())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_ghosts_have_anything_in_common() {
        let ghosts = (0..70_000).step_by(997).map(Ghost::new);
        let mut seen = BTreeSet::new();
        for ghost in ghosts {
            assert!(is_ghost(ghost.subnet()));
            assert!(seen.insert(ghost.subnet().to_string()));
            assert!(seen.insert(ghost.mac()));
            assert!(seen.insert(ghost.value()));
        }
    }
}
