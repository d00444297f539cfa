//! A node that only leases: what the lease tests start against a real etcd.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use overlay_agent::{
    config::{
        network::Pool,
        options::{ClientIdentity, EtcdOptions},
    },
    core::Renewal,
    membership::{
        Allocation, Member, Membership, Wish,
        etcd::{self, Deadlines, EtcdError, EtcdStore},
    },
    metrics,
    model::{ConfigText, LeaseAttrs, LeaseView},
};
use overlay_common::addr::MacAddr;
use tokio_util::sync::CancellationToken;

use crate::{etcd::Etcd, netns::checked, wait::scaled};

pub const PREFIX: &str = "/coreos.com/network";
pub const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const PATIENCE: Duration = Duration::from_secs(20);

pub fn etcd_with_config() -> Result<Etcd> {
    let etcd = Etcd::start()?;
    etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
    Ok(etcd)
}

pub fn key(subnet: &str) -> String {
    format!("{PREFIX}/subnets/{subnet}")
}

/// Id of the etcd lease a key is attached to, 0 for none.
pub fn lease_of(etcd: &Etcd, key: &str) -> Result<i64> {
    let answer: serde_json::Value =
        serde_json::from_str(&etcd.etcdctl(&["get", key, "-w", "json"])?)?;
    Ok(answer["kvs"][0]["lease"].as_i64().unwrap_or_default())
}

/// Options for an etcd of the tests, TLS files of its client included.
pub fn options(etcd: &Etcd) -> EtcdOptions {
    let endpoints = etcd.endpoints();
    EtcdOptions {
        endpoints: endpoints.split(',').map(str::to_owned).collect(),
        prefix: PREFIX.to_owned(),
        ca_file: etcd.tls().map(|tls| tls.ca.clone()),
        client_identity: etcd.tls().map(|tls| ClientIdentity {
            cert_file: tls.client.cert.clone(),
            key_file: tls.client.key.clone(),
        }),
        credentials: None,
    }
}

/// Runs a command that the agent printed.
pub fn shell(command: &str) -> Result<String> {
    checked(Command::new("sh").args(["-c", command]))
}

/// Waits for a condition outside the agent.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + scaled(PATIENCE);
    while !condition()? {
        if Instant::now() > deadline {
            bail!("not within {:?}: {what}", scaled(PATIENCE));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A node to be started.
pub struct Node {
    options: EtcdOptions,
    deadlines: Deadlines,
    wish: Wish,
    renewal: Renewal,
}

/// A running node.
pub struct Running {
    pub handle: Member,
    wish: Wish,
    cancel: CancellationToken,
}

impl Node {
    /// Node `n` has the public IP 192.168.0.n.
    pub fn new(etcd: &Etcd, n: u8) -> Self {
        let public_ip = Ipv4Addr::new(192, 168, 0, n);
        let vtep_mac = MacAddr::new([2, 0, 0, 0, 0, n]);
        Self {
            options: options(etcd),
            deadlines: Deadlines {
                connect: Duration::from_secs(1),
                request: Duration::from_secs(2),
            },
            wish: Wish {
                attrs: LeaseAttrs::vxlan(public_ip, 1, vtep_mac),
                allocation: Allocation {
                    ipv4: Some(pool(1, 255)),
                    ipv6: None,
                },
                previous: None,
                previous6: None,
            },
            renewal: Renewal {
                ttl: Renewal::TTL,
                margin: Duration::from_hours(1),
            },
        }
    }

    /// Life and renewal margin of its lease, in seconds.
    #[must_use]
    pub fn ttl(mut self, ttl: u64, margin: u64) -> Self {
        self.renewal = Renewal {
            ttl: Duration::from_secs(ttl),
            margin: Duration::from_secs(margin),
        };
        self
    }

    /// Leases only 10.5.`min`.0 to 10.5.`max`.0.
    #[must_use]
    pub fn subnets(mut self, min: u8, max: u8) -> Self {
        self.wish.allocation.ipv4 = Some(pool(min, max));
        self
    }

    /// Leases an IPv6 subnet of fd00:5::/48 as well.
    #[must_use]
    pub fn dual_stack(mut self, public_ipv6: Ipv6Addr) -> Self {
        self.wish.attrs.public_ipv6 = Some(public_ipv6);
        self.wish.allocation.ipv6 = Some(Pool {
            network: "fd00:5::/48".parse().expect("a network"),
            subnet_len: 64,
            subnet_min: Ipv6Addr::new(0xfd00, 5, 0, 1, 0, 0, 0, 0),
            subnet_max: Ipv6Addr::new(0xfd00, 5, 0, 0xffff, 0, 0, 0, 0),
        });
        self
    }

    /// Leases IPv6 subnets from fd00:5:0:`min`::/64 to fd00:5:0:`max`::/64 only.
    #[must_use]
    pub fn subnets6(mut self, min: u16, max: u16) -> Self {
        let base = |n| Ipv6Addr::new(0xfd00, 5, 0, n, 0, 0, 0, 0);
        if let Some(pool) = &mut self.wish.allocation.ipv6 {
            (pool.subnet_min, pool.subnet_max) = (base(min), base(max));
        }
        self
    }

    #[must_use]
    pub fn options(mut self, change: impl FnOnce(&mut EtcdOptions)) -> Self {
        change(&mut self.options);
        self
    }

    /// Reaches etcd by these URLs.
    #[must_use]
    pub fn endpoints(mut self, urls: impl IntoIterator<Item = String>) -> Self {
        self.options.endpoints = urls.into_iter().collect();
        self
    }

    /// How long etcd may take to answer.
    #[must_use]
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// The store this node would use.
    pub fn store(&self) -> Result<EtcdStore, EtcdError> {
        EtcdStore::new(
            self.options.clone(),
            self.deadlines,
            metrics::Store::default(),
        )
    }

    pub async fn start(self) -> Result<Running> {
        let etcd = etcd::Etcd::new(self.store()?, self.renewal);
        let cancel = CancellationToken::new();
        let config = etcd.config().await?.unwrap_or(ConfigText {
            text: CONFIG.to_owned(),
            mod_revision: 0,
        });
        let joined = etcd.join(self.wish.clone(), config, cancel.clone()).await?;
        Ok(Running {
            handle: joined.context("cancelled")?,
            wish: self.wish,
            cancel,
        })
    }
}

impl Running {
    pub fn view(&self) -> LeaseView {
        self.handle.view.borrow().clone()
    }

    pub fn attrs(&self) -> &LeaseAttrs {
        &self.wish.attrs
    }

    /// Waits until the view satisfies a condition.
    pub async fn until(&self, what: &str, condition: impl FnMut(&LeaseView) -> bool) -> Result<()> {
        let mut view = self.handle.view.clone();
        let found = tokio::time::timeout(scaled(PATIENCE), view.wait_for(condition)).await;
        match found {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => bail!("the lease task ended before: {what}"),
            Err(_) => bail!(
                "not within {:?}: {what}; the view is {:#?}",
                scaled(PATIENCE),
                self.view()
            ),
        }
    }

    pub async fn stop(mut self) {
        self.cancel.cancel();
        while self.handle.view.changed().await.is_ok() {}
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn pool(min: u8, max: u8) -> Pool {
    Pool {
        network: "10.5.0.0/16".parse().expect("a network"),
        subnet_min: Ipv4Addr::new(10, 5, min, 0),
        subnet_max: Ipv4Addr::new(10, 5, max, 0),
        subnet_len: 24,
    }
}
