//! The RPM package, installed into a directory and removed, and what its scripts call.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{netns::checked, requirements::require_root, skip};

use crate::package::{NAME, built};

const CLOUD: &str = "overlay-cloud";

/// A root of its own, without anything else in it.
struct Root(PathBuf);

impl Root {
    /// With one package in it, which has these files.
    fn with(dir: &Path, name: &str, package: &str, files: &[&str]) -> Result<Self> {
        let root = Self(dir.join("root"));
        fs::create_dir(&root.0)?;
        root.rpm(&["--initdb"])?;
        // Nothing in there could run a script, or is a dependency.
        root.rpm(&["--install", "--nodeps", "--noscripts", package])?;
        for file in files {
            ensure!(root.has(file), "no {file}");
        }
        let differs = root.rpm(&["--verify", "--nodeps", "--noscripts", name])?;
        ensure!(differs.is_empty(), "{differs}");
        Ok(root)
    }

    /// Has the package go with all its files.
    fn erase(&self, name: &str) -> Result<()> {
        let files = self.rpm(&["--query", "--list", name])?;
        self.rpm(&["--erase", "--noscripts", name])?;
        for file in files.lines() {
            ensure!(!self.has(file), "{file} is left");
        }
        Ok(())
    }

    fn rpm(&self, words: &[&str]) -> Result<String> {
        let mut rpm = Command::new("rpm");
        rpm.arg("--root").arg(&self.0);
        checked(rpm.args(words))
    }

    fn has(&self, path: &str) -> bool {
        self.0.join(path.trim_start_matches('/')).exists()
    }
}

/// What a script of the package calls when it is run with a number.
fn calls(package: &str, script: &str, number: &str, dir: &Path) -> Result<Vec<String>> {
    let format = format!("%{{{script}}}");
    let text = checked(Command::new("rpm").args(["-qp", "--qf", &format, package]))?;
    let log = dir.join("calls");
    fs::write(&log, "")?;
    for program in ["systemctl", NAME] {
        let path = dir.join(program);
        let words = format!("#!/bin/sh\necho {program} \"$@\" >>{}\n", log.display());
        fs::write(&path, words)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let path = format!("{}:/usr/bin:/bin", dir.display());
    let mut sh = Command::new("sh");
    checked(sh.env("PATH", path).args(["-euc", &text, "sh", number]))?;
    Ok(fs::read_to_string(&log)?
        .lines()
        .map(str::to_owned)
        .collect())
}

#[test]
fn the_rpm_is_installed_and_removed_whole() {
    require_root();
    let package = match built("", NAME, "rpm") {
        Ok(Some(package)) => package,
        Ok(None) => skip!("no package has been made; `cargo xtask package` makes one"),
        Err(error) => panic!("{error:#}"),
    };
    if let Err(error) = check(&package) {
        panic!("{error:#}");
    }
}

fn check(package: &Path) -> Result<()> {
    let package = package.to_str().context("a path in UTF-8")?;
    let dir = tempfile::tempdir()?;
    let files = [
        "/usr/bin/overlay-agent",
        "/usr/libexec/cni/overlay-cni",
        "/usr/lib/systemd/system/overlay-agent.service",
        "/usr/share/man/man8/overlay-agent-status.8",
        "/usr/share/licenses/overlay-agent/LICENSE-MIT",
        "/etc/default/overlay-agent",
    ];
    let root = Root::with(dir.path(), NAME, package, &files)?;
    let version = Command::new(root.0.join("usr/bin/overlay-agent"))
        .arg("version")
        .output()?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    ensure!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");

    let settings = root.0.join("etc/default/overlay-agent");
    fs::write(&settings, "FLANNELD_IP_MASQ=true\n")?;
    root.erase(NAME)?;
    let saved = root.0.join("etc/default/overlay-agent.rpmsave");
    ensure!(saved.exists(), "the settings are lost");

    let enable = "systemctl enable overlay-agent.service";
    let called = calls(package, "POSTIN", "1", dir.path())?;
    ensure!(called.iter().any(|call| call == enable), "{called:?}");
    let called = calls(package, "POSTIN", "2", dir.path())?;
    ensure!(!called.iter().any(|call| call == enable), "{called:?}");
    let called = calls(package, "PREUN", "0", dir.path())?;
    ensure!(
        called.iter().any(|call| call == "overlay-agent cleanup"),
        "{called:?}"
    );
    let called = calls(package, "PREUN", "1", dir.path())?;
    ensure!(called.is_empty(), "an upgrade removes: {called:?}");
    Ok(())
}

#[test]
fn the_rpm_for_clouds_is_installed_and_removed_whole() {
    require_root();
    let package = match built("", CLOUD, "rpm") {
        Ok(Some(package)) => package,
        Ok(None) => {
            skip!("no package for clouds has been made; `cargo xtask package --cloud` makes one")
        }
        Err(error) => panic!("{error:#}"),
    };
    if let Err(error) = check_cloud(&package) {
        panic!("{error:#}");
    }
}

fn check_cloud(package: &Path) -> Result<()> {
    let package = package.to_str().context("a path in UTF-8")?;
    let dir = tempfile::tempdir()?;
    let files = [
        "/usr/bin/overlay-cloud",
        "/usr/share/man/man8/overlay-cloud.8",
        "/usr/share/licenses/overlay-cloud/LICENSE-APACHE",
    ];
    let root = Root::with(dir.path(), CLOUD, package, &files)?;
    let version = checked(Command::new(root.0.join("usr/bin/overlay-cloud")).arg("--version"))?;
    ensure!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    root.erase(CLOUD)
}
