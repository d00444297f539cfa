//! The plugin under `cnitool`, which is libcni, as containerd and CRI-O have it: it asks for versions, reads the
//! results by the specification, and keeps them for `CHECK` and `DEL`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    lab::{Lab, agent, scenario},
    netns::checked,
    skip,
    traffic::ping,
};
use serde_json::{Value, json};

use crate::container::{Container, PLUGINS};

/// What `cargo xtask test --kubernetes` builds.
fn built() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kubernetes/cnitool");
    path.canonicalize().ok()
}

/// Calls it for a container. The machine's own `/var/lib/cni` is left alone.
fn call(program: &Path, verb: &str, container: &Container<'_>, dir: &Path) -> Result<String> {
    const SCRIPT: &str =
        "mkdir -p /var/lib/cni && mount --bind \"$1\" /var/lib/cni && shift && exec \"$@\"";
    let plugin = agent::built("overlay-cni")?;
    let plugins = plugin.parent().context("a directory")?;
    let sandbox = format!("/run/netns/{}", container.namespace.name());
    let mut command: Command = container.node.namespace.command("unshare");
    command
        .args(["--mount", "sh", "-ec", SCRIPT, "sh"])
        .arg(dir.join("cache"))
        .arg(program)
        .args([verb, "cbr0", &sandbox])
        .env("NETCONFPATH", dir)
        .env("CNI_PATH", format!("{}:{PLUGINS}", plugins.display()));
    checked(&mut command)
}

#[test]
fn libcni_makes_checks_and_deletes_pods_in_each_version() {
    let Some(program) = built() else {
        skip!("no cnitool has been built; `cargo xtask test --kubernetes` builds one");
    };
    scenario(Lab::builder().nodes(1), |lab| {
        lab.start_agents(&[])?;
        let node = lab.node(0);
        let gateway = node.subnet_env()?.gateway.ip();
        let dir = lab.dir().join("networks");
        fs::create_dir_all(dir.join("cache"))?;
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let delegate = json!({ "type": "overlay" });
            let name: &'static str = match version {
                "0.3.1" => "a",
                "0.4.0" => "b",
                _ => "c",
            };
            let container = Container::create(lab, node, name, delegate)?;
            let plugins = [container.network()];
            let list = json!({ "cniVersion": version, "name": "cbr0", "plugins": plugins });
            fs::write(dir.join("10-flannel.conflist"), list.to_string())?;
            let said = call(&program, "add", &container, &dir)?;
            let result: Value = serde_json::from_str(&said)?;
            ensure!(result["cniVersion"] == version, "{result}");
            let address = result["ips"][0]["address"].as_str();
            let address = address.and_then(|text| text.split('/').next()?.parse().ok());
            let address = address.with_context(|| result.to_string())?;
            ping::all(&container.endpoint(address), gateway, 3)?;
            // 0.3.1 has no CHECK.
            if version != "0.3.1" {
                call(&program, "check", &container, &dir)?;
            }
            call(&program, "del", &container, &dir)?;
            call(&program, "del", &container, &dir)?;
            let links = node.cmd("ip", ["-o", "link"])?;
            ensure!(!links.contains("ovp"), "{version}: {links}");
        }
        Ok(())
    });
}
