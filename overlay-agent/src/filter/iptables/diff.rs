//! Compares what `iptables -S` lists with the chains that should be there and writes the
//! `iptables-restore` input that makes up the difference. Pure.

use std::{collections::BTreeMap, fmt, fmt::Write as _};

/// An iptables table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IptablesTable {
    Nat,
    Filter,
}

/// A chain of ours and the rule of a built-in chain that jumps to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainSpec {
    pub table: IptablesTable,
    pub name: &'static str,
    /// The built-in chain.
    pub hook: &'static str,
    pub place: Place,
    /// The jump, without `-A <hook>`.
    pub jump: String,
    /// The rules, without `-A <name>`. `None`: chain and jumps must be gone.
    pub rules: Option<Vec<String>>,
}

/// Where the jump belongs in the built-in chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before all other rules.
    First,
    /// Appended when missing, and left where it is otherwise.
    Last,
}

/// The rules of one table, as listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Rules by chain; a chain without rules has an empty entry.
    chains: BTreeMap<String, Vec<String>>,
    /// Built-in chains whose policy is not ACCEPT.
    strict_policies: usize,
}

/// What has to happen to one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePlan {
    /// Input of `iptables-restore --noflush`: one transaction.
    pub restore: String,
    pub changes: Vec<ChainChange>,
}

/// What happened, or would happen, to one chain of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainChange {
    pub chain: &'static str,
    pub kind: ChangeKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Installed,
    /// Present, but rules or the jump were missing, changed or in the wrong place.
    Repaired,
    Removed,
}

/// A rule reduced to its options in a fixed order: versions of iptables list the same rule with its
/// matches in different order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CanonicalRule(Vec<Vec<String>>);

/// How this iptables lists rules of ours that read back differently from what was written.
pub type Renderings = BTreeMap<&'static str, Vec<CanonicalRule>>;

impl IptablesTable {
    pub const ALL: [Self; 2] = [Self::Nat, Self::Filter];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Installed => "installed",
            Self::Repaired => "repaired",
            Self::Removed => "removed",
        })
    }
}

impl Listing {
    /// Reads the output of `iptables -S`. Lines of an unknown kind are skipped: they belong to
    /// others.
    pub fn parse(text: &str) -> Self {
        let mut listing = Self::default();
        for line in text.lines() {
            let Some((command, rest)) = line.split_once(' ') else {
                continue;
            };
            let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            match command {
                "-P" => {
                    listing.chains.entry(chain.to_owned()).or_default();
                    listing.strict_policies += usize::from(rule != "ACCEPT");
                }
                "-N" => {
                    listing.chains.entry(chain.to_owned()).or_default();
                }
                "-A" => {
                    listing
                        .chains
                        .entry(chain.to_owned())
                        .or_default()
                        .push(rule.to_owned());
                }
                _ => {}
            }
        }
        listing
    }

    fn rules(&self, chain: &str) -> Option<&[String]> {
        self.chains.get(chain).map(Vec::as_slice)
    }

    /// Every rule that jumps to `target`, with the chain it stands in.
    fn jumps<'a>(&'a self, target: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.chains.iter().flat_map(move |(chain, rules)| {
            rules
                .iter()
                .filter(move |rule| jumps_to(rule, target))
                .map(|rule| (chain.as_str(), rule.as_str()))
        })
    }

    /// How much of this table somebody else has configured.
    pub fn foreign_rules(&self, own: &[ChainSpec]) -> usize {
        let is_own = |chain: &str, rule: &str| {
            own.iter()
                .any(|spec| chain == spec.name || jumps_to(rule, spec.name))
        };
        let rules = self
            .chains
            .iter()
            .flat_map(|(chain, rules)| rules.iter().map(move |rule| (chain, rule)))
            .filter(|(chain, rule)| !is_own(chain, rule))
            .count();
        rules + self.strict_policies
    }

    /// How the rules of `spec` are listed, if that is not how they were written.
    pub fn rendering(&self, spec: &ChainSpec) -> Option<Vec<CanonicalRule>> {
        let wanted = canonical(spec.rules.as_deref()?);
        let listed = canonical(self.rules(spec.name)?);
        (listed.len() == wanted.len() && listed != wanted).then_some(listed)
    }
}

