//! The XDP guard on the underlay of a lab.

mod flood;
mod peer_address;
