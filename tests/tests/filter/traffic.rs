//! What the rules do to packets: a pod behind a bridge `docker0`, its node, and a remote host that
//! owns a pod address and an outside address and reports which source it sees.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use overlay_agent::filter::{Masquerade, Mode, Settings, iptables::Variant};
use overlay_tests::{netns::Namespace, traffic::PATIENCE};

use crate::support::{Host, Tools, settings, v4, v6};

/// One family's addresses.
struct Addresses {
    pod: IpAddr,
    gateway: IpAddr,
    node: IpAddr,
    remote_pod: IpAddr,
    outside: IpAddr,
}

struct Site {
    pod: Host,
    node: Host,
    remote: Host,
    v4: Addresses,
    v6: Addresses,
}

/// Where Docker's masquerade rule stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DockerRule {
    Iptables(Variant),
    /// The nftables backend of recent Docker.
    Nftables,
}

const DOCKER_RULES: [DockerRule; 3] = [
    DockerRule::Iptables(Variant::Nft),
    DockerRule::Iptables(Variant::Legacy),
    DockerRule::Nftables,
];

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Site {
    fn new() -> Self {
        let (pod, node, remote) = (Host::new(), Host::new(), Host::new());
        for host in [&pod, &node, &remote] {
            // Link-local addresses are of use at once, and with them neighbour discovery.
            host.namespace()
                .set_sysctl("net/ipv6/conf/default/accept_dad", "0")
                .unwrap();
        }
        let (pod_name, remote_name) = (pod.namespace().name(), remote.namespace().name());
        node.batch(&format!(
            "link add docker0 type bridge
             link add veth0 type veth peer name eth0 netns {pod_name}
             link set veth0 master docker0
             link set veth0 up
             link set docker0 up
             address add 172.7.21.1/24 dev docker0
             address add fd07:0:21::1/64 dev docker0 nodad
             link add up0 type veth peer name up0 netns {remote_name}
             link set up0 up
             address add 192.0.2.1/24 dev up0
             address add 2001:db8::1/64 dev up0 nodad"
        ));
        remote.batch(
            "link set up0 up
             address add 192.0.2.2/24 dev up0
             address add 2001:db8::2/64 dev up0 nodad
             address add 172.7.22.2/32 dev lo
             address add fd07:0:22::2/128 dev lo nodad
             route add 172.7.21.0/24 via 192.0.2.1
             route add fd07:0:21::/64 via 2001:db8::1",
        );
        node.batch(
            "route add 172.7.22.0/24 via 192.0.2.2
             route add fd07:0:22::/64 via 2001:db8::2",
        );
        pod.batch(
            "link set eth0 up
             address add 172.7.21.2/24 dev eth0
             address add fd07:0:21::2/64 dev eth0 nodad
             route add default via 172.7.21.1
             route add default via fd07:0:21::1",
        );
        for sysctl in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            node.namespace().set_sysctl(sysctl, "1").unwrap();
        }
        Self {
            pod,
            node,
            remote,
            v4: Addresses {
                pod: address("172.7.21.2"),
                gateway: address("172.7.21.1"),
                node: address("192.0.2.1"),
                remote_pod: address("172.7.22.2"),
                outside: address("192.0.2.2"),
            },
            v6: Addresses {
                pod: address("fd07:0:21::2"),
                gateway: address("fd07:0:21::1"),
                node: address("2001:db8::1"),
                remote_pod: address("fd07:0:22::2"),
                outside: address("2001:db8::2"),
            },
        }
    }

    /// Puts Docker's rule first, where Docker puts it each time it starts.
    fn start_docker(&self, rule: DockerRule) {
        match rule {
            DockerRule::Iptables(variant) => {
                let suffix = variant;
                self.node.run(&format!(
                    "iptables-{suffix} -t nat -I POSTROUTING -s 172.7.21.0/24 ! -o docker0 -j MASQUERADE"
                ));
                self.node.run(&format!(
                    "ip6tables-{suffix} -t nat -I POSTROUTING -s fd07:0:21::/64 ! -o docker0 -j MASQUERADE"
                ));
            }
            DockerRule::Nftables => {
                for (family, subnet) in [("ip", "172.7.21.0/24"), ("ip6", "fd07:0:21::/64")] {
                    let table = format!("{family} docker-bridges");
                    self.node.run(&format!("nft add table {table}"));
                    self.node.run(&format!(
                        "nft add chain {table} nat-postrouting {{ type nat hook postrouting priority srcnat; }}"
                    ));
                    self.node.run(&format!(
                        "nft add rule {table} nat-postrouting oifname != docker0 {family} saddr {subnet} masquerade"
                    ));
                }
            }
        }
    }

    fn apply(&self, tools: &Tools, settings: Settings) {
        self.node.apply(tools, settings);
    }

    /// The source address the server sees when `client` connects to `address`.
    fn source_seen(client: &Host, server: &Host, address: IpAddr) -> IpAddr {
        let listener = listen(server.namespace(), address, 0);
        let port = listener.local_addr().unwrap().port();
        connect(client.namespace(), listener, SocketAddr::new(address, port))
    }

    fn source_seen_by_remote_pod(&self) -> IpAddr {
        Self::source_seen(&self.pod, &self.remote, self.v4.remote_pod)
    }
}

fn listen(namespace: &Namespace, address: IpAddr, port: u16) -> TcpListener {
    namespace.enter(|| TcpListener::bind((address, port)).unwrap())
}

/// Connects to `to`, which must lead to `listener`, sends a word there and back, and returns the
/// client's address as the server sees it.
fn connect(client: &Namespace, listener: TcpListener, to: SocketAddr) -> IpAddr {
    let serving = thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(&word).unwrap();
        peer.ip().to_canonical()
    });
    client.enter(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"ping").unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"ping");
    });
    serving.join().unwrap()
}

