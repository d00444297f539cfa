//! Attachments without tcx: the program is pinned where a link would be, as a record of the tc filter
//! that runs it. A further pin, of whichever program, says that the clsact qdisc is our own doing.
//!
//! As with links the pins are written first and the kernel is asked what became of them, so it does
//! not matter whether the filter was put there by this process or by one that crashed.

use std::{io, os::fd::AsFd as _, path::Path};

use aya::programs::ProgramInfo;
use overlay_common::outcome::Hook;

use super::{
    clsact::{self, TcDirection},
    mechanism::Mechanism,
};
use crate::datapath::{
    attachment::{Attached, Attachment, LinkState},
    error::{DatapathError, pin_error},
    pins::{PinDir, remove_pin},
    programs::{LoadedProgram, program_name},
    sys,
};

pub struct Tc;

/// Where the filter of `hook` belongs; the guard is an XDP program everywhere.
pub const fn direction(hook: Hook) -> Option<TcDirection> {
    match hook {
        Hook::Egress | Hook::Ingress | Hook::Arrive => Some(TcDirection::Ingress),
        Hook::Confirm | Hook::Deliver => Some(TcDirection::Egress),
        Hook::Guard => None,
    }
}

/// Whether a kernel without tcx can run programs by filters: tries it on the loopback device.
pub fn probe(program: &LoadedProgram) -> io::Result<()> {
    const LOOPBACK: u32 = 1;
    let made = clsact::ensure_qdisc(LOOPBACK)?;
    let put = clsact::put_filter(LOOPBACK, TcDirection::Ingress, program.fd.as_fd(), "probe");
    let removed = clsact::remove_filter(LOOPBACK, TcDirection::Ingress);
    if made {
        clsact::remove_empty_qdisc(LOOPBACK)?;
    }
    put.and(removed)
}

impl Mechanism for Tc {
    fn recorded(&self, pins: &PinDir) -> Result<Vec<(Hook, u32)>, DatapathError> {
        pins.pinned_filters()
    }

    /// Whether the recorded filter runs the recorded program.
    fn state(
        &self,
        pins: &PinDir,
        hook: Hook,
        ifindex: u32,
    ) -> Result<Option<LinkState>, DatapathError> {
        let path = pins.filter(hook, ifindex);
        let Some(recorded) = pinned_program(&path)? else {
            // Removed meanwhile.
            return Ok(None);
        };
        let found = match direction(hook) {
            Some(direction) => {
                clsact::program_at(ifindex, direction).map_err(pin_error("inspect", &path))?
            }
            None => None,
        };
        Ok(Some(LinkState {
            hook,
            ifindex,
            alive: found == Some(recorded),
        }))
    }

    fn attach(
        &self,
        pins: &PinDir,
        program: &LoadedProgram,
        attachment: &Attachment,
    ) -> Result<Attached, DatapathError> {
        let &Attachment { hook, ifindex, .. } = attachment;
        let Some(direction) = direction(hook) else {
            return Err(DatapathError::MissingProgram {
                program: program_name(hook),
            });
        };
        let found = clsact::program_at(ifindex, direction).map_err(attachment.error("inspect"))?;
        let path = pins.filter(hook, ifindex);
        let recorded = pinned_program(&path)?;
        if found == Some(program.id) && recorded == found {
            return Ok(Attached::Unchanged);
        }
        if found.is_none() {
            match make_qdisc(pins, program, ifindex) {
                Ok(()) => {}
                Err(DatapathError::Link { source, .. }) if is_no_device(&source) => {
                    return Ok(Attached::InterfaceGone);
                }
                Err(DatapathError::Link { action, source, .. }) => {
                    return Err(attachment.error(action)(source));
                }
                Err(error) => return Err(error),
            }
        }
        remove_pin(&path)?;
        sys::object_pin(program.fd.as_fd(), &path).map_err(pin_error("pin", &path))?;
        match clsact::put_filter(ifindex, direction, program.fd.as_fd(), &program_name(hook)) {
            Ok(()) if found.is_some() => Ok(Attached::Adopted),
            Ok(()) => Ok(Attached::Created),
            Err(source) if is_no_device(&source) => {
                remove_pin(&path)?;
                remove_pin(&pins.qdisc(ifindex))?;
                Ok(Attached::InterfaceGone)
            }
            Err(source) => Err(attachment.error("attach")(source)),
        }
    }

    /// Removes the filter, if it is still the recorded one, and with the last one of the interface the
    /// qdisc, if it is ours and nobody else uses it.
    fn detach(&self, pins: &PinDir, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        let path = pins.filter(hook, ifindex);
        let Some(recorded) = pinned_program(&path)? else {
            return Ok(());
        };
        let detach_error = || pin_error("detach", &path);
        let mut removed = false;
        if let Some(direction) = direction(hook) {
            let found = clsact::program_at(ifindex, direction).map_err(detach_error())?;
            if found == Some(recorded) {
                clsact::remove_filter(ifindex, direction).map_err(detach_error())?;
                removed = true;
            }
        }
        remove_pin(&path)?;
        let is_last = !pins
            .pinned_filters()?
            .iter()
            .any(|(_, other)| *other == ifindex);
        let qdisc = pins.qdisc(ifindex);
        if is_last && qdisc.exists() {
            if removed {
                clsact::remove_empty_qdisc(ifindex).map_err(pin_error("detach", &qdisc))?;
            }
            remove_pin(&qdisc)?;
        }
        Ok(())
    }
}

/// Gives the interface a clsact qdisc, and remembers it if there was none.
fn make_qdisc(pins: &PinDir, program: &LoadedProgram, ifindex: u32) -> Result<(), DatapathError> {
    let path = pins.qdisc(ifindex);
    if !path.exists() {
        sys::object_pin(program.fd.as_fd(), &path).map_err(pin_error("pin", &path))?;
        match clsact::ensure_qdisc(ifindex) {
            Ok(true) => return Ok(()),
            Ok(false) => return remove_pin(&path),
            Err(source) => {
                remove_pin(&path)?;
                return Err(qdisc_error(ifindex, source));
            }
        }
    }
    clsact::ensure_qdisc(ifindex)
        .map(drop)
        .map_err(|source| qdisc_error(ifindex, source))
}

fn qdisc_error(ifindex: u32, source: io::Error) -> DatapathError {
    DatapathError::Link {
        action: "make room for",
        hook: "programs",
        ifname: format!("interface {ifindex}"),
        source,
    }
}

/// Id of the program pinned at `path`.
fn pinned_program(path: &Path) -> Result<Option<u32>, DatapathError> {
    if !path.exists() {
        return Ok(None);
    }
    match ProgramInfo::from_pin(path) {
        Ok(info) => Ok(Some(info.id())),
        Err(error) => Err(pin_error("inspect", path)(io::Error::other(error))),
    }
}

fn is_no_device(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENODEV)
}
