//! The same in two labs, with the fast path and without.

mod big_tcp;
mod churn;
mod paths;
mod pods;
mod random;
mod tc;
mod wire;
