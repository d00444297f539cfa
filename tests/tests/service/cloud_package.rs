//! The Debian package of what speaks with clouds, beside the agent's under a real systemd, in the unit's sandbox.

use std::{fmt::Write as _, fs};

use anyhow::ensure;
use overlay_tests::{cloud::gce::Gce, lab::scenario, skip, wait::wait_for};

use crate::{
    booted::{Systemd, UNIT, environment},
    package::{self, SETTINGS, built, install, is_there},
    support::{PATIENCE, one_node},
};

const NAME: &str = "overlay-cloud";
/// The only subnet there is.
const CONFIG: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.7.0","Backend":{"Type":"gce"}}"#;
const ROUTE: &str = "flannel-10-5-7-0-24";
/// Nothing keeps a journal there.
const LOG: &str = "mkdir -p /etc/systemd/system/overlay-agent.service.d && printf \
                   '[Service]\nStandardOutput=append:/run/agent.log\nStandardError=append:/run/agent.log\n' \
                   >/etc/systemd/system/overlay-agent.service.d/log.conf && systemctl daemon-reload";

#[test]
fn the_package_for_clouds_is_what_the_agent_asks_for_and_goes_without_a_trace() {
    let packages = [package::NAME, NAME].map(|name| built("", name, "deb"));
    let [Ok(Some(agent)), Ok(Some(cloud))] = packages else {
        skip!("no package for clouds has been made; `cargo xtask package --cloud` makes one");
    };
    scenario(one_node().config(CONFIG), |lab| {
        let dir = lab.dir().join("packages");
        fs::create_dir_all(&dir)?;
        fs::copy(&agent, dir.join("agent.deb"))?;
        fs::copy(&cloud, dir.join("cloud.deb"))?;
        let gce = Gce::start(lab)?;
        let systemd = Systemd::boot(lab, "boot-package.sh", [dir.into()])?;
        install(&systemd, "/run/packages/agent.deb")?;
        let mut settings = environment(lab);
        for (name, value) in Gce::variables() {
            writeln!(settings, "{name}={value}")?;
        }
        systemd.run(&["sh", "-c", &format!("printf '{settings}' >{SETTINGS}")])?;
        systemd.run(&["sh", "-c", LOG])?;
        systemd.systemctl(&["start", "--no-block", UNIT])?;
        let missing = "install the package overlay-cloud";
        wait_for("the agent to ask for the package", PATIENCE, || {
            let log = systemd.run(&["cat", "/run/agent.log"])?;
            ensure!(log.contains(missing), "{log}");
            Ok(())
        })?;

        // The unit starts the agent again and again.
        install(&systemd, "/run/packages/cloud.deb")?;
        wait_for("the route of the subnet", PATIENCE, || {
            let routes = gce.routes();
            let evidence = || systemd.run(&["tail", "-n", "20", "/run/agent.log"]);
            ensure!(routes.contains_key(ROUTE), "{routes:?} {:?}", evidence());
            ensure!(systemd.property("StatusText")? == "ready");
            Ok(())
        })?;

        let files = systemd.run(&["dpkg", "-L", NAME])?;
        for wanted in [
            "/usr/bin/overlay-cloud",
            "/usr/share/man/man8/overlay-cloud.8.gz",
            "/usr/share/doc/overlay-cloud/copyright",
        ] {
            let is_listed = files.lines().any(|file| file == wanted);
            ensure!(is_listed, "{wanted}: {files}");
        }
        systemd.run(&["dpkg", "--purge", NAME])?;
        for file in files.lines().filter(|file| file.contains(NAME)) {
            ensure!(!is_there(&systemd, file), "{file} is left");
        }
        Ok(())
    });
}
