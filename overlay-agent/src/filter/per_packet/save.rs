//! Reads what `iptables-save` prints.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use overlay_common::slow::{ICMP, SCTP, TCP, UDP};

use super::{
    reach::{ANY_PORT, Ports, Reach, network_around},
    ruleset::{Base, Chain, Effect, Holds, Hook, Item, Rule, RuleName, RuleTable, state, tcp},
};
use crate::filter::family::RuleFamily;

/// Matches that are the same for all packets of a flow which the fast path takes, or change only with
/// what flows are flushed for or permits run out for. Those of other protocols, of fragments and of
/// extension headers never hold there.
const OF_THE_FLOW: [&str; 37] = [
    "addrtype",
    "ah",
    "cgroup",
    "comment",
    "connlabel",
    "connmark",
    "conntrack",
    "dccp",
    "devgroup",
    "dst",
    "esp",
    "eui64",
    "frag",
    "hbh",
    "helper",
    "icmp",
    "icmp6",
    "iprange",
    "ipv6header",
    "ipvs",
    "mac",
    "mark",
    "mh",
    "multiport",
    "nfacct",
    "osf",
    "owner",
    "physdev",
    "pkttype",
    "policy",
    "realm",
    "rpfilter",
    "rt",
    "sctp",
    "set",
    "socket",
    "state",
];
const OF_THE_PORTS: [&str; 3] = ["tcp", "udp", "udplite"];

/// Options by which a match of [`OF_THE_FLOW`] looks at the single packet all the same.
const OF_THE_PACKET: [&str; 9] = [
    "--tcp-option",
    "--chunk-types",
    "--ctexpire",
    "--packets-eq",
    "--packets-lt",
    "--packets-gt",
    "--bytes-eq",
    "--bytes-lt",
    "--bytes-gt",
];

/// Targets that decide nothing.
const LOGS: [&str; 9] = [
    "LOG",
    "NFLOG",
    "ULOG",
    "TRACE",
    "AUDIT",
    "RATEEST",
    "LED",
    "IDLETIMER",
    "CHECKSUM",
];
/// Targets that change what is decided by elsewhere, or what of the packet the stamp covers. TCPMSS
/// works on SYN alone.
const CHANGES: [&str; 11] = [
    "MARK", "CLASSIFY", "SECMARK", "SET", "HMARK", "TPROXY", "DSCP", "TOS", "TTL", "HL", "TCPMSS",
];
const CONNECTION_CHANGES: [&str; 2] = ["CONNMARK", "CONNSECMARK"];

/// Adds the tables in `text` that are of any interest to `add`, by their names.
pub fn read(family: RuleFamily, text: &str, mut add: impl FnMut(&str, RuleTable)) {
    let mut name = "";
    let mut table = RuleTable::default();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix('*') {
            name = rest.trim();
            table = RuleTable::default();
        } else if let Some(rest) = line.strip_prefix(':') {
            let mut words = rest.split_whitespace();
            let (Some(chain), Some(policy)) = (words.next(), words.next()) else {
                continue;
            };
            let base = (policy != "-").then(|| base(name, chain)).flatten();
            table.chains.insert(
                chain.to_owned(),
                Chain {
                    base,
                    ..Chain::default()
                },
            );
        } else if line.starts_with("-A ") && name != "nat" {
            let words = words(line);
            if let [_, chain, rest @ ..] = &words[..] {
                let items = items(family, rest, &table);
                let rule = Rule {
                    name: RuleName::Text(line.to_owned()),
                    items,
                };
                if rule.matters() {
                    table
                        .chains
                        .entry(chain.clone())
                        .or_default()
                        .rules
                        .push(rule);
                }
            }
        } else if line == "COMMIT" && !name.is_empty() {
            add(name, std::mem::take(&mut table));
        }
    }
}

fn base(table: &str, chain: &str) -> Option<Base> {
    let hook = match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    };
    Some(Base {
        is_nat: table == "nat",
        hook,
        devices: Vec::new(),
    })
}

/// Splits a line of `iptables-save` at blanks, but not within double quotes.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(character) = chars.next() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(chars.next()),
            ' ' | '\t' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

/// Reads the options of one rule.
struct Options<'a> {
    words: &'a [String],
    at: usize,
}

impl<'a> Options<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at)?;
        self.at += 1;
        Some(word)
    }

    /// What belongs to an option that is of no interest itself, and whether one of the options of the
    /// single packet is among it.
    fn has(&self, options: &[&str]) -> bool {
        self.words.iter().any(|word| options.contains(&&**word))
    }
}

/// Options and matches by which tunnel packets to one node may be told apart.
const TELL_APART: [&str; 10] = [
    "--sport",
    "--source-port",
    "--sports",
    "--source-ports",
    "--ports",
    "--ctorigsrcport",
    "--ctrepldstport",
    "owner",
    "cgroup",
    "socket",
];

