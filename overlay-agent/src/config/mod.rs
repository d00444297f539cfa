//! What the operator asks for: the flags and environment of one daemon, and the network config that
//! all daemons of a cluster share. Parsing and validation only, no I/O.

pub mod flags;
pub mod network;
pub mod options;

pub use flags::{FlagError, Invocation, ParsedOptions};
pub use network::{NetworkConfig, NetworkConfigError, ParsedNetworkConfig};
pub use options::{
    ClientIdentity, Credentials, DaemonOptions, DatapathOptions, DatapathTier, EtcdOptions,
    Fastpath, FilterOptions, HealthOptions, InterfaceOptions, KubernetesOptions, LeaseOptions,
    LogFormat, LogOptions, PerPacketRules, Secret, SlowMark, Xdp,
};
