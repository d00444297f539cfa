//! What others have of tc behind our programs. Packets that a program redirects do not get there.

use std::io;

use overlay_common::outcome::Hook;

use super::{
    clsact::{self, Qdiscs},
    link,
    tc::direction,
    tcx::place,
};
use crate::datapath::{error::DatapathError, pins::PinDir, sys};

/// At one side of an interface, behind our program there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    pub filter: bool,
    /// A tcx program.
    pub program: bool,
}

/// What is behind the program of `hook` at an interface.
pub fn behind(
    pins: &PinDir,
    hook: Hook,
    ifindex: u32,
    qdiscs: &Qdiscs,
) -> Result<Others, DatapathError> {
    let Some((direction, place)) = direction(hook).zip(place(hook)) else {
        return Ok(Others::default());
    };
    // All filters are behind all tcx programs.
    let behind_ours = pins.filter(hook, ifindex).exists();
    let filter = clsact::has_others(ifindex, direction, behind_ours, qdiscs)
        .map_err(|source| DatapathError::Others { source })?;
    let Some(ours) = link::program(pins, hook, ifindex, place)? else {
        return Ok(Others {
            filter,
            program: false,
        });
    };
    let programs = match sys::programs(ifindex, place) {
        Err(error) if is_absence(&error) => Vec::new(),
        programs => programs.map_err(|source| DatapathError::Others { source })?,
    };
    Ok(Others {
        filter,
        program: programs.last().is_some_and(|&last| last != ours),
    })
}

/// The interface has gone.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT))
}
