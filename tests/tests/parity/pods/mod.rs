//! Pods that come, go, swap addresses or lie about them: nobody gets what is not his.

mod common;
mod family;
mod replaced;
mod shared;
mod tunnel;
