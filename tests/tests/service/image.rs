//! The container image, run without a daemon, as a node of the lab.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail, ensure};
use overlay_tests::{
    lab::{Lab, agent::Launch, scenario},
    netns::{checked, with_input},
    skip,
};
use serde_json::json;

const BPFFS: &str = "/sys/fs/bpf";
/// Where the container has it: this way of running one leaves its `/sys` read-only.
const PINS: &str = "/run/bpf";

const IMAGE: &str = "overlay-agent";
const CLOUD_IMAGE: &str = "overlay-agent-cloud";

/// Where `cargo xtask image` left an image, and the storage of images it is in. `arch`: another one than this
/// machine's.
fn built(arch: &str, image: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/image");
    let dir = dir.join(arch);
    dir.join(format!("{image}.tar"))
        .is_file()
        .then(|| dir.canonicalize().ok())
        .flatten()
}

/// What the image may have unpacked, in bytes.
const LIMIT: u64 = 40_000_000;

/// A container of the image, which goes with this.
struct Container {
    storage: Vec<String>,
    name: String,
}

impl Container {
    fn create(dir: &Path, name: &str, image: &str) -> Result<Self> {
        let storage = vec![
            "--storage-driver=vfs".to_owned(),
            format!("--root={}", dir.join("storage").display()),
            format!("--runroot={}", dir.join("run").display()),
        ];
        let name = format!("ovl-{name}");
        let this = Self { storage, name };
        let image = format!("{image}:{}", env!("CARGO_PKG_VERSION"));
        // Its filter of system calls knows CAP_SYS_ADMIN only, not CAP_BPF.
        let mut from = this.buildah();
        from.args(["from", "--security-opt=seccomp=unconfined", "--name"]);
        checked(from.args([&this.name, &image]))?;
        Ok(this)
    }

    fn buildah(&self) -> Command {
        let mut buildah = Command::new("buildah");
        buildah.args(&self.storage);
        buildah
    }

