//! The kernel tier against a real kernel, each test in a network namespace of its own.

mod both;
mod device;
mod ipv6;
mod node;
mod peers;
mod repair;
mod traffic;
