//! The daemon's options after parsing. The defaults are flannel's.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use tracing::level_filters::LevelFilter;

/// Where the subnet file is, unless it is said otherwise.
pub const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Everything the flags and the environment decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DaemonOptions {
    pub etcd: EtcdOptions,
    pub kubernetes: KubernetesOptions,
    pub interface: InterfaceOptions,
    pub lease: LeaseOptions,
    pub filter: FilterOptions,
    pub health: HealthOptions,
    pub datapath: DatapathOptions,
    pub log: LogOptions,
}

/// How to reach etcd.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdOptions {
    /// URLs, tried in order.
    pub endpoints: Vec<String>,
    /// As given: the keys are joined the way Go's `path.Join` does.
    pub prefix: String,
    pub ca_file: Option<PathBuf>,
    /// Certificate and key of the client, given together.
    pub client_identity: Option<ClientIdentity>,
    pub credentials: Option<Credentials>,
}

/// TLS client certificate and its key, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// etcd user and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: Secret,
}

/// A text that must not reach a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Kubernetes as the lease store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesOptions {
    /// Leases are in the Nodes of a cluster instead of etcd.
    pub is_on: bool,
    /// Which of them this node is.
    pub node: Option<NodeIdentity>,
    pub api_url: Option<String>,
    pub annotation_prefix: String,
    pub kubeconfig_file: Option<PathBuf>,
    pub net_config_path: PathBuf,
    pub set_node_network_unavailable: bool,
}

/// By what a node finds its Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeIdentity {
    /// `NODE_NAME`.
    Name(String),
    /// `POD_NAME` and `POD_NAMESPACE`: the pod that the agent runs in.
    Pod { namespace: String, name: String },
}

/// How to find the underlay interface, and what to advertise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceOptions {
    /// Names or addresses, tried in order; an empty one means the default route's interface.
    pub iface: Vec<String>,
    /// Patterns, tried in order after `iface`.
    pub iface_regex: Vec<String>,
    /// Tried last: the interface and source address the kernel uses towards this address.
    pub iface_can_reach: Option<IpAddr>,
    pub public_ip: Option<Ipv4Addr>,
    pub public_ipv6: Option<Ipv6Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseOptions {
    /// Leases are in this file instead of etcd.
    pub peers_file: Option<PathBuf>,
    pub subnet_file: PathBuf,
    /// A lease is renewed this long before it expires.
    pub renew_margin: Duration,
}

/// Packet filter rules and the blackhole route.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent switch of its own flag"
)]
pub struct FilterOptions {
    pub ip_masq: bool,
    /// Fully random source ports for masqueraded traffic.
    pub masq_fully_random: bool,
    pub forward_rules: bool,
    /// No masquerade rule hides a pod from another one.
    pub pod_source_keep: bool,
    /// Keep a blackhole route for the local subnet.
    pub blackhole_route: bool,
    pub resync: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthOptions {
    /// UDP port at which agents ask each other; `None`: they do not.
    pub probe_port: Option<u16>,
    /// Address or host name to listen on.
    pub host: String,
    /// `None`: no server.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatapathOptions {
    pub tier: DatapathTier,
    pub fastpath: Fastpath,
    pub per_packet_rules: PerPacketRules,
    pub slow_mark: Option<SlowMark>,
    pub xdp: Xdp,
    pub pin_dir: PathBuf,
    /// Flows the table holds before it evicts the least recently used.
    pub flow_table_size: u32,
    /// Set `nf_conntrack_tcp_be_liberal`: conntrack does not see the segments of the fast path, and
    /// would call later ones out of window.
    pub tcp_be_liberal: bool,
    /// Which packets the programs log; anything but `OFF` takes the flavour of them that can.
    pub log: LevelFilter,
}

/// Which tiers carry packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DatapathTier {
    /// eBPF where the kernel allows it, else the kernel tier alone.
    #[default]
    Auto,
    /// eBPF, and an error at start where the kernel does not allow it.
    Ebpf,
    /// The kernel tier alone.
    Kernel,
}

