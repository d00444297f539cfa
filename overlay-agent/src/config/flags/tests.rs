use std::{collections::HashMap, path::PathBuf, time::Duration};

use proptest::prelude::*;
use tracing::level_filters::LevelFilter;

use super::*;
use crate::config::options::{
    ClientIdentity, Credentials, DatapathTier, Fastpath, KubernetesOptions, LogFormat,
    NodeIdentity, PerPacketRules, Secret, SlowMark,
};

fn words(text: &[&str]) -> Vec<String> {
    text.iter().map(|word| (*word).to_owned()).collect()
}

fn parse_with(args: &[&str], env: &[(&str, &str)]) -> Result<Invocation, FlagError> {
    let env: HashMap<&str, &str> = env.iter().copied().collect();
    parse(&words(args), |name| {
        env.get(name).map(|value| (*value).to_owned())
    })
}

fn parsed(args: &[&str], env: &[(&str, &str)]) -> ParsedOptions {
    match parse_with(args, env) {
        Ok(Invocation::Run(parsed)) => *parsed,
        other => panic!("{args:?} {env:?}: {other:?}"),
    }
}

/// The options of a command line that must give no warning.
fn options(args: &[&str]) -> DaemonOptions {
    let parsed = parsed(args, &[]);
    assert_eq!(parsed.warnings, Vec::<String>::new(), "{args:?}");
    parsed.options
}

fn error(args: &[&str]) -> String {
    parse_with(args, &[])
        .expect_err(&args.join(" "))
        .to_string()
}

#[test]
fn no_flags_give_the_defaults_of_flannel() {
    let options = options(&[]);
    assert_eq!(options, DaemonOptions::default());
    assert_eq!(
        options.etcd.endpoints,
        ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]
    );
    assert_eq!(options.etcd.prefix, "/coreos.com/network");
    assert_eq!(
        options.lease.subnet_file,
        PathBuf::from("/run/flannel/subnet.env")
    );
    assert_eq!(options.lease.renew_margin, Duration::from_hours(1));
    assert!(!options.filter.ip_masq);
    assert!(options.filter.masq_fully_random);
    assert!(options.filter.forward_rules);
    assert!(options.filter.pod_source_keep);
    assert_eq!(options.filter.resync, Duration::from_secs(5));
    assert_eq!(options.health.host, "0.0.0.0");
    assert_eq!(options.health.port, None);
}

#[test]
fn a_period_of_any_length_can_be_added_to_any_time() {
    let options = options(&["--iptables-resync=9223372036854775807"]);
    let period = options.filter.resync;
    assert!(std::time::Instant::now().checked_add(period).is_some());
}

#[test]
fn the_defaults_in_the_help_are_the_defaults() {
    for flag in FLAGS.iter().filter(|flag| !flag.default.is_empty()) {
        let argument = format!("--{}={}", flag.name, flag.default);
        assert_eq!(
            options(&[&argument]),
            DaemonOptions::default(),
            "{argument}"
        );
    }
}

#[test]
fn every_flag_can_be_given_with_its_documented_form() {
    for flag in FLAGS.iter().filter(|flag| flag.name != "version") {
        let word = format!("-{}", flag.name);
        let result = match flag.form {
            table::Form::Switch => parse_with(&[&word], &[]),
            table::Form::Value(choices) if choices.contains('|') && flag.name != "iface" => {
                parse_with(
                    &[&word, choices.split('|').next_back().unwrap_or_default()],
                    &[],
                )
            }
            table::Form::Value(name) => {
                let value = match name {
                    "IP" | "IPV4" => "10.0.0.1",
                    "IPV6" => "fd00::1",
                    "URL,..." => "http://10.0.0.1:2379",
                    "MINUTES" | "SECONDS" | "PORT" | "LEVEL" => "7",
                    "FLOWS" => "8192",
                    "VALUE/MASK" => "1/1",
                    _ => "text",
                };
                parse_with(&[&word, value], &[])
            }
        };
        let Ok(Invocation::Run(parsed)) = result else {
            panic!("--{}: {result:?}", flag.name)
        };
        let paired = [
            "etcd-certfile",
            "etcd-keyfile",
            "etcd-username",
            "etcd-password",
        ];
        assert_eq!(
            parsed.warnings.is_empty(),
            !paired.contains(&flag.name),
            "--{}",
            flag.name
        );
    }
}

