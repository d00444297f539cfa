//! The daemons that run in this network namespace, with their options.

use std::fmt::Write as _;

use procfs::process::{Process, all_processes};

/// Names of processes that are looked at.
const NAMES: [&str; 2] = ["overlay-agent", "flanneld"];
/// Variables that a daemon's options may come from.
const VARIABLES: [&str; 4] = ["FLANNELD_", "ETCD", "WIREGUARD_", "RUST_LOG"];
/// What holds a secret, as an option and as a variable.
const SECRETS: [&str; 2] = ["etcd-password", "FLANNELD_ETCD_PASSWORD"];

#[derive(Debug, Default)]
pub struct Daemons(Vec<Daemon>);

#[derive(Debug)]
struct Daemon {
    pid: i32,
    words: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Daemons {
    pub fn find() -> Self {
        let net = |process: &Process| {
            let namespaces = process.namespaces().ok()?;
            let net = namespaces.0.get(std::ffi::OsStr::new("net"))?;
            Some(net.identifier)
        };
        let own = Process::myself().ok();
        let here = own.as_ref().and_then(net);
        let processes = all_processes().into_iter().flatten().flatten();
        let daemons = processes.filter_map(|process| {
            let name = process.stat().ok()?.comm;
            let is_one = NAMES.contains(&name.as_str()) && net(&process) == here;
            if !is_one || own.as_ref().is_some_and(|own| own.pid == process.pid) {
                return None;
            }
            let environ = process.environ().unwrap_or_default();
            let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
            let variables = environ
                .into_iter()
                .map(|(name, value)| (text(name), text(value)));
            let matters =
                |(name, _): &(String, String)| VARIABLES.iter().any(|v| name.starts_with(v));
            Some(Daemon {
                pid: process.pid,
                words: process.cmdline().ok()?,
                variables: variables.filter(matters).collect(),
            })
        });
        Self(daemons.collect())
    }

    /// Secrets that they were given, wherever else these may turn up.
    pub fn secrets(&self) -> Vec<String> {
        let mut secrets = Vec::new();
        for daemon in &self.0 {
            let mut words = daemon.words.iter();
            while let Some(word) = words.next() {
                let option = word.trim_start_matches('-');
                match option.split_once('=') {
                    Some((name, value)) if SECRETS.contains(&name) => {
                        secrets.push(value.to_owned());
                    }
                    None if SECRETS.contains(&option) => secrets.extend(words.next().cloned()),
                    _ => {}
                }
            }
            let variables = daemon.variables.iter();
            let given = variables.filter(|(name, _)| SECRETS.contains(&name.as_str()));
            secrets.extend(given.map(|(_, value)| value.clone()));
        }
        secrets
    }

    pub fn describe(&self) -> String {
        let mut text = String::new();
        for daemon in &self.0 {
            let _ = writeln!(text, "{}: {}", daemon.pid, daemon.words.join(" "));
            for (name, value) in &daemon.variables {
                let _ = writeln!(text, "  {name}={value}");
            }
        }
        if text.is_empty() {
            text.push_str("none runs in this network namespace\n");
        }
        text
    }
}
