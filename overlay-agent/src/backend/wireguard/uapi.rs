//! What only the kernel's WireGuard itself is asked and told, by generic netlink. The messages hold keys, so
//! they are handed to the kernel by a plain socket, which logs nothing.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    num::NonZero,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnetwork::IpNetwork;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkMessage,
    ParseableParametrized as _,
};
use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr as Allowed,
    WireguardAttribute as Attribute, WireguardCmd, WireguardMessage, WireguardPeer,
    WireguardPeerAttribute as PeerAttribute, WireguardPeerFlags,
};
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_GENERIC,
};
use tokio::time::timeout;

use super::{
    key::{PublicKey, Secret},
    options::WireGuard,
    peers::{Change, Known},
};
use crate::netlink::messages;

/// The kernel answers while it is asked; other changes of interfaces can hold it up.
const PATIENCE: Duration = Duration::from_secs(20);
const DATAGRAM_BYTES: usize = 64 << 10;
/// Peers in one message, which has to fit a datagram.
const BATCH: usize = 64;
/// After this long without a handshake the keys of a session are void (`REJECT_AFTER_TIME`).
const SESSION: Duration = Duration::from_mins(3);

/// `struct genlmsghdr`.
const HEADER: usize = 4;

/// A device as it is.
#[derive(Debug, Default)]
pub struct Device {
    pub public_key: Option<PublicKey>,
    pub port: u16,
    pub peers: BTreeMap<PublicKey, Known>,
}

/// The kernel's WireGuard, in the network namespace of the thread that opened it.
pub struct Uapi {
    socket: TokioSocket,
    family: u16,
}

