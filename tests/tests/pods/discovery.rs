//! Pod interfaces are found from kernel events alone, as soon as they exist.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    process::{Child, Command},
    time::{Duration, Instant},
};

use overlay_agent::{
    backend::{HostGw, Kind as _},
    model::{Family, LocalNode, PerFamily, Underlay, V4, V6},
    netlink::{KernelEvent, Link, LinkTable, Netlink, PodLink, Watch, pod_links},
};
use overlay_common::addr::MacAddr;
use overlay_tests::private_netns::{in_private_netns, run};

/// How long a change may take to be seen before the test gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the agent does to find pods.
struct Discovery {
    netlink: Netlink,
    watch: Watch,
    table: LinkTable,
    local: LocalNode,
    local6: LocalNode<V6>,
    resyncs: usize,
}

impl Discovery {
    async fn start() -> Self {
        run("ip link add eth0 type veth peer name wire0");
        run("ip addr add 192.168.0.1/24 dev eth0");
        run("ip link set eth0 up");
        let watch = Netlink::watch().expect("watch");
        let netlink = Netlink::connect().expect("netlink");
        let mut table = LinkTable::default();
        table.replace(netlink.dump_links().await.expect("first look"));
        let underlay = table
            .links()
            .find(|link| link.name == "eth0")
            .expect("the underlay");
        let address = Ipv4Addr::new(192, 168, 0, 1);
        let local = LocalNode {
            network: "10.5.0.0/16".parse().expect("network"),
            subnet: "10.5.1.0/24".parse().expect("subnet"),
            underlay: underlay_of(underlay, address),
            forwarding: HostGw.forwarding::<V4>(),
            device: None,
            vtep_mac: MacAddr::ZERO,
            lease_data: None,
        };
        let address: Ipv6Addr = "2001:db8::1".parse().expect("an address");
        let local6 = LocalNode {
            network: "fd00:5::/48".parse().expect("network"),
            subnet: "fd00:5:0:1::/64".parse().expect("subnet"),
            underlay: underlay_of(underlay, address),
            forwarding: HostGw.forwarding::<V6>(),
            device: None,
            vtep_mac: MacAddr::ZERO,
            lease_data: None,
        };
        Self {
            netlink,
            watch,
            table,
            local,
            local6,
            resyncs: 0,
        }
    }

    fn pods(&self) -> BTreeMap<u32, PodLink> {
        pod_links(&self.table, self.locals())
    }

    fn locals(&self) -> PerFamily<Option<&LocalNode>, Option<&LocalNode<V6>>> {
        PerFamily {
            ipv4: Some(&self.local),
            ipv6: Some(&self.local6),
        }
    }

    fn pod(&self, name: &str) -> Option<PodLink> {
        self.pods().into_values().find(|pod| pod.name == name)
    }

    /// Takes in events until the pods are as described.
    async fn until(&mut self, what: &str, reached: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !reached(self) {
            let left = PATIENCE.saturating_sub(start.elapsed());
            match tokio::time::timeout(left, self.watch.next()).await {
                Ok(Some(KernelEvent::Resync)) => {
                    self.resyncs += 1;
                    let dump = self.netlink.dump_links().await.expect("a fresh look");
                    self.table.replace(dump);
                }
                Ok(Some(event)) => {
                    self.table.apply(&event);
                }
                Ok(None) => panic!("the watch ended before: {what}"),
                Err(elapsed) => panic!("{elapsed}: {what}; pods: {:#?}", self.pods()),
            }
        }
    }

    async fn until_pods(&mut self, names: &[&str]) {
        let mut expected: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        expected.sort();
        self.until(&format!("pods are {names:?}"), |discovery| {
            let mut found: Vec<_> = discovery.pods().into_values().map(|p| p.name).collect();
            found.sort();
            found == expected
        })
        .await;
    }

    /// Takes in every event sent so far.
    async fn settle(&mut self) {
        run("ip link add settled type veth peer name settled2");
        self.until("all events are in", |d| {
            d.table.links().any(|link| link.name == "settled")
        })
        .await;
        run("ip link delete settled");
    }
}

