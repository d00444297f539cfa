//! The daemon as a service: signals, what the service manager, health checks and Prometheus are told, the
//! capabilities it needs, and the unit file under a real systemd.

mod capabilities;
mod health;
mod metrics;
mod notify;
mod signals;
mod support;
mod systemd;
