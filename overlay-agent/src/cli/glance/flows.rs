//! The flows between pods that carry most, by what a look at the underlay now and then sees of them.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::IpAddr,
    time::Duration,
};

use overlay_common::{config::TUNNEL_UDP, outcome::Hook};
use serde::Serialize;

use super::{
    packet::{self, FlowId, Place},
    tap::{self, Share},
};
use crate::{names::protocol_name, view::EbpfTier};

/// How long a look takes.
const LOOK: Duration = Duration::from_millis(100);
/// Rates are of so many looks.
const LOOKS: usize = 8;
/// So many flows are told of.
const MOST: usize = 20;

/// What is told.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TopFlows {
    /// Why nothing is known; `None` (JSON `null`) if something is.
    pub reason: Option<String>,
    /// How long was looked at, in the last looks.
    pub seconds: f64,
    /// How many packets the rates are made of.
    pub packets: u32,
    /// Those that carry most first.
    pub flows: Vec<FlowRate>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FlowRate {
    pub protocol: String,
    pub local: IpAddr,
    pub local_port: u16,
    pub remote: IpAddr,
    pub remote_port: u16,
    pub from_pod_bytes_per_second: f64,
    pub to_pod_bytes_per_second: f64,
    pub packets_per_second: f64,
}

/// Where to look, and for what.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    ifindexes: Vec<u32>,
    place: Place,
}

/// The last looks.
#[derive(Debug, Default)]
pub struct Looks(VecDeque<Look>);

/// What one look has seen.
#[derive(Debug)]
pub struct Look {
    share: Share,
    flows: BTreeMap<FlowId, Amount>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Amount {
    packets: u32,
    from_pod: usize,
    to_pod: usize,
}

/// Sums over several looks.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    packets: f64,
    from_pod: f64,
    to_pod: f64,
}

impl Scene {
    pub fn of(tier: &EbpfTier) -> Self {
        let links = tier.links.iter();
        let underlay = links.filter(|link| link.alive && link.hook == Hook::Ingress);
        let ports = [
            { tier.ipv4.as_ref() }.map(|overlay| overlay.config.vxlan_port),
            { tier.ipv6.as_ref() }.map(|overlay| overlay.config.vxlan_port),
        ];
        let ports = ports.into_iter().flatten().map(u16::from_be_bytes);
        Self {
            ifindexes: underlay.map(|link| link.ifindex).collect(),
            place: Place {
                subnets: tier.subnets(),
                ports: ports.filter(|port| *port != 0).collect(),
                datagrams: { tier.ipv4.as_ref() }
                    .is_some_and(|overlay| overlay.config.tunnel == TUNNEL_UDP),
            },
        }
    }

    /// Blocks for a moment. `None` where there is nothing to look at.
    pub fn look(&self) -> io::Result<Option<Look>> {
        if self.ifindexes.is_empty() {
            return Ok(None);
        }
        let mut flows: BTreeMap<FlowId, Amount> = BTreeMap::new();
        let share = tap::watch(&self.ifindexes, LOOK, |head, len| {
            if let Some(seen) = packet::read(head, len, &self.place) {
                let amount = flows.entry(seen.flow).or_default();
                amount.packets += 1;
                if seen.from_pod {
                    amount.from_pod += seen.bytes;
                } else {
                    amount.to_pod += seen.bytes;
                }
            }
        })?;
        Ok(Some(Look { share, flows }))
    }
}

impl Looks {
    /// Takes over another one, and tells what the last ones say.
    pub fn add(&mut self, look: io::Result<Option<Look>>) -> TopFlows {
        match look {
            Ok(Some(look)) => {
                if self.0.len() >= LOOKS {
                    self.0.pop_front();
                }
                self.0.push_back(look);
                self.told()
            }
            Ok(None) => {
                self.0.clear();
                let reason = "there are no programs at the underlay, where flows are looked for";
                TopFlows {
                    reason: Some(reason.to_owned()),
                    ..TopFlows::default()
                }
            }
            Err(error) => TopFlows {
                reason: Some(format!("the underlay cannot be watched: {error}")),
                ..self.told()
            },
        }
    }

