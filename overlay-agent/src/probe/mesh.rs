//! How all nodes reach each other: every agent is asked how its own peers are.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnetwork::IpNetwork;
use serde::Serialize;
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep, timeout_at},
};

use super::{
    checksum,
    own::{LARGEST, Own},
    packet::{Kind, LEN, Packet},
    survey::Report,
    told::Told,
    verdict::Verdict,
};

/// Bytes of the questions of each round. The first is as large as pods' packets and leaves most room for the
/// answer; the second passes where those do not.
const SIZES: [Option<usize>; 2] = [None, Some(512)];
/// For the answers of a round, after the last question.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(2);

/// Who reaches whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mesh {
    /// This node and its peers.
    pub nodes: Vec<MeshNode>,
    /// How many ways from node to node the nodes that answered know of.
    pub ways: u32,
    /// How many of them are in trouble.
    pub in_trouble: u32,
    /// Those, as far as they fit into the answers.
    pub troubles: Vec<Pair>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MeshNode {
    pub subnet: IpNetwork,
    pub public_ip: IpAddr,
    /// Whether its agent told how its peers are.
    pub answered: bool,
}

/// A way that is in trouble.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    pub from: IpNetwork,
    pub to: IpNetwork,
    pub state: Verdict,
}

/// Asks all peers that the agent of this node knows.
pub async fn survey(told: &Told) -> io::Result<Mesh> {
    let mut mesh = Mesh::default();
    for own in &told.own {
        let is_ipv4 = own.address.is_ipv4();
        let peers = told
            .peers
            .iter()
            .filter(|peer| peer.address.is_ipv4() == is_ipv4);
        let known = peers.clone().map(|peer| {
            let verdict = Verdict::of_name(&peer.state).unwrap_or(Verdict::Unknown);
            (peer.subnet, verdict)
        });
        mesh.add(own.subnet, own.public_ip, Some(&Report::of(known)));
        let addresses: Vec<IpAddr> = peers.clone().map(|peer| peer.address).collect();
        let reports = ask_all(own, told.port, &addresses).await?;
        for peer in peers {
            mesh.add(peer.subnet, peer.public_ip, reports.get(&peer.address));
        }
    }
    Ok(mesh)
}

/// The answers, by the addresses they came from.
async fn ask_all(
    own: &Own,
    port: u16,
    addresses: &[IpAddr],
) -> io::Result<BTreeMap<IpAddr, Report>> {
    let socket = UdpSocket::bind(SocketAddr::new(own.address, 0)).await?;
    checksum::accept_none(&socket)?;
    let cookie = rand::random();
    let mut reports = BTreeMap::new();
    let mut buffer = vec![0; LARGEST];
    for (round, size) in (0..).zip(SIZES) {
        let question = Packet {
            kind: Kind::Survey,
            is_plain: false,
            number: round,
            cookie,
            node: own.identity(),
        };
        let bytes = question.encode(size.unwrap_or_else(|| own.room()).min(own.room()));
        for to in addresses {
            if reports.contains_key(to) {
                continue;
            }
            // A question that cannot be sent is one without an answer.
            let _ = socket.send_to(&bytes, SocketAddr::new(*to, port)).await;
            sleep(PAUSE).await;
        }
        let until = Instant::now() + PATIENCE;
        while reports.len() < addresses.len() {
            let Ok(received) = timeout_at(until, socket.recv_from(&mut buffer)).await else {
                break;
            };
            // What comes back by ICMP is the error of some earlier question.
            let Ok((len, from)) = received else {
                continue;
            };
            let answer = buffer.get(..len).unwrap_or_default();
            let Some(packet) = Packet::decode(answer) else {
                continue;
            };
            if packet.kind == Kind::Report
                && packet.cookie == cookie
                && addresses.contains(&from.ip())
                && let Some(report) = answer.get(LEN..).and_then(Report::decode)
            {
                reports.insert(from.ip(), report);
            }
        }
    }
    Ok(reports)
}

impl Mesh {
    fn add(&mut self, subnet: IpNetwork, public_ip: IpAddr, report: Option<&Report>) {
        self.nodes.push(MeshNode {
            subnet,
            public_ip,
            answered: report.is_some(),
        });
        let Some(report) = report else {
            return;
        };
        self.ways += u32::from(report.peers);
        self.in_trouble += u32::from(report.in_trouble);
        self.troubles
            .extend(report.troubles.iter().map(|(to, verdict)| Pair {
                from: subnet,
                to: *to,
                state: *verdict,
            }));
    }

    /// Nodes whose agents said nothing.
    pub fn silent(&self) -> impl Iterator<Item = &MeshNode> {
        self.nodes.iter().filter(|node| !node.answered)
    }

    /// The public IP of the node with this subnet.
    pub fn address_of(&self, subnet: IpNetwork) -> Option<IpAddr> {
        let mut nodes = self.nodes.iter();
        Some(nodes.find(|node| node.subnet == subnet)?.public_ip)
    }
}