impl Uapi {
    pub async fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_GENERIC)?;
        socket.socket_mut().bind_auto()?;
        let mut uapi = Self { socket, family: 0 };
        let name = WireguardMessage::family_name().to_owned();
        let query = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(name)],
        });
        for answer in uapi.exchange::<GenlCtrl>(query, NLM_F_ACK).await? {
            for attribute in answer.nlas {
                if let GenlCtrlAttrs::FamilyId(id) = attribute {
                    uapi.family = id;
                }
            }
        }
        Ok(uapi)
    }

    /// What the device is like.
    pub async fn device(&mut self, name: &str) -> io::Result<Device> {
        let query = WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes: vec![Attribute::IfName(name.to_owned())],
        };
        let mut device = Device::default();
        let query = GenlMessage::from_payload(query);
        for answer in self.exchange::<WireguardMessage>(query, NLM_F_DUMP).await? {
            device.take(answer.attributes);
        }
        Ok(device)
    }

    pub async fn set_key(&mut self, name: &str, key: &Secret) -> io::Result<()> {
        self.set(name, Attribute::PrivateKey(key.bytes())).await
    }

    pub async fn set_port(&mut self, name: &str, port: u16) -> io::Result<()> {
        self.set(name, Attribute::ListenPort(port)).await
    }

    /// Makes changes, in their order.
    pub async fn apply(
        &mut self,
        name: &str,
        options: &WireGuard,
        changes: &[Change],
    ) -> io::Result<()> {
        for batch in changes.chunks(BATCH) {
            let peers = batch.iter().map(|change| encode(options, change)).collect();
            self.set(name, Attribute::Peers(peers)).await?;
        }
        Ok(())
    }

    async fn set(&mut self, name: &str, attribute: Attribute) -> io::Result<()> {
        let message = WireguardMessage {
            cmd: WireguardCmd::SetDevice,
            attributes: vec![Attribute::IfName(name.to_owned()), attribute],
        };
        let message = GenlMessage::from_payload(message);
        self.exchange::<WireguardMessage>(message, NLM_F_ACK)
            .await?;
        Ok(())
    }

    /// Sends a request and reads to the end of the answer.
    async fn exchange<T: Payload>(
        &mut self,
        request: GenlMessage<T>,
        flags: u16,
    ) -> io::Result<Vec<T>> {
        let bytes = T::request(request, self.family, flags);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0)).await?;
        let (mut answers, mut datagram) = (Vec::new(), Vec::with_capacity(DATAGRAM_BYTES));
        loop {
            datagram.clear();
            let received = timeout(PATIENCE, self.socket.recv(&mut datagram)).await;
            received.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            if read(&datagram, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// A payload of generic netlink, both ways.
trait Payload: Sized {
    fn request(message: GenlMessage<Self>, family: u16, flags: u16) -> Vec<u8>;
    fn read(payload: &[u8], header: GenlHeader) -> io::Result<Self>;
}

macro_rules! payload {
    ($kind:ty) => {
        impl Payload for $kind {
            fn request(mut message: GenlMessage<Self>, family: u16, flags: u16) -> Vec<u8> {
                message.set_resolved_family_id(family);
                let mut message = NetlinkMessage::from(message);
                message.header.flags = NLM_F_REQUEST | flags;
                message.finalize();
                let mut bytes = vec![0; message.buffer_len()];
                message.serialize(&mut bytes);
                bytes
            }

            fn read(payload: &[u8], header: GenlHeader) -> io::Result<Self> {
                Self::parse_with_param(payload, header).map_err(io::Error::other)
            }
        }
    };
}

payload!(GenlCtrl);
payload!(WireguardMessage);

/// Takes over the answers of one datagram. Returns whether it was the last.
fn read<T: Payload>(datagram: &[u8], answers: &mut Vec<T>) -> io::Result<bool> {
    for message in messages(datagram) {
        let payload = message.payload();
        match message.message_type() {
            NLMSG_DONE | NLMSG_ERROR => {
                let code = payload.first_chunk().copied().map_or(0, i32::from_ne_bytes);
                return match code {
                    0 => Ok(true),
                    code => Err(io::Error::from_raw_os_error(code.saturating_abs())),
                };
            }
            _ => {
                if let ([cmd, version, ..], Some(attributes)) = (payload, payload.get(HEADER..)) {
                    let header = GenlHeader {
                        cmd: *cmd,
                        version: *version,
                    };
                    answers.push(T::read(attributes, header)?);
                }
            }
        }
    }
    Ok(false)
}

impl Device {
    /// Takes over a part of the answer: one peer may be in two of them.
    fn take(&mut self, attributes: Vec<Attribute>) {
        for attribute in attributes {
            match attribute {
                Attribute::PublicKey(key) => self.public_key = Some(PublicKey(key)),
                Attribute::ListenPort(port) => self.port = port,
                Attribute::Peers(peers) => {
                    for peer in peers {
                        self.take_peer(peer);
                    }
                }
                _ => {}
            }
        }
    }

    fn take_peer(&mut self, WireguardPeer(attributes): WireguardPeer) {
        let key = attributes.iter().find_map(|attribute| match attribute {
            PeerAttribute::PublicKey(key) => Some(PublicKey(*key)),
            _ => None,
        });
        let Some(key) = key else {
            return;
        };
        let peer = self.peers.entry(key).or_default();
        for attribute in attributes {
            match attribute {
                PeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(endpoint),
                PeerAttribute::PersistentKeepalive(time) => peer.keepalive = NonZero::new(time),
                PeerAttribute::PresharedKey(key) if key != [0; 32] => {
                    peer.psk = Some(Secret::new(key));
                }
                PeerAttribute::LastHandshake(time) => {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH);
                    let then = Duration::from_secs(u64::try_from(time.seconds).unwrap_or(0));
                    peer.alive = now.is_ok_and(|now| now.saturating_sub(then) < SESSION);
                }
                PeerAttribute::AllowedIps(networks) => {
                    peer.allowed.extend(networks.iter().filter_map(network));
                }
                _ => {}
            }
        }
    }
}

fn network(WireguardAllowedIp(attributes): &WireguardAllowedIp) -> Option<IpNetwork> {
    let (mut address, mut length) = (None, None);
    for attribute in attributes {
        match attribute {
            Allowed::IpAddr(ip) => address = Some(*ip),
            Allowed::Cidr(bits) => length = Some(*bits),
            _ => {}
        }
    }
    IpNetwork::new(address?, length?).ok()
}

fn encode(options: &WireGuard, change: &Change) -> WireguardPeer {
    match change {
        Change::Remove(key) => WireguardPeer(vec![
            PeerAttribute::PublicKey(key.0),
            PeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
        ]),
        Change::Set {
            key,
            endpoint,
            allowed,
        } => {
            let mut attributes = vec![PeerAttribute::PublicKey(key.0)];
            attributes.extend(endpoint.map(PeerAttribute::Endpoint));
            if let Some(allowed) = allowed {
                let psk = options.psk.as_ref().map_or([0; 32], Secret::bytes);
                let keepalive = options.keepalive.map_or(0, NonZero::get);
                attributes.extend([
                    PeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
                    PeerAttribute::PresharedKey(psk),
                    PeerAttribute::PersistentKeepalive(keepalive),
                    PeerAttribute::AllowedIps(allowed.iter().map(allow).collect()),
                ]);
            }
            WireguardPeer(attributes)
        }
    }
}

fn allow(network: &IpNetwork) -> WireguardAllowedIp {
    let family = match network.ip() {
        IpAddr::V4(_) => WireguardAddressFamily::Ipv4,
        IpAddr::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        Allowed::Family(family),
        Allowed::IpAddr(network.ip()),
        Allowed::Cidr(network.prefix()),
    ])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::backend::Kind as _;

    const KEY: PublicKey = PublicKey([2; 32]);

    fn answer(attributes: Vec<Attribute>) -> Vec<u8> {
        let message = WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes,
        };
        WireguardMessage::request(GenlMessage::from_payload(message), 30, 0)
    }

    fn options() -> WireGuard {
        let psk = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let text = format!(r#"{{"PSK":"{psk}","PersistentKeepaliveInterval":25}}"#);
        WireGuard::parse(&text, false).unwrap().0
    }

    #[test]
    fn what_the_device_is_told_of_a_peer_is_read_back_and_a_peer_may_be_in_two_parts() {
        let options = options();
        let network = |text: &str| text.parse::<IpNetwork>().unwrap();
        let part = |subnet| {
            let change = Change::Set {
                key: KEY,
                endpoint: Some("192.0.2.2:51820".parse().unwrap()),
                allowed: Some(BTreeSet::from([network(subnet)])),
            };
            answer(vec![
                Attribute::PublicKey([9; 32]),
                Attribute::ListenPort(51820),
                Attribute::Peers(vec![encode(&options, &change)]),
            ])
        };
        let datagram = [part("10.5.2.0/24"), part("fd00:2::/64")].concat();
        let mut answers: Vec<WireguardMessage> = Vec::new();
        assert!(!read(&datagram, &mut answers).unwrap());
        let mut device = Device::default();
        for answer in answers {
            device.take(answer.attributes);
        }
        assert_eq!(device.public_key, Some(PublicKey([9; 32])));
        assert_eq!(device.port, 51820);
        let expected = Known {
            endpoint: Some("192.0.2.2:51820".parse().unwrap()),
            psk: options.psk.clone(),
            keepalive: options.keepalive,
            allowed: BTreeSet::from([network("10.5.2.0/24"), network("fd00:2::/64")]),
            alive: false,
        };
        assert_eq!(device.peers, BTreeMap::from([(KEY, expected)]));
    }

    #[test]
    fn an_answer_ends_with_its_mark_or_the_kernels_reason() {
        let ending = |kind: u16, code: i32| {
            let mut bytes = 20_u32.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(code.to_ne_bytes());
            read::<WireguardMessage>(&bytes, &mut Vec::new())
        };
        assert!(ending(NLMSG_DONE, 0).unwrap() && ending(NLMSG_ERROR, 0).unwrap());
        let error = ending(NLMSG_ERROR, -libc::ENODEV).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
