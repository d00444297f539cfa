//! A cable between two namespaces whose ends are tun interfaces: packets without Ethernet headers, as
//! those of a VPN.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{netns::Namespace, sys};

/// How often the threads look whether they are to end.
const TICK: u16 = 50;

/// The cable; dropping it removes both interfaces.
#[derive(Debug)]
pub struct TunCable {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl TunCable {
    /// Makes an interface of this name in both namespaces.
    pub fn connect(a: &Namespace, b: &Namespace, interface: &str) -> Result<Self> {
        let end = |namespace: &Namespace| {
            let file = namespace.enter(|| sys::tun(interface));
            file.with_context(|| format!("a tun interface in {}", namespace.name()))
        };
        let (a, b) = (end(a)?, end(b)?);
        let stop = Arc::new(AtomicBool::new(false));
        let threads = [(a.try_clone()?, b.try_clone()?), (b, a)].map(|(from, to)| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || carry(&from, &to, &stop))
        });
        Ok(Self {
            stop,
            threads: threads.into(),
        })
    }
}

impl Drop for TunCable {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Carries packets from one end to the other. What an interface that is down does not take is lost, as
/// on any cable.
fn carry(mut from: &File, mut to: &File, stop: &AtomicBool) {
    let mut packet = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut ready, PollTimeout::from(TICK)), Ok(1)) {
            continue;
        }
        if let Ok(len) = from.read(&mut packet) {
            let _ = to.write(&packet[..len]);
        }
    }
}
