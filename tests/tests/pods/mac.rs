//! What pods can do with the source addresses of their frames: the fast path takes none that the bridge
//! drops, and a pod that floods its veth with them does not push out the addresses of others.

use std::{collections::BTreeMap, net::UdpSocket, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use overlay_common::{
    addr::MacAddr,
    maps::{LEARN_BUDGET, MAX_PODS, PODS},
    node::{PodKey, PodPort},
    outcome::{Hook, Outcome},
};
use overlay_tests::{
    differ::{
        packets::{self, DONT_FRAGMENT, Header as _, Ip, UDP},
        raw::{POD_INTERFACE, RawPort, mac_of},
    },
    lab::{Lab, Node, Pod, pod::BRIDGE, scenario},
    wait::wait_for,
};

const DEADLINE: Duration = Duration::from_secs(15);
const PORT: u16 = 7_000;
/// Frames of each kind.
const COUNT: usize = 50;

/// Frames of one flow from a pod to one on another node.
struct Forge {
    port: RawPort,
    gateway: MacAddr,
    ip: Ip,
}

impl Forge {
    fn new(node: &Node, from: &Pod, to: &Pod) -> Result<Self> {
        Ok(Self {
            port: RawPort::open(from)?,
            gateway: node.mac(BRIDGE)?,
            ip: Ip {
                source: from.address,
                destination: to.address,
                protocol: UDP,
                ttl: 64,
                tos: 0,
                id: 0,
                fragment: DONT_FRAGMENT,
                options: Vec::new(),
            },
        })
    }

    fn send(&self, source: MacAddr, payload: &[u8]) -> Result<()> {
        let datagram = packets::udp(&self.ip, [PORT, PORT], payload);
        let packet = self.ip.packet(&datagram);
        let addresses = [self.gateway.octets, source.octets].concat();
        self.port.send(&[&addresses, &[8, 0][..], &packet].concat())
    }
}

/// How many datagrams of each payload arrive until the last one does.
fn arrivals(socket: &UdpSocket) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    let mut buffer = [0; 64];
    loop {
        let len = socket.recv(&mut buffer).context("the last datagram")?;
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        if text == "last" {
            return Ok(counts);
        }
        *counts.entry(text).or_default() += 1;
    }
}

fn only_what_the_bridge_takes_arrives(arguments: &[&str], is_fast: bool) {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agents(arguments)?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.wait_attached()?;
        lab.ping_matrix()?;
        let (node, pods) = (lab.node(0), lab.pods());
        let (from, to) = (&pods[0].1, &pods[1].1);
        let socket = to.namespace.enter(|| UdpSocket::bind((to.address, PORT)))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        let forge = Forge::new(node, from, to)?;
        let own = forge.port.mac;
        if is_fast {
            wait_for("the flow to be fast", DEADLINE, || {
                let before = node.counters()?;
                forge.send(own, b"early")?;
                let fast = node.counters()?.since(&before).fast(Hook::Egress);
                ensure!(fast == 1, "{fast} fast packets");
                Ok(())
            })?;
        }
        let mut group = own;
        group.octets[0] |= 1;
        let kinds = [
            ("own", own),
            ("from a group", group),
            ("from all", MacAddr::new([0xff; 6])),
            ("from nobody", MacAddr::ZERO),
        ];
        let before = node.counters()?;
        for _ in 0..COUNT {
            for (payload, source) in kinds {
                forge.send(source, payload.as_bytes())?;
            }
        }
        forge.send(own, b"last")?;
        let mut arrived = arrivals(&socket)?;
        arrived.remove("early");
        ensure!(arrived == [("own".to_owned(), COUNT)].into(), "{arrived:?}");
        let counted = node.counters()?.since(&before);
        let declined = counted.packets(Hook::Egress, Outcome::NotGateway);
        let expected = if is_fast { 3 * COUNT as u64 } else { 0 };
        ensure!(declined == expected, "{declined} declined:\n{counted}");
        Ok(())
    });
}

#[test]
fn frames_from_addresses_that_no_station_has_are_not_fast() {
    only_what_the_bridge_takes_arrives(&[], true);
}

#[test]
fn frames_from_addresses_that_no_station_has_do_not_arrive_without_the_fast_path_either() {
    only_what_the_bridge_takes_arrives(&["--fastpath=off"], false);
}

/// Where the programs have seen pods' addresses.
fn learned(node: &Node) -> Result<HashMap<MapData, PodKey, PodPort>> {
    let data = MapData::from_pin(node.map_pin(PODS))?;
    Ok(HashMap::try_from(Map::LruHashMap(data))?)
}

#[test]
fn a_pod_that_floods_its_veth_with_addresses_does_not_push_out_those_of_others() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(2)?;
        lab.ping_matrix()?;
        let (node, pods) = (lab.node(0), lab.pods());
        let (flooding, quiet, far) = (&pods[0].1, &pods[1].1, &pods[2].1);
        let mut forge = Forge::new(node, flooding, far)?;
        // A flow that became fast would not be looked at.
        forge.ip.destination = node.subnet_env()?.gateway.ip();
        let flood = u32::try_from(2 * MAX_PODS)?;
        let before = node.counters()?;
        for number in 0..flood {
            let [a, b, c, d] = number.to_be_bytes();
            forge.send(MacAddr::new([0x0a, 0x0a, a, b, c, d]), b"flood")?;
        }
        wait_for("the flood to be seen", DEADLINE, || {
            let counted = node.counters()?.since(&before);
            let seen = counted.packets(Hook::Egress, Outcome::NotOverlay);
            ensure!(seen >= u64::from(flood), "{seen} of {flood}:\n{counted}");
            Ok(())
        })?;

        let learned = learned(node)?;
        for pod in [flooding, quiet] {
            let key = PodKey {
                mac: mac_of(&pod.namespace, POD_INTERFACE)?,
                ..PodKey::default()
            };
            let port = learned.get(&key, 0);
            let port = port.with_context(|| format!("the address of pod {}", pod.name))?;
            let ifindex = node.namespace.ifindex(&pod.host_interface)?;
            ensure!(port.ifindex == ifindex, "{port:?}, not {ifindex}");
        }
        // The flood may take longer than a period.
        let forged = learned.keys().filter(|key| {
            key.as_ref()
                .is_ok_and(|key| key.mac.octets[..2] == [0x0a, 0x0a])
        });
        let forged = forged.count() as u64;
        ensure!(
            (LEARN_BUDGET / 2..=4 * LEARN_BUDGET).contains(&forged),
            "{forged} forged addresses were learned"
        );
        lab.ping_matrix()
    });
}