    fn told(&self) -> TopFlows {
        let time: Duration = self.0.iter().map(|look| look.share.time).sum();
        let seconds = time.as_secs_f64();
        let mut sums: BTreeMap<FlowId, Sum> = BTreeMap::new();
        for look in &self.0 {
            // What was not read was as what was.
            let weight = f64::from(look.share.passed.max(look.share.read))
                / f64::from(look.share.read.max(1));
            for (id, amount) in &look.flows {
                let sum = sums.entry(*id).or_default();
                sum.packets += f64::from(amount.packets) * weight;
                sum.from_pod += float(amount.from_pod) * weight;
                sum.to_pod += float(amount.to_pod) * weight;
            }
        }
        let mut sums: Vec<(FlowId, Sum)> = sums.into_iter().collect();
        sums.sort_by(|(_, one), (_, other)| other.bytes().total_cmp(&one.bytes()));
        let rate = |(id, sum): &(FlowId, Sum)| FlowRate {
            protocol: protocol_name(id.protocol),
            local: id.local,
            local_port: id.local_port,
            remote: id.remote,
            remote_port: id.remote_port,
            from_pod_bytes_per_second: sum.from_pod / seconds,
            to_pod_bytes_per_second: sum.to_pod / seconds,
            packets_per_second: sum.packets / seconds,
        };
        TopFlows {
            reason: None,
            seconds,
            packets: self.0.iter().map(|look| look.share.read).sum(),
            flows: sums.iter().take(MOST).map(rate).collect(),
        }
    }
}

impl Sum {
    fn bytes(&self) -> f64 {
        self.from_pod + self.to_pod
    }
}

fn float(bytes: usize) -> f64 {
    u32::try_from(bytes).map_or(f64::from(u32::MAX), f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(passed: u32, flows: &[(u16, u32, usize, usize)]) -> Look {
        let id = |local_port| FlowId {
            protocol: 6,
            local: [10, 5, 1, 2].into(),
            local_port,
            remote: [10, 5, 2, 3].into(),
            remote_port: 80,
        };
        let flow = |&(port, packets, from_pod, to_pod): &(u16, u32, usize, usize)| {
            let amount = Amount {
                packets,
                from_pod,
                to_pod,
            };
            (id(port), amount)
        };
        Look {
            share: Share {
                passed,
                time: LOOK,
                read: flows.iter().map(|(_, packets, ..)| packets).sum(),
            },
            flows: flows.iter().map(flow).collect(),
        }
    }

    #[test]
    fn rates_are_of_the_last_looks_and_of_what_was_not_read_too() {
        let mut looks = Looks::default();
        let told = looks.add(Ok(Some(look(
            40,
            &[(1, 10, 1_000, 0), (2, 10, 500, 4_500)],
        ))));
        let rates: Vec<_> = { told.flows.iter() }
            .map(|flow| {
                let bytes = [flow.from_pod_bytes_per_second, flow.to_pod_bytes_per_second];
                (flow.local_port, flow.packets_per_second, bytes)
            })
            .collect();
        let expected = [
            (2, 200.0, [10_000.0, 90_000.0]),
            (1, 200.0, [20_000.0, 0.0]),
        ];
        assert_eq!(rates, expected);
        for _ in 0..LOOKS {
            looks.add(Ok(Some(look(0, &[]))));
        }
        let told = looks.add(Ok(Some(look(1, &[(3, 1, 80, 0)]))));
        assert_eq!(told.flows.len(), 1);
        assert!((told.flows[0].packets_per_second - 1.0 / (0.1 * 8.0)).abs() < 1e-9);
    }

    #[test]
    fn where_nothing_can_be_seen_it_says_so() {
        let mut looks = Looks::default();
        looks.add(Ok(Some(look(1, &[(3, 1, 80, 0)]))));
        let told = looks.add(Err(io::Error::from(io::ErrorKind::PermissionDenied)));
        assert!(told.reason.unwrap().contains("cannot be watched"));
        assert_eq!(told.flows.len(), 1);
        let told = looks.add(Ok(None));
        assert!(told.reason.is_some() && told.flows.is_empty());
    }
}