#[test]
fn a_command_line_of_a_kubernetes_host_with_etcd_is_understood() {
    let options = options(&[
        "-etcd-endpoints=https://10.0.0.1:2379,https://10.0.0.2:2379,",
        "--etcd-cafile=/etc/ssl/ca.pem",
        "-etcd-certfile",
        "/etc/ssl/node.pem",
        "--etcd-keyfile",
        "/etc/ssl/node-key.pem",
        "-etcd-prefix=/k8s/network",
        "--ip-masq",
        "-iface=eth1",
        "--iface",
        "10.0.0.7",
        "--public-ip=192.0.2.7",
        "--healthz-port=2401",
    ]);
    assert_eq!(
        options.etcd.endpoints,
        ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]
    );
    assert_eq!(options.etcd.ca_file, Some(PathBuf::from("/etc/ssl/ca.pem")));
    assert_eq!(
        options.etcd.client_identity,
        Some(ClientIdentity {
            cert_file: "/etc/ssl/node.pem".into(),
            key_file: "/etc/ssl/node-key.pem".into()
        })
    );
    assert_eq!(options.etcd.prefix, "/k8s/network");
    assert!(options.filter.ip_masq);
    assert_eq!(options.interface.iface, ["eth1", "10.0.0.7"]);
    assert_eq!(options.interface.public_ip, Some([192, 0, 2, 7].into()));
    assert_eq!(options.health.port, Some(2401));
}

#[test]
fn our_own_flags_are_understood() {
    let options = options(&[
        "--peers=/etc/peers.toml",
        "--datapath=kernel",
        "--fastpath=off",
        "--per-packet-rules=ignore",
        "--slow-mark=0x100000/1048576",
        "--pin-dir=/sys/fs/bpf/one",
        "--flow-table-size=1000000",
        "--conntrack-tcp-be-liberal=false",
        "--datapath-log=debug",
        "--peer-probe-port=0",
        "--log-format=json",
        "-v=5",
    ]);
    assert_eq!(options.lease.peers_file, Some("/etc/peers.toml".into()));
    assert_eq!(options.datapath.tier, DatapathTier::Kernel);
    assert_eq!(options.datapath.fastpath, Fastpath::Off);
    assert_eq!(options.datapath.per_packet_rules, PerPacketRules::Ignore);
    let slow_mark = SlowMark {
        value: 0x10_0000,
        mask: 0x10_0000,
    };
    assert_eq!(options.datapath.slow_mark, Some(slow_mark));
    assert_eq!(options.datapath.pin_dir, PathBuf::from("/sys/fs/bpf/one"));
    assert_eq!(options.datapath.flow_table_size, 1_000_000);
    assert!(!options.datapath.tcp_be_liberal);
    assert_eq!(options.datapath.log, LevelFilter::DEBUG);
    assert_eq!(options.health.probe_port, None);
    assert_eq!(options.log.format, LogFormat::Json);
    assert_eq!(options.log.verbosity, 5);
}

#[test]
fn a_slow_mark_that_no_packet_or_every_packet_has_is_refused() {
    for (value, reason) in [
        ("1", "give VALUE/MASK"),
        ("x/1", "give VALUE/MASK"),
        ("0/0", "every packet has this mark"),
        ("3/1", "no packet has this mark"),
    ] {
        let error = parse_with(&["--slow-mark", value], &[]).unwrap_err();
        assert!(error.to_string().contains(reason), "{value}: {error}");
    }
    assert_eq!(options(&["--slow-mark="]).datapath.slow_mark, None);
}

