//! Pods that nodes find, and their addresses.

mod discovery;
mod docker;
mod mac;
