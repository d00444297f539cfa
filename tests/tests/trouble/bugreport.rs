//! `overlay-agent bugreport`: what a maintainer asks for is there, and what was planted is not.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use anyhow::{Context as _, ensure};
use overlay_tests::lab::{Lab, scenario};

use crate::support::judge;

/// Stands in every secret.
const PLANTED: &str = "PLANTED";

#[test]
fn everything_is_in_the_archive_but_no_secret() {
    scenario(Lab::builder().nodes(2), |lab| {
        let node = lab.node(0);
        let endpoints = lab
            .store()
            .endpoints()
            .replace("http://", "http://root:PLANTED-url@");
        let key = lab.dir().join("key.pem");
        fs::write(
            &key,
            "-----BEGIN PRIVATE KEY-----\nPLANTED\n-----END PRIVATE KEY-----\n",
        )?;
        let flags = [
            "--etcd-password=PLANTED-password",
            &format!("--etcd-keyfile={}", key.display()),
            "--peer-probe-port=8473",
        ];
        lab.start_agent(node, &flags)?;
        lab.start_agents(&[])?;
        lab.add_pods(1)?;
        // Wherever else secrets turn up: rules, the subnet file, options of a daemon that waits.
        for comment in ["token=PLANTED-token", "PLANTED-password"] {
            let rule = ["-A", "INPUT", "-m", "comment", "--comment", comment];
            node.cmd("iptables", rule)?;
        }
        let file = lab.dir().join("planted.env");
        let text = fs::read_to_string(&node.subnet_file)?;
        let secrets = "ETCD_PASSWORD=PLANTED-env\n{\"PSK\":\"PLANTED-psk\"}\n";
        let url = format!("URL={endpoints}\n");
        let pem = fs::read_to_string(&key)?;
        fs::write(&file, format!("{text}{secrets}{url}{pem}"))?;

        let archive = lab.dir().join("bug.tar.gz");
        let to = format!("--file={}", archive.display());
        let from = format!("--subnet-file={}", file.display());
        let (code, said) = judge(node, &["bugreport", &to, &from])?;
        ensure!(code == Some(0), "{said:#}");
        let mode = fs::metadata(&archive)?.permissions().mode();
        ensure!(mode & 0o777 == 0o600, "{mode:o}");

        let place = lab.dir().join("extracted");
        fs::create_dir_all(&place)?;
        let archive_name = archive.to_str().context("a path in UTF-8")?;
        let place_name = place.to_str().context("a path in UTF-8")?;
        let untar = Command::new("tar")
            .args(["-xzf", archive_name, "-C", place_name])
            .status()?;
        ensure!(untar.success(), "tar: {untar}");
        let read = |name: &str| {
            let path = place.join("overlay-bugreport").join(name);
            fs::read_to_string(&path).with_context(|| format!("{name} in {said:#}"))
        };
        let entries = said["entries"].as_array().context("entries")?;
        let mut hidden = 0;
        for entry in entries {
            let name = entry["name"].as_str().context("a name")?;
            let text = read(name)?;
            ensure!(
                !text.contains(PLANTED),
                "a secret is left in {name}:\n{text}"
            );
            hidden += text.matches("<removed>").count();
        }
        // The password and where it is repeated, the token, and four in the file.
        ensure!(hidden >= 7, "{hidden} secrets removed");
        let status = read("status.json")?;
        ensure!(status.contains("\"health\""), "{status}");
        for (name, needed) in [
            ("version.txt", "overlay-agent "),
            ("routes.json", "\"routes\""),
            ("stats.json", "\"counters\""),
            ("check.json", "\"findings\""),
            ("peers.json", "\"interval_seconds\""),
            ("flows.json", "\"matching\""),
            ("daemons.txt", "--etcd-keyfile="),
            ("subnet.env", "FLANNEL_SUBNET="),
            ("host/kernel.txt", "Linux version"),
            ("host/links.txt", "flannel.1"),
            ("host/routes.txt", "dev flannel.1"),
            ("host/fdb.txt", "dst 172.30.0.12"),
            ("host/nft.txt", "chain pod-source"),
            ("host/iptables.txt", "FLANNEL-FWD"),
            ("host/sysctl.txt", "net.ipv4.ip_forward = 1"),
        ] {
            let text = read(name)?;
            ensure!(text.contains(needed), "{name}:\n{text}");
        }
        // What is there already is left alone.
        let again = judge(node, &["bugreport", &to]);
        ensure!(again.is_err(), "{again:?}");
        Ok(())
    });
}
