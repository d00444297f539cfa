//! Closes the short way while others have something of tc that does not see what goes it: a packet that is
//! not fast gets to all that it would have met.

use std::time::{Duration, SystemTime};

use overlay_common::{
    config::{Config, TUNNEL_UDP},
    outcome::Hook,
    short::closed,
    slow::{EGRESS, INGRESS},
};

use super::{
    attach::{self, Others, Qdiscs},
    error::DatapathError,
    maps::{config::ConfigMap, config_lock::ConfigLock},
    pins::PinDir,
    sys::{self, Place},
};
use crate::model::{PerFamily, V4, V6, each_family};

/// Whoever writes the configuration is done within microseconds, unless he was stopped.
const PATIENCE: Duration = Duration::from_millis(200);

/// Keeps the short way of both families open or closed, with handles of its own.
pub struct ShortWay {
    pins: PinDir,
    configs: PerFamily<ConfigMap<V4>, ConfigMap<V6>>,
    seen: Option<Sight>,
}

/// What is cheap to see of what others have, and changes with all of it that nobody announces.
#[derive(PartialEq, Eq)]
struct Sight {
    /// When our own programs were last attached or detached.
    attached: SystemTime,
    /// The tcx programs at the places that were looked at.
    programs: Vec<(u32, Place, Vec<u32>)>,
    closed: PerFamily<u32, u32>,
}

impl ShortWay {
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        Ok(Self {
            pins: pins.clone(),
            configs: PerFamily {
                ipv4: ConfigMap::open(pins)?,
                ipv6: ConfigMap::open(pins)?,
            },
            seen: None,
        })
    }

    /// Whether everything is as at the last look, but for what is announced: queueing disciplines and filters.
    pub fn is_as_seen(&self) -> bool {
        let Some(seen) = &self.seen else {
            return false;
        };
        let places = seen
            .programs
            .iter()
            .map(|&(ifindex, place, _)| (ifindex, place));
        matches!(self.sight(places.collect()), Ok(now) if now == *seen)
    }

    /// Looks for what others have, and closes or opens the way accordingly; where that cannot be known, it
    /// is closed. Returns what it is closed for in any family, bits of [`closed`].
    pub fn look(&mut self) -> Result<u32, DatapathError> {
        self.seen = None;
        let before = self.places().and_then(|places| self.sight(places));
        let found = self.find();
        let now = match &found {
            Ok(found) => *found,
            Err(_) => PerFamily {
                ipv4: closed::UNKNOWN,
                ipv6: closed::UNKNOWN,
            },
        };
        if self.closed()? != now {
            let lock = ConfigLock::acquire(&self.pins, PATIENCE)?;
            let configs = self.configs.as_mut().zip(now);
            each_family!(configs, (config, now) => config.close(now, &lock)?);
        }
        if found.is_ok() {
            self.seen = before.ok().map(|sight| Sight {
                closed: now,
                ..sight
            });
        }
        found.map(|now| now.ipv4 | now.ipv6)
    }

    fn closed(&self) -> Result<PerFamily<u32, u32>, DatapathError> {
        Ok(each_family!(self.configs.as_ref(), config => config.read()?.closed))
    }

    fn sight(&self, places: Vec<(u32, Place)>) -> Result<Sight, DatapathError> {
        let programs = places.into_iter().map(|(ifindex, place)| {
            // A kernel without tcx has none.
            (
                ifindex,
                place,
                sys::programs(ifindex, place).unwrap_or_default(),
            )
        });
        Ok(Sight {
            attached: self.pins.attached_at()?,
            programs: programs.collect(),
            closed: self.closed()?,
        })
    }

    /// Where there may be tcx programs behind ours.
    fn places(&self) -> Result<Vec<(u32, Place)>, DatapathError> {
        let underlays = attach::interfaces(&self.pins, Hook::Ingress)?;
        let mut places: Vec<_> = underlays
            .into_iter()
            .map(|ifindex| (ifindex, Place::TcxIngress))
            .collect();
        each_family!(self.configs.as_ref(), config => {
            places.push((config.read()?.vtep_ifindex, Place::TcxEgress));
        });
        places.retain(|&(ifindex, _)| ifindex != 0);
        Ok(places)
    }

    fn find(&self) -> Result<PerFamily<u32>, DatapathError> {
        let qdiscs = Qdiscs::list().map_err(|source| DatapathError::Others { source })?;
        let mut inwards = Others::default();
        for ifindex in attach::interfaces(&self.pins, Hook::Ingress)? {
            let others = attach::behind(&self.pins, Hook::Ingress, ifindex, &qdiscs)?;
            inwards.filter |= others.filter;
            inwards.program |= others.program;
        }
        let inwards = bits(inwards, closed::FILTER_IN, closed::PROGRAM_IN);
        Ok(each_family!(self.configs.as_ref(), config => {
            let Config { tunnel, vtep_ifindex, .. } = config.read()?;
            // What only the forwarder can carry goes no other way.
            if tunnel == TUNNEL_UDP {
                0
            } else {
                inwards | self.outwards(vtep_ifindex, &qdiscs)?
            }
        }))
    }

    fn outwards(&self, device: u32, qdiscs: &Qdiscs) -> Result<u32, DatapathError> {
        if device == 0 {
            return Ok(0);
        }
        let others = attach::behind(&self.pins, Hook::Confirm, device, qdiscs)?;
        let qdisc = u32::from(qdiscs.has_queue(device)) * closed::QDISC;
        Ok(qdisc | bits(others, closed::FILTER_OUT, closed::PROGRAM_OUT))
    }
}

fn bits(others: Others, filter: u32, program: u32) -> u32 {
    u32::from(others.filter) * filter + u32::from(others.program) * program
}

/// What [`Config::closed`](overlay_common::config::Config::closed), and `OVL_SLOW` of rules, say for people.
pub fn reasons(closed: u32, rules: u32) -> Vec<&'static str> {
    let is_closed = [
        (
            closed & closed::UNKNOWN != 0,
            "what others have of tc is not known",
        ),
        (
            closed & closed::QDISC != 0,
            "outwards: a queueing discipline at the tunnel device",
        ),
        (
            closed & closed::FILTER_OUT != 0,
            "outwards: a tc filter of others at the tunnel device",
        ),
        (
            closed & closed::PROGRAM_OUT != 0,
            "outwards: a tcx program of others at the tunnel device",
        ),
        (
            rules & u32::from(EGRESS) != 0,
            "outwards: rules that tell tunnel packets of a node apart",
        ),
        (
            closed & closed::FILTER_IN != 0,
            "inwards: a tc filter of others at the underlay",
        ),
        (
            closed & closed::PROGRAM_IN != 0,
            "inwards: a tcx program of others at the underlay",
        ),
        (
            rules & u32::from(INGRESS) != 0,
            "inwards: rules that tell tunnel packets of a node apart",
        ),
    ];
    let reasons = is_closed.into_iter().filter(|(is_closed, _)| *is_closed);
    reasons.map(|(_, reason)| reason).collect()
}
