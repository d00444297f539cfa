//! The words for where programs run.

use std::io;

use overlay_common::outcome::Hook;

use super::error::DatapathError;

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

/// What an attach came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// The program runs where none of ours ran.
    Created,
    /// It took the place of an earlier process's program.
    Adopted,
    /// This process's program runs there already.
    Unchanged,
    /// The interface went away meanwhile: nothing to attach to.
    InterfaceGone,
    /// The driver runs no XDP program, or another one.
    Unsupported,
}

/// A recorded attachment as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    pub hook: Hook,
    pub ifindex: u32,
    /// False once the interface is gone or someone detached the program.
    pub alive: bool,
}

impl Attachment {
    /// What could not be done there.
    pub(super) fn error(&self, action: &'static str) -> impl FnOnce(io::Error) -> DatapathError {
        move |source| DatapathError::Link {
            action,
            hook: self.hook.name(),
            ifname: self.ifname.clone(),
            source,
        }
    }
}