fn underlay_of<F: Family>(link: &Link, address: F::Address) -> Underlay<F> {
    Underlay {
        ifindex: link.ifindex,
        name: link.name.clone(),
        mtu: link.mtu,
        hardware: false,
        ethernet: true,
        address,
        public_ip: address,
    }
}

fn bridge(name: &str, address: &str) {
    run(&format!("ip link add {name} type bridge"));
    run(&format!("ip addr add {address} dev {name}"));
    run(&format!("ip link set {name} up"));
}

/// Adds the interface `pod0` to a bridge.
fn port_of(bridge: &str) {
    run("ip link add pod0 type veth peer name in-pod0");
    run(&format!("ip link set pod0 master {bridge}"));
}

/// A process in another network namespace, which ends with the test.
struct Elsewhere(Child);

impl Elsewhere {
    fn new() -> Self {
        let child = Command::new("unshare")
            .args(["--net", "sleep", "60"])
            .spawn()
            .expect("unshare");
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
        let path = format!("/proc/{}/ns/net", child.id());
        let start = Instant::now();
        while std::fs::read_link(&path).is_ok_and(|other| other == own) {
            assert!(start.elapsed() < PATIENCE, "unshare does not unshare");
            std::thread::yield_now();
        }
        Self(child)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.0.kill().expect("kill sleep");
        self.0.wait().expect("reap sleep");
    }
}

#[test]
fn ports_of_any_bridge_in_the_subnet_are_found_whatever_its_name() {
    in_private_netns(|| async {
        let mut discovery = Discovery::start().await;
        for name in ["docker0", "cni0", "my-bridge"] {
            bridge(name, "10.5.1.1/24");
            port_of(name);
            discovery.until_pods(&["pod0"]).await;
            let pod = discovery.pod("pod0").expect("the pod");
            let gateway = discovery
                .table
                .link(pod.gateway_ifindex)
                .expect("the bridge");
            assert_eq!(gateway.name, name);
            assert_eq!(gateway.mac, Some(pod.gateway_mac));
            run("ip link delete pod0");
            run(&format!("ip link delete {name}"));
            discovery.until_pods(&[]).await;
        }
    });
}

#[test]
fn ports_that_exist_before_the_agent_are_found_at_the_first_look() {
    in_private_netns(|| async {
        bridge("cni0", "10.5.1.1/24");
        port_of("cni0");
        let discovery = Discovery::start().await;
        assert!(discovery.pod("pod0").is_some(), "{:#?}", discovery.pods());
    });
}

#[test]
fn only_veths_of_the_right_bridge_are_pods() {
    in_private_netns(|| async {
        let mut discovery = Discovery::start().await;
        bridge("cni0", "10.5.1.1/24");
        bridge("other0", "10.5.2.1/24");
        for (name, master) in [("pod0", "cni0"), ("stranger", "other0")] {
            run(&format!("ip link add {name} type veth peer name in-{name}"));
            run(&format!("ip link set {name} master {master}"));
        }
        run("ip link add vx9 type vxlan id 9 dev eth0 dstport 0");
        run("ip link set vx9 master cni0");
        run("ip link add loose type veth peer name loose2");
        discovery.settle().await;
        discovery.until_pods(&["pod0"]).await;
    });
}

#[test]
fn a_port_is_a_pod_from_when_its_bridge_has_the_address_until_it_loses_it() {
    in_private_netns(|| async {
        let mut discovery = Discovery::start().await;
        run("ip link add cni0 type bridge");
        port_of("cni0");
        discovery.settle().await;
        discovery.until_pods(&[]).await;
        run("ip addr add 10.5.1.1/24 dev cni0");
        discovery.until_pods(&["pod0"]).await;
        run("ip addr del 10.5.1.1/24 dev cni0");
        discovery.until_pods(&[]).await;
    });
}

#[test]
fn a_changed_bridge_mac_becomes_the_gateway_mac() {
    in_private_netns(|| async {
        let mut discovery = Discovery::start().await;
        bridge("cni0", "10.5.1.1/24");
        port_of("cni0");
        discovery.until_pods(&["pod0"]).await;
        run("ip link set cni0 address 02:00:00:00:00:99");
        discovery
            .until("the gateway has the new MAC", |d| {
                d.pod("pod0")
                    .is_some_and(|pod| pod.gateway_mac.to_string() == "02:00:00:00:00:99")
            })
            .await;
    });
}

