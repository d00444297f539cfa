//! What route the kernel has for a packet, asked as `ip route get` asks.

use std::{io, net::IpAddr};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType},
};

use super::{Netlink, NetlinkError, request::route_key};
use crate::model::{Family as _, V4, V6};

/// A packet, as far as routes are chosen by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteQuestion {
    pub destination: IpAddr,
    pub source: Option<IpAddr>,
    /// The interface it comes in by; `None` if the host itself sends it.
    pub incoming: Option<u32>,
    /// TCP, UDP or ICMP.
    pub protocol: Option<u8>,
    /// Of the source and of the destination.
    pub ports: [Option<u16>; 2],
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteAnswer {
    pub kind: RouteType,
    pub ifindex: Option<u32>,
    /// `None` where the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// An MTU that the route has of its own, be it learned or configured.
    pub mtu: Option<u32>,
}

impl Netlink {
    /// The kernel's route for a packet, or the error with which it would refuse it.
    pub async fn route_for(
        &self,
        question: &RouteQuestion,
    ) -> Result<io::Result<RouteAnswer>, NetlinkError> {
        let queries = vec![question.message()];
        let mut answers = self.transport.query("look up a route", queries).await?;
        Ok(match answers.pop() {
            Some(Ok(Some(RouteNetlinkMessage::NewRoute(message)))) => {
                Ok(RouteAnswer::decode(&message))
            }
            Some(Err(error)) => Err(error),
            _ => Err(io::ErrorKind::InvalidData.into()),
        })
    }
}

impl RouteQuestion {
    /// A packet that the host itself sends.
    pub const fn to(destination: IpAddr) -> Self {
        Self {
            destination,
            source: None,
            incoming: None,
            protocol: None,
            ports: [None; 2],
        }
    }

    fn message(&self) -> RouteNetlinkMessage {
        let mut message = match self.destination {
            IpAddr::V4(address) => route_key::<V4>(V4::host(address)),
            IpAddr::V6(address) => route_key::<V6>(V6::host(address)),
        };
        if self.destination.is_ipv4() {
            // Without it the kernel names the main table, whichever it was.
            message.header.flags |= RouteFlags::LookupTable;
        }
        if let Some(source) = self.source {
            message.header.source_prefix_length = if source.is_ipv4() { 32 } else { 128 };
            message
                .attributes
                .push(RouteAttribute::Source(source.into()));
        }
        let [source_port, destination_port] = self.ports;
        message.attributes.extend(
            [
                self.incoming.map(RouteAttribute::Iif),
                self.protocol.map(RouteAttribute::IpProto),
                source_port.map(RouteAttribute::Sport),
                destination_port.map(RouteAttribute::Dport),
            ]
            .into_iter()
            .flatten(),
        );
        RouteNetlinkMessage::GetRoute(message)
    }
}

impl RouteAnswer {
    fn decode(message: &RouteMessage) -> Self {
        let mut answer = Self {
            kind: message.header.kind,
            ifindex: None,
            gateway: None,
            mtu: None,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(ifindex) => answer.ifindex = Some(*ifindex),
                RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => {
                    answer.gateway = Some((*gateway).into());
                }
                RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => {
                    answer.gateway = Some((*gateway).into());
                }
                RouteAttribute::Metrics(metrics) => {
                    answer.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_answers_for_its_own_addresses_of_both_families() {
        let netlink = Netlink::connect().unwrap();
        for address in ["127.0.0.1", "::1"] {
            let mut question = RouteQuestion::to(address.parse().unwrap());
            question.protocol = Some(17);
            question.ports = [Some(1), Some(2)];
            // A machine may be without IPv6.
            if let Ok(answer) = netlink.route_for(&question).await.unwrap() {
                assert_eq!(answer.kind, RouteType::Local, "{address}");
                assert_eq!(answer.ifindex, Some(1), "{address}");
            } else {
                assert_eq!(address, "::1");
            }
        }
    }
}
