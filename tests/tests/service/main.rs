//! The daemon as a service: signals, what the service manager and health checks are told, the
//! capabilities it needs, and the unit file under a real systemd.

mod capabilities;
mod health;
mod notify;
mod signals;
mod support;
mod systemd;
