//! Pins over the life of an agent: taken over after a crash, switched without a gap, cleaned up.

mod links;
mod rejected;
mod sandbox;
mod tables;
mod takeover;
