//! A model of a cluster: the project's own code on several nodes, with their own clocks, against
//! servers in memory and a network that misbehaves, under whatever happens to clusters. A seed decides
//! all of it, so that a run that fails can be repeated and read.
//!
//! What must hold is in [`judge`]. `OVERLAY_MODEL_SEEDS` sets how many seeds are run,
//! `OVERLAY_MODEL_SEED` one that is to be printed.

mod happenings;
mod judge;
mod network;
mod node;
mod run;
mod server;
mod stock;
mod tally;
mod tests;
mod watch;
mod world;