#[test]
fn renaming_enslaving_and_releasing_are_followed() {
    in_private_netns(|| async {
        let mut discovery = Discovery::start().await;
        bridge("cni0", "10.5.1.1/24");
        port_of("cni0");
        discovery.until_pods(&["pod0"]).await;
        let incarnation = discovery.pod("pod0").expect("the pod").incarnation;
        run("ip link set pod0 name vethcafe");
        discovery.until_pods(&["vethcafe"]).await;
        let renamed = discovery.pod("vethcafe").expect("the pod");
        assert_eq!(renamed.incarnation, incarnation, "the same device");
        run("ip link set vethcafe nomaster");
        discovery.until_pods(&[]).await;
        run("ip link set vethcafe master cni0");
        discovery.until_pods(&["vethcafe"]).await;
    });
}

#[test]
fn a_veth_that_moves_to_another_namespace_or_dies_with_it_is_gone() {
    in_private_netns(|| async {
        let mut discovery = Discovery::start().await;
        bridge("cni0", "10.5.1.1/24");
        let elsewhere = Elsewhere::new();
        let pid = elsewhere.0.id();
        for name in ["pod0", "pod1"] {
            run(&format!("ip link add {name} type veth peer name in-{name}"));
            run(&format!("ip link set {name} master cni0"));
        }
        discovery.until_pods(&["pod0", "pod1"]).await;
        run(&format!("ip link set pod0 netns {pid}"));
        discovery.until_pods(&["pod1"]).await;
        // The other end of pod1 moves, as container runtimes do: the host end stays.
        run(&format!("ip link set in-pod1 netns {pid}"));
        discovery.settle().await;
        discovery.until_pods(&["pod1"]).await;
        drop(elsewhere);
        discovery.until_pods(&[]).await;
    });
}

#[test]
fn a_device_that_takes_a_dead_ones_index_is_a_new_pod() {
    in_private_netns(|| async {
        let mut discovery = Discovery::start().await;
        bridge("cni0", "10.5.1.1/24");
        let create = || {
            run("ip link add pod0 index 500 type veth peer name in-pod0");
            run("ip link set pod0 master cni0");
        };
        create();
        discovery.until_pods(&["pod0"]).await;
        let first = discovery.pod("pod0").expect("the pod");
        // Both happen before the next look.
        run("ip link delete pod0");
        create();
        discovery
            .until("the successor is told apart", |d| {
                d.pod("pod0")
                    .is_some_and(|pod| pod.ifindex == 500 && pod.incarnation != first.incarnation)
            })
            .await;
    });
}

#[test]
fn a_point_to_point_veth_is_found_by_its_host_route() {
    in_private_netns(|| async {
        let mut discovery = Discovery::start().await;
        run("ip link add pod0 type veth peer name in-pod0");
        run("ip link set in-pod0 up");
        run("ip link set pod0 up");
        discovery.settle().await;
        discovery.until_pods(&[]).await;
        run("ip route add 10.5.1.9/32 dev pod0");
        discovery.until_pods(&["pod0"]).await;
        let pod = discovery.pod("pod0").expect("the pod");
        assert_eq!(pod.gateway_ifindex, pod.ifindex);
        let own = discovery.table.link(pod.ifindex).and_then(|link| link.mac);
        assert_eq!(own, Some(pod.gateway_mac));
        run("ip route del 10.5.1.9/32 dev pod0");
        discovery.until_pods(&[]).await;
        // A route that goes with its interface goes silently.
        run("ip route add 10.5.1.9/32 dev pod0");
        discovery.until_pods(&["pod0"]).await;
        run("ip link set pod0 down");
        discovery.until_pods(&[]).await;
    });
}

