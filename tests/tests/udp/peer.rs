//! A node of another make: a lease and a socket, by which pods exchange packets with it. It does what stock flannel's
//! proxy does.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use etherparse::{IpNumber, Ipv4Header, UdpHeader};
use overlay_tests::{
    lab::{Lab, Node},
    traffic::{Endpoint, udp},
    wait::wait_for,
};

use super::{CONFIG, DEADLINE, PORT, counted};

pub const SUBNET_KEY: &str = "10.5.199.0-24";
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 5, 199, 2);
/// Port of its only pod.
const POD_PORT: u16 = 4000;

/// A stock node at the address of the lab's router.
pub struct StockPeer {
    pub socket: UdpSocket,
    pub endpoint: Endpoint,
}

impl StockPeer {
    /// Joins, and waits until the node knows it.
    pub fn join(lab: &Lab, node: &Node) -> Result<Self> {
        let endpoint = lab.outside();
        let socket = bind(&endpoint, PORT)?;
        let record = format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, endpoint.address);
        lab.store().put_lease(SUBNET_KEY, &record)?;
        wait_for("the node to know the peer", DEADLINE, || {
            let subnets = node.mapped_subnets()?;
            ensure!(subnets.contains(&"10.5.199.0/24".parse()?), "{subnets:?}");
            Ok(())
        })?;
        Ok(Self { socket, endpoint })
    }
}

/// A socket at a port of the endpoint.
pub fn bind(endpoint: &Endpoint, port: u16) -> Result<UdpSocket> {
    let address = endpoint.address;
    let socket = endpoint
        .namespace
        .enter(|| UdpSocket::bind((address, port)))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket)
}

/// An IPv4 packet with a UDP datagram.
pub fn packet(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), ttl: u8, data: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(data.len() + UdpHeader::LEN)?;
    let (source, destination) = (from.0.octets(), to.0.octets());
    let mut ip = Ipv4Header::new(length, ttl, IpNumber::UDP, source, destination)?;
    ip.header_checksum = ip.calc_header_checksum();
    let udp = UdpHeader::with_ipv4_checksum(from.1, to.1, &ip, data)?;
    let mut packet = ip.to_bytes().to_vec();
    packet.extend(udp.to_bytes());
    packet.extend(data);
    Ok(packet)
}

#[test]
fn a_stock_node_is_a_peer_like_any_other() {
    overlay_tests::lab::scenario(Lab::builder().nodes(1).config(CONFIG), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        let stock = StockPeer::join(lab, node)?;
        let pod = node.pods()[0].endpoint();
        let socket = udp::bind(&pod)?;
        let SocketAddr::V4(pod_address) = socket.local_addr()? else {
            anyhow::bail!("not IPv4");
        };
        let data = b"to a stock node";
        pod.namespace
            .enter(|| socket.send_to(data, (ADDRESS, POD_PORT)))?;
        let mut datagram = [0; 2000];
        let (len, from) = stock
            .socket
            .recv_from(&mut datagram)
            .context("at the stock node")?;
        ensure!(from == SocketAddr::from((node.address, PORT)), "{from}");
        let mut expected = packet(
            (*pod_address.ip(), pod_address.port()),
            (ADDRESS, POD_PORT),
            62,
            data,
        )?;
        // The kernel gave it an identification, and DF as sockets have it.
        expected[4..8].copy_from_slice(&datagram[4..8]);
        expected[10..12].copy_from_slice(&datagram[10..12]);
        ensure!(datagram[..len] == expected, "{:02x?}", &datagram[..len]);
        ensure!(Ipv4Header::from_slice(&datagram)?.0.calc_header_checksum() != 0);

        let answer = b"from a stock node";
        let pod_end = (*pod_address.ip(), pod_address.port());
        let reply = packet((ADDRESS, POD_PORT), pod_end, 63, answer)?;
        let before = counted(node)?;
        stock.socket.send_to(&reply, (node.address, PORT))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        let (len, from) = socket.recv_from(&mut datagram).context("at the pod")?;
        ensure!(from == SocketAddr::from((ADDRESS, POD_PORT)), "{from}");
        ensure!(&datagram[..len] == answer);
        super::wait_counted(node, &before, "received", 1)?;

        // Its lease goes, and so does the way to it.
        lab.store().delete_lease(SUBNET_KEY)?;
        wait_for("the peer to be forgotten", DEADLINE, || {
            let before = counted(node)?["no_node"];
            pod.namespace
                .enter(|| socket.send_to(data, (ADDRESS, POD_PORT)))?;
            ensure!(counted(node)?["no_node"] > before);
            Ok(())
        })
    });
}
