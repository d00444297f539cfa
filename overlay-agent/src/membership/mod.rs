//! Membership: how this node comes to the subnet it owns, learns of the others, and says what it is.
//!
//! A start asks a [`Membership`] for the network config ([`await_config`]) and for what the nodes say
//! of themselves ([`await_known`]), then, once the device and with it the VTEP MAC address exist,
//! joins. The [`Member`] is what `run` holds from then on. A store is a module here and a line in
//! [`open`].

mod allocation;
pub mod etcd;
pub mod file;
pub mod kubernetes;
mod member;
mod open;
mod wait;

pub use allocation::Allocation;
pub use member::{JoinError, Member, Membership, Order, Wish};
pub use open::open;
pub use wait::{await_config, await_known};
