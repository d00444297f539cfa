//! Rules as `nft list table` prints them.

use super::rule::{Chains, Conditions, Holds, Rule, Seen, Target};

/// The chains of a table.
pub fn chains(text: &str, seen: &Seen) -> Chains {
    let mut chains = Chains::new();
    let mut chain: Option<String> = None;
    // Blocks of sets and maps have lines of their own.
    let mut depth = 0_usize;
    for line in text.lines().map(str::trim) {
        if line.ends_with('{') {
            depth += 1;
            chain = line
                .strip_prefix("chain ")
                .and_then(|rest| rest.split(' ').next())
                .map(str::to_owned);
        } else if line == "}" {
            depth = depth.saturating_sub(1);
            chain = None;
        } else if let (Some(chain), 2) = (&chain, depth)
            && !line.is_empty()
            && !line.starts_with("type ")
            && !line.starts_with("comment ")
        {
            let (holds, target) = read(line, seen);
            chains.entry(chain.clone()).or_default().push(Rule {
                text: line.to_owned(),
                holds,
                target,
            });
        }
    }
    chains
}

fn read(line: &str, seen: &Seen) -> (Holds, Target) {
    let mut conditions = Conditions::new(seen);
    let mut target = Target::Work;
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut at = 0;
    while let Some(&word) = words.get(at) {
        let next = words.get(at + 1).copied().unwrap_or_default();
        let ipv4 = seen.packet.source.is_ipv4();
        match (word, next) {
            ("ip" | "ip6", "saddr" | "daddr") => {
                conditions.require((word == "ip") == ipv4);
                let is_source = next == "saddr";
                at = values(&words, at + 2, &mut conditions, |conditions, value| {
                    conditions.address(is_source, value)
                });
            }
            ("ip", "protocol") | ("ip6", "nexthdr") | ("meta", "l4proto") => {
                conditions.require(word == "meta" || (word == "ip") == ipv4);
                at = values(&words, at + 2, &mut conditions, |conditions, value| {
                    conditions.protocol(value)
                });
            }
            ("tcp" | "udp", "sport" | "dport") => {
                let is_protocol = conditions.protocol(word) == Some(true);
                conditions.require(is_protocol);
                let is_source = next == "sport";
                at = values(&words, at + 2, &mut conditions, |conditions, value| {
                    conditions.port(is_source, value, '-')
                });
            }
            ("iif" | "oif" | "iifname" | "oifname", _) => {
                let is_incoming = word.starts_with('i');
                at = values(&words, at + 1, &mut conditions, |conditions, value| {
                    Some(conditions.interface(is_incoming, value.trim_matches('"'), '*'))
                });
            }
            ("ct", "state") => {
                at = values(&words, at + 2, &mut conditions, |conditions, value| {
                    Some(conditions.state(value))
                });
            }
            // `counter packets 1 bytes 2`
            ("counter", "packets") => at += 5,
            ("counter", _) => at += 1,
            ("comment" | "log", _) => {
                // Texts may have blanks: the verdict is what is left at the end.
                if let Some(last) = words.last() {
                    target = simple(last).unwrap_or(target);
                }
                break;
            }
            ("jump", chain) => {
                target = Target::Jump(chain.to_owned());
                break;
            }
            ("goto", chain) => {
                target = Target::Goto(chain.to_owned());
                break;
            }
            ("reject" | "queue", _) => {
                target = Target::Drop;
                break;
            }
            (word, _) => {
                match simple(word) {
                    Some(verdict) => target = verdict,
                    None => conditions.doubt(),
                }
                at += 1;
            }
        }
    }
    (conditions.holds, target)
}

fn simple(word: &str) -> Option<Target> {
    Some(match word {
        "accept" => Target::Accept,
        "drop" => Target::Drop,
        "return" => Target::Return,
        _ => return None,
    })
}

/// Reads `!= VALUE` or `{ VALUE, VALUE }` from a place on. Returns the place behind it.
fn values(
    words: &[&str],
    mut at: usize,
    conditions: &mut Conditions<'_>,
    holds: impl Fn(&Conditions<'_>, &str) -> Option<bool>,
) -> usize {
    let is_negated = words.get(at) == Some(&"!=");
    at += usize::from(is_negated);
    let mut each = Vec::new();
    if words.get(at) == Some(&"{") {
        at += 1;
        while let Some(&value) = words.get(at) {
            at += 1;
            if value == "}" {
                break;
            }
            each.push(holds(conditions, value.trim_end_matches(',')));
        }
    } else if let Some(value) = words.get(at) {
        at += 1;
        each.push(holds(conditions, value));
    }
    conditions.any_of(each.into_iter(), is_negated);
    at
}