fn tells_apart(words: &[String]) -> bool {
    let is_option = |word: &String| TELL_APART.contains(&&**word);
    // A set may be one of ports.
    let has_source = |set: &[String]| match set {
        [option, _, sides] => option == "--match-set" && sides.contains("src"),
        _ => false,
    };
    words.iter().any(is_option) || words.windows(3).any(has_source)
}

fn items(family: RuleFamily, words: &[String], table: &RuleTable) -> Vec<Item> {
    let mut items = Vec::new();
    if tells_apart(words) {
        items.push(Item::TellsApart);
    }
    let mut options = Options { words, at: 0 };
    let mut negated = false;
    while let Some(word) = options.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        let not = std::mem::take(&mut negated);
        match word {
            "-j" | "--jump" => {
                if let Some(target) = options.next() {
                    items.extend(target_items(target, &options, table));
                }
                return items;
            }
            "-g" | "--goto" => {
                if let Some(target) = options.next() {
                    items.push(Item::Effect(Effect::Goto(target.to_owned())));
                }
                return items;
            }
            "-m" | "--match" => {
                if let Some(name) = options.next() {
                    items.extend(match_items(name, &options));
                }
            }
            // Texts, which may look like options.
            "--comment" | "--string" | "--hex-string" => drop(options.next()),
            _ if word.starts_with('-') => {
                let value = words.get(options.at);
                let next = words.get(options.at + 1);
                let condition = value.and_then(|value| condition(family, word, not, value, next));
                items.push(condition.unwrap_or(Item::Condition));
            }
            // What belongs to the option before.
            _ => {}
        }
    }
    items
}

/// What a match adds that is not in its options.
fn match_items(name: &str, options: &Options<'_>) -> Vec<Item> {
    let judges = match name {
        // Their options say all there is; `comment` is none.
        "comment" | "conntrack" | "state" => return Vec::new(),
        // Adding an address to the list always succeeds.
        "recent" => !options.has(&["--set"]),
        _ if OF_THE_PORTS.contains(&name) || OF_THE_FLOW.contains(&name) => false,
        _ => true,
    };
    vec![if judges {
        Item::Judge(name.to_owned())
    } else {
        Item::Condition
    }]
}

/// An option that narrows the rule, or looks at the single packet.
fn condition(
    family: RuleFamily,
    option: &str,
    not: bool,
    value: &str,
    next: Option<&String>,
) -> Option<Item> {
    let only = |reach: Vec<Reach>| (!not).then_some(Item::Only(reach));
    let ports = |which: fn(Reach, Ports) -> Reach| {
        let ranges = value
            .split(',')
            .map(port_range)
            .collect::<Option<Vec<_>>>()?;
        only(
            ranges
                .into_iter()
                .map(|range| which(Reach::protocols(TCP | UDP | SCTP), range))
                .collect(),
        )
    };
    match option {
        "-s" | "--source" => only(vec![Reach::from(network(value)?)]),
        "-d" | "--destination" => only(vec![Reach::to(network(value)?)]),
        "-i" | "--in-interface" | "-o" | "--out-interface" if !not => Some(Item::Interface {
            incoming: option.starts_with("-i") || option.starts_with("--in"),
            names: vec![interface(value)],
        }),
        "-p" | "--protocol" => only(protocol(family, value)?),
        // A fragment behind the first.
        "-f" | "--fragment" => only(Vec::new()),
        "--sport" | "--source-port" | "--sports" | "--source-ports" => ports(with_source),
        "--dport" | "--destination-port" | "--dports" | "--destination-ports" => {
            ports(with_destination)
        }
        "--ports" if !not => {
            let ranges = value
                .split(',')
                .map(port_range)
                .collect::<Option<Vec<_>>>()?;
            let reach = ranges.into_iter().flat_map(|range| {
                let any = Reach::protocols(TCP | UDP | SCTP);
                [with_source(any, range), with_destination(any, range)]
            });
            Some(Item::Only(reach.collect()))
        }
        "--ctstate" | "--state" => {
            let states = value
                .split(',')
                .map(|name| state::parse(name).unwrap_or_default())
                .fold(0, |all, state| all | state);
            // SNAT and DNAT are no states of their own.
            let is_plain = value.split(',').all(|name| state::parse(name).is_some());
            let states = if not { state::ALL & !states } else { states };
            is_plain.then_some(Item::States(states))
        }
        "--tcp-flags" => {
            let holds = flags(value)
                .zip(next.and_then(|names| flags(names)))
                .map_or(Holds::Sometimes, |(mask, value)| tcp::equal(mask, value));
            Some(Item::Flags(if not { holds.not() } else { holds }))
        }
        "--syn" => {
            let holds = tcp::equal(tcp::SYN | tcp::RST | tcp::ACK | tcp::FIN, tcp::SYN);
            Some(Item::Flags(if not { holds.not() } else { holds }))
        }
        "--icmp-type" | "--icmpv6-type" if !not => {
            let is_echo = matches!(
                value.split('/').next(),
                Some("0" | "8" | "128" | "129" | "any" | "echo-request" | "echo-reply")
            );
            let icmp = is_echo.then_some(Reach::protocols(ICMP));
            Some(Item::Only(icmp.into_iter().collect()))
        }
        _ if OF_THE_PACKET.contains(&option) => Some(Item::Judge(option.to_owned())),
        _ => None,
    }
}