#[test]
fn dockers_rule_hides_pods_when_the_switch_is_off() {
    for docker in DOCKER_RULES {
        let site = Site::new();
        site.start_docker(docker);
        let off = Settings {
            keep_pod_source: false,
            ..settings(Mode::Iptables)
        };
        site.apply(&Tools::all(Variant::Nft), off);
        assert_eq!(site.source_seen_by_remote_pod(), site.v4.node, "{docker:?}");
    }
}

#[test]
fn pods_keep_their_address_whatever_flavour_dockers_rule_and_ours_have() {
    for docker in DOCKER_RULES {
        for mode in [Mode::Iptables, Mode::Nftables] {
            for default in [Variant::Nft, Variant::Legacy] {
                let site = Site::new();
                site.start_docker(docker);
                let dual = Settings {
                    networks: vec![v4(), v6()],
                    ..settings(mode)
                };
                site.apply(&Tools::all(default), dual);
                let case = format!("{docker:?}, {mode:?}, iptables is {default:?}");
                for family in [&site.v4, &site.v6] {
                    let seen = Site::source_seen(&site.pod, &site.remote, family.remote_pod);
                    assert_eq!(seen, family.pod, "{case}");
                    let seen = Site::source_seen(&site.pod, &site.remote, family.outside);
                    assert_eq!(seen, family.node, "{case}");
                }
            }
        }
    }
}

#[test]
fn pods_keep_their_address_when_docker_restarts_after_us() {
    for docker in DOCKER_RULES {
        let site = Site::new();
        site.apply(&Tools::all(Variant::Nft), settings(Mode::Iptables));
        site.start_docker(docker);
        // No repair has run: the first connection after Docker's start counts too.
        assert_eq!(site.source_seen_by_remote_pod(), site.v4.pod, "{docker:?}");
    }
}

#[test]
fn pods_keep_their_address_on_hosts_without_nft() {
    for variant in [Variant::Nft, Variant::Legacy] {
        let site = Site::new();
        let tools = Tools::iptables(variant);
        site.apply(&tools, settings(Mode::Iptables));
        site.start_docker(DockerRule::Iptables(variant));
        assert_eq!(
            site.source_seen_by_remote_pod(),
            site.v4.node,
            "{variant:?}: Docker is first"
        );
        site.apply(&tools, settings(Mode::Iptables));
        assert_eq!(
            site.source_seen_by_remote_pod(),
            site.v4.pod,
            "{variant:?}: repaired"
        );
    }
}

#[test]
fn without_ip_masq_pods_keep_their_address_and_dockers_rule_does_the_rest() {
    let site = Site::new();
    site.start_docker(DockerRule::Iptables(Variant::Nft));
    let settings = Settings {
        masquerade: Masquerade::Off,
        ..settings(Mode::Iptables)
    };
    site.apply(&Tools::all(Variant::Nft), settings);
    assert_eq!(site.source_seen_by_remote_pod(), site.v4.pod);
    let seen = Site::source_seen(&site.pod, &site.remote, site.v4.outside);
    assert_eq!(seen, site.v4.node);
}

#[test]
fn what_kube_proxy_marks_is_masqueraded() {
    for mode in [Mode::Iptables, Mode::Nftables] {
        let site = Site::new();
        site.apply(&Tools::all(Variant::Nft), settings(mode));
        for rule in [
            "-t mangle -A PREROUTING -s 172.7.21.2 -p tcp -j MARK --set-xmark 0x4000/0x4000",
            "-t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE",
        ] {
            site.node.run(&format!("iptables-nft {rule}"));
        }
        assert_eq!(site.source_seen_by_remote_pod(), site.v4.node, "{mode:?}");
    }
}

#[test]
fn a_pod_reaches_itself_through_its_published_port() {
    let site = Site::new();
    // Docker sets this too: with br_netfilter the packet goes back out of the port it came from.
    site.node
        .batch("link set veth0 type bridge_slave hairpin on");
    site.apply(&Tools::all(Variant::Nft), settings(Mode::Iptables));
    for rule in [
        "-A PREROUTING -d 192.0.2.1 -p tcp --dport 8080 -j DNAT --to-destination 172.7.21.2:80",
        "-A POSTROUTING -s 172.7.21.2 -d 172.7.21.2 -p tcp --dport 80 -j MASQUERADE",
    ] {
        site.node.run(&format!("iptables-nft -t nat {rule}"));
    }
    let listener = listen(site.pod.namespace(), site.v4.pod, 80);
    let published = SocketAddr::new(site.v4.node, 8080);
    assert_eq!(
        connect(site.pod.namespace(), listener, published),
        site.v4.gateway
    );
}

#[test]
fn clients_from_outside_keep_their_address() {
    for mode in [Mode::Iptables, Mode::Nftables] {
        let site = Site::new();
        site.apply(&Tools::all(Variant::Nft), settings(mode));
        let seen = Site::source_seen(&site.remote, &site.pod, site.v4.pod);
        assert_eq!(seen, site.v4.outside, "{mode:?}");
    }
}

#[test]
fn pods_pass_a_forward_policy_of_drop() {
    for variant in [Variant::Nft, Variant::Legacy] {
        let site = Site::new();
        for family in ["iptables", "ip6tables"] {
            site.node
                .run(&format!("{family}-{variant} -P FORWARD DROP"));
        }
        let dual = Settings {
            networks: vec![v4(), v6()],
            ..settings(Mode::Iptables)
        };
        site.apply(&Tools::all(variant), dual);
        for family in [&site.v4, &site.v6] {
            let seen = Site::source_seen(&site.pod, &site.remote, family.remote_pod);
            assert_eq!(seen, family.pod, "{variant:?}");
        }
    }
}
