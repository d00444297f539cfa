//! What goes wrong with overlay networks, made to happen, and named by the commands that look for it.

mod alerts;
mod bugreport;
mod check;
mod monitor;
mod peers;
mod support;
mod trace;
mod ui;
