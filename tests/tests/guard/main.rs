//! The XDP guard on the underlay of a lab.

mod family;
mod flood;
mod peer_address;
