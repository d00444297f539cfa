//! The lab: a cluster on one machine, with real packets, a real kernel and a real etcd; and what
//! tests need to use it. The tests, the demo and the benchmarks share it.
//!
//! [`lab`] builds nodes and pods out of network namespaces, [`traffic`] sends verified payloads
//! between them, [`capture`] reads frames off their wires and [`decode`] takes them apart with a
//! decoder that shares no code with the datapath.

pub mod backends;
pub mod bench;
pub mod big_tcp;
pub mod btf;
pub mod capture;
pub mod chaos;
pub mod cloud;
pub mod decode;
pub mod decode6;
pub mod differ;
pub mod docker;
pub mod document;
pub mod double;
pub mod etcd;
pub mod http;
pub mod kernel;
pub mod kubernetes;
pub mod lab;
pub mod lease_node;
pub mod netkit;
pub mod netns;
pub mod page;
pub mod pki;
pub mod private_netns;
pub mod process;
pub mod prog;
pub mod prometheus;
pub mod requirements;
pub mod rules;
pub mod scale;
pub mod seccomp;
pub mod services;
pub mod sys;
pub mod tcp_proxy;
pub mod tcx;
pub mod traffic;
pub mod tun;
pub mod ui;
pub mod wait;
