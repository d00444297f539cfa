//! Clusters with IPv6.

mod checksum;
mod churn;
mod dual_stack;
mod fastpath;
mod interop;
mod only;
mod peers;
mod pod_tunnel;
mod repair;
mod routes;
