//! The packet filter in a real kernel: rules, their upkeep, and what they do to packets.

mod rules;
mod support;
mod traffic;
mod upkeep;
