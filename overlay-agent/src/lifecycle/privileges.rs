//! Programs are loaded by a thread that may, and that ends with it: no other one keeps the capability.
//!
//! With `CAP_PERFMON` whoever loads a program may read the kernel's memory by it. The daemon loads its own once, when it
//! starts. Capabilities are those of a thread, and go to the threads it starts: so they are divided before the
//! runtime has any.

use std::{
    sync::{
        Mutex, PoisonError,
        mpsc::{self, SendError, Sender},
    },
    thread,
};

use caps::{CapSet, Capability};
use tokio::runtime::Handle;

type Job = Box<dyn FnOnce() + Send>;

/// To the thread that waits for the one thing it is to do.
static LOADER: Mutex<Option<Sender<Job>>> = Mutex::new(None);

/// Leaves the capability to a thread of its own. Called while there is only one thread.
pub fn divide() {
    let (sender, jobs) = mpsc::channel::<Job>();
    let body = move || {
        if let Ok(job) = jobs.recv() {
            job();
        }
    };
    let started = thread::Builder::new().name("loader".to_owned()).spawn(body);
    if started.is_err() {
        return;
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        if caps::drop(None, set, Capability::CAP_PERFMON).is_err() {
            return;
        }
    }
    *LOADER.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
}

/// Loads programs where that is allowed: the first time, in the thread that was set apart.
pub fn loading<T: Send + 'static>(load: impl FnOnce() -> T + Send + 'static) -> T {
    let loader = LOADER.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(loader) = loader else { return load() };
    let (answer, answered) = mpsc::channel();
    let runtime = Handle::try_current().ok();
    let job: Job = Box::new(move || {
        let _inside = runtime.as_ref().map(Handle::enter);
        // Nobody has gone who waits for it.
        let _ = answer.send(load());
    });
    if let Err(SendError(job)) = loader.send(job) {
        job();
    }
    answered
        .recv()
        .expect("the thread has panicked, and said why")
}
