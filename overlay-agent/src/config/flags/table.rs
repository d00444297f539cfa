//! One row per flag.

use std::{net::IpAddr, ops::RangeInclusive, time::Duration};

use tracing::level_filters::LevelFilter;

use super::{
    draft::Draft,
    value::{
        ValueError, boolean, choice, endpoints, integer, no_path, not_an_address, optional, path,
        port, slow_mark,
    },
};
use crate::{
    config::options::{
        DEFAULT_SUBNET_FILE, DatapathTier, Fastpath, LogFormat, PerPacketRules, Xdp,
    },
    go::{args::Shape, value::parse_ip},
};

pub struct Flag {
    pub name: &'static str,
    pub group: Group,
    pub form: Form,
    /// Shown by `--help`; empty if there is nothing to show.
    pub default: &'static str,
    pub help: &'static str,
    pub set: fn(&mut Draft, &str) -> Result<(), ValueError>,
}

/// What follows the flag's name.
#[derive(Clone, Copy)]
pub enum Form {
    Switch,
    /// A value, under this name in `--help`.
    Value(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    LeaseStore,
    Kubernetes,
    Interface,
    Subnet,
    Filter,
    Datapath,
    General,
}

/// A flag of an earlier flannel, or one without a counterpart: accepted, without effect.
pub struct Retired {
    pub name: &'static str,
    pub shape: Shape,
    pub reason: &'static str,
}

impl Flag {
    pub fn shape(&self) -> Shape {
        match self.form {
            Form::Switch => Shape::Switch,
            Form::Value(_) => Shape::Valued,
        }
    }

    pub fn value_name(&self) -> &'static str {
        match self.form {
            Form::Switch => "true|false",
            Form::Value(name) => name,
        }
    }
}

/// Room for a list per CPU on large machines; 2 GiB.
const FLOW_TABLE_SIZES: RangeInclusive<u32> = 4_096..=16_777_216;

const YEAR: Duration = Duration::from_hours(365 * 24);

const LOGS_TO_STDERR: &str = "logs go to standard error; select more with --v or RUST_LOG";
const NO_VICI: &str = "ipsec is not done through charon";

pub const RETIRED: &[Retired] = &[
    retired("vmodule", "set RUST_LOG to choose the verbosity per module"),
    retired("log_backtrace_at", "set RUST_BACKTRACE=1 for backtraces"),
    retired_switch("logtostderr", LOGS_TO_STDERR),
    retired_switch("alsologtostderr", LOGS_TO_STDERR),
    retired("stderrthreshold", LOGS_TO_STDERR),
    retired("log_dir", LOGS_TO_STDERR),
    retired(
        "remote",
        "there is no client and server mode since flannel 0.8",
    ),
    retired(
        "listen",
        "there is no client and server mode since flannel 0.8",
    ),
    retired(
        "networks",
        "one daemon serves one network; start one per network",
    ),
    retired(
        "subnet-dir",
        "one daemon serves one network, described in --subnet-file",
    ),
    retired_switch(
        "auto-detect-ipv4",
        "EnableIPv4 in the network config decides",
    ),
    retired_switch(
        "auto-detect-ipv6",
        "EnableIPv6 in the network config decides",
    ),
    retired("charon-executable-path", NO_VICI),
    retired("charon-vici-uri", NO_VICI),
    retired_switch(
        "use-multi-cluster-cidr",
        "the Kubernetes API behind it was removed",
    ),
];

const fn retired(name: &'static str, reason: &'static str) -> Retired {
    Retired {
        name,
        shape: Shape::Valued,
        reason,
    }
}

const fn retired_switch(name: &'static str, reason: &'static str) -> Retired {
    Retired {
        name,
        shape: Shape::Switch,
        reason,
    }
}

