//! `overlay-agent init`: a peers file for so many hosts.

use std::{
    fmt::Write as _,
    io::{Write, stderr},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::ExitCode,
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    backend::{KeyFile, PublicKey},
    config::network::{NetworkConfig, Pool},
    membership::file::Cluster,
    model::{Family, V6},
};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The hosts: ADDRESS, NAME=ADDRESS, with IPv6 pods NAME=ADDRESS,ADDRESS, with wireguard NAME=ADDRESS,KEY
    #[arg(required_unless_present = "public_key", value_name = "HOST")]
    pub hosts: Vec<String>,
    /// Print the public part of this host's WireGuard key, which is made if there is none, and write no file
    #[arg(long, conflicts_with = "hosts")]
    pub public_key: bool,
    /// The pod network; empty: no IPv4 pods
    #[arg(long, value_name = "CIDR", default_value = "10.244.0.0/16")]
    pub network: String,
    /// The network of IPv6 pods
    #[arg(long, value_name = "CIDR")]
    pub ipv6_network: Option<String>,
    /// How packets reach other hosts: vxlan, host-gw, wireguard
    #[arg(long, value_name = "TYPE", default_value = "vxlan")]
    pub backend: String,
}

/// A host of the command line.
#[derive(Debug, PartialEq, Eq)]
struct Host {
    name: Option<String>,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    wireguard_key: Option<PublicKey>,
}

pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    if args.public_key {
        let file = KeyFile::of_node();
        writeln!(out, "{}", file.public_key()?)?;
        if let Some(warning) = file.warning() {
            writeln!(stderr(), "{warning}")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    out.write_all(text(args)?.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn text(args: &Args) -> anyhow::Result<String> {
    let mut network = toml::Table::new();
    if args.network.is_empty() {
        network.insert("EnableIPv4".into(), false.into());
    } else {
        network.insert("Network".into(), args.network.clone().into());
    }
    if let Some(ipv6) = &args.ipv6_network {
        network.insert("EnableIPv6".into(), true.into());
        network.insert("IPv6Network".into(), ipv6.clone().into());
    }
    let mut backend = toml::Table::new();
    backend.insert("Type".into(), args.backend.clone().into());
    network.insert("Backend".into(), backend.into());
    let json = serde_json::to_string(&network)?;
    let pools = NetworkConfig::parse(json.as_bytes())?.config.pools;

    let hosts: Vec<Host> = args
        .hosts
        .iter()
        .map(|host| Host::parse(host))
        .collect::<Result<_, _>>()?;
    let mut subnets = pools.ipv4.map(subnets_of);
    let mut subnets6 = pools.ipv6.map(subnets_of::<V6>);
    let mut text = String::from(
        "# The nodes of a cluster: the same file on every one, for `overlay-agent --peers=FILE`.\n\
         # Changes are followed while the agents run. Keep each node's subnet: its pods live in it.\n\n\
         [network]\n",
    );
    for (key, value) in network.iter().filter(|(key, _)| *key != "Backend") {
        writeln!(text, "{key} = {value}")?;
    }
    writeln!(
        text,
        "Backend = {{ Type = {} }}",
        toml::Value::from(&*args.backend)
    )?;
    for (host, words) in hosts.iter().zip(&args.hosts) {
        text.push_str("\n[[node]]\n");
        if let Some(name) = &host.name {
            writeln!(text, "name = {}", toml::Value::from(&**name))?;
        }
        write_family(
            &mut text,
            ["address", "subnet"],
            host.ipv4,
            &mut subnets,
            words,
        )?;
        write_family(
            &mut text,
            ["address6", "subnet6"],
            host.ipv6,
            &mut subnets6,
            words,
        )?;
        if let Some(key) = host.wireguard_key {
            writeln!(text, "wireguard-public-key = \"{key}\"")?;
        }
    }
    // What is written here is read there.
    Cluster::parse(&text).map_err(|error| anyhow::anyhow!("{}", error.reason))?;
    Ok(text)
}

/// The lines of one family, with the next free subnet.
fn write_family<A: std::fmt::Display, N: std::fmt::Display>(
    text: &mut String,
    [address_key, subnet_key]: [&str; 2],
    address: Option<A>,
    subnets: &mut Option<impl Iterator<Item = N>>,
    host: &str,
) -> anyhow::Result<()> {
    match (address, subnets) {
        (Some(address), Some(subnets)) => {
            let subnet = subnets
                .next()
                .context("the network has no subnets for so many hosts")?;
            writeln!(
                text,
                "{address_key} = \"{address}\"\n{subnet_key} = \"{subnet}\""
            )?;
        }
        (None, Some(_)) => bail!("{host}: the pod network needs an {address_key} of the host"),
        (Some(address), None) => bail!("{host}: there is no pod network for {address}"),
        (None, None) => {}
    }
    Ok(())
}

/// The subnets of a pool, in order.
fn subnets_of<F: Family>(pool: Pool<F>) -> impl Iterator<Item = F::Network> {
    let size = 1_u128.checked_shl(u32::from(F::BITS.saturating_sub(pool.subnet_len)));
    let last = F::bits(pool.subnet_max);
    let first = Some(F::bits(pool.subnet_min)).filter(|first| *first <= last);
    std::iter::successors(first, move |at| {
        at.checked_add(size?).filter(|next| *next <= last)
    })
    .filter_map(move |bits| F::with_prefix(F::of_bits(bits)?, pool.subnet_len))
}

impl Host {
    fn parse(word: &str) -> anyhow::Result<Self> {
        // A key ends with the sign that a name ends with, too.
        let (name, said) = match word.split_once('=') {
            Some((name, said)) if !name.contains(',') => (Some(name.to_owned()), said),
            _ => (None, word),
        };
        let mut host = Self {
            name,
            ipv4: None,
            ipv6: None,
            wireguard_key: None,
        };
        for part in said.split(',') {
            if let Some(key) = PublicKey::parse(part) {
                ensure!(
                    host.wireguard_key.replace(key).is_none(),
                    "{word}: two keys"
                );
                continue;
            }
            let address: IpAddr = part.parse().with_context(|| {
                format!("{word}: {part:?} is no IP address; a host is ADDRESS or NAME=ADDRESS")
            })?;
            let twice = match address {
                IpAddr::V4(address) => host.ipv4.replace(address).is_some(),
                IpAddr::V6(address) => host.ipv6.replace(address).is_some(),
            };
            ensure!(!twice, "{word}: two addresses of one family");
        }
        Ok(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(hosts: &[&str]) -> Args {
        Args {
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
            network: "10.244.0.0/16".to_owned(),
            public_key: false,
            ipv6_network: None,
            backend: "vxlan".to_owned(),
        }
    }

    #[test]
    fn two_hosts_get_a_file_that_is_understood() {
        insta::assert_snapshot!(text(&args(&["a=192.0.2.11", "192.0.2.12"])).unwrap());
    }

    #[test]
    fn dual_stack_hosts_have_both_addresses() {
        let args = Args {
            ipv6_network: Some("fd00:10:5::/48".to_owned()),
            ..args(&["a=192.0.2.11,2001:db8::11"])
        };
        insta::assert_snapshot!(text(&args).unwrap());
    }

    #[test]
    fn hosts_of_a_wireguard_cluster_have_their_keys() {
        const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        let other = KEY.replace("hSD", "iSD");
        let hosts = [format!("a=192.0.2.11,{KEY}"), format!("192.0.2.12,{other}")];
        let wireguard = |hosts: &[&str]| Args {
            backend: "wireguard".to_owned(),
            ..args(hosts)
        };
        insta::assert_snapshot!(text(&wireguard(&[&hosts[0], &hosts[1]])).unwrap());
        let error = text(&wireguard(&["a=192.0.2.11"])).unwrap_err().to_string();
        assert!(error.contains("init --public-key"), "{error}");
    }

    #[test]
    fn what_cannot_be_a_cluster_is_refused_with_what_to_do() {
        for (hosts, network, message) in [
            (&["a=b"][..], "10.244.0.0/16", "\"b\" is no IP address"),
            (
                &["192.0.2.1,192.0.2.2"],
                "10.244.0.0/16",
                "two addresses of one family",
            ),
            (
                &["192.0.2.1,fd00::1"],
                "10.244.0.0/16",
                "no pod network for fd00::1",
            ),
            (&["fd00::1"], "10.244.0.0/16", "needs an address"),
            (
                &["192.0.2.1", "192.0.2.1"],
                "10.244.0.0/16",
                "192.0.2.1 is that of line",
            ),
            (&["192.0.2.1"], "10.244.0.0/33", "10.244.0.0/33"),
        ] {
            let args = Args {
                network: network.to_owned(),
                ..args(hosts)
            };
            let error = format!("{:#}", text(&args).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_network_that_is_too_small_says_so() {
        let many: Vec<String> = (1..=40).map(|host| format!("192.0.2.{host}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let args = Args {
            network: "10.244.0.0/20".to_owned(),
            ..args(&many)
        };
        let error = text(&args).unwrap_err().to_string();
        assert!(error.contains("no subnets for so many"), "{error}");
    }
}
