//! What every way of running a program on an interface has in common.

use overlay_common::outcome::Hook;

use crate::datapath::{
    attachment::{Attached, Attachment, LinkState},
    error::DatapathError,
    pins::PinDir,
    programs::LoadedProgram,
};

/// A way in which the kernel runs programs on interfaces. Each attachment has a record in the pin
/// directory.
pub trait Mechanism {
    /// The recorded attachments, in the order of their interface indexes.
    fn recorded(&self, pins: &PinDir) -> Result<Vec<(Hook, u32)>, DatapathError>;

    /// What became of a recorded attachment; `None` if it was removed meanwhile.
    fn state(
        &self,
        pins: &PinDir,
        hook: Hook,
        ifindex: u32,
    ) -> Result<Option<LinkState>, DatapathError>;

    /// Runs `program` at `attachment`. That of an earlier process is switched atomically: no packet
    /// meets an interface without a program.
    fn attach(
        &self,
        pins: &PinDir,
        program: &LoadedProgram,
        attachment: &Attachment,
    ) -> Result<Attached, DatapathError>;

    /// Removes the program from the interface, if it is there.
    fn detach(&self, pins: &PinDir, hook: Hook, ifindex: u32) -> Result<(), DatapathError>;
}
