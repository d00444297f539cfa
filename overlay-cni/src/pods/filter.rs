//! The one nftables table of a node's pods: a pod sends from its own addresses only, and what pods send to
//! the outside is masqueraded if the network has it so. It comes with the first pod and goes with the last.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ipnetwork::IpNetwork;

use super::{pair::PREFIX, settings::Settings};
use crate::{error::Error, subnet::Subnet};

const TABLE: &str = "inet overlay-cni";

pub struct Filter {
    /// Whoever has it locked may change the table.
    lock: PathBuf,
}

impl Filter {
    pub fn new(data_dir: &Path) -> Self {
        Self {
            lock: data_dir.join(".nft"),
        }
    }

    /// Rules that are as they should be stay untouched, since each change has the agent look at all flows
    /// again. Without nft on the host there are none.
    pub fn ensure(&self, subnet: &Subnet, settings: &Settings) -> Result<(), Error> {
        let _lock = self.locked()?;
        let wanted = rules(subnet, settings.ip_masq);
        match nft(&["list", "table", "inet", "overlay-cni"], "") {
            Ok(text) if has_all(&text, &wanted) => Ok(()),
            Err(error) if is_no_program(&error) && !settings.ip_masq => Ok(()),
            Err(error) if is_no_program(&error) => Err(Error::Config {
                reason: "`ipMasq` needs nft, which is not there (Debian has it in nftables); or have the agent \
                         masquerade, with --ip-masq"
                    .to_owned(),
            }),
            _ => {
                let text = format!("add table {TABLE}\ndelete table {TABLE}\n{wanted}");
                nft(&["-f", "-"], &text).map(drop).map_err(failed)
            }
        }
    }

    /// Removes the table unless it is still of use.
    pub fn remove_unless(
        &self,
        is_of_use: impl FnOnce() -> Result<bool, Error>,
    ) -> Result<(), Error> {
        // Without the directory there never was a pod.
        if !self.lock.exists() {
            return Ok(());
        }
        let _lock = self.locked()?;
        if is_of_use()? {
            return Ok(());
        }
        let text = format!("add table {TABLE}\ndelete table {TABLE}\n");
        match nft(&["-f", "-"], &text) {
            Err(error) if !is_no_program(&error) => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// The lock ends with the file.
    fn locked(&self) -> Result<File, Error> {
        let open = || {
            let mut options = fs::OpenOptions::new();
            let file = options.create(true).append(true).open(&self.lock)?;
            file.lock()?;
            Ok(file)
        };
        open().map_err(|source| Error::Io {
            path: self.lock.clone(),
            source,
        })
    }
}

/// As nft lists them.
fn rules(subnet: &Subnet, ip_masq: bool) -> String {
    let mut lines = vec![
        format!("table {TABLE} {{"),
        "\tchain guard {".to_owned(),
        "\t\ttype filter hook prerouting priority raw; policy accept;".to_owned(),
        format!("\t\tiifname \"{PREFIX}*\" fib saddr . iif oif missing drop"),
        "\t}".to_owned(),
    ];
    if ip_masq {
        lines.push("\tchain outbound {".to_owned());
        lines.push("\t\ttype nat hook postrouting priority srcnat; policy accept;".to_owned());
        for own in &subnet.subnets {
            let (word, multicast) = match own {
                IpNetwork::V4(_) => ("ip", "224.0.0.0/4"),
                IpNetwork::V6(_) => ("ip6", "ff00::/8"),
            };
            let networks = subnet.networks.iter();
            for network in networks.filter(|network| network.is_ipv4() == own.is_ipv4()) {
                lines.push(format!(
                    "\t\t{word} saddr {own} {word} daddr {network} return"
                ));
            }
            lines.push(format!(
                "\t\t{word} saddr {own} {word} daddr != {multicast} masquerade"
            ));
        }
        lines.push("\t}".to_owned());
    }
    lines.push("}\n".to_owned());
    lines.join("\n")
}

/// Whether a listing says the same, whatever blank lines it has.
fn has_all(listing: &str, wanted: &str) -> bool {
    let lines = |text: &str| {
        let lines = text.lines().map(|line| line.trim().to_owned());
        lines.filter(|line| !line.is_empty()).collect::<Vec<_>>()
    };
    lines(listing) == lines(wanted)
}

fn nft(words: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new("nft")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(said.trim_end().to_owned()))
}

fn is_no_program(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn failed(source: io::Error) -> Error {
    Error::Kernel {
        what: format!("nftables table {TABLE}"),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_masqueraded_towards_the_outside_alone_and_only_if_wanted() {
        let rules = |ip_masq| super::rules(&Subnet::sample(), ip_masq);
        assert!(!rules(false).contains("masquerade"), "{}", rules(false));
        let with = rules(true);
        let at = |line: &str| with.find(line).unwrap_or_else(|| panic!("{line}: {with}"));
        for (word, own, network) in [
            ("ip", "10.5.34.0/24", "10.5.0.0/16"),
            ("ip6", "fd00:0:0:34::/64", "fd00::/48"),
        ] {
            let inside = at(&format!("{word} saddr {own} {word} daddr {network} return"));
            assert!(inside < at(&format!("{word} saddr {own} {word} daddr !=")));
        }
    }

    #[test]
    fn a_listing_counts_line_by_line() {
        let wanted = rules(&Subnet::sample(), true);
        assert!(has_all(&wanted.replace("\t}\n", "\t}\n\n"), &wanted));
        assert!(!has_all(&rules(&Subnet::sample(), false), &wanted));
        assert!(!has_all("", &wanted));
    }
}
