//! What single programs make of single packets, run by `BPF_PROG_TEST_RUN`.

mod cost;
mod garbage;
mod guard;
mod outcomes;
mod packets;
mod paged;
mod pairs;
mod permits;
mod sctp;
mod stamps;
mod translated;
mod tunnel;
mod ways;
