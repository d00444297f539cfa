//! The lab's etcd: a real server on the router, or members on machines of their own, reachable from
//! every node, with nothing in it but the lab's cluster.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use anyhow::{Context as _, Result};
use etcd_client::{Client, Txn, TxnOp};

use super::{
    state::State,
    underlay::{Underlay, router_address},
};
use crate::{
    etcd::{Etcd, Host},
    netns::{Namespace, RUN_NETNS},
};

/// Key prefix of the cluster, flannel's default.
pub const PREFIX: &str = "/coreos.com/network";
/// Lifetime of a lease, seconds, as flannel grants it.
const LEASE_TTL: &str = "86400";
const PORT: u16 = 2379;

/// A running etcd server, seen as flannel uses it.
pub struct Store {
    etcd: Etcd,
    router: Namespace,
    /// Those of the members, if they have some.
    machines: Vec<Namespace>,
}

/// A lease record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The key's last part, e.g. `10.5.34.0-24`.
    pub subnet_key: String,
    /// The JSON text.
    pub value: String,
}

impl Store {
    pub fn start(router: &Namespace, dir: &Path) -> Result<Self> {
        let etcd = Etcd::builder()
            .listen(IpAddr::V4(router_address(0)))
            .client_port(PORT)
            .enter(entering(router))
            .directory(dir)
            .start()?;
        Ok(Self {
            etcd,
            router: router.clone(),
            machines: Vec::new(),
        })
    }

    /// Members on machines of their own, on the first segment.
    pub(super) fn start_members(state: &State, underlay: &Underlay, count: u8) -> Result<Self> {
        let mut machines = Vec::new();
        let mut hosts = Vec::new();
        for index in 0..count {
            let name = format!("etcd{index}");
            let machine = state.create_namespace(&name)?;
            let address = member_address(index);
            underlay.connect(&machine, &name, 0, address)?;
            hosts.push(Host {
                address: IpAddr::V4(address),
                enter: entering(&machine),
            });
            machines.push(machine);
        }
        let etcd = Etcd::builder()
            .client_port(PORT)
            .enter(entering(underlay.router()))
            .hosts(hosts)
            .directory(state.etcd_dir())
            .start()?;
        Ok(Self {
            etcd,
            router: underlay.router().clone(),
            machines,
        })
    }

    /// Cuts a member's machine off from some addresses; what is sent there is lost without a word.
    pub fn isolate(&self, member: usize, from: &[Ipv4Addr]) -> Result<()> {
        let addresses: Vec<_> = from.iter().map(ToString::to_string).collect();
        let addresses = addresses.join(", ");
        let rules = format!(
            "add table ip isolated; \
             add chain ip isolated in {{ type filter hook input priority 0; }}; \
             add chain ip isolated out {{ type filter hook output priority 0; }}; \
             add rule ip isolated in ip saddr {{ {addresses} }} drop; \
             add rule ip isolated out ip daddr {{ {addresses} }} drop"
        );
        self.machine(member)?.run("nft", [rules.as_str()]).map(drop)
    }

    /// Undoes [`Store::isolate`].
    pub fn rejoin(&self, member: usize) -> Result<()> {
        let machine = self.machine(member)?;
        machine.run("nft", ["delete table ip isolated"]).map(drop)
    }

    fn machine(&self, member: usize) -> Result<&Namespace> {
        let machine = self.machines.get(member);
        machine.with_context(|| format!("member {member} has no machine of its own"))
    }

    /// The server itself, for tests that stop or freeze it.
    pub fn server(&mut self) -> &mut Etcd {
        &mut self.etcd
    }

    /// Leaves the server running when this value is gone.
    pub fn leave_running(self) {
        std::mem::forget(self.etcd);
    }

    /// What nodes pass as `--etcd-endpoints`.
    pub fn endpoints(&self) -> String {
        self.etcd.endpoints()
    }

    pub fn set_config(&self, json: &str) -> Result<()> {
        self.etcd.put(&format!("{PREFIX}/config"), json)
    }

    /// Writes a lease record the way flannel does: attached to a fresh 24 h lease.
    pub fn put_lease(&self, subnet_key: &str, value: &str) -> Result<()> {
        let granted = self.etcd.etcdctl(&["lease", "grant", LEASE_TTL])?;
        let id = granted.split_whitespace().nth(1);
        let id = id.with_context(|| format!("etcdctl lease grant said: {granted}"))?;
        let lease = format!("--lease={id}");
        self.etcd
            .etcdctl(&["put", &lease, "--", &lease_key(subnet_key), value])
            .map(drop)
    }

