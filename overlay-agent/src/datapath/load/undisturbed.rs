//! Keeping signals from a thread that loads programs.
//!
//! The kernel gives up verifying a program when the thread gets a signal, that of a child that ended for one. Then
//! aya has it verified again, with a log: several times as slow as what was given up.

use nix::sys::signal::{SigSet, SigmaskHow};

/// While it is there other threads of the process get the signals.
pub struct Undisturbed {
    /// What this thread takes otherwise.
    before: Option<SigSet>,
}

impl Undisturbed {
    pub fn begin() -> Self {
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        Self {
            before: before.ok(),
        }
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // It fails only where there is no such set.
            let _ = before.thread_set_mask();
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn signals_are_kept_away_for_as_long_as_it_is_there() {
        let blocks = || {
            let mask = SigSet::thread_get_mask().expect("the thread's mask");
            mask.contains(Signal::SIGCHLD)
        };
        assert!(!blocks());
        let undisturbed = Undisturbed::begin();
        assert!(blocks());
        drop(undisturbed);
        assert!(!blocks());
    }
}
