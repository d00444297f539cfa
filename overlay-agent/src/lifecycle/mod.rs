//! The life of the process: signals, the service manager, and the tasks that run until it ends.

pub mod memory;
mod notify;
pub mod privileges;
mod signals;
mod sleep;
mod supervisor;

pub use self::{
    notify::{Progress, ServiceManager},
    signals::{SignalRequest, Signals},
    sleep::SleepWatch,
    supervisor::Supervisor,
};
