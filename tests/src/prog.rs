//! Runs one BPF program on one packet (`BPF_PROG_TEST_RUN`), with maps of its own, and says what
//! came of it: verdict, packet, and which counter counted.
//!
//! What a test run cannot show: the interface a redirect goes to, and packets with paged data. The
//! lab's tests send real packets for those.

mod bench;
pub mod dispatcher;
pub mod fixture;
mod maps;
pub mod model;
pub mod node;
pub mod oddities;
pub mod packet;
pub mod passage;
mod rows;
mod run;

pub use self::{
    bench::{Bench, Size},
    rows::{Expected, Row, check_rows},
    run::{Hex, Run, Seen, Step, Surroundings, Verdict},
};
