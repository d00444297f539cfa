//! The daemon as a service: signals, what the service manager, health checks and Prometheus are told, the
//! capabilities it needs, the unit file and the Debian packages under a real systemd, and the container image.

mod booted;
mod capabilities;
mod cloud_package;
mod health;
mod image;
mod metrics;
mod notify;
mod package;
mod rpm;
mod signals;
mod support;
mod systemd;
