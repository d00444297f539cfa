//! How much less things cost than with flannel's vxlan.

use anyhow::{Result, ensure};
use plotters::style::RGBColor;

use super::{
    chart::{BLUE, Bar, Chart, GRAY, GREEN, Group, Mark, ORANGE, SKY},
    measured::Measured,
};

const AGAINST: &str = "vxlan, as deployed";

/// A figure, what it is for people, and whether more of it is better.
const FIGURES: [(&str, &str, bool); 8] = [
    ("udp_cpu_ns", "CPU time of a 64 B UDP packet", false),
    (
        "udp_received_per_s",
        "time of a 64 B UDP packet, two cores",
        true,
    ),
    ("ping_p50_ns", "TCP ping-pong, median", false),
    ("ping_p99_ns", "TCP ping-pong, 99 % are shorter", false),
    ("connections_per_s", "connect, request, close", true),
    ("questions_per_s", "question by UDP", true),
    ("bulk_cpu_s_per_gb", "CPU time of bulk TCP, GSO wire", false),
    (
        "bulk_segmented_cpu_s_per_gb",
        "CPU time of bulk TCP, segmented wire",
        false,
    ),
];

const VARIANTS: [(&str, RGBColor); 5] = [
    ("overlay strict", BLUE),
    ("overlay trusted", SKY),
    ("overlay direct", GREEN),
    ("host-gw, as deployed", ORANGE),
    ("node to node", GRAY),
];

pub fn chart(measured: &Measured) -> Result<String> {
    let groups = FIGURES.iter().map(|&(figure, title, more_is_better)| {
        let bars = VARIANTS.iter().filter_map(|&(variant, colour)| {
            let ratio = measured.ratio(variant, AGAINST, figure)?;
            let cost = if more_is_better {
                ratio.inverse()
            } else {
                ratio
            };
            Some(Bar {
                name: variant.to_owned(),
                parts: vec![(cost.median, colour)],
                value: format!("{:.2}", cost.median),
                range: Some((cost.least, cost.most)),
            })
        });
        Group {
            heading: Some(title.to_owned()),
            bars: bars.collect(),
        }
    });
    let groups: Vec<Group> = groups.filter(|group| !group.bars.is_empty()).collect();
    ensure!(
        !groups.is_empty(),
        "nothing was measured that can be compared with {AGAINST}"
    );
    Chart {
        title: "What things cost, against flannel's vxlan as deployed",
        explanation: "Shorter is better. The line across a bar's end goes from the least to the most of the rounds.",
        axis: "cost, as a ratio to vxlan as deployed within one round",
        step: 0.2,
        legend: VARIANTS.to_vec(),
        groups,
        mark: Some(Mark {
            at: 1.0,
            name: AGAINST.to_owned(),
        }),
        origin: &measured.origin,
    }
    .draw()
}