fn with_source(reach: Reach, source_ports: Ports) -> Reach {
    Reach {
        source_ports,
        ..reach
    }
}

fn with_destination(reach: Reach, destination_ports: Ports) -> Reach {
    Reach {
        destination_ports,
        ..reach
    }
}

/// `80`, `1000:2000`.
fn port_range(text: &str) -> Option<Ports> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let (any_first, any_last) = ANY_PORT;
    Some((
        if first.is_empty() {
            any_first
        } else {
            first.parse().ok()?
        },
        if last.is_empty() {
            any_last
        } else {
            last.parse().ok()?
        },
    ))
}

/// `10.0.0.0/8`; a mask that is no prefix is made one by leaving bits out.
fn network(text: &str) -> Option<IpNetwork> {
    let (address, mask) = text
        .split_once('/')
        .map_or((text, None), |(address, mask)| (address, Some(mask)));
    let address: IpAddr = address.parse().ok()?;
    let Some(mask) = mask else {
        return network_around(address, address);
    };
    if let Ok(prefix) = mask.parse() {
        return IpNetwork::new(address, prefix).ok();
    }
    let ones = match mask.parse().ok()? {
        IpAddr::V4(mask) => mask.to_bits().leading_ones(),
        IpAddr::V6(mask) => mask.to_bits().leading_ones(),
    };
    IpNetwork::new(address, u8::try_from(ones).ok()?).ok()
}

fn protocol(family: RuleFamily, name: &str) -> Option<Vec<Reach>> {
    let protocols = match (name, family) {
        ("all" | "0", _) => return None,
        ("tcp" | "6", _) => TCP,
        ("udp" | "17", _) => UDP,
        ("sctp" | "132", _) => SCTP,
        ("icmp" | "1", RuleFamily::V4) | ("ipv6-icmp" | "icmpv6" | "58", RuleFamily::V6) => ICMP,
        _ => return Some(Vec::new()),
    };
    Some(vec![Reach::protocols(protocols)])
}

/// With `*` for `+`.
fn interface(name: &str) -> String {
    name.strip_suffix('+')
        .map_or_else(|| name.to_owned(), |prefix| format!("{prefix}*"))
}

fn flags(names: &str) -> Option<u8> {
    names
        .split(',')
        .map(tcp::parse)
        .try_fold(0, |all, flag| Some(all | flag?))
}

/// What a match or target does of which only the name is known.
pub fn extension(is_target: bool, name: &str) -> Vec<Item> {
    let options = Options { words: &[], at: 0 };
    match (is_target, name) {
        // May assign a helper.
        (true, "CT") => vec![Item::Effect(Effect::Work {
            what: name.to_owned(),
            connection: true,
            ends: false,
        })],
        (true, _) => target_items(name, &options, &RuleTable::default()),
        (false, "conntrack" | "state") => vec![Item::Condition, Item::TellsApart],
        (false, _) => [match_items(name, &options), vec![Item::TellsApart]].concat(),
    }
}

fn target_items(target: &str, options: &Options<'_>, table: &RuleTable) -> Vec<Item> {
    let work = |connection, ends| Effect::Work {
        what: target.to_owned(),
        connection,
        ends,
    };
    let effect = match target {
        "ACCEPT" | "DROP" | "REJECT" => Effect::End,
        "RETURN" => Effect::Return,
        _ if table.chains.contains_key(target) => Effect::Jump(target.to_owned()),
        _ if LOGS.contains(&target) => return Vec::new(),
        "NOTRACK" => Effect::Untrack,
        "CT" if options.has(&["--notrack"]) => Effect::Untrack,
        // Reads what the two ends say to each other.
        "CT" if options.has(&["--helper"]) => Effect::Work {
            what: "conntrack helper".into(),
            connection: true,
            ends: false,
        },
        "CT" => Effect::Change { connection: true },
        "QUEUE" | "NFQUEUE" => work(false, true),
        "SYNPROXY" => work(true, true),
        _ if CHANGES.contains(&target) => Effect::Change { connection: false },
        _ if CONNECTION_CHANGES.contains(&target) => Effect::Change { connection: true },
        // TEE, TCPOPTSTRIP, ECN, and what is not known.
        _ => work(false, false),
    };
    vec![Item::Effect(effect)]
}
