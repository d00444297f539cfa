//! Where the time of a packet goes.

use anyhow::{Context as _, Result};

use super::{
    chart::{BLUE, Bar, Chart, GRAY, Group, Mark, ORANGE, number},
    measured::Measured,
};

const FIGURE: &str = "udp_cpu_ns";
const COMMON: &str = "node to node";
const FLOOR: &str = "floor";
/// Its programs return at once: what is measured of them is what measuring costs.
const IDLE: &str = "overlay off";
/// Those of which the programs are measured as well, and those without.
const VARIANTS: [&str; 10] = [
    COMMON,
    FLOOR,
    "overlay direct",
    "overlay strict",
    "overlay trusted",
    "overlay strict, 1000 nodes",
    "host-gw, no rules",
    "host-gw, as deployed",
    "vxlan, no rules",
    "vxlan, as deployed",
];

pub fn chart(measured: &Measured) -> Result<String> {
    let median = |variant| Some(measured.figure(variant, FIGURE)?.median);
    let common = median(COMMON).with_context(|| format!("{COMMON} was not measured"))?;
    let bars = VARIANTS.iter().filter_map(|&variant| {
        let whole = measured.figure(variant, FIGURE)?;
        let programs = programs(measured, variant).unwrap_or_default();
        let rest = whole.median - common - programs;
        Some(Bar {
            name: variant.to_owned(),
            parts: vec![
                (common.min(whole.median), GRAY),
                (programs, BLUE),
                (rest.max(0.0), ORANGE),
            ],
            value: number(whole.median, 0),
            range: None,
        })
    });
    Chart {
        title: "What a 64 B UDP packet costs, and where",
        explanation: "CPU time of one core from one system call to the other, median of the rounds. Shorter is better.",
        axis: "ns per packet",
        step: 1_000.0,
        legend: vec![
            ("node to node: sockets, IP, wire", GRAY),
            ("the programs at egress and ingress", BLUE),
            ("the rest of the kernel, for the pods", ORANGE),
        ],
        groups: vec![Group {
            heading: None,
            bars: bars.collect(),
        }],
        mark: median(FLOOR).map(|at| Mark {
            at,
            name: "floor: no fast path can cost less".to_owned(),
        }),
        origin: &measured.origin,
    }
    .draw()
}

/// Of both programs, without what measuring them costs; `None` of variants without.
fn programs(measured: &Measured, variant: &str) -> Option<f64> {
    let both = |variant: &str| {
        let time = |figure| Some(measured.figure(variant, figure)?.median);
        Some(time("egress_program_ns")? + time("ingress_program_ns")?)
    };
    Some((both(variant)? - both(IDLE)?).max(0.0))
}
