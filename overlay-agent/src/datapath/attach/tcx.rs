//! tcx links, which come with Linux 6.6.

use std::os::fd::AsFd as _;

use overlay_common::outcome::Hook;

use super::{link, mechanism::Mechanism};
use crate::datapath::{
    attachment::{Attached, Attachment, LinkState},
    error::DatapathError,
    pins::PinDir,
    programs::{LoadedProgram, program_name},
    sys::{self, Place},
};

pub struct Tcx;

/// Where the program of `hook` belongs; the guard is an XDP program.
pub const fn place(hook: Hook) -> Option<Place> {
    match hook {
        Hook::Egress | Hook::Ingress | Hook::Arrive => Some(Place::TcxIngress),
        Hook::Confirm | Hook::Deliver => Some(Place::TcxEgress),
        Hook::Guard => None,
    }
}

/// Whether this kernel has them. One that has looks the interface up, which fails for index 0; older
/// ones do not know the attach type.
pub fn is_there(program: &LoadedProgram) -> bool {
    let attempt = sys::link_create(program.fd.as_fd(), 0, Place::TcxIngress, 0);
    !attempt.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

impl Mechanism for Tcx {
    fn recorded(&self, pins: &PinDir) -> Result<Vec<(Hook, u32)>, DatapathError> {
        let mut links = pins.pinned_links()?;
        links.retain(|&(hook, _)| place(hook).is_some());
        Ok(links)
    }

    fn state(
        &self,
        pins: &PinDir,
        hook: Hook,
        ifindex: u32,
    ) -> Result<Option<LinkState>, DatapathError> {
        place(hook).map_or(Ok(None), |place| link::state(pins, hook, ifindex, place))
    }

    fn attach(
        &self,
        pins: &PinDir,
        program: &LoadedProgram,
        attachment: &Attachment,
    ) -> Result<Attached, DatapathError> {
        let Some(place) = place(attachment.hook) else {
            return Err(DatapathError::MissingProgram {
                program: program_name(attachment.hook),
            });
        };
        if let Some(link) = link::find(pins, attachment, place)?
            && let Some(attached) = link::switch(pins, &link, program, attachment)?
        {
            return Ok(attached);
        }
        link::create(pins, program, attachment, place, 0)
    }

    fn detach(&self, pins: &PinDir, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        link::remove(&pins.link(hook, ifindex))
    }
}
