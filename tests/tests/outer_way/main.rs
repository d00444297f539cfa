//! What the host does to its own tunnel packets, and to pods' headers, holds for fast flows: with the
//! fast path as without, the same packets leave, by the same way and marked the same.

mod changed;
mod family;
mod marked;
mod obstacle;
mod others;
mod routed;
mod short_kinds;
mod short_way;
