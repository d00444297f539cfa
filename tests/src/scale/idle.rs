//! What an agent costs to which nothing happens: by itself, while it asks its peers, and while somebody reads its
//! metrics as well.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::start::{Program, Site};
use crate::http;

const HEALTH_PORT: u16 = 2401;
/// How often Prometheus reads metrics unless it is told otherwise.
const SCRAPE: Duration = Duration::from_secs(15);

/// CPU time per second.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    pub time: Duration,
    pub alone: f64,
    /// The peers do not exist: each is asked in all ways that there are.
    pub unanswered: f64,
    /// Each peer answers, and asks as often as it is asked.
    pub probing: f64,
    /// The same while Prometheus reads the metrics.
    pub scraped: f64,
}

impl Idle {
    pub fn to_json(self) -> Value {
        json!({
            "seconds": self.time.as_secs_f64(),
            "alone": self.alone,
            "unanswered": self.unanswered,
            "probing": self.probing,
            "probing_and_scraped": self.scraped,
        })
    }
}

pub fn run(leases: u32, time: Duration) -> Result<Idle> {
    let (site, _) = Site::start(&Program::Agent, leases)?;
    let alone = load(&site, time, || Ok(()))?;
    drop(site);
    let flags = ["--peer-probe-port=8473", "--healthz-port=2401"];
    let (site, _) = Site::start_with(&Program::Agent, leases, &flags)?;
    let unanswered = load(&site, time, || Ok(()))?;
    drop(site);
    let (site, _) = Site::start_answered(leases, &flags)?;
    let before = site.answered();
    let probing = load(&site, time, || Ok(()))?;
    ensure!(site.answered() > before, "no peer was asked");
    let server = ([127, 0, 0, 1], HEALTH_PORT).into();
    let scraped = load(&site, time, || {
        http::get(&site.node().namespace, server, "/metrics").map(drop)
    })?;
    Ok(Idle {
        time,
        alone,
        unanswered,
        probing,
        scraped,
    })
}

fn load(site: &Site, time: Duration, scrape: impl Fn() -> Result<()>) -> Result<f64> {
    let before = site.cost()?;
    let rounds = time.div_duration_f64(SCRAPE).round().max(1.0);
    let mut passed = 0.0;
    while passed < rounds {
        scrape()?;
        thread::sleep(time.div_f64(rounds));
        passed += 1.0;
    }
    let cpu = site.cost()?.cpu.saturating_sub(before.cpu);
    Ok(cpu.div_duration_f64(time))
}