pub const FLAGS: &[Flag] = &[
    Flag {
        name: "peers",
        group: Group::LeaseStore,
        form: Form::Value("FILE"),
        default: "",
        help: "a file that says which node has which subnet, the same on all of them; instead of etcd",
        set: |draft, value| {
            draft.options.lease.peers_file = path(value);
            Ok(())
        },
    },
    Flag {
        name: "etcd-endpoints",
        group: Group::LeaseStore,
        form: Form::Value("URL,..."),
        default: "http://127.0.0.1:4001,http://127.0.0.1:2379",
        help: "etcd servers, tried in order",
        set: |draft, value| {
            let (endpoints, warnings) = endpoints(value)?;
            draft.options.etcd.endpoints = endpoints;
            draft.warnings.extend(warnings);
            Ok(())
        },
    },
    Flag {
        name: "etcd-prefix",
        group: Group::LeaseStore,
        form: Form::Value("KEY"),
        default: "/coreos.com/network",
        help: "key prefix of the network's config and leases",
        set: |draft, value| {
            value.clone_into(&mut draft.options.etcd.prefix);
            Ok(())
        },
    },
    Flag {
        name: "etcd-cafile",
        group: Group::LeaseStore,
        form: Form::Value("FILE"),
        default: "",
        help: "PEM bundle of the authorities that sign the servers' certificates",
        set: |draft, value| {
            draft.options.etcd.ca_file = path(value);
            Ok(())
        },
    },
    Flag {
        name: "etcd-certfile",
        group: Group::LeaseStore,
        form: Form::Value("FILE"),
        default: "",
        help: "PEM client certificate, with --etcd-keyfile",
        set: |draft, value| {
            draft.cert_file = path(value);
            Ok(())
        },
    },
    Flag {
        name: "etcd-keyfile",
        group: Group::LeaseStore,
        form: Form::Value("FILE"),
        default: "",
        help: "PEM key of the client certificate",
        set: |draft, value| {
            draft.key_file = path(value);
            Ok(())
        },
    },
    Flag {
        name: "etcd-username",
        group: Group::LeaseStore,
        form: Form::Value("NAME"),
        default: "",
        help: "etcd user, with --etcd-password",
        set: |draft, value| {
            value.clone_into(&mut draft.username);
            Ok(())
        },
    },
    Flag {
        name: "etcd-password",
        group: Group::LeaseStore,
        form: Form::Value("PASSWORD"),
        default: "",
        help: "password of the etcd user; FLANNELD_ETCD_PASSWORD keeps it out of process lists",
        set: |draft, value| {
            value.clone_into(&mut draft.password);
            Ok(())
        },
    },
    Flag {
        name: "iface",
        group: Group::Interface,
        form: Form::Value("NAME|IP"),
        default: "",
        help: "underlay interface, by name or by an address of it; repeatable, the first match wins",
        set: |draft, value| {
            draft.options.interface.iface.push(value.to_owned());
            Ok(())
        },
    },
    Flag {
        name: "iface-regex",
        group: Group::Interface,
        form: Form::Value("REGEX"),
        default: "",
        help: "underlay interface by a pattern for its addresses or its name; repeatable, tried after \
               --iface",
        set: |draft, value| {
            draft.options.interface.iface_regex.push(value.to_owned());
            Ok(())
        },
    },
    Flag {
        name: "iface-can-reach",
        group: Group::Interface,
        form: Form::Value("IP"),
        default: "",
        help: "underlay interface by the kernel's route to this address; tried last",
        set: |draft, value| {
            draft.options.interface.iface_can_reach =
                optional(value, |value| parse_ip(value).ok_or_else(not_an_address))?;
            Ok(())
        },
    },
    Flag {
        name: "public-ip",
        group: Group::Interface,
        form: Form::Value("IPV4"),
        default: "",
        help: "address advertised to the other nodes, if not the interface's own; it may be one that a \
               NAT maps to this node",
        set: |draft, value| {
            draft.options.interface.public_ip = optional(value, |value| match parse_ip(value) {
                Some(IpAddr::V4(address)) => Ok(address),
                _ => Err(ValueError::Invalid(format!(
                    "invalid public IP address: {value}; give an IPv4 address"
                ))),
            })?;
            Ok(())
        },
    },
    Flag {
        name: "public-ipv6",
        group: Group::Interface,
        form: Form::Value("IPV6"),
        default: "",
        help: "IPv6 address advertised to the other nodes, if not the interface's own",
        set: |draft, value| {
            draft.options.interface.public_ipv6 = optional(value, |value| match parse_ip(value) {
                Some(IpAddr::V6(address)) => Ok(address),
                _ => Err(ValueError::Invalid(format!(
                    "invalid public IPv6 address: {value}; give an IPv6 address"
                ))),
            })?;
            Ok(())
        },
    },
    Flag {
        name: "subnet-file",
        group: Group::Subnet,
        form: Form::Value("FILE"),
        default: DEFAULT_SUBNET_FILE,
        help: "env file with this node's subnet and MTU: written, and read at start to keep the subnet",
        set: |draft, value| {
            draft.options.lease.subnet_file = path(value).ok_or_else(no_path)?;
            Ok(())
        },
    },
    Flag {
        name: "subnet-lease-renew-margin",
        group: Group::Subnet,
        form: Form::Value("MINUTES"),
        default: "60",
        help: "renew the lease this long before it expires, 1 to 1439",
        set: |draft, value| {
            let minutes = u64::try_from(integer(value)?)
                .ok()
                .filter(|minutes| (1..=1439).contains(minutes))
                .ok_or_else(|| {
                    ValueError::Invalid(
                        "out of acceptable range, give 1 to 1439 minutes".to_owned(),
                    )
                })?;
            draft.options.lease.renew_margin = Duration::from_mins(minutes);
            Ok(())
        },
    },
    Flag {
        name: "ip-masq",
        group: Group::Filter,
        form: Form::Switch,
        default: "false",
        help: "masquerade what leaves the pod network",
        set: |draft, value| {
            draft.options.filter.ip_masq = boolean(value)?;
            Ok(())
        },
    },
    Flag {
        name: "ip-masq-fully-random-disable",
        group: Group::Filter,
        form: Form::Switch,
        default: "false",
        help: "choose source ports of masqueraded traffic without fully random allocation",
        set: |draft, value| {
            draft.options.filter.masq_fully_random = !boolean(value)?;
            Ok(())
        },
    },
    Flag {
        name: "iptables-forward-rules",
        group: Group::Filter,
        form: Form::Switch,
        default: "true",
        help: "accept forwarded traffic of the pod network",
        set: |draft, value| {
            draft.options.filter.forward_rules = boolean(value)?;
            Ok(())
        },
    },
    Flag {
        name: "pod-source-keep",
        group: Group::Filter,
        form: Form::Switch,
        default: "true",
        help: "traffic between pods keeps its source address, whatever Docker's or other masquerade \
               rules say",
        set: |draft, value| {
            draft.options.filter.pod_source_keep = boolean(value)?;
            Ok(())
        },
    },
    Flag {
        name: "iptables-resync",
        group: Group::Filter,
        form: Form::Value("SECONDS"),
        default: "5",
        help: "period of the check that the rules are still there",
        set: |draft, value| {
            let seconds = u64::try_from(integer(value)?)
                .ok()
                .filter(|seconds| *seconds > 0)
                .ok_or_else(|| {
                    ValueError::Invalid("give a period of at least 1 second".to_owned())
                })?;
            // A year is as good as never, and can be added to any time.
            draft.options.filter.resync = Duration::from_secs(seconds).min(YEAR);
            Ok(())
        },
    },
    Flag {
        name: "ip-blackhole-route",
        group: Group::Filter,
        form: Form::Switch,
        default: "false",
        help: "keep a blackhole route for this node's subnet, so that packets to absent pods do not \
               leave the node",
        set: |draft, value| {
            draft.options.filter.blackhole_route = boolean(value)?;
            Ok(())
        },
    },
    Flag {
        name: "datapath",
        group: Group::Datapath,
        form: Form::Value("auto|ebpf|kernel"),
        default: "auto",
        help: "auto: eBPF where the kernel allows it; ebpf: an error where it does not; kernel: plain \
               flannel forwarding",
        set: |draft, value| {
            draft.options.datapath.tier = choice(
                value,
                &[
                    ("auto", DatapathTier::Auto),
                    ("ebpf", DatapathTier::Ebpf),
                    ("kernel", DatapathTier::Kernel),
                ],
            )?;
            Ok(())
        },
    },
    Flag {
        name: "fastpath",
        group: Group::Datapath,
        form: Form::Value("strict|trusted|off"),
        default: "strict",
        help: "strict: flows that netfilter lets pass unchanged bypass the host stack; trusted: all \
               flows between two pods once one did and none is translated, for hosts without rules about \
               what pods send to pods; off: none do",
        set: |draft, value| {
            draft.options.datapath.fastpath = choice(
                value,
                &[
                    ("strict", Fastpath::Strict),
                    ("trusted", Fastpath::Trusted),
                    ("off", Fastpath::Off),
                ],
            )?;
            Ok(())
        },
    },
    Flag {
        name: "per-packet-rules",
        group: Group::Datapath,
        form: Form::Value("heed|ignore"),
        default: "heed",
        help: "rules that judge packets one by one (string matches, queues, limits, quotas): heed: what \
               they can match stays in the kernel; ignore: they see what earns permits, and no more",
        set: |draft, value| {
            draft.options.datapath.per_packet_rules = choice(
                value,
                &[
                    ("heed", PerPacketRules::Heed),
                    ("ignore", PerPacketRules::Ignore),
                ],
            )?;
            Ok(())
        },
    },
    Flag {
        name: "slow-mark",
        group: Group::Datapath,
        form: Form::Value("VALUE/MASK"),
        default: "",
        help: "flows whose packets a rule of the host gives this mark stay in the kernel, for example \
               0x100000/0x100000",
        set: |draft, value| {
            draft.options.datapath.slow_mark = optional(value, slow_mark)?;
            Ok(())
        },
    },
    Flag {
        name: "xdp",
        group: Group::Datapath,
        form: Form::Value("auto|native|generic|off"),
        default: "auto",
        help: "drop tunnel packets that no peer sent before the kernel works on them: native: in the \
               driver; auto: there if a hardware driver can; generic: on any interface; off: nowhere",
        set: |draft, value| {
            draft.options.datapath.xdp = choice(
                value,
                &[
                    ("auto", Xdp::Auto),
                    ("native", Xdp::Native),
                    ("generic", Xdp::Generic),
                    ("off", Xdp::Off),
                ],
            )?;
            Ok(())
        },
    },
    Flag {
        name: "pin-dir",
        group: Group::Datapath,
        form: Form::Value("DIR"),
        default: "/sys/fs/bpf/overlay",
        help: "bpffs directory of the eBPF maps and links; one per daemon",
        set: |draft, value| {
            draft.options.datapath.pin_dir = path(value).ok_or_else(no_path)?;
            Ok(())
        },
    },
    Flag {
        name: "flow-table-size",
        group: Group::Datapath,
        form: Form::Value("FLOWS"),
        default: "131072",
        help: "flows that can be fast at a time, 128 bytes of kernel memory each; the least recently \
               used make room for others",
        set: |draft, value| {
            draft.options.datapath.flow_table_size = u32::try_from(integer(value)?)
                .ok()
                .filter(|size| FLOW_TABLE_SIZES.contains(size))
                .ok_or_else(|| {
                    let (least, most) = FLOW_TABLE_SIZES.into_inner();
                    ValueError::Invalid(format!("give a number of flows from {least} to {most}"))
                })?;
            Ok(())
        },
    },
    Flag {
        name: "conntrack-tcp-be-liberal",
        group: Group::Datapath,
        form: Form::Switch,
        default: "true",
        help: "set nf_conntrack_tcp_be_liberal, which connection tracking needs because it does not see \
               the segments of the fast path",
        set: |draft, value| {
            draft.options.datapath.tcp_be_liberal = boolean(value)?;
            Ok(())
        },
    },
    Flag {
        name: "datapath-log",
        group: Group::Datapath,
        form: Form::Value("off|error|warn|info|debug|trace"),
        default: "off",
        help: "log what the eBPF programs do with packets: warn: those dropped; info: and what keeps \
               flows off the fast path; debug: and permits; trace: and every other packet; slows all \
               packets down",
        set: |draft, value| {
            draft.options.datapath.log = choice(
                value,
                &[
                    ("off", LevelFilter::OFF),
                    ("error", LevelFilter::ERROR),
                    ("warn", LevelFilter::WARN),
                    ("info", LevelFilter::INFO),
                    ("debug", LevelFilter::DEBUG),
                    ("trace", LevelFilter::TRACE),
                ],
            )?;
            Ok(())
        },
    },
    Flag {
        name: "kube-subnet-mgr",
        group: Group::Kubernetes,
        form: Form::Switch,
        default: "false",
        help: "the podCIDRs and annotations of the cluster's Nodes are the leases, instead of etcd",
        set: |draft, value| {
            draft.options.kubernetes.is_on = boolean(value)?;
            Ok(())
        },
    },
    Flag {
        name: "kube-api-url",
        group: Group::Kubernetes,
        form: Form::Value("URL"),
        default: "",
        help: "Kubernetes API server; not needed inside a pod",
        set: |draft, value| {
            draft.options.kubernetes.api_url = Some(value.to_owned()).filter(|url| !url.is_empty());
            Ok(())
        },
    },
    Flag {
        name: "kube-annotation-prefix",
        group: Group::Kubernetes,
        form: Form::Value("PREFIX"),
        default: "flannel.alpha.coreos.com",
        help: "prefix of the node annotations",
        set: |draft, value| {
            value.clone_into(&mut draft.options.kubernetes.annotation_prefix);
            Ok(())
        },
    },
    Flag {
        name: "kubeconfig-file",
        group: Group::Kubernetes,
        form: Form::Value("FILE"),
        default: "",
        help: "kubeconfig; not needed inside a pod",
        set: |draft, value| {
            draft.options.kubernetes.kubeconfig_file = path(value);
            Ok(())
        },
    },
    Flag {
        name: "net-config-path",
        group: Group::Kubernetes,
        form: Form::Value("FILE"),
        default: "/etc/kube-flannel/net-conf.json",
        help: "network config",
        set: |draft, value| {
            draft.options.kubernetes.net_config_path = path(value).ok_or_else(no_path)?;
            Ok(())
        },
    },
    Flag {
        name: "set-node-network-unavailable",
        group: Group::Kubernetes,
        form: Form::Switch,
        default: "true",
        help: "clear the node's NetworkUnavailable condition when ready",
        set: |draft, value| {
            draft.options.kubernetes.set_node_network_unavailable = boolean(value)?;
            Ok(())
        },
    },
    Flag {
        name: "healthz-ip",
        group: Group::General,
        form: Form::Value("HOST"),
        default: "0.0.0.0",
        help: "address or host name that the health server listens on",
        set: |draft, value| {
            value.clone_into(&mut draft.options.health.host);
            Ok(())
        },
    },
    Flag {
        name: "healthz-port",
        group: Group::General,
        form: Form::Value("PORT"),
        default: "0",
        help: "port of the health server, which answers /healthz and /readyz; 0: none",
        set: |draft, value| {
            draft.options.health.port = port(value)?;
            Ok(())
        },
    },
    Flag {
        name: "peer-probe-port",
        group: Group::General,
        form: Form::Value("PORT"),
        default: "8473",
        help: "UDP port at which agents ask each other through the overlay whether packets get there, the \
               same on all nodes; 0: they do not",
        set: |draft, value| {
            draft.options.health.probe_port = port(value)?;
            Ok(())
        },
    },
    Flag {
        name: "v",
        group: Group::General,
        form: Form::Value("LEVEL"),
        default: "0",
        help: "log verbosity: 4 adds debug messages, 5 traces; RUST_LOG overrides it",
        set: |draft, value| {
            draft.options.log.verbosity = integer(value)?;
            Ok(())
        },
    },
    Flag {
        name: "log-format",
        group: Group::General,
        form: Form::Value("text|json"),
        default: "text",
        help: "form of the log on standard error",
        set: |draft, value| {
            draft.options.log.format = choice(
                value,
                &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            )?;
            Ok(())
        },
    },
    Flag {
        name: "version",
        group: Group::General,
        form: Form::Switch,
        default: "",
        help: "print the version and exit",
        set: |draft, value| {
            draft.version = boolean(value)?;
            Ok(())
        },
    },
];
