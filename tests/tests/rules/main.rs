//! What an administrator sets ends fast flows, or keeps them from being fast.

mod conntrack_timeouts;
mod flush_contested;
mod ipsec;
mod per_packet;
mod policy;
