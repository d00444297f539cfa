//! A node as tests show it.

use overlay_common::outcome::{Counter, Hook, Outcome};

use super::{Carried, FlowRate, Glance, PacketRow, Rates, TopFlows};
use crate::{
    cli::{health::Health, peers, stats},
    datapath::FastShare,
    history::{Sample, Told},
    metrics::{Event, EventKind},
};

pub fn glance() -> Glance {
    let rates = |fast_per_second, kernel_per_second, fast_percent| Rates {
        fast_per_second,
        kernel_per_second,
        fast_percent,
    };
    let share = |fast, kernel| FastShare { fast, kernel };
    let packets = [
        (Hook::Egress, Outcome::PodTunnel, 3, 0.5),
        (Hook::Egress, Outcome::NoPermit, 1_234_567, 12.25),
    ];
    Glance {
        at: 1_800_000_000.5,
        host: "node-1".to_owned(),
        version: "1.2.3",
        subnets: vec!["10.1.1.0/24".parse().unwrap()],
        health: Health::Degraded,
        problems: vec!["egress on vetha is detached: its packets take the kernel path".to_owned()],
        peers: peers::Report::of(Some(peers::sample::told())),
        carried: Some(Carried {
            from_pods: rates(9_900.0, 100.0, Some(99.0)),
            to_pods: rates(0.0, 0.0, None),
        }),
        history: Some(Told {
            interval_seconds: 10.0,
            samples: [(1_799_999_980.0, 50), (1_799_999_990.0, 95)]
                .map(|(at, fast)| Sample {
                    at,
                    from_pods: share(fast, 100 - fast),
                    to_pods: share(0, 0),
                    dropped: 1,
                })
                .to_vec(),
            events: vec![
                Event {
                    at: 1_799_999_970.0,
                    kind: EventKind::Flush,
                    why: "A route changed.".to_owned(),
                    what: String::new(),
                    times: 3,
                },
                Event {
                    at: 1_799_999_900.0,
                    kind: EventKind::Repair,
                    why: "No lease asked for it: somebody else had changed them.".to_owned(),
                    what: "IPv4 routes: 1 added, 0 removed".to_owned(),
                    times: 1,
                },
            ],
        }),
        flows: TopFlows {
            reason: None,
            seconds: 0.5,
            packets: 1_200,
            flows: vec![FlowRate {
                protocol: "tcp".to_owned(),
                local: [10, 1, 1, 5].into(),
                local_port: 40_000,
                remote: [10, 1, 2, 9].into(),
                remote_port: 80,
                from_pod_bytes_per_second: 1_250_000.0,
                to_pod_bytes_per_second: 62_500_000.0,
                packets_per_second: 43_000.0,
            }],
        },
        packets: packets
            .map(|(hook, outcome, packets, per_second)| PacketRow {
                counter: stats::Row::of(
                    hook,
                    outcome,
                    Counter {
                        packets,
                        bytes: packets * 100,
                    },
                ),
                per_second: Some(per_second),
            })
            .to_vec(),
    }
}
