//! Rules that judge packets one by one, as the running node heeds them.

use std::{io, sync::Arc};

use tokio::sync::{Mutex, watch};

use super::{rules::Rules, tier1::Tier1};
use crate::{
    config::{DatapathOptions, Fastpath, PerPacketRules},
    datapath::DatapathError,
    filter::per_packet::{Scope, everything, ignored, keep},
    lifecycle::Supervisor,
    model::{Desired, DesiredNode, Family, each_family},
};

/// The task that reads the rule set after each change.
pub struct PerPacket {
    scope: watch::Sender<Scope>,
    trusted: bool,
}

impl PerPacket {
    /// From here on flows that such rules can match are left to the kernel. Until the rule set has been
    /// read, what an earlier agent read of it holds, as it did while no agent was there; if none has, all
    /// flows are left to the kernel. `None` if there is nothing to be heeded.
    pub fn spawn(
        options: &DatapathOptions,
        tier1: &Tier1,
        desired: &DesiredNode,
        rules: &Rules,
        supervisor: &Supervisor,
    ) -> Result<Option<Self>, DatapathError> {
        let Some(mut slow) = tier1.slow_flows()? else {
            return Ok(None);
        };
        if options.per_packet_rules == PerPacketRules::Ignore || options.fastpath == Fastpath::Off {
            slow.put(&ignored())?;
            return Ok(None);
        }
        if !slow.is_known()? {
            slow.put(&everything("the rule set has not been read yet"))?;
        }
        let trusted = options.fastpath == Fastpath::Trusted;
        let (scope, seen_from) = watch::channel(scope(desired, trusted));
        let slow = Arc::new(Mutex::new(slow));
        supervisor.spawn("per-packet rules", {
            let (executor, ruleset) = (rules.executor.clone(), rules.ruleset.clone());
            move |stop| {
                let (executor, ruleset) = (executor.clone(), ruleset.clone());
                let (seen_from, slow) = (seen_from.clone(), Arc::clone(&slow));
                async move {
                    let mut slow = slow.lock().await;
                    let put = |flows: &_| slow.put(flows).map_err(io::Error::other);
                    keep(&executor, ruleset, seen_from, put, stop).await;
                    Ok::<(), std::convert::Infallible>(())
                }
            }
        });
        Ok(Some(Self { scope, trusted }))
    }

    /// Takes over what may have changed about the node.
    pub fn see_from(&self, desired: &DesiredNode) {
        let now = scope(desired, self.trusted);
        self.scope.send_if_modified(|scope| {
            let changed = *scope != now;
            *scope = now;
            changed
        });
    }
}

fn scope(desired: &DesiredNode, trusted: bool) -> Scope {
    let mut scope = Scope {
        trusted,
        ..Scope::default()
    };
    let ports =
        each_family!(desired.present(), side => side.and_then(|side| add(side, &mut scope)));
    (scope.ipv4_port, scope.ipv6_port) = (ports.ipv4, ports.ipv6);
    scope
}

/// Adds the interfaces of a family. Returns the port of its tunnel.
fn add<F: Family>(side: &Desired<F>, scope: &mut Scope) -> Option<u16> {
    let local = &side.local;
    scope.underlays.insert(local.underlay.name.clone());
    let device = local.device.as_ref();
    scope.vteps.extend(device.map(|device| device.name.clone()));
    local.forwarding.tunnel.map(|tunnel| tunnel.port)
}
