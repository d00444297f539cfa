//! The Debian package under a real systemd, in a copy of this machine's root: installed, upgraded,
//! removed and purged.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    lab::{Lab, scenario},
    netns::{checked, with_input},
    skip,
    wait::wait_for,
};

use crate::{
    booted::{Systemd, UNIT, environment},
    support::{PATIENCE, one_node},
};

pub const NAME: &str = "overlay-agent";
pub const SETTINGS: &str = "/etc/default/overlay-agent";

/// The package of a kind that `cargo xtask package` made. `arch`: for another architecture than this machine's.
pub fn built(arch: &str, name: &str, kind: &str) -> Result<Option<PathBuf>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/package");
    let Ok(entries) = fs::read_dir(dir.join(arch)) else {
        return Ok(None);
    };
    for entry in entries {
        let entry = entry?;
        let file = entry.file_name().into_string().unwrap_or_default();
        let version = file
            .strip_prefix(name)
            .and_then(|rest| rest.strip_suffix(kind));
        if version.is_some_and(|rest| rest.starts_with(['_', '-'])) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// The package as it is, and with the next version's number.
struct Packages(PathBuf);

impl Packages {
    const FIRST: &str = "/run/packages/first.deb";
    const NEXT: &str = "/run/packages/next.deb";

    fn prepare(lab: &Lab, package: &Path) -> Result<Self> {
        let dir = lab.dir().join("packages");
        let tree = lab.dir().join("tree");
        fs::create_dir_all(&dir)?;
        fs::copy(package, dir.join("first.deb"))?;
        checked(Command::new("dpkg-deb").arg("-R").arg(package).arg(&tree))?;
        let control = tree.join("DEBIAN/control");
        let text = fs::read_to_string(&control)?;
        let version = text
            .lines()
            .find(|line| line.starts_with("Version: "))
            .context("the package has no version")?;
        fs::write(&control, text.replace(version, &format!("{version}+next")))?;
        checked(
            Command::new("dpkg-deb")
                .args(["--root-owner-group", "-b"])
                .arg(&tree)
                .arg(dir.join("next.deb")),
        )?;
        Ok(Self(dir))
    }
}

pub fn install(systemd: &Systemd, package: &str) -> Result<String> {
    systemd.run(&["dpkg", "--install", "--force-confold", package])
}

pub fn is_there(systemd: &Systemd, path: &str) -> bool {
    systemd.run(&["test", "-e", path]).is_ok()
}

#[test]
fn the_package_is_installed_upgraded_removed_and_purged() {
    let package = match built("", NAME, "deb") {
        Ok(Some(package)) => package,
        Ok(None) => skip!("no package has been made; `cargo xtask package` makes one"),
        Err(error) => panic!("{error:#}"),
    };
    scenario(one_node(), |lab| {
        let packages = Packages::prepare(lab, &package)?;
        let systemd = Systemd::boot(lab, "boot-package.sh", [packages.0.into()])?;
        install(&systemd, Packages::FIRST)?;
        let files = systemd.run(&["dpkg", "-L", NAME])?;
        for wanted in [
            "/usr/bin/overlay-agent",
            "/usr/share/man/man8/overlay-agent-status.8.gz",
            "/usr/share/bash-completion/completions/overlay-agent",
            SETTINGS,
        ] {
            ensure!(
                files.lines().any(|file| file == wanted),
                "{wanted}: {files}"
            );
        }
        // It may stand beside a flanneld that runs.
        ensure!(systemd.property("UnitFileState")? == "enabled");
        ensure!(systemd.property("ActiveState")? == "inactive");

        let settings = environment(lab);
        systemd.run(&["sh", "-c", &format!("printf '{settings}' >{SETTINGS}")])?;
        systemd.systemctl(&["start", UNIT])?;
        ensure!(systemd.property("StatusText")? == "ready");
        let first = systemd.property("MainPID")?;
        let device = || systemd.run(&["ip", "-o", "link", "show", "flannel.1"]);
        let number = |text: &str| text.split(':').next().map(str::to_owned);
        let before = number(&device()?);

        install(&systemd, Packages::NEXT)?;
        wait_for("the next version to be ready", PATIENCE, || {
            let now = systemd.property("MainPID")?;
            ensure!(now != first && now != "0", "process {now} after {first}");
            ensure!(systemd.property("StatusText")? == "ready");
            Ok(())
        })?;
        ensure!(
            number(&device()?) == before,
            "the upgrade made the device anew"
        );
        ensure!(systemd.run(&["cat", SETTINGS])? == settings);

        systemd.run(&["dpkg", "--remove", NAME])?;
        ensure!(device().is_err(), "flannel.1 outlives the package");
        ensure!(!is_there(&systemd, "/sys/fs/bpf/overlay/nodes"));
        ensure!(!is_there(&systemd, "/usr/bin/overlay-agent"));
        ensure!(is_there(&systemd, SETTINGS));
        ensure!(systemd.property("ActiveState")? == "inactive");

        systemd.run(&["dpkg", "--purge", NAME])?;
        for file in files.lines().filter(|file| file.contains(NAME)) {
            ensure!(!is_there(&systemd, file), "{file} is left");
        }
        let wants = "/etc/systemd/system/multi-user.target.wants/overlay-agent.service";
        ensure!(!is_there(&systemd, wants), "{wants} is left");
        Ok(())
    });
}

/// The libraries are those of the compiler for it.
#[test]
fn the_programs_of_the_package_for_aarch64_start() {
    let package = match built("aarch64", NAME, "deb") {
        Ok(Some(package)) => package,
        Ok(None) => skip!(
            "no package for aarch64 has been made; `cargo xtask package --arch aarch64` makes one"
        ),
        Err(error) => panic!("{error:#}"),
    };
    if let Err(error) = check_aarch64(&package) {
        panic!("{error:#}");
    }
}

fn check_aarch64(package: &Path) -> Result<()> {
    let root = tempfile::tempdir()?;
    checked(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(package)
            .arg(root.path()),
    )?;
    let emulate = |program: &str| {
        let mut emulator = Command::new("qemu-aarch64-static");
        emulator
            .args(["-L", "/usr/aarch64-linux-gnu"])
            .arg(root.path().join(program));
        emulator
    };
    for (word, wanted) in [
        ("--version", env!("CARGO_PKG_VERSION")),
        ("--help", "--etcd-endpoints"),
    ] {
        let said = checked(emulate("usr/bin/overlay-agent").arg(word))?;
        ensure!(said.contains(wanted), "{word}: {said}");
    }
    let mut plugin = emulate("usr/lib/cni/overlay-cni");
    plugin.env("CNI_COMMAND", "VERSION");
    let said = with_input(&mut plugin, r#"{"cniVersion":"1.1.0"}"#)?;
    ensure!(said.contains("supportedVersions"), "{said}");
    Ok(())
}