    /// Writes many lease records, of nodes that are not there, without a lease of etcd.
    pub fn put_leases(&self, records: &[(String, String)]) -> Result<()> {
        let (endpoints, router) = (self.endpoints(), self.router.clone());
        router.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut client = Client::connect([endpoints], None).await?;
                // etcd takes up to 128 operations at a time.
                for batch in records.chunks(128) {
                    let puts: Vec<_> = batch
                        .iter()
                        .map(|(key, value)| TxnOp::put(lease_key(key), value.as_str(), None))
                        .collect();
                    client.txn(Txn::new().and_then(puts)).await?;
                }
                Ok(())
            })
        })
    }

    /// Compacts all revisions so far: a watch that resumes from before is refused.
    pub fn compact(&self) -> Result<()> {
        let record = self.etcd.etcdctl(&["get", "-w", "fields", PREFIX])?;
        let revision: u64 = field(&record, "Revision")?;
        self.etcd
            .etcdctl(&["compact", &revision.to_string()])
            .map(drop)
    }

    pub fn delete_lease(&self, subnet_key: &str) -> Result<()> {
        self.etcd.delete(&lease_key(subnet_key))
    }

    /// Cuts all nodes off from the server, which itself runs on: their connections are refused.
    pub fn cut_off(&self) -> Result<()> {
        let rules = format!(
            "add table inet cut_off; \
             add chain inet cut_off input {{ type filter hook input priority 0; }}; \
             add rule inet cut_off input iif != lo tcp dport {PORT} reject with tcp reset"
        );
        self.router.run("nft", [rules.as_str()]).map(drop)
    }

    /// Undoes [`Store::cut_off`].
    pub fn reconnect(&self) -> Result<()> {
        self.router
            .run("nft", ["delete table inet cut_off"])
            .map(drop)
    }

    /// All lease records, in key order.
    pub fn leases(&self) -> Result<Vec<LeaseRecord>> {
        let prefix = lease_key("");
        let pairs = self.etcd.list(&prefix)?;
        Ok(pairs
            .into_iter()
            .map(|(key, value)| LeaseRecord {
                subnet_key: key.trim_start_matches(&prefix).to_owned(),
                value,
            })
            .collect())
    }

    /// Ends the etcd lease a record is attached to, and with it the record.
    pub fn revoke_lease(&self, subnet_key: &str) -> Result<()> {
        let record = self
            .etcd
            .etcdctl(&["get", "-w", "fields", &lease_key(subnet_key)])?;
        let id: i64 = field(&record, "Lease")?;
        self.etcd
            .etcdctl(&["lease", "revoke", &format!("{id:x}")])
            .map(drop)
    }

    /// Seconds a lease record has left; `None` for a record that never expires.
    pub fn lease_ttl(&self, subnet_key: &str) -> Result<Option<u64>> {
        let record = self
            .etcd
            .etcdctl(&["get", "-w", "fields", &lease_key(subnet_key)])?;
        let id: i64 = field(&record, "Lease")?;
        if id == 0 {
            return Ok(None);
        }
        let lease =
            self.etcd
                .etcdctl(&["lease", "timetolive", &format!("{id:x}"), "-w", "fields"])?;
        field(&lease, "TTL").map(Some)
    }
}

/// Address of the machine of a member that has one of its own.
pub fn member_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 201 + index)
}

fn entering(namespace: &Namespace) -> Vec<String> {
    let net = format!("--net={RUN_NETNS}/{}", namespace.name());
    vec!["nsenter".to_owned(), net]
}

fn lease_key(subnet_key: &str) -> String {
    format!("{PREFIX}/subnets/{subnet_key}")
}

/// A number out of etcdctl's `fields` format: lines of `"Name" : value`.
fn field<T: std::str::FromStr>(text: &str, name: &str) -> Result<T> {
    text.lines()
        .filter_map(|line| line.split_once(" : "))
        .find(|(key, _)| key.trim_matches('"') == name)
        .and_then(|(_, value)| value.parse().ok())
        .with_context(|| format!("no number `{name}` in what etcdctl printed:\n{text}"))
}
