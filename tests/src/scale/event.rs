//! One lease, and a storm of them: from the write in etcd to the route.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};

use super::{cluster::Ghost, start::Site, watcher::Watcher};

const DEADLINE: Duration = Duration::from_secs(30);
/// Between two events, so that each comes for itself.
const APART: Duration = Duration::from_millis(60);
/// What the agent logs for each batch that changes the kernel tier.
const BATCH: &str = "kernel tier reconciled";

/// How long single events took.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// From the request to the route, sorted.
    pub whole: Vec<Duration>,
    /// From the request to etcd's answer, sorted.
    pub answer: Vec<Duration>,
    /// From the request until a bare watcher is told, sorted.
    pub told: Vec<Duration>,
    /// From then until the route, sorted: what is not etcd's.
    pub own: Vec<Duration>,
}

/// Leases that are written at once.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    pub leases: u32,
    /// From the first request to etcd's last answer.
    pub written: Duration,
    /// From the first request to the last route.
    pub routed: Duration,
    /// `None` for a program that does not tell.
    pub batches: Option<usize>,
    pub cpu: Duration,
}

impl Events {
    pub fn to_json(&self) -> Value {
        json!({
            "count": self.whole.len(),
            "to_route_us": quantiles(&self.whole),
            "to_answer_us": quantiles(&self.answer),
            "to_watcher_us": quantiles(&self.told),
            "from_watcher_to_route_us": quantiles(&self.own),
        })
    }
}

impl Storm {
    pub fn to_json(self) -> Value {
        json!({
            "leases": self.leases,
            "written_ms": self.written.as_secs_f64() * 1e3,
            "routed_ms": self.routed.as_secs_f64() * 1e3,
            "batches": self.batches,
            "cpu_ms": self.cpu.as_secs_f64() * 1e3,
        })
    }
}

fn quantiles(sorted: &[Duration]) -> Value {
    let at = |per_mille| quantile(sorted, per_mille).map(|time| time.as_secs_f64() * 1e6);
    json!({ "p50": at(500), "p99": at(990), "most": at(1000) })
}

/// The smallest value that so many of a thousand do not exceed.
pub fn quantile(sorted: &[Duration], per_mille: usize) -> Option<Duration> {
    let rank = (sorted.len() * per_mille).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Writes `count` leases, one after the other, and takes them away again.
pub fn singly(site: &Site, count: u32) -> Result<Events> {
    let watcher = Watcher::start(site.node(), site.lab.store())?;
    let mut events = Events::default();
    let ghosts: Vec<_> = (site.size..site.size + count).map(Ghost::new).collect();
    for &ghost in &ghosts {
        thread::sleep(APART);
        let (sent, answered) = site.writer.put(ghost)?;
        let routed = site.routes.wait_route(ghost.subnet(), DEADLINE)?;
        let told = watcher.wait(ghost, DEADLINE)?;
        events.whole.push(routed.saturating_duration_since(sent));
        events.answer.push(answered.saturating_duration_since(sent));
        events.told.push(told.saturating_duration_since(sent));
        events.own.push(routed.saturating_duration_since(told));
    }
    let Events {
        whole,
        answer,
        told,
        own,
    } = &mut events;
    for times in [whole, answer, told, own] {
        times.sort_unstable();
    }
    take_away(site, ghosts)?;
    Ok(events)
}

/// Writes `leases` leases as fast as etcd takes them, and takes them away again.
pub fn storm(site: &Site, leases: u32) -> Result<Storm> {
    let (before, batches) = (site.cost()?, batches(site));
    let ghosts: Vec<_> = (site.size..site.size + leases).map(Ghost::new).collect();
    let began = Instant::now();
    site.writer.put_all(ghosts.iter().copied())?;
    let written = began.elapsed();
    let all = usize::try_from(site.size + leases)?;
    let last = site.routes.wait_count(all, DEADLINE)?;
    // A batch is logged when it is done, which is a little after its last route.
    thread::sleep(APART);
    let after = self::batches(site);
    let storm = Storm {
        leases,
        written,
        routed: last.saturating_duration_since(began),
        batches: batches.zip(after).map(|(before, after)| after - before),
        cpu: site.cost()?.cpu.saturating_sub(before.cpu),
    };
    take_away(site, ghosts)?;
    Ok(storm)
}

fn take_away(site: &Site, ghosts: Vec<Ghost>) -> Result<()> {
    site.writer.delete_all(ghosts)?;
    let start = Instant::now();
    while site.routes.count() > usize::try_from(site.size)? {
        anyhow::ensure!(start.elapsed() < DEADLINE, "routes stay");
        thread::sleep(APART);
    }
    Ok(())
}

fn batches(site: &Site) -> Option<usize> {
    let count = site.daemon.log().matches(BATCH).count();
    (count > 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values: Vec<_> = (1..=200).map(Duration::from_micros).collect();
        assert_eq!(quantile(&values, 500), Some(Duration::from_micros(100)));
        assert_eq!(quantile(&values, 990), Some(Duration::from_micros(198)));
        assert_eq!(quantile(&values, 1000), Some(Duration::from_micros(200)));
        assert_eq!(quantile(&values[..1], 500), Some(Duration::from_micros(1)));
        assert_eq!(quantile(&[], 500), None);
    }
}