    /// What runs a program of the image, with the network of whoever calls it and a directory of the
    /// host's.
    fn run(&self, dir: &Path) -> Vec<String> {
        let mut words = vec!["buildah".to_owned()];
        words.extend(self.storage.iter().cloned());
        words.extend(["run", "--isolation=chroot", "--network=host"].map(str::to_owned));
        for capability in ["net_admin", "net_raw", "bpf", "perfmon"] {
            words.push(format!("--cap-add=cap_{capability}"));
        }
        words.push(format!("--volume={BPFFS}:{PINS}"));
        words.push(format!("--volume={0}:{0}", dir.display()));
        words.extend([self.name.clone(), "--".to_owned()]);
        words
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = checked(self.buildah().args(["rm", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn the_image_has_less_than_40_mb() {
    let Some(dir) = built("", IMAGE) else {
        skip!("no image has been made; `cargo xtask image` makes one");
    };
    check_size(&dir);
}

fn check_size(dir: &Path) {
    let size = |name: &str| {
        let file = fs::metadata(dir.join(name));
        file.expect("a part of the image").len()
    };
    let sizes = ["root.tar", "overlay-agent", "overlay-cni"].map(size);
    assert!(sizes.iter().sum::<u64>() < LIMIT, "{sizes:?}");
}

/// Each of its programs starts with the libraries of the image, and no others.
#[test]
fn the_image_for_aarch64_has_what_its_programs_need() {
    let Some(dir) = built("aarch64", IMAGE) else {
        skip!("no image for aarch64 has been made; `cargo xtask image --arch aarch64` makes one");
    };
    check_size(&dir);
    let root = tempfile::tempdir().expect("a directory");
    let tar = dir.join("root.tar");
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(tar).arg("-C").arg(root.path());
    checked(&mut unpack).expect("the root of the image");
    let emulate = |program: &Path| {
        let mut emulator = Command::new("qemu-aarch64-static");
        emulator.arg("-L").arg(root.path()).arg(program);
        emulator
    };
    let said = checked(emulate(&dir.join("overlay-agent")).arg("--version"));
    assert!(
        said.as_ref()
            .is_ok_and(|said| said.contains(env!("CARGO_PKG_VERSION"))),
        "{said:?}"
    );
    // They open a socket of netfilter before they read their arguments, which qemu translates none of: by then all
    // their libraries are there.
    for (tool, word, without_netfilter) in [
        ("nft", "nftables", "Unable to initialize Netlink socket"),
        ("iptables", "iptables", "Failed to initialize nft"),
    ] {
        let said = checked(emulate(&root.path().join("usr/sbin").join(tool)).arg("--version"));
        let is_started = match &said {
            Ok(said) => said.contains(word),
            Err(error) => format!("{error:#}").contains(without_netfilter),
        };
        assert!(is_started, "{said:?}");
    }
    let mut plugin = emulate(&dir.join("overlay-cni"));
    plugin.env("CNI_COMMAND", "VERSION");
    let said = with_input(&mut plugin, r#"{"cniVersion":"1.1.0"}"#);
    let is_said = said
        .as_ref()
        .is_ok_and(|said| said.contains("supportedVersions"));
    assert!(is_said, "{said:?}");
}

/// What `flanneld` runs, in the words of a shell, is the agent of the first node, and its flows are fast.
fn check_node(lab: &Lab, flanneld: &str, options: &[&str]) -> Result<()> {
    let [one, two] = lab.nodes() else {
        bail!("{} nodes", lab.nodes().len());
    };
    // The lab gives the path of its own agent first.
    let run = format!("shift; exec {flanneld} \"$@\"");
    one.launch(&Launch {
        wrapper: ["sh", "-c", &run, "sh"].map(str::to_owned).to_vec(),
        ..Launch::new(lab.store(), &[&["--ip-masq"], options].concat())
    })?;
    lab.start_agent(two, &[])?;
    for node in lab.nodes() {
        node.wait_ready()?;
    }
    lab.wait_converged()?;
    lab.add_pods(1)?;
    lab.wait_attached()?;
    lab.ping_matrix()?;
    let pods = lab.pods();
    let [(_, from), (_, to)] = &pods[..] else {
        bail!("{} pods", pods.len());
    };
    one.wait_fast_echoes(&from.endpoint(), two, &to.endpoint())
}

#[test]
fn the_image_is_a_node_and_has_what_flannels_manifest_calls() {
    let Some(dir) = built("", IMAGE) else {
        skip!("no image has been made; `cargo xtask image` makes one");
    };
    scenario(Lab::builder().nodes(2), |lab| {
        let container = Container::create(&dir, lab.id(), IMAGE)?;
        let words = container.run(lab.dir());
        let one = lab.node(0);
        let pins = Path::new(PINS).join(one.pin_dir.strip_prefix(BPFFS)?);
        let pins = format!("--pin-dir={}", pins.display());
        let flanneld = format!("{} /opt/bin/flanneld", words.join(" "));
        check_node(lab, &flanneld, &[&pins])?;
        let rules = one.cmd("iptables-nft", ["-t", "nat", "-S"])?;
        ensure!(rules.contains("FLANNEL-POSTRTG"), "{rules}");

        let copied = lab.dir().join("flannel");
        let copy = format!("{} cp -f /flannel {}", words.join(" "), copied.display());
        checked(Command::new("sh").args(["-c", &copy]))?;
        let (plugin, copy) = (fs::read(dir.join("overlay-cni"))?, fs::read(&copied)?);
        ensure!(plugin == copy, "{} bytes, not {}", copy.len(), plugin.len());
        Ok(())
    });
}

/// A container that podman runs, which goes with this.
struct Podman {
    words: Vec<String>,
    name: String,
}

impl Podman {
    fn load(dir: &Path, name: &str, image: &Path) -> Result<Self> {
        let words = [
            "podman".to_owned(),
            "--storage-driver=vfs".to_owned(),
            format!("--root={}", dir.join("podman").display()),
            format!("--runroot={}", dir.join("podman-run").display()),
            // Those of machines without systemd, or with cgroups of the first version.
            "--cgroup-manager=cgroupfs".to_owned(),
            "--runtime=runc".to_owned(),
        ];
        let this = Self {
            words: words.to_vec(),
            name: format!("ovl-{name}"),
        };
        // A volume has to be there; iptables makes this one when it first runs.
        let lock = "/run/xtables.lock";
        fs::File::options().create(true).append(true).open(lock)?;
        checked(this.command().args(["load", "--input"]).arg(image))?;
        Ok(this)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
    }

    /// What docs/install.md has the container run with, with the directory `flannel` in place of flannel's.
    fn run(&self, flannel: &Path) -> Result<Vec<String>> {
        let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/install.md");
        let document = fs::read_to_string(document)?.replace("\\\n", " ");
        let started = "# podman run -d --name overlay-agent ";
        let options = document.lines().find_map(|line| line.strip_prefix(started));
        let options = options.and_then(|line| line.split_once(" --etcd-endpoints"));
        let Some((options, _)) = options else {
            bail!("no {started} in docs/install.md");
        };
        let flannel = format!("{0}:{0}", flannel.display());
        let options = options.replace("/run/flannel:/run/flannel", &flannel);
        // No more than whoever runs the test may have.
        let limits = "--ulimit nofile=1024:4096 --ulimit nproc=1024:4096";
        let run = format!("run --rm --name {} {limits} {options}", self.name);
        let words = run.split_whitespace().map(str::to_owned);
        Ok(self.words.iter().cloned().chain(words).collect())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let removed = checked(
            self.command()
                .args(["rm", "--force", "--ignore", &self.name]),
        );
        // Their layers belong to nobody once the directory is removed.
        let removed = removed.and_then(|_| checked(self.command().args(["rmi", "--all"])));
        if let Err(error) = removed {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn podman_runs_the_image_as_the_guide_says() {
    let Some(dir) = built("", IMAGE) else {
        skip!("no image has been made; `cargo xtask image` makes one");
    };
    if Command::new("podman").arg("--version").output().is_err() {
        skip!("podman is not installed; `cargo xtask image --install` does that");
    }
    scenario(Lab::builder().nodes(2), |lab| {
        let image = dir.join(format!("{IMAGE}.tar"));
        let podman = Podman::load(lab.dir(), lab.id(), &image)?;
        check_node(lab, &podman.run(lab.dir())?.join(" "), &[])
    });
}

#[test]
fn the_image_for_clouds_alone_has_their_program() {
    let Some(dir) = built("", CLOUD_IMAGE) else {
        skip!("no image for clouds has been made; `cargo xtask image --cloud` makes one");
    };
    scenario(Lab::builder(), |lab| {
        // Nobody answers there.
        let request = json!({
            "cloud": "gce", "network": "10.5.0.0/16", "subnet": "10.5.7.0/24", "address": "172.30.0.11",
            "route_tables": [], "take_over": true,
        });
        let ask = |image: &str| {
            let container = Container::create(&dir, &format!("{}-{image}", lab.id()), image)?;
            let mut words = container.run(lab.dir());
            words.push("/usr/bin/overlay-cloud".to_owned());
            let mut asked = Command::new(&words[0]);
            with_input(asked.args(&words[1..]), &request.to_string())
        };
        let answer = ask(CLOUD_IMAGE)?;
        ensure!(answer.contains("metadata"), "{answer}");
        ensure!(ask(IMAGE).is_err(), "the agent's image has the program");
        Ok(())
    });
}
