//! The control plane at scale: what a node's agent costs in a cluster of many nodes, of which all but
//! a few are only leases in etcd. docs/performance/scale.md says how and why so.
//!
//! [`cluster`] writes the leases, [`routes`] notes when the kernel gets each route, [`watcher`] when etcd tells of
//! each lease, [`cost`] reads what the program took. [`start`], [`event`], [`churn`], [`restart`] and [`idle`] are the measurements,
//! [`simulation`] those without a kernel, [`report`] condenses them.

pub mod churn;
pub mod cluster;
pub mod cost;
pub mod event;
pub mod idle;
mod mirror;
pub mod report;
pub mod restart;
pub mod routes;
pub mod simulation;
pub mod start;
mod watcher;
