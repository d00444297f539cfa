//! The links: which program runs on which side of which interface. On kernels without tcx links
//! filters ([`tc`]) stand in for them.
//!
//! The pins are the truth, not the memory of this process: each change starts from what the
//! kernel says about the link pinned for an interface. So it does not matter whether the link was
//! made by this process, by one that crashed, or by another version.

mod clsact;
pub mod tc;

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use overlay_common::outcome::Hook;

use super::{
    DatapathError,
    load::{LoadedProgram, Programs, program_name},
    netlink,
    pins::{PinDir, pin_error, remove_link, remove_pin},
    sys::{self, LinkPlace, Place, XDP_GENERIC, XDP_NATIVE},
};

/// A place where a program is to run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    pub hook: Hook,
    pub ifindex: u32,
    pub ifname: String,
    /// How the guard is attached; of no meaning to the other hooks.
    pub xdp: XdpMode,
}

/// Who runs an XDP program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum XdpMode {
    /// The driver, before it makes an skb.
    #[default]
    Native,
    /// The driver if it can; without it, nobody.
    NativeIfSupported,
    /// The kernel, on any interface, after an skb was made.
    Generic,
}

impl XdpMode {
    const fn flags(self) -> u32 {
        match self {
            Self::Native | Self::NativeIfSupported => XDP_NATIVE,
            Self::Generic => XDP_GENERIC,
        }
    }
}

/// What an attach came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// A link was created.
    Created,
    /// A link of an earlier process was switched to this process's program.
    Adopted,
    /// The link runs this process's program already.
    Unchanged,
    /// The interface went away meanwhile: nothing to attach to.
    InterfaceGone,
    /// The driver runs no XDP program, or another one.
    Unsupported,
}

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

/// A pinned link as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    pub hook: Hook,
    pub ifindex: u32,
    /// False once the interface is gone or someone detached the link.
    pub alive: bool,
}

/// Where on an interface the program of `hook` belongs.
pub const fn place(hook: Hook) -> Place {
    match hook {
        Hook::Egress | Hook::Ingress | Hook::Arrive => Place::TcxIngress,
        Hook::Confirm | Hook::Deliver => Place::TcxEgress,
        Hook::Guard => Place::Xdp,
    }
}

/// The pinned links, in the order of their interface indexes.
pub fn states(pins: &PinDir) -> Result<Vec<LinkState>, DatapathError> {
    let state = |(hook, ifindex)| {
        let path = pins.link(hook, ifindex);
        let info = sys::object_get(&path).and_then(|link| sys::link_place(link.as_fd()));
        match info {
            Ok(info) => Ok(Some(LinkState {
                hook,
                ifindex,
                alive: info.is_some_and(|info| is_at(&info, hook, ifindex)),
            })),
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(pin_error("inspect", &path)(error)),
        }
    };
    let links = pins.pinned_links()?.into_iter().map(state);
    let filters = pins.pinned_filters()?.into_iter();
    let filters = filters.map(|(hook, ifindex)| tc::state(pins, hook, ifindex));
    let states = links.chain(filters).filter_map(Result::transpose);
    let mut states = states.collect::<Result<Vec<_>, _>>()?;
    states.sort_by_key(|link| (link.ifindex, link.hook));
    Ok(states)
}

/// Makes the pinned links those of `wanted` and removes every other. What fails keeps nothing else
/// from being done.
pub fn sync(pins: &PinDir, programs: &Programs, wanted: &BTreeSet<Attachment>) -> LinkSummary {
    let mut summary = LinkSummary::default();
    let keep: BTreeSet<_> = wanted.iter().map(|at| (at.hook, at.ifindex)).collect();
    let mut pinned = BTreeSet::new();
    for listed in [pins.pinned_links(), pins.pinned_filters()] {
        match listed {
            Ok(listed) => pinned.extend(listed),
            Err(error) => summary.left.push(error),
        }
    }
    for &(hook, ifindex) in pinned.difference(&keep) {
        match detach(pins, hook, ifindex) {
            Ok(()) => summary.removed += 1,
            Err(error) => summary.left.push(error),
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

/// Runs this process's program at `attachment`. A live link is switched atomically: no packet
/// meets an interface without a program.
pub fn attach(
    pins: &PinDir,
    programs: &Programs,
    attachment: &Attachment,
) -> Result<Attached, DatapathError> {
    let &Attachment { hook, ifindex, .. } = attachment;
    let link_error = |action| {
        move |source| DatapathError::Link {
            action,
            hook: hook.name(),
            ifname: attachment.ifname.clone(),
            source,
        }
    };
    let Some(program) = programs.by_hook.get(&hook) else {
        if attachment.xdp == XdpMode::NativeIfSupported {
            return Ok(Attached::Unsupported);
        }
        if hook == Hook::Guard {
            let reason = "this kernel does not take the program; use --xdp=auto or --xdp=off";
            return Err(link_error("attach")(io::Error::other(reason)));
        }
        return Err(DatapathError::MissingProgram {
            program: program_name(hook),
        });
    };
    let path = pins.link(hook, ifindex);
    match sys::object_get(&path) {
        Ok(link) => {
            let info = sys::link_place(link.as_fd()).map_err(link_error("inspect"))?;
            match info.filter(|info| is_at(info, hook, ifindex)) {
                Some(info) if info.program_id == program.id => return Ok(Attached::Unchanged),
                // The mode of an XDP link cannot be changed: it is made anew.
                Some(info)
                    if hook == Hook::Guard
                        && netlink::xdp_mode(ifindex, info.program_id)
                            .map_err(link_error("inspect"))?
                            .map(XdpMode::flags)
                            != Some(attachment.xdp.flags()) =>
                {
                    remove_link(&path)?;
                }
                Some(_) if switch(link.as_fd(), program).map_err(link_error("switch"))? => {
                    return Ok(Attached::Adopted);
                }
                // The interface is gone, and another one may have its index.
                _ => remove_pin(&path)?,
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(link_error("open")(error)),
    }
    if !programs.tcx && hook != Hook::Guard {
        return tc::attach(pins, program, attachment);
    }
    let flags = match hook {
        Hook::Guard => attachment.xdp.flags(),
        _ => 0,
    };
    match sys::link_create(program.fd.as_fd(), ifindex, place(hook), flags) {
        Ok(link) => {
            sys::object_pin(link.as_fd(), &path).map_err(pin_error("pin", &path))?;
            // Two of them would count, and stamp, each packet twice.
            tc::detach(pins, hook, ifindex)?;
            Ok(Attached::Created)
        }
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(Attached::InterfaceGone),
        Err(error) if attachment.xdp == XdpMode::NativeIfSupported && is_refusal(&error) => {
            Ok(Attached::Unsupported)
        }
        Err(error) => Err(link_error("attach")(error)),
    }
}

/// Removes the program from the interface, if it is there.
pub fn detach(pins: &PinDir, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
    tc::detach(pins, hook, ifindex)?;
    remove_link(&pins.link(hook, ifindex))
}

/// True if the link is alive on the right side of the interface it is named after.
fn is_at(info: &LinkPlace, hook: Hook, ifindex: u32) -> bool {
    info.ifindex == ifindex && info.attach_type == place(hook) as u32
}

/// Whether a driver refuses native XDP: it has none, the MTU or the offloads stand against it, or
/// another program has the place.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::EBUSY | libc::ERANGE)
    )
}

/// False if the interface went away meanwhile.
fn switch(link: BorrowedFd<'_>, program: &LoadedProgram) -> io::Result<bool> {
    match sys::link_update(link, program.fd.as_fd()) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(error) => Err(error),
    }
}
