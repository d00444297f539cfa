//! XDP links, for the guard.

use std::io;

use overlay_common::outcome::Hook;

use super::{link, mechanism::Mechanism};
use crate::datapath::{
    attachment::{Attached, Attachment, LinkState, XdpMode},
    error::DatapathError,
    netlink::xdp_mode,
    pins::PinDir,
    programs::LoadedProgram,
    sys::{Place, XDP_GENERIC, XDP_NATIVE},
};

pub struct Xdp;

const fn flags(mode: XdpMode) -> u32 {
    match mode {
        XdpMode::Native | XdpMode::NativeIfSupported => XDP_NATIVE,
        XdpMode::Generic => XDP_GENERIC,
    }
}

/// What becomes of the attachment of a guard that this kernel does not take.
pub fn without_program(attachment: &Attachment) -> Result<Attached, DatapathError> {
    if attachment.xdp == XdpMode::NativeIfSupported {
        return Ok(Attached::Unsupported);
    }
    let reason = "this kernel does not take the program; use --xdp=auto or --xdp=off";
    Err(attachment.error("attach")(io::Error::other(reason)))
}

/// Whether a driver refuses native XDP: it has none, the MTU or the offloads stand against it, or
/// another program has the place.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::EBUSY | libc::ERANGE)
    )
}

impl Mechanism for Xdp {
    fn recorded(&self, pins: &PinDir) -> Result<Vec<(Hook, u32)>, DatapathError> {
        let mut links = pins.pinned_links()?;
        links.retain(|&(hook, _)| hook == Hook::Guard);
        Ok(links)
    }

    fn state(
        &self,
        pins: &PinDir,
        hook: Hook,
        ifindex: u32,
    ) -> Result<Option<LinkState>, DatapathError> {
        link::state(pins, hook, ifindex, Place::Xdp)
    }

    fn attach(
        &self,
        pins: &PinDir,
        program: &LoadedProgram,
        attachment: &Attachment,
    ) -> Result<Attached, DatapathError> {
        let &Attachment { ifindex, xdp, .. } = attachment;
        if let Some(link) = link::find(pins, attachment, Place::Xdp)? {
            let is_ours = link.program_id == program.id;
            // The mode of an XDP link cannot be changed: it is made anew.
            if !is_ours
                && xdp_mode(ifindex, link.program_id)
                    .map_err(attachment.error("inspect"))?
                    .map(flags)
                    != Some(flags(xdp))
            {
                link::remove(&pins.link(attachment.hook, ifindex))?;
            } else if let Some(attached) = link::switch(pins, &link, program, attachment)? {
                return Ok(attached);
            }
        }
        match link::create(pins, program, attachment, Place::Xdp, flags(xdp)) {
            Err(DatapathError::Link { source, .. })
                if xdp == XdpMode::NativeIfSupported && is_refusal(&source) =>
            {
                Ok(Attached::Unsupported)
            }
            attached => attached,
        }
    }

    fn detach(&self, pins: &PinDir, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        link::remove(&pins.link(hook, ifindex))
    }
}
