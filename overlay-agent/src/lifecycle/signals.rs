//! Signals: SIGTERM, SIGINT and SIGQUIT (supervisord's choice in many guides) ask for a stop, SIGHUP
//! for a reload.
//!
//! As with flannel, the second request to stop has the signal's default action, which ends the
//! process at once. It is taken in the signal handler itself, so it works when nothing else does.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalRequest {
    /// Stop, because of this signal.
    Stop(&'static str),
    /// Read the configuration again and reconcile.
    Reload,
}

/// The signals of this process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    stopping: Arc<AtomicBool>,
}

impl Signals {
    /// Takes over the four signals, for the rest of the process's life. Needs a tokio runtime.
    pub fn install() -> io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let fatal_when_repeated = |kind: SignalKind| {
            signal_hook::flag::register_conditional_default(
                kind.as_raw_value(),
                Arc::clone(&stopping),
            )
        };
        let stop_kinds = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::quit(),
        ];
        for kind in stop_kinds {
            fatal_when_repeated(kind)?;
        }
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            stopping,
        })
    }

    /// Waits for the next signal. After [`SignalRequest::Stop`] the next such signal kills.
    pub async fn next(&mut self) -> SignalRequest {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.quit.recv() => "SIGQUIT",
            _ = self.hangup.recv() => return SignalRequest::Reload,
        };
        self.stopping.store(true, Ordering::SeqCst);
        SignalRequest::Stop(name)
    }
}
