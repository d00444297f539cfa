//! The node daemon of the overlay network, as a library: the binary, the tests and the lab use the
//! same pieces and the same printers.
#![deny(unsafe_code)]

pub mod backend;
mod backoff;
mod check;
pub mod cli;
mod clock;
mod complaints;
pub mod config;
pub mod conntrack;
pub mod core;
pub mod datapath;
pub mod docker_opts;
pub mod filter;
pub mod go;
pub mod health;
pub mod history;
mod inquiry;
pub mod lifecycle;
mod loan;
pub mod logging;
pub mod membership;
pub mod metrics;
pub mod model;
pub mod names;
pub mod netlink;
pub mod object;
pub mod output;
pub mod probe;
pub mod run;
pub mod subnet_env;
mod ticks;
mod trace;
pub mod underlay;
pub mod view;