#[test]
fn pods_of_ipv6_are_found_alone_and_beside_ipv4_once() {
    in_private_netns(|| async {
        let mut discovery = Discovery::start().await;
        bridge("cni0", "fd00:5:0:1::1/64");
        port_of("cni0");
        discovery.until_pods(&["pod0"]).await;
        run("ip link add pod1 type veth peer name in-pod1");
        run("ip link set in-pod1 up");
        run("ip link set pod1 up");
        // As the ptp plugin does: the gateway's address, then a route to the pod.
        run("ip addr add fd00:5:0:1::1/128 dev pod1 nodad");
        discovery.settle().await;
        discovery.until_pods(&["pod0"]).await;
        run("ip route add fd00:5:0:1::9/128 dev pod1");
        discovery.until_pods(&["pod0", "pod1"]).await;

        run("ip addr add 10.5.1.1/24 dev cni0");
        run("ip route add 10.5.1.9/32 dev pod1");
        discovery.settle().await;
        discovery.until_pods(&["pod0", "pod1"]).await;
        run("ip addr del fd00:5:0:1::1/64 dev cni0");
        run("ip route del fd00:5:0:1::9/128 dev pod1");
        discovery.settle().await;
        discovery.until_pods(&["pod0", "pod1"]).await;
        let mut looked = LinkTable::default();
        looked.replace(discovery.netlink.dump_links().await.expect("a look"));
        let again = pod_links(&looked, discovery.locals());
        assert_eq!(again.len(), 2, "{again:#?}");
    });
}

#[test]
fn ipv6_addresses_and_routes_that_go_with_their_interface_are_noticed() {
    for silent in ["0", "1"] {
        in_private_netns(move || async move {
            let sysctl = "/proc/sys/net/ipv6/route/skip_notify_on_dev_down";
            std::fs::write(sysctl, silent).expect("sysctl");
            let mut discovery = Discovery::start().await;
            bridge("cni0", "fd00:5:0:1::1/64");
            port_of("cni0");
            run("ip link add pod1 type veth peer name in-pod1");
            run("ip link set pod1 up");
            run("ip route add fd00:5:0:1::9/128 dev pod1");
            discovery.until_pods(&["pod0", "pod1"]).await;
            run("ip link set pod1 down");
            discovery.until_pods(&["pod0"]).await;
            run("ip link set cni0 down");
            discovery.until_pods(&[]).await;
        });
    }
}

#[test]
fn a_pod_is_seen_within_a_tenth_of_a_second() {
    in_private_netns(|| async {
        let mut discovery = Discovery::start().await;
        bridge("cni0", "10.5.1.1/24");
        let mut delays = Vec::new();
        for _ in 0..15 {
            run("ip link add pod0 type veth peer name in-pod0");
            let start = Instant::now();
            run("ip link set pod0 master cni0");
            discovery.until_pods(&["pod0"]).await;
            delays.push(start.elapsed());
            run("ip link delete pod0");
            discovery.until_pods(&[]).await;
        }
        // The median: a single delay on a busy machine is the scheduler's.
        delays.sort();
        let median = delays[delays.len() / 2];
        println!(
            "seen after {median:?} (median), {:?} (worst)",
            delays.last()
        );
        assert!(median < Duration::from_millis(100), "{delays:?}");
    });
}

#[test]
fn hundreds_at_once_are_all_found_and_all_lost() {
    in_private_netns(|| async {
        let mut discovery = Discovery::start().await;
        bridge("cni0", "10.5.1.1/24");
        for n in 0..300 {
            run(&format!(
                "ip link add pod{n} master cni0 type veth peer name in-pod{n}"
            ));
        }
        discovery.until("300 pods", |d| d.pods().len() == 300).await;
        run("ip link delete cni0");
        discovery.until("no pods", |d| d.pods().is_empty()).await;
    });
}

#[test]
fn lost_events_end_in_a_fresh_look_and_the_right_pods() {
    in_private_netns(|| async {
        let mut discovery = Discovery::start().await;
        bridge("cni0", "10.5.1.1/24");
        port_of("cni0");
        discovery.until_pods(&["pod0"]).await;
        // Nobody reads while this runs, so the socket overruns; the last change is among the lost.
        let flood = "for n in $(seq 15000); do \
                     echo link set eth0 mtu $((1400 + n % 2)); done | ip -batch -";
        let status = Command::new("sh").args(["-c", flood]).status();
        assert!(status.expect("sh").success());
        run("ip link delete pod0");
        discovery.until_pods(&[]).await;
        assert!(
            discovery.resyncs > 0,
            "the flood was not large enough to lose events"
        );
    });
}