#[test]
fn an_endpoint_without_a_scheme_is_http() {
    let options = options(&["--etcd-endpoints=10.0.0.1:2379, https://[fd00::1]:2379"]);
    assert_eq!(
        options.etcd.endpoints,
        ["http://10.0.0.1:2379", "https://[fd00::1]:2379"]
    );
}

#[test]
fn a_password_reaches_the_options_and_no_message() {
    let args = [
        "--etcd-username=flannel",
        "--etcd-password=hunter2",
        "stray",
        "hunter2",
    ];
    let parsed = parsed(&args, &[]);
    let expected = Credentials {
        username: "flannel".to_owned(),
        password: Secret::new("hunter2"),
    };
    assert_eq!(parsed.options.etcd.credentials, Some(expected));
    assert!(!format!("{parsed:?}").contains("hunter2"));
    assert!(!error(&["--etcd-pasword=hunter2"]).contains("hunter2"));
}

#[test]
fn half_a_pair_is_ignored_with_a_warning() {
    for (arg, text) in [
        (
            "--etcd-certfile=c",
            "--etcd-certfile is ignored without --etcd-keyfile: give both to authenticate with a client certificate",
        ),
        (
            "--etcd-keyfile=k",
            "--etcd-keyfile is ignored without --etcd-certfile: give both to authenticate with a client certificate",
        ),
        (
            "--etcd-username=u",
            "--etcd-username is ignored without --etcd-password: give both to authenticate to etcd",
        ),
        (
            "--etcd-password=p",
            "--etcd-password is ignored without --etcd-username: give both to authenticate to etcd",
        ),
    ] {
        let parsed = parsed(&[arg], &[]);
        assert_eq!(parsed.warnings, [text]);
        assert_eq!(parsed.options, DaemonOptions::default());
    }
}

#[test]
fn a_variable_counts_only_if_its_flag_is_not_given_and_it_is_not_empty() {
    let env = [
        ("FLANNELD_IFACE", "eth1,eth2"),
        ("FLANNELD_IP_MASQ", "true"),
        ("FLANNELD_ETCD_PREFIX", "/other"),
        ("FLANNELD_SUBNET_FILE", ""),
        ("FLANNELD_VERSION", "true"),
        ("FLANNELD_HELP", "true"),
    ];
    let parsed = parsed(&["--etcd-prefix=/given"], &env);
    assert_eq!(parsed.options.interface.iface, ["eth1", "eth2"]);
    assert!(parsed.options.filter.ip_masq);
    assert_eq!(parsed.options.etcd.prefix, "/given");
    assert_eq!(
        parsed.options.lease.subnet_file,
        PathBuf::from("/run/flannel/subnet.env")
    );
    assert_eq!(
        parsed.warnings,
        [
            "environment variable FLANNELD_IFACE is a list and means several --iface, but flannel takes it for one name"
        ]
    );
}

#[test]
fn variables_of_a_file_with_line_ends_of_windows_are_understood_with_a_warning() {
    let parsed = parsed(
        &[],
        &[
            ("FLANNELD_IFACE", "eth1\r"),
            ("FLANNELD_IP_MASQ", "true\r"),
            ("FLANNELD_ETCD_PREFIX", "\r"),
        ],
    );
    assert_eq!(parsed.options.interface.iface, ["eth1"]);
    assert!(parsed.options.filter.ip_masq);
    assert_eq!(parsed.options.etcd.prefix, "/coreos.com/network");
    let told = |name: &str| {
        format!(
            "environment variable {name} ends with a carriage return, which is passed over: write its file with line ends of Unix"
        )
    };
    assert_eq!(
        parsed.warnings,
        [
            told("FLANNELD_ETCD_PREFIX"),
            told("FLANNELD_IFACE"),
            told("FLANNELD_IP_MASQ")
        ]
    );
}

