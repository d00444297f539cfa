//! What goes wrong with overlay networks, made to happen, and named by the commands that look for it.

mod bugreport;
mod check;
mod peers;
mod support;
mod ui;