/// Whether and how the underlay interface drops tunnel packets that no peer sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xdp {
    /// In the driver, where there is one that can.
    #[default]
    Auto,
    /// In the driver, and an error where it cannot.
    Native,
    /// Behind the driver, on any interface.
    Generic,
    Off,
}

/// Which packets of the eBPF tier bypass the host stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fastpath {
    /// Those of flows that netfilter let pass unchanged.
    #[default]
    Strict,
    /// Those between two pods once netfilter let any of them pass unchanged, handshakes included.
    Trusted,
    /// None.
    Off,
}

/// What rules that judge packets one by one mean for the fast path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PerPacketRules {
    /// What they can match is left to the kernel.
    #[default]
    Heed,
    /// They judge the packets that earn permits, and no others.
    Ignore,
}

/// Packets whose mark is `value` in the bits of `mask` keep their flow off the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowMark {
    pub value: u32,
    pub mask: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// klog's scale: 4 shows debug messages, 5 and above show traces.
    pub verbosity: i64,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            endpoints: vec![
                "http://127.0.0.1:4001".to_owned(),
                "http://127.0.0.1:2379".to_owned(),
            ],
            prefix: "/coreos.com/network".to_owned(),
            ca_file: None,
            client_identity: None,
            credentials: None,
        }
    }
}

impl Default for KubernetesOptions {
    fn default() -> Self {
        Self {
            is_on: false,
            node: None,
            api_url: None,
            annotation_prefix: "flannel.alpha.coreos.com".to_owned(),
            kubeconfig_file: None,
            net_config_path: PathBuf::from("/etc/kube-flannel/net-conf.json"),
            set_node_network_unavailable: true,
        }
    }
}

impl Default for LeaseOptions {
    fn default() -> Self {
        Self {
            peers_file: None,
            subnet_file: PathBuf::from(DEFAULT_SUBNET_FILE),
            renew_margin: Duration::from_hours(1),
        }
    }
}

impl Default for FilterOptions {
    fn default() -> Self {
        Self {
            ip_masq: false,
            masq_fully_random: true,
            forward_rules: true,
            pod_source_keep: true,
            blackhole_route: false,
            resync: Duration::from_secs(5),
        }
    }
}

impl Default for HealthOptions {
    fn default() -> Self {
        Self {
            probe_port: Some(8473),
            host: "0.0.0.0".to_owned(),
            port: None,
        }
    }
}

impl Default for DatapathOptions {
    fn default() -> Self {
        Self {
            tier: DatapathTier::default(),
            fastpath: Fastpath::default(),
            per_packet_rules: PerPacketRules::default(),
            slow_mark: None,
            xdp: Xdp::default(),
            pin_dir: PathBuf::from("/sys/fs/bpf/overlay"),
            flow_table_size: 131_072,
            tcp_be_liberal: true,
            log: LevelFilter::OFF,
        }
    }
}

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, to be handed to the peer and to nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Some people put a login into the URLs.
impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.endpoints.iter().map(|url| match url.rsplit_once('@') {
            Some((_, host)) => format!("<hidden>@{host}"),
            None => url.clone(),
        });
        f.debug_struct("EtcdOptions")
            .field("endpoints", &hosts.collect::<Vec<_>>())
            .field("prefix", &self.prefix)
            .field("ca_file", &self.ca_file)
            .field("client_identity", &self.client_identity)
            .field("credentials", &self.credentials)
            .finish()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_does_not_appear_in_debug_output() {
        let options = DaemonOptions {
            etcd: EtcdOptions {
                endpoints: vec!["http://flannel:hunter2@10.0.0.1:2379".to_owned()],
                credentials: Some(Credentials {
                    username: "flannel".to_owned(),
                    password: Secret::new("hunter2"),
                }),
                ..EtcdOptions::default()
            },
            ..DaemonOptions::default()
        };

        let text = format!("{options:?} {options:#?}");

        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("flannel"), "{text}");
    }
}