#[test]
fn a_value_in_quotes_is_named_as_that() {
    let reason = |written: &str| {
        format!(
            "the value is in quotes: write {written} without them, as nothing takes them away (docker --env-file and YAML lists keep them)"
        )
    };
    for (variable, value, written) in [
        ("FLANNELD_IFACE", r#""eth0""#, "FLANNELD_IFACE=eth0"),
        (
            "FLANNELD_ETCD_PREFIX",
            "'/k8s/network'",
            "FLANNELD_ETCD_PREFIX=/k8s/network",
        ),
        (
            "FLANNELD_ETCD_ENDPOINTS",
            r#""http://a:2379,http://b:2379""#,
            "FLANNELD_ETCD_ENDPOINTS=http://a:2379,http://b:2379",
        ),
    ] {
        let error = parse_with(&[], &[(variable, value)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "invalid value {value:?} for environment variable {variable}: {}",
                reason(written)
            )
        );
    }
    assert_eq!(
        error(&["--iface='eth0'"]),
        format!(
            r#"invalid value "'eth0'" for flag --iface: {}"#,
            reason("--iface=eth0")
        )
    );
    // flannel ignores a variable that is no boolean, whatever is wrong with it.
    let switch = parsed(&[], &[("FLANNELD_IP_MASQ", r#""true""#)]);
    assert!(!switch.options.filter.ip_masq);
    assert_eq!(
        switch.warnings,
        [format!(
            r#"environment variable FLANNELD_IP_MASQ is ignored: invalid value "\"true\"": {}"#,
            reason("FLANNELD_IP_MASQ=true")
        )]
    );
    let login = [
        ("FLANNELD_ETCD_USERNAME", "flannel"),
        ("FLANNELD_ETCD_PASSWORD", r#""secret""#),
    ];
    let login = parsed(&[], &login).options.etcd.credentials.unwrap();
    assert_eq!(login.password.expose(), r#""secret""#);
}

#[test]
fn a_scheme_in_capitals_is_understood_with_a_warning() {
    let parsed = parsed(
        &["--etcd-endpoints=HTTP://a:2379,Https://b:2379,http://c:2379"],
        &[],
    );
    assert_eq!(
        parsed.options.etcd.endpoints,
        ["http://a:2379", "https://b:2379", "http://c:2379"]
    );
    assert_eq!(
        parsed.warnings,
        [
            "HTTP:// of an etcd endpoint is taken for http://; write it so",
            "Https:// of an etcd endpoint is taken for https://; write it so",
        ]
    );
}

#[test]
fn a_variable_of_the_wrong_type_is_a_warning_and_an_unusable_one_an_error() {
    let parsed = parsed(
        &[],
        &[
            ("FLANNELD_IP_MASQ", "yes"),
            ("FLANNELD_HEALTHZ_PORT", "http"),
        ],
    );
    assert_eq!(parsed.options, DaemonOptions::default());
    assert_eq!(
        parsed.warnings,
        [
            r#"environment variable FLANNELD_IP_MASQ is ignored: invalid value "yes": give true or false"#,
            r#"environment variable FLANNELD_HEALTHZ_PORT is ignored: invalid value "http": not a whole number"#,
        ]
    );
    assert_eq!(
        parse_with(&[], &[("FLANNELD_PUBLIC_IP", "nonsense")])
            .unwrap_err()
            .to_string(),
        r#"invalid value "nonsense" for environment variable FLANNELD_PUBLIC_IP: invalid public IP address: nonsense; give an IPv4 address"#
    );
}

#[test]
fn flags_of_earlier_releases_are_accepted_with_a_warning() {
    let parsed = parsed(
        &[
            "-listen",
            ":8080",
            "--logtostderr",
            "--vmodule=a=5",
            "--iface=eth1",
        ],
        &[("FLANNELD_SUBNET_DIR", "/run/flannel/networks")],
    );
    assert_eq!(parsed.options.interface.iface, ["eth1"]);
    assert_eq!(
        parsed.warnings,
        [
            "flag --listen has no effect: there is no client and server mode since flannel 0.8",
            "flag --logtostderr has no effect: logs go to standard error; select more with --v or RUST_LOG",
            "flag --vmodule has no effect: set RUST_LOG to choose the verbosity per module",
            "environment variable FLANNELD_SUBNET_DIR has no effect: one daemon serves one network, described in --subnet-file",
        ]
    );
}

#[test]
fn words_after_the_flags_are_ignored_with_a_warning() {
    let parsed = parsed(&["--ip-masq", "false", "--iface=eth1"], &[]);
    assert!(parsed.options.filter.ip_masq);
    assert!(parsed.options.interface.iface.is_empty());
    assert_eq!(
        parsed.warnings,
        [
            "the last 2 words of the command line after --ip-masq are ignored: flags end at the first word that is not a flag; a boolean takes its value as --flag=value"
        ]
    );
}

#[test]
fn version_and_help_win_over_everything_that_is_well_formed() {
    assert_eq!(
        parse_with(&["--iface=eth0", "--version"], &[]),
        Ok(Invocation::Version)
    );
    assert_eq!(
        parse_with(&["--iface=eth0", "-h", "--bogus"], &[]),
        Ok(Invocation::Help)
    );
    assert_eq!(parse_with(&["-help"], &[]), Ok(Invocation::Help));
    assert_eq!(options(&["--version=false"]), DaemonOptions::default());
}

#[test]
fn an_empty_value_means_not_given_where_flannel_takes_it_so() {
    let options = options(&[
        "--public-ip=",
        "--public-ipv6",
        "",
        "--iface-can-reach=",
        "--etcd-cafile=",
        "--etcd-certfile=",
        "--kube-api-url=",
    ]);
    assert_eq!(options, DaemonOptions::default());
}

#[test]
fn bad_flags_are_refused_with_a_hint() {
    for (args, text) in [
        (&["--bogus"][..], "flag provided but not defined: -bogus"),
        (
            &["--ifcae=eth0"],
            "flag provided but not defined: -ifcae (did you mean --iface?)",
        ),
        (
            &["--etcd_endpoints=x"],
            "flag provided but not defined: -etcd_endpoints (did you mean --etcd-endpoints?)",
        ),
        (
            &["--IP-MASQ"],
            "flag provided but not defined: -IP-MASQ (did you mean --ip-masq?)",
        ),
        (
            &["---iface"],
            "bad flag syntax: ---iface (flags are written as -flag=value or --flag value)",
        ),
        (
            &["--iface"],
            "flag needs an argument: -iface (write --iface=NAME|IP)",
        ),
        (
            &["-remote"],
            "flag needs an argument: -remote (write --remote=VALUE)",
        ),
        (
            &["--ip-masq=maybe"],
            r#"invalid value "maybe" for flag --ip-masq: give true or false"#,
        ),
        (
            &["--subnet-lease-renew-margin=1440"],
            r#"invalid value "1440" for flag --subnet-lease-renew-margin: out of acceptable range, give 1 to 1439 minutes"#,
        ),
        (
            &["--subnet-lease-renew-margin=soon"],
            r#"invalid value "soon" for flag --subnet-lease-renew-margin: not a whole number"#,
        ),
        (
            &["--iptables-resync=0"],
            r#"invalid value "0" for flag --iptables-resync: give a period of at least 1 second"#,
        ),
        (
            &["--healthz-port=65536"],
            r#"invalid value "65536" for flag --healthz-port: give a port from 1 to 65535, or 0"#,
        ),
        (
            &["--public-ip=fd00::1"],
            r#"invalid value "fd00::1" for flag --public-ip: invalid public IP address: fd00::1; give an IPv4 address"#,
        ),
        (
            &["--public-ipv6=10.0.0.1"],
            r#"invalid value "10.0.0.1" for flag --public-ipv6: invalid public IPv6 address: 10.0.0.1; give an IPv6 address"#,
        ),
        (
            &["--iface-can-reach=host"],
            r#"invalid value "host" for flag --iface-can-reach: give an IPv4 or IPv6 address"#,
        ),
        (
            &["--etcd-endpoints=,"],
            r#"invalid value "," for flag --etcd-endpoints: give at least one URL, such as http://127.0.0.1:2379"#,
        ),
        (
            &["--etcd-endpoints=unix:///run/etcd"],
            r#"invalid value "unix:///run/etcd" for flag --etcd-endpoints: "unix:///run/etcd" is not an etcd endpoint; write it as http://HOST:PORT or https://HOST:PORT"#,
        ),
        (
            &["--etcd-endpoints=http://a:2379;http://b:2379"],
            r#"invalid value "http://a:2379;http://b:2379" for flag --etcd-endpoints: endpoints are parted by commas; write http://a:2379,http://b:2379"#,
        ),
        (
            &["--etcd-endpoints=http://a:2379 http://b:2379"],
            r#"invalid value "http://a:2379 http://b:2379" for flag --etcd-endpoints: endpoints are parted by commas; write http://a:2379,http://b:2379"#,
        ),
        (
            &["--datapath=xdp"],
            r#"invalid value "xdp" for flag --datapath: give one of auto, ebpf, kernel"#,
        ),
        (
            &["--flow-table-size=4095"],
            r#"invalid value "4095" for flag --flow-table-size: give a number of flows from 4096 to 16777216"#,
        ),
        (
            &["--flow-table-size=4294967296"],
            r#"invalid value "4294967296" for flag --flow-table-size: give a number of flows from 4096 to 16777216"#,
        ),
        (
            &["--subnet-file="],
            r#"invalid value "" for flag --subnet-file: give a path"#,
        ),
    ] {
        assert_eq!(error(args), text);
    }
}

#[test]
fn the_help_text_is_as_committed() {
    let commands = [("status".to_owned(), "what this node does".to_owned())];
    let help = daemon_help(&commands);
    assert!(help.lines().all(|line| line.len() <= 100), "{help}");
    insta::assert_snapshot!(help);
}

proptest! {
    #[test]
    fn no_command_line_makes_the_parser_panic(
        args in prop::collection::vec(
            prop_oneof![
                any::<String>(),
                (prop::sample::select(FLAGS.iter().map(|flag| flag.name).collect::<Vec<_>>()), any::<String>())
                    .prop_map(|(name, value)| format!("--{name}={value}")),
            ],
            0..6,
        ),
        value: String,
    ) {
        let _ = parse(&args, |_| Some(value.clone()));
    }
}

#[test]
fn a_command_line_of_flannels_daemon_set_is_understood() {
    let command = [
        "--ip-masq",
        "--kube-subnet-mgr",
        "--kube-api-url=https://10.0.0.1:6443",
        "--kubeconfig-file=/etc/kube-flannel/kubeconfig",
        "--kube-annotation-prefix=example.com/pods",
        "--net-config-path=/tmp/net-conf.json",
        "--set-node-network-unavailable=false",
    ];
    let of_pod = [
        ("POD_NAME", "kube-flannel-ds-x"),
        ("POD_NAMESPACE", "kube-flannel"),
    ];
    let named = [of_pod[0], of_pod[1], ("NODE_NAME", "worker-1")];
    for (environment, node) in [
        (
            &of_pod[..],
            Some(NodeIdentity::Pod {
                namespace: "kube-flannel".to_owned(),
                name: "kube-flannel-ds-x".to_owned(),
            }),
        ),
        (&named, Some(NodeIdentity::Name("worker-1".to_owned()))),
        (&of_pod[..1], None),
    ] {
        let Ok(Invocation::Run(parsed)) = parse_with(&command, environment) else {
            panic!("{environment:?}");
        };
        let expected = KubernetesOptions {
            is_on: true,
            node,
            api_url: Some("https://10.0.0.1:6443".to_owned()),
            annotation_prefix: "example.com/pods".to_owned(),
            kubeconfig_file: Some("/etc/kube-flannel/kubeconfig".into()),
            net_config_path: "/tmp/net-conf.json".into(),
            set_node_network_unavailable: false,
        };
        assert_eq!(parsed.options.kubernetes, expected);
    }
}
