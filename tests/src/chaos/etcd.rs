//! What happens to etcd, and in it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{
    plan::{Flavour, Junk, Trouble},
    world::World,
};
use crate::{lab::store::PREFIX, wait::wait_for};

const PATIENCE: Duration = Duration::from_secs(30);
/// Datagrams that the flows send while something is as it should not be: half a second.
const WHILE: u32 = 100;

impl World {
    pub fn begin_trouble(&mut self, trouble: Trouble) -> Result<()> {
        match trouble {
            Trouble::Stopped => self.lab.store_mut().server().stop(0),
            Trouble::Killed => self.lab.store_mut().server().kill(0),
            Trouble::Frozen => self.lab.store_mut().server().freeze(0),
            Trouble::CutOff => self.lab.store().cut_off(),
            Trouble::Parted(node) => self.part(node, "add"),
            Trouble::LostData => {
                let server = self.lab.store_mut().server();
                server.stop(0)?;
                server.wipe(0)
            }
        }
    }

    pub fn end_trouble(&mut self, trouble: Trouble) -> Result<()> {
        match trouble {
            Trouble::Stopped | Trouble::Killed => self.lab.store_mut().server().restart(0),
            Trouble::Frozen => self.lab.store_mut().server().thaw(0),
            Trouble::CutOff => self.lab.store().reconnect(),
            Trouble::Parted(node) => self.part(node, "delete"),
            Trouble::LostData => {
                self.lab.store_mut().server().restart(0)?;
                self.lab.store().set_config(self.flavour.config())
            }
        }
    }

    /// What the router has for the node alone goes nowhere: what etcd sends it.
    fn part(&self, node: usize, verb: &str) -> Result<()> {
        let rules = match verb {
            "add" => format!(
                "add table ip parted; \
                 add chain ip parted output {{ type filter hook output priority 0; }}; \
                 add rule ip parted output ip daddr {} drop",
                self.lab.node(node).address
            ),
            _ => "delete table ip parted".to_owned(),
        };
        let router = self.lab.underlay().router();
        router.run("nft", [rules.as_str()]).map(drop)
    }

    /// Who sees nothing of it is told, when it asks for what has happened since, that nobody knows.
    pub fn compact(&mut self) -> Result<()> {
        let key = format!("{PREFIX}/subnets/nowhere");
        let server = self.lab.store_mut().server();
        server.put(&key, "{}")?;
        server.delete(&key)?;
        self.lab.store().compact()
    }

    pub fn lose_lease(&self, node: usize) -> Result<()> {
        let address = format!("\"{}\"", self.lab.node(node).address);
        let mut leases = self.lab.store().leases()?.into_iter();
        let own = leases.find(|lease| lease.value.contains(&address));
        let own = own.context("the node has no lease")?;
        self.lab.store().delete_lease(&own.subnet_key)
    }

    pub fn put_junk(&mut self, junk: Junk) -> Result<()> {
        let ghost = self.ghost(200).1;
        let (key, value) = match junk {
            Junk::NoJson => ("10.5.200.0-24", "{\"PublicIP\":".to_owned()),
            Junk::NoSubnet => ("nowhere", ghost),
            Junk::OtherBackend => (
                "10.5.200.0-24",
                ghost.replace("vxlan", "udp").replace("host-gw", "udp"),
            ),
            Junk::StolenAddress => {
                let address = self.lab.node(0).address.to_string();
                ("10.5.200.0-24", ghost.replace("172.30.0.200", &address))
            }
            Junk::Huge => (
                "10.5.200.0-24",
                format!("{{\"PublicIP\":\"{}\"}}", "9".repeat(100_000)),
            ),
        };
        let key = format!("{PREFIX}/subnets/{key}");
        self.lab.store_mut().server().put(&key, &value)?;
        self.go_on(WHILE)?;
        self.lab.store_mut().server().delete(&key)
    }

    pub fn peers_come_and_go(&mut self, count: u8) -> Result<()> {
        let ghosts: Vec<_> = (0..count).map(|number| self.ghost(150 + number)).collect();
        self.lab.store().put_leases(&ghosts)?;
        wait_for("all nodes to know the new peers", PATIENCE, || {
            for node in self.lab.nodes() {
                let known = node.mapped_subnets()?.len();
                ensure!(known >= ghosts.len(), "{} knows {known}", node.name);
            }
            Ok(())
        })?;
        for (key, _) in &ghosts {
            self.lab.store().delete_lease(key)?;
        }
        Ok(())
    }

    /// Key and value of the lease of a node that is not there.
    fn ghost(&self, number: u8) -> (String, String) {
        let key = format!("10.5.{number}.0-24");
        let address = format!("\"PublicIP\":\"172.30.0.{number}\"");
        let data = format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:01:{number:02x}\"}}");
        match self.flavour {
            Flavour::HostGw => (
                key,
                format!("{{{address},\"PublicIPv6\":null,\"BackendType\":\"host-gw\"}}"),
            ),
            Flavour::Vxlan | Flavour::DirectRouting => (
                key,
                format!(
                    "{{{address},\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\"BackendData\":{data}}}"
                ),
            ),
            Flavour::DualStack => (
                format!("{key}&fd00:10:5:f0{number:02x}::-64"),
                format!(
                    "{{{address},\"PublicIPv6\":\"fd00:172:30::{number:x}\",\"BackendType\":\"vxlan\",\
                     \"BackendData\":{data},\"BackendV6Data\":{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:06:{number:02x}\"}}}}"
                ),
            ),
        }
    }
}
