//! Where programs run: which one on which side of which interface. [`tcx`] and [`xdp`] attach by links;
//! on kernels without tcx links the filters of [`tc`] stand in for them.
//!
//! The pins are the truth, not the memory of this process: each change starts from what the
//! kernel says about the attachment recorded for an interface. So it does not matter whether it was
//! made by this process, by one that crashed, or by another version.

mod clsact;
mod link;
mod mechanism;
mod others;
pub mod tc;
pub mod tcx;
mod xdp;

use std::collections::BTreeSet;

use overlay_common::outcome::Hook;

pub use self::{
    clsact::Qdiscs,
    others::{Others, behind},
};
use self::{mechanism::Mechanism, tc::Tc, tcx::Tcx, xdp::Xdp};
use super::{
    attachment::{Attached, Attachment, LinkState},
    error::DatapathError,
    pins::{PinDir, is_qdisc_mark, remove_pin},
    programs::{Programs, program_name},
};

const MECHANISMS: [&dyn Mechanism; 3] = [&Tcx, &Tc, &Xdp];

/// What [`sync`] did.
#[derive(Debug, Default)]
pub struct LinkSummary {
    pub created: usize,
    pub adopted: usize,
    pub removed: usize,
    /// Interfaces that went away meanwhile.
    pub gone: Vec<Attachment>,
    /// Attachments that failed; the others were made nevertheless.
    pub failed: Vec<(Attachment, DatapathError)>,
    /// What should be gone and is not; everything else was done nevertheless.
    pub left: Vec<DatapathError>,
}

/// The recorded attachments, in the order of their interface indexes.
pub fn states(pins: &PinDir) -> Result<Vec<LinkState>, DatapathError> {
    let mut states = Vec::new();
    for mechanism in MECHANISMS {
        for (hook, ifindex) in mechanism.recorded(pins)? {
            states.extend(mechanism.state(pins, hook, ifindex)?);
        }
    }
    states.sort_by_key(|link| (link.ifindex, link.hook));
    Ok(states)
}

/// The interfaces that a program of `hook` is recorded for.
pub fn interfaces(pins: &PinDir, hook: Hook) -> Result<BTreeSet<u32>, DatapathError> {
    let mut interfaces = BTreeSet::new();
    for mechanism in MECHANISMS {
        let recorded = mechanism.recorded(pins)?.into_iter();
        interfaces.extend(recorded.filter(|at| at.0 == hook).map(|at| at.1));
    }
    Ok(interfaces)
}

/// Makes the attachments those of `wanted` and removes every other. What fails keeps nothing else
/// from being done.
pub fn sync(pins: &PinDir, programs: &Programs, wanted: &BTreeSet<Attachment>) -> LinkSummary {
    let mut summary = LinkSummary::default();
    let keep: BTreeSet<_> = wanted.iter().map(|at| (at.hook, at.ifindex)).collect();
    for mechanism in MECHANISMS {
        let recorded = mechanism.recorded(pins).unwrap_or_else(|error| {
            summary.left.push(error);
            Vec::new()
        });
        for (hook, ifindex) in recorded.into_iter().filter(|at| !keep.contains(at)) {
            match mechanism.detach(pins, hook, ifindex) {
                Ok(()) => summary.removed += 1,
                Err(error) => summary.left.push(error),
            }
        }
    }
    for attachment in wanted {
        match attach(pins, programs, attachment) {
            Ok(Attached::Created) => summary.created += 1,
            Ok(Attached::Adopted) => summary.adopted += 1,
            Ok(Attached::Unchanged | Attached::Unsupported) => {}
            Ok(Attached::InterfaceGone) => summary.gone.push(attachment.clone()),
            Err(error) => summary.failed.push((attachment.clone(), error)),
        }
    }
    summary
}

/// Runs this process's program at `attachment`.
fn attach(
    pins: &PinDir,
    programs: &Programs,
    attachment: &Attachment,
) -> Result<Attached, DatapathError> {
    let &Attachment { hook, ifindex, .. } = attachment;
    let Some(program) = programs.by_hook.get(&hook) else {
        return match hook {
            Hook::Guard => xdp::without_program(attachment),
            _ => Err(DatapathError::MissingProgram {
                program: program_name(hook),
            }),
        };
    };
    let (mechanism, other): (&dyn Mechanism, Option<&dyn Mechanism>) = match hook {
        Hook::Guard => (&Xdp, None),
        _ if programs.tcx => (&Tcx, Some(&Tc)),
        _ => (&Tc, Some(&Tcx)),
    };
    let attached = mechanism.attach(pins, program, attachment)?;
    if let (Attached::Created | Attached::Adopted, Some(other)) = (attached, other) {
        // Two of them would count, and stamp, each packet twice.
        other.detach(pins, hook, ifindex)?;
    }
    Ok(attached)
}

/// Takes all programs off their interfaces and removes what is recorded about them.
pub fn detach_all(pins: &PinDir) -> Result<(), DatapathError> {
    for (hook, ifindex) in Tc.recorded(pins)? {
        Tc.detach(pins, hook, ifindex)?;
    }
    for path in pins.attachments()? {
        if is_qdisc_mark(&path) {
            remove_pin(&path)?;
        } else {
            link::remove(&path)?;
        }
    }
    Ok(())
}
