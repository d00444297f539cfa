//! What goes into the archive: what the operator commands say, what the host's tools say, and files.

use std::{env, fs, path::Path};

use super::part::Part;
use crate::filter::exec::Executor;

/// Operator commands, and the names of what they print.
const OWN: [(&str, &[&str]); 7] = [
    ("version.txt", &["version"]),
    ("status.json", &["status", "-o", "json"]),
    ("routes.json", &["routes", "-o", "json"]),
    ("stats.json", &["stats", "-o", "json"]),
    ("check.json", &["check", "-o", "json"]),
    ("peers.json", &["peers", "-o", "json"]),
    // As many as show what flows there are. `status` has their number.
    ("flows.json", &["flows", "--limit", "100", "-o", "json"]),
];

/// The host's tools. States of IPsec are left out: they have keys.
const TOOLS: [(&str, &str); 20] = [
    ("host/uname.txt", "uname -a"),
    ("host/links.txt", "ip -details -statistics link show"),
    ("host/addresses.txt", "ip address show"),
    ("host/rules.txt", "ip rule show"),
    ("host/rules6.txt", "ip -6 rule show"),
    ("host/routes.txt", "ip route show table all"),
    ("host/routes6.txt", "ip -6 route show table all"),
    ("host/neighbours.txt", "ip neighbour show"),
    ("host/fdb.txt", "bridge fdb show"),
    ("host/policies.txt", "ip xfrm policy"),
    ("host/qdiscs.txt", "tc qdisc show"),
    ("host/sockets.txt", "ss -ulnp"),
    ("host/counters.txt", "nstat -az"),
    ("host/nft.txt", "nft list ruleset"),
    ("host/iptables.txt", "iptables-save"),
    ("host/ip6tables.txt", "ip6tables-save"),
    ("host/sysctl.txt", "sysctl -a -r ^net\\."),
    ("host/programs.txt", "bpftool net show"),
    ("host/modules.txt", "lsmod"),
    (
        "host/log.txt",
        "journalctl --no-pager --lines=2000 --unit=overlay-agent --unit=flanneld",
    ),
];

const FILES: [(&str, &str); 3] = [
    ("host/kernel.txt", "/proc/version"),
    ("host/os.txt", "/etc/os-release"),
    ("host/softnet.txt", "/proc/net/softnet_stat"),
];

pub async fn collect(pin_dir: &Path, subnet_file: &Path, missing: &mut Vec<String>) -> Vec<Part> {
    let executor = Executor::from_env();
    let mut parts = Vec::new();
    match env::current_exe() {
        Ok(program) => {
            for (name, words) in OWN {
                let words = own_words(words, pin_dir, subnet_file);
                match run(&executor, &program, &words).await {
                    Ok(text) => parts.push(Part::new(name, text)),
                    Err(reason) => missing.push(format!("{name}: {reason}")),
                }
            }
        }
        Err(error) => missing.push(format!("what the agent's commands say: {error}")),
    }
    for (name, line) in TOOLS {
        let mut words = line.split(' ').map(str::to_owned);
        let tool = words.next().unwrap_or_default();
        let Some(program) = executor.find(&tool) else {
            missing.push(format!("{name}: {tool} is not installed"));
            continue;
        };
        match run(&executor, &program, &words.collect::<Vec<_>>()).await {
            Ok(text) => parts.push(Part::new(name, text)),
            Err(reason) => missing.push(format!("{name}: {reason}")),
        }
    }
    let subnet_env = subnet_file.display().to_string();
    let files = FILES.into_iter().chain([("subnet.env", &*subnet_env)]);
    for (name, path) in files {
        match fs::read_to_string(path) {
            Ok(text) => parts.push(Part::new(name, text)),
            Err(error) => missing.push(format!("{name}: cannot read {path}: {error}")),
        }
    }
    parts
}

fn own_words(words: &[&str], pin_dir: &Path, subnet_file: &Path) -> Vec<String> {
    let mut all: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    match words.first() {
        Some(&"version") => return all,
        Some(&"check") => all.push(format!("--subnet-file={}", subnet_file.display())),
        _ => {}
    }
    all.push(format!("--pin-dir={}", pin_dir.display()));
    all
}

/// What a command prints, and if it complains, that too: a status other than 0 may be what it found.
async fn run(executor: &Executor, program: &Path, words: &[String]) -> Result<String, String> {
    let answer = executor.run(program, words, "").await;
    let answer = answer.map_err(|error| error.to_string())?;
    if answer.stdout.is_empty() && !answer.success {
        return Err(answer.stderr);
    }
    let mut text = answer.stdout;
    if !answer.stderr.is_empty() {
        text.push_str("\n# standard error: ");
        text.push_str(&answer.stderr);
        text.push('\n');
    }
    Ok(text)
}
