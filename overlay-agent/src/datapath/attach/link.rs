//! The pinned BPF links by which tcx and XDP programs are attached.
//!
//! aya's own pinned links do not serve: they attach a tc program by the name of an interface, which may
//! be another's by then, do not tell where a link is attached and whether it still is, and let go of
//! it by closing it, after which the program runs on for a while.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use overlay_common::outcome::Hook;

use crate::datapath::{
    attachment::{Attached, Attachment, LinkState},
    error::{DatapathError, pin_error},
    pins::{PinDir, remove_pin},
    programs::LoadedProgram,
    sys::{self, LinkPlace, Place},
};

/// A live link.
pub struct BpfLink {
    fd: OwnedFd,
    pub program_id: u32,
}

/// State of the pinned link.
pub fn state(
    pins: &PinDir,
    hook: Hook,
    ifindex: u32,
    place: Place,
) -> Result<Option<LinkState>, DatapathError> {
    let pinned = inspect(pins, hook, ifindex, place)?;
    Ok(pinned.map(|pinned| LinkState {
        hook,
        ifindex,
        alive: pinned.program.is_some(),
    }))
}

/// The program that the pinned link runs there, if it does.
pub fn program(
    pins: &PinDir,
    hook: Hook,
    ifindex: u32,
    place: Place,
) -> Result<Option<u32>, DatapathError> {
    let pinned = inspect(pins, hook, ifindex, place)?;
    Ok(pinned.and_then(|pinned| pinned.program))
}

/// A link that is pinned, whatever has become of it.
struct Pinned {
    /// The program that it runs at its place.
    program: Option<u32>,
}

fn inspect(
    pins: &PinDir,
    hook: Hook,
    ifindex: u32,
    place: Place,
) -> Result<Option<Pinned>, DatapathError> {
    let path = pins.link(hook, ifindex);
    match sys::object_get(&path).and_then(|link| sys::link_place(link.as_fd())) {
        Ok(info) => {
            let info = info.filter(|info| is_at(info, ifindex, place));
            let program = info.map(|info| info.program_id);
            Ok(Some(Pinned { program }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(pin_error("inspect", &path)(error)),
    }
}

/// The pinned link, if it is alive. The pin of a defunct one goes: the interface is gone, and another
/// one may have its index.
pub fn find(
    pins: &PinDir,
    attachment: &Attachment,
    place: Place,
) -> Result<Option<BpfLink>, DatapathError> {
    let path = pins.link(attachment.hook, attachment.ifindex);
    let fd = match sys::object_get(&path) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(attachment.error("open")(error)),
    };
    let info = sys::link_place(fd.as_fd()).map_err(attachment.error("inspect"))?;
    if let Some(info) = info.filter(|info| is_at(info, attachment.ifindex, place)) {
        let program_id = info.program_id;
        return Ok(Some(BpfLink { fd, program_id }));
    }
    remove_pin(&path)?;
    Ok(None)
}

/// Makes `link` run `program`. `None`, and the pin is removed, if the interface went away meanwhile.
pub fn switch(
    pins: &PinDir,
    link: &BpfLink,
    program: &LoadedProgram,
    attachment: &Attachment,
) -> Result<Option<Attached>, DatapathError> {
    if link.program_id == program.id {
        return Ok(Some(Attached::Unchanged));
    }
    match sys::link_update(link.fd.as_fd(), program.fd.as_fd()) {
        Ok(()) => Ok(Some(Attached::Adopted)),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
            remove_pin(&pins.link(attachment.hook, attachment.ifindex))?;
            Ok(None)
        }
        Err(error) => Err(attachment.error("switch")(error)),
    }
}

/// Makes a link and pins it. `flags` are for XDP alone.
pub fn create(
    pins: &PinDir,
    program: &LoadedProgram,
    attachment: &Attachment,
    place: Place,
    flags: u32,
) -> Result<Attached, DatapathError> {
    let &Attachment { hook, ifindex, .. } = attachment;
    match sys::link_create(program.fd.as_fd(), ifindex, place, flags) {
        Ok(link) => {
            let path = pins.link(hook, ifindex);
            sys::object_pin(link.as_fd(), &path).map_err(pin_error("pin", &path))?;
            Ok(Attached::Created)
        }
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(Attached::InterfaceGone),
        Err(error) => Err(attachment.error("attach")(error)),
    }
}

/// Removes a link and detaches its program before returning; the kernel lets go of an unpinned link
/// only some time later (`bpf_free_inode` runs after an RCU grace period).
pub fn remove(path: &Path) -> Result<(), DatapathError> {
    match sys::object_get(path) {
        Ok(link) => sys::link_detach(link.as_fd()).map_err(pin_error("detach", path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(pin_error("open", path)(error)),
    }
    remove_pin(path)
}

/// True if the link is alive on the right side of the interface it is named after.
fn is_at(info: &LinkPlace, ifindex: u32, place: Place) -> bool {
    info.ifindex == ifindex && info.attach_type == place as u32
}
