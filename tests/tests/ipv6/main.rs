//! Clusters with IPv6.

mod checksum;
mod churn;
mod dual_stack;
mod fastpath;
mod guard;
mod interop;
mod only;
mod peers;
mod pod_tunnel;
mod repair;
mod routes;