/// What makes `listing` contain `specs`; `None` if it does. All specs are of the listed table.
pub fn plan(
    table: IptablesTable,
    listing: &Listing,
    specs: &[ChainSpec],
    renderings: &Renderings,
) -> Option<TablePlan> {
    let mut declarations = String::new();
    let mut deletions = String::new();
    let mut additions = String::new();
    let mut changes = Vec::new();
    for spec in specs.iter().filter(|spec| spec.table == table) {
        let listed = listing.rules(spec.name);
        let Some(wanted) = &spec.rules else {
            let jumps: Vec<_> = listing.jumps(spec.name).collect();
            if listed.is_none() && jumps.is_empty() {
                continue;
            }
            for (chain, rule) in jumps {
                _ = writeln!(deletions, "-D {chain} {rule}");
            }
            if listed.is_some() {
                _ = writeln!(deletions, "-F {0}\n-X {0}", spec.name);
            }
            changes.push(ChainChange {
                chain: spec.name,
                kind: ChangeKind::Removed,
            });
            continue;
        };
        let rules_match = listed.is_some_and(|listed| {
            let listed = canonical(listed);
            listed == canonical(wanted) || renderings.get(spec.name) == Some(&listed)
        });
        let jump_matches = jump_is_right(listing, spec);
        if rules_match && jump_matches {
            continue;
        }
        if !rules_match {
            // With --noflush, declaring a chain creates or empties this chain only.
            _ = writeln!(declarations, ":{} - [0:0]", spec.name);
            for rule in wanted {
                _ = writeln!(additions, "-A {} {rule}", spec.name);
            }
        }
        if !jump_matches {
            for (chain, rule) in listing.jumps(spec.name) {
                _ = writeln!(deletions, "-D {chain} {rule}");
            }
            match spec.place {
                Place::First => _ = writeln!(additions, "-I {} 1 {}", spec.hook, spec.jump),
                Place::Last => _ = writeln!(additions, "-A {} {}", spec.hook, spec.jump),
            }
        }
        let kind = if listed.is_some() {
            ChangeKind::Repaired
        } else {
            ChangeKind::Installed
        };
        changes.push(ChainChange {
            chain: spec.name,
            kind,
        });
    }
    (!changes.is_empty()).then(|| TablePlan {
        restore: format!(
            "*{}\n{declarations}{deletions}{additions}COMMIT\n",
            table.name()
        ),
        changes,
    })
}

/// Deletes exactly these rules where they are listed; `None` if none is.
pub fn plan_deletion(
    table: IptablesTable,
    listing: &Listing,
    rules: &[(IptablesTable, &'static str, String)],
) -> Option<String> {
    let mut deletions = String::new();
    for (_, hook, rule) in rules.iter().filter(|(of, _, _)| *of == table) {
        let unwanted = CanonicalRule::parse(rule);
        for listed in listing.rules(hook).unwrap_or_default() {
            if CanonicalRule::parse(listed) == unwanted {
                _ = writeln!(deletions, "-D {hook} {listed}");
            }
        }
    }
    (!deletions.is_empty()).then(|| format!("*{}\n{deletions}COMMIT\n", table.name()))
}

/// Exactly one jump, written as ours, in its hook and place.
fn jump_is_right(listing: &Listing, spec: &ChainSpec) -> bool {
    let mut jumps = listing.jumps(spec.name);
    let (Some((chain, rule)), None) = (jumps.next(), jumps.next()) else {
        return false;
    };
    let first = listing
        .rules(chain)
        .and_then(<[String]>::first)
        .map(String::as_str);
    chain == spec.hook
        && CanonicalRule::parse(rule) == CanonicalRule::parse(&spec.jump)
        && (spec.place == Place::Last || first == Some(rule))
}

fn jumps_to(rule: &str, target: &str) -> bool {
    let mut words = rule.split(' ').rev();
    // The target of a jump to a user-defined chain takes no options, so it ends the rule.
    words.next() == Some(target) && matches!(words.next(), Some("-j" | "-g"))
}

fn canonical(rules: &[String]) -> Vec<CanonicalRule> {
    rules
        .iter()
        .map(|rule| CanonicalRule::parse(rule))
        .collect()
}

impl CanonicalRule {
    fn parse(rule: &str) -> Self {
        let mut options: Vec<Vec<String>> = Vec::new();
        let mut negated = false;
        for word in words(rule) {
            if word == "!" {
                negated = true;
            } else if word.starts_with('-') || options.is_empty() {
                let prefix = negated.then(|| "!".to_owned());
                options.push(prefix.into_iter().chain([word]).collect());
                negated = false;
            } else if let Some(option) = options.last_mut() {
                option.push(word);
            }
        }
        // A match on every address is listed as no match.
        options.retain(|option| {
            !matches!(option.as_slice(), [flag, any]
                if matches!(flag.as_str(), "-s" | "-d") && matches!(any.as_str(), "0.0.0.0/0" | "::/0"))
        });
        options.sort();
        Self(options)
    }
}

/// Splits a listed rule at blanks outside double quotes; iptables escapes quotes inside them with a
/// backslash.
fn words(rule: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut characters = rule.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => quoted = !quoted,
            '\\' => word.extend(characters.next()),
            ' ' if !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            other => word.push(other),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests;
