//! Keeps the timeouts current. Nobody announces a changed sysctl, nor an object of `nfct`.

use std::{convert::Infallible, path::Path, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{
    Shortest, Timeout,
    objects::{self, NFCT, NFTABLES, Source},
    settings::Sysctls,
};
use crate::{filter::RulesetVersion, lifecycle::Supervisor, ticks};

/// How often the sysctls are read: nine small files. A permit that was granted before ends within 15 s
/// all the same.
const SETTINGS_PERIOD: Duration = Duration::from_secs(1);
/// How often the objects are listed, beyond each change of the rule set that is announced.
const OBJECTS_PERIOD: Duration = Duration::from_secs(30);

/// The shortest timeouts from now on.
pub type Timeouts = watch::Receiver<Shortest>;

/// What is known of the timeouts.
#[derive(Clone, Debug)]
pub struct TimeoutWatch {
    shortest: watch::Sender<Shortest>,
    objects: [Listed; 2],
}

#[derive(Clone, Debug)]
struct Listed {
    source: Source,
    /// Its module, if it is one.
    module: &'static str,
    /// The kernel does not have it, or did not yet.
    absent: bool,
    timeouts: Vec<Timeout>,
}

impl Listed {
    const fn of(source: Source, module: &'static str) -> Self {
        Self {
            source,
            module,
            absent: false,
            timeouts: Vec::new(),
        }
    }

    /// Lists the objects. Each question to a kernel that does not have them makes it look for a module.
    async fn refresh(&mut self) {
        if self.absent && !Path::new(self.module).exists() {
            return;
        }
        match objects::list(self.source).await {
            Ok(listed) => {
                self.absent = listed.is_none();
                self.timeouts = listed.unwrap_or_default();
            }
            // What was known is kept.
            Err(error) => debug!(%error, source = ?self.source, "cannot list timeout objects"),
        }
    }
}

impl TimeoutWatch {
    /// Takes a first look, and goes on looking: at the sysctls every second, at the objects whenever
    /// `ruleset` changes and every 30 s.
    pub async fn spawn(
        supervisor: &Supervisor,
        ruleset: watch::Receiver<RulesetVersion>,
    ) -> Timeouts {
        let mut watch = Self {
            shortest: watch::Sender::default(),
            objects: [
                Listed::of(NFTABLES, "/sys/module/nf_tables"),
                Listed::of(NFCT, "/sys/module/nfnetlink_cttimeout"),
            ],
        };
        let timeouts = watch.shortest.subscribe();
        watch.refresh(&mut Sysctls::default()).await;
        supervisor.spawn("conntrack timeouts", move |stop| {
            watch.clone().run(ruleset.clone(), stop)
        });
        timeouts
    }

    async fn run(
        mut self,
        mut ruleset: watch::Receiver<RulesetVersion>,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        let mut sysctls = Sysctls::default();
        let mut settings = ticks::together(SETTINGS_PERIOD);
        let mut objects = ticks::together(OBJECTS_PERIOD);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Ok(()) = ruleset.changed() => {
                    ruleset.mark_unchanged();
                    self.refresh(&mut sysctls).await;
                }
                _ = objects.tick() => self.refresh(&mut sysctls).await,
                _ = settings.tick() => self.publish(&mut sysctls),
            }
        }
    }

    async fn refresh(&mut self, sysctls: &mut Sysctls) {
        for listed in &mut self.objects {
            listed.refresh().await;
        }
        self.publish(sysctls);
    }

    fn publish(&self, sysctls: &mut Sysctls) {
        let objects = self.objects.iter();
        let objects = objects.flat_map(|listed| listed.timeouts.iter().cloned());
        let found: Shortest = sysctls.read().into_iter().chain(objects).collect();
        self.shortest.send_if_modified(|shortest| {
            if found.permits() != shortest.permits() {
                let remarks = found.remarks();
                for remark in &remarks {
                    info!("{remark}");
                }
                if remarks.is_empty() {
                    info!("permits of all protocols are the longest again");
                }
                *shortest = found;
                return true;
            }
            false
        });
    }
}
