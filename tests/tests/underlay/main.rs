//! Which interface and address a node takes for its underlay.

mod addresses;
mod choice;
mod tun;
