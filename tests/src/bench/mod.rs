//! The benchmark: every way from pod to pod that a user has today, and this project's, measured side
//! by side. docs/performance.md says how and why so.
//!
//! [`load`] is the load generator, [`site`] builds two nodes for one [`variant`], [`sample`] takes
//! one measurement and judges whether it may be believed, [`report`] condenses many.

pub mod cross;
pub mod crowd;
pub mod figure;
pub mod floor;
pub mod load;
pub mod machine;
pub mod programs;
pub mod report;
pub mod rules;
pub mod sample;
pub mod site;
pub mod table;
pub mod target;
pub mod variant;
pub mod wire;
