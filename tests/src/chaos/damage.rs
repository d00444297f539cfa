//! Damage to a node, done behind its agent's back.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result};
use aya::maps::{LpmTrie, Map, MapData};
use overlay_common::{addr::Ipv4Be, maps, route::RouteEntry};

use super::{plan::Step, world::World};
use crate::lab::{
    Node,
    underlay::{NODE_INTERFACE, router_address, router_address6},
};

impl World {
    pub fn damage(&mut self, step: &Step) -> Result<()> {
        match *step {
            Step::Flap {
                node,
                time,
                is_wire,
            } => self.flap(self.lab.node(node), time, is_wire),
            Step::Device { node, is_rename } => {
                for device in self.flavour.devices() {
                    let line = if is_rename {
                        let name = device.replace("flannel", "other");
                        format!("ip link set {device} name {name}")
                    } else {
                        format!("ip link delete {device}")
                    };
                    command(self.lab.node(node), &line)?;
                }
                Ok(())
            }
            Step::Routes { node } => {
                let node = self.lab.node(node);
                command(node, "ip route flush proto 241")?;
                if self.flavour.has_ipv6() {
                    command(node, "ip -6 route flush proto 241")?;
                }
                Ok(())
            }
            Step::Neighbours { node } => {
                for device in self.flavour.devices() {
                    let line = format!("ip neigh flush dev {device} nud permanent");
                    command(self.lab.node(node), &line)?;
                }
                Ok(())
            }
            Step::Forwarding { node } => self.delete_forwarding_entries(self.lab.node(node)),
            Step::Rules { node } => {
                let node = self.lab.node(node);
                command(node, "nft delete table ip overlay-agent")?;
                command(node, "iptables-nft -F FLANNEL-FWD")
            }
            Step::Links { node, remedy } => {
                let node = self.lab.node(node);
                for entry in fs::read_dir(node.pin_dir.join("links"))? {
                    fs::remove_file(entry?.path())?;
                }
                self.go_on(1)?;
                self.apply(remedy, node)
            }
            Step::Map { node, which } => {
                let maps = self.lab.node(node).pinned_map_ids()?;
                let (name, id) = &maps[usize::from(which) % maps.len()];
                self.retired.insert(*id);
                let node = self.lab.node(node);
                fs::remove_file(node.map_pin(name))?;
                self.restart_killed(node)
            }
            Step::Entries { node, remedy } => {
                let node = self.lab.node(node);
                let pin = node.map_pin(maps::ROUTES4);
                let data = MapData::from_pin(&pin).with_context(|| pin.display().to_string())?;
                let mut map = LpmTrie::<_, Ipv4Be, RouteEntry>::try_from(Map::LpmTrie(data))?;
                let keys: Vec<_> = map.keys().collect::<Result<_, _>>()?;
                for key in keys {
                    map.remove(&key)?;
                }
                self.go_on(1)?;
                self.apply(remedy, node)
            }
            _ => unreachable!("{step} does no damage"),
        }
    }

    fn flap(&self, node: &Node, time: u16, is_wire: bool) -> Result<()> {
        let time = Duration::from_millis(time.into());
        if is_wire {
            let hub = self.lab.underlay().hub();
            hub.run("ip", ["link", "set", &node.name, "down"])?;
            thread::sleep(time);
            return hub.run("ip", ["link", "set", &node.name, "up"]).map(drop);
        }
        command(node, &format!("ip link set {NODE_INTERFACE} down"))?;
        thread::sleep(time);
        command(node, &format!("ip link set {NODE_INTERFACE} up"))?;
        // As a network manager does: the kernel dropped them with the link.
        let router = router_address(node.segment);
        command(node, &format!("ip route replace default via {router}"))?;
        if self.flavour.has_ipv6() {
            let router = router_address6(node.segment);
            command(node, &format!("ip -6 route replace ::/0 via {router}"))?;
        }
        Ok(())
    }

    fn delete_forwarding_entries(&self, node: &Node) -> Result<()> {
        for device in self.flavour.devices() {
            let entries = node.cmd("bridge", ["fdb", "show", "dev", device])?;
            for entry in entries.lines() {
                let mut words = entry.split_whitespace();
                let mac = words.next().context("no MAC address")?;
                if let Some(remote) = words.skip_while(|word| *word != "dst").nth(1) {
                    command(
                        node,
                        &format!("bridge fdb delete {mac} dev {device} self dst {remote}"),
                    )?;
                }
            }
        }
        Ok(())
    }
}

fn command(node: &Node, line: &str) -> Result<()> {
    let mut words = line.split(' ');
    node.cmd(words.next().unwrap_or_default(), words).map(drop)
}
