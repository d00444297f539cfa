//! What the agent itself carries, for people: nodes with the udp backend.

use serde::Serialize;

use crate::{backend::udp::Count, output::grouped, view::KernelTier};

/// A node whose packets go through the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forwarder {
    pub ifname: String,
    /// What became of packets since the agent was started; `None` (JSON `null`) if none runs.
    pub counters: Option<Vec<Count>>,
    /// Why the programs carry none of its packets; `None` (JSON `null`) if they do.
    pub alone_because: Option<String>,
}

impl Forwarder {
    /// `counted` is what the agent says. `None` for other backends.
    pub fn of(
        kernel: &KernelTier,
        counted: Option<Vec<Count>>,
        alone_because: Option<String>,
    ) -> Option<Self> {
        let tiers = [&kernel.ipv4, &kernel.ipv6].into_iter().flatten();
        let device = tiers.filter_map(|tier| tier.device.as_ref());
        let device = { device }.find(|device| device.in_agent)?;
        Some(Self {
            ifname: device.ifname.clone(),
            counters: counted,
            alone_because,
        })
    }

    /// What follows from the agent's not running.
    pub fn problem(&self) -> String {
        let rest = match self.alone_because {
            Some(_) => "",
            None => " (what is fast goes on until its permits run out)",
        };
        format!(
            "no agent is running: pods reach no other nodes, for it carries the packets of {}{rest}",
            self.ifname
        )
    }

    pub fn lines(&self) -> Vec<(String, String)> {
        let what = match &self.alone_because {
            Some(why) => format!("the agent carries all packets in user space: {why}"),
            None => "the agent carries in user space what is not fast".to_owned(),
        };
        let mut lines = vec![(self.ifname.clone(), what)];
        let Some(counters) = &self.counters else {
            return lines;
        };
        let is_drop = |count: &&Count| count.kind == "drop";
        for count in counters.iter().filter(|count| !is_drop(count)) {
            lines.push((
                count.event.clone(),
                format!("{} packets", grouped(count.packets)),
            ));
        }
        let drops = counters.iter().filter(is_drop).filter(|c| c.packets > 0);
        let drops: Vec<_> = drops
            .map(|count| format!("{} {}", count.event, grouped(count.packets)))
            .collect();
        let drops = if drops.is_empty() {
            "nothing".to_owned()
        } else {
            drops.join(", ")
        };
        lines.push(("not carried".to_owned(), drops));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Device, Tier};

    fn kernel(in_agent: bool) -> KernelTier {
        let device = Device {
            ifindex: 7,
            ifname: "flannel0".to_owned(),
            up: true,
            vtep: None,
            vtep_mac: None,
            vni: None,
            port: None,
            mtu: 1472,
            zero_checksum: true,
            in_agent,
        };
        KernelTier {
            ipv4: Some(Tier {
                device: Some(device),
                routes: Vec::new(),
            }),
            ..KernelTier::default()
        }
    }

    fn count(kind: &str, event: &str, packets: u64) -> Count {
        Count {
            kind: kind.to_owned(),
            event: event.to_owned(),
            description: String::new(),
            packets,
        }
    }

    #[test]
    fn what_was_carried_and_what_not_is_said_and_zeros_are_not() {
        assert_eq!(Forwarder::of(&kernel(false), None, None), None);
        let counters = vec![
            count("carried", "sent", 12_345),
            count("drop", "no_node", 0),
            count("drop", "in_ttl", 2),
            count("drop", "inner_source", 1),
        ];
        let why = Some("the fast path is off".to_owned());
        let lines = Forwarder::of(&kernel(true), Some(counters), why)
            .unwrap()
            .lines();
        let line = |name: &str| {
            let line = lines.iter().find(|(its, _)| its == name);
            line.map(|(_, value)| value.as_str())
        };
        assert!(
            line("flannel0")
                .unwrap()
                .contains("all packets in user space: the fast path is off")
        );
        assert_eq!(line("sent"), Some("12 345 packets"));
        assert_eq!(line("not carried"), Some("in_ttl 2, inner_source 1"));
    }

    #[test]
    fn without_an_agent_nothing_is_counted_and_it_is_said_what_that_means() {
        let forwarder = Forwarder::of(&kernel(true), None, None).unwrap();
        assert_eq!(forwarder.lines().len(), 1);
        assert!(forwarder.problem().contains("reach no other nodes"));
        assert!(forwarder.problem().contains("what is fast goes on"));
        let alone = Forwarder {
            alone_because: Some("no programs".to_owned()),
            ..forwarder
        };
        assert!(!alone.problem().contains("fast"));
    }
}
