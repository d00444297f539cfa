//! What a random sequence of packets and its comparison have to know of an address family.

use std::fmt::Debug;

use anyhow::Result;
use rand::rngs::StdRng;

use super::{packets::Header, sequence::Mac};
use crate::{lab::Lab, netns::Namespace, traffic::Address};

/// An address family of a sequence.
pub trait SequenceFamily: Copy + Debug + Send + Sync + 'static {
    type Address: Address + Eq + Debug;
    type Ip: Header;

    /// The pods that take part: two on each of two nodes.
    const PODS: [Self::Address; 4];
    /// Address of a service with one backend.
    const SERVICE: Self::Address;
    const ETHERTYPE: [u8; 2];
    /// MAC address of the group that packets are sent to.
    const GROUP: [u8; 6];
    /// Largest IP packet a pod can send.
    const MTU: usize;
    /// Length of a header without options.
    const LEN: usize;
    /// What a fragment's header is longer.
    const FRAGMENT_LEN: usize;
    const ICMP: u8;
    /// ICMP types of echo request and reply.
    const ECHO: [u8; 2];
    /// What nodes must be told so that nothing depends on time.
    const SYSCTLS: &[(&str, &str)];
    /// What pods hear of the family while they are deaf, and what not: rules of nft.
    const DEAF: &str;

    /// A header with random fields, from one address to another. The number is in it.
    fn header(random: &mut StdRng, number: u16, ends: [Self::Address; 2], protocol: u8)
    -> Self::Ip;

    /// The header of a fragment. `offset` is in units of 8 bytes.
    fn fragment(ip: &Self::Ip, number: u16, offset: u16, more: bool) -> Self::Ip;

    /// Adds IP options, or extension headers: at most 24 bytes.
    fn add_options(random: &mut StdRng, ip: &mut Self::Ip);

    /// Makes one thing of a packet wrong.
    fn damage(random: &mut StdRng, packet: &mut Vec<u8>);

    /// Replaces an address by one the pod does not have, or one that is no single host's; returns to
    /// which MAC address a host would send the packet.
    fn odd_addresses(random: &mut StdRng, ip: &mut Self::Ip, neighbour: Self::Address) -> Mac;

    /// Another protocol, without ports, and what the packet carries.
    fn other_protocol(random: &mut StdRng, ip: &mut Self::Ip, payload: &[u8]) -> Vec<u8>;

    /// Adds the pods and returns their namespaces.
    fn add_pods(lab: &Lab) -> Result<Vec<Namespace>>;

    /// The rules of nft that translate the service.
    fn service_rules() -> String;

    /// Whether an arriving packet is compared. One that is not has its reason in a table.
    fn is_compared(packet: &[u8]) -> bool;

    /// Erases what is not compared of a packet, for the reasons in a table.
    fn erase(packet: &mut [u8]);
}
