//! Paths that are narrow, or that somebody measures: what pods observe is the same with the fast
//! path as without, and is what a routed network owes them.

mod ends;
mod ipv4;
mod ipv6;
mod large;
mod trace;
