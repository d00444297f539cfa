//! Rules as `iptables-save` prints them.

use super::rule::{Chains, Conditions, Holds, Rule, Seen, Target};
use crate::{check::Saved, filter::per_packet::words};

/// Matches that ask nothing beyond their options. Others may hold or not.
const PLAIN: [&str; 7] = [
    "comment",
    "conntrack",
    "icmp",
    "multiport",
    "state",
    "tcp",
    "udp",
];

/// The chains of one table.
pub fn chains(saved: &Saved, table: &str, seen: &Seen) -> Chains {
    let mut chains = Chains::new();
    for (_, text) in saved.rules.iter().filter(|(of, _)| of == table) {
        let words = words(text);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if let ["-A", chain, options @ ..] = &words[..] {
            let (holds, target) = read(options, seen);
            chains.entry((*chain).to_owned()).or_default().push(Rule {
                text: text.clone(),
                holds,
                target,
            });
        }
    }
    chains
}

fn read(options: &[&str], seen: &Seen) -> (Holds, Target) {
    let mut conditions = Conditions::new(seen);
    let mut target = Target::Work;
    let mut is_negated = false;
    let mut words = options.iter().copied().peekable();
    while let Some(option) = words.next() {
        if option == "!" {
            is_negated = true;
            continue;
        }
        let is_not = std::mem::take(&mut is_negated);
        let value = match words.peek() {
            Some(value) if *value != "!" && !value.starts_with('-') => {
                words.next().unwrap_or_default()
            }
            _ => "",
        };
        let require = |conditions: &mut Conditions<'_>, holds: Option<bool>| {
            conditions.any_of([holds].into_iter(), is_not);
        };
        match option {
            "-s" => {
                let holds = conditions.address(true, value);
                require(&mut conditions, holds);
            }
            "-d" => {
                let holds = conditions.address(false, value);
                require(&mut conditions, holds);
            }
            "-p" => {
                let holds = conditions.protocol(value);
                require(&mut conditions, holds);
            }
            "-i" | "-o" => {
                let holds = conditions.interface(option == "-i", value, '+');
                require(&mut conditions, Some(holds));
            }
            "--sport" | "--dport" => {
                let holds = conditions.port(option == "--sport", value, ':');
                require(&mut conditions, holds);
            }
            "--sports" | "--dports" => {
                let is_source = option == "--sports";
                let each: Vec<_> = value
                    .split(',')
                    .map(|one| conditions.port(is_source, one, ':'))
                    .collect();
                conditions.any_of(each.into_iter(), is_not);
            }
            "--state" | "--ctstate" => {
                let holds = conditions.state(value);
                require(&mut conditions, Some(holds));
            }
            "-m" if PLAIN.contains(&value) => {}
            "--comment" => {}
            "-f" => require(&mut conditions, Some(false)),
            "-j" | "-g" => {
                target = self::target(value, option == "-g");
                break;
            }
            _ => conditions.doubt(),
        }
    }
    (conditions.holds, target)
}

fn target(name: &str, is_goto: bool) -> Target {
    match name {
        "ACCEPT" => Target::Accept,
        // What a queue decides, nobody knows: it is taken for the worse, and so named.
        "DROP" | "REJECT" | "TARPIT" | "NFQUEUE" | "QUEUE" => Target::Drop,
        "RETURN" => Target::Return,
        // Names of targets that are no chains have no rules either.
        name if is_goto => Target::Goto(name.to_owned()),
        name => Target::Jump(name.to_owned()),
    }
}
