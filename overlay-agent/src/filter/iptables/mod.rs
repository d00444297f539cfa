//! The iptables commands of one address family: which variants exist, which one the rest of the
//! host uses, and applying chains through `iptables-restore` in one transaction per table.
//!
//! A host may hold two independent sets of iptables rules, one in nf_tables and one in the old
//! ip_tables. Writing into the one that Docker or kube-proxy does not use looks right and has no
//! effect on their verdicts (flannel issue #1317), so the variant in use is looked up.

use std::{collections::BTreeSet, fmt, fs, path::PathBuf};

use tracing::warn;

use self::diff::{ChainChange, ChainSpec, IptablesTable, Listing, Renderings};
use super::{error::FilterError, exec::Executor, family::RuleFamily};

pub mod diff;

/// First version with `--wait` in iptables-restore and with `--random-fully`.
const MODERN: Version = Version(1, 6, 2);

/// Seconds to wait for the xtables lock, which other programs take for each of their changes.
const WAIT: &str = "--wait=10";

/// Where iptables keeps its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variant {
    /// nf_tables.
    Nft,
    /// The old ip_tables.
    Legacy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u16, u16, u16);

/// The commands of one family and variant.
#[derive(Clone, Debug)]
pub struct Iptables {
    family: RuleFamily,
    variant: Variant,
    version: Version,
    command: PathBuf,
    restore: PathBuf,
    save: PathBuf,
    executor: Executor,
    renderings: Renderings,
}

/// The variants installed for one family, the host's default first.
#[derive(Clone, Debug, Default)]
pub struct Installed(Vec<Iptables>);

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        })
    }
}

impl Version {
    /// Reads `iptables v1.8.9 (nf_tables)`. Versions before 1.8 name no variant: they are legacy.
    fn parse(text: &str) -> Option<(Self, Variant)> {
        let version = text
            .split_whitespace()
            .find_map(|word| word.strip_prefix('v'))?;
        let mut parts = version.split('.').map(str::parse);
        let mut part = || parts.next()?.ok();
        let version = Self(part()?, part()?, part().unwrap_or(0));
        let variant = if text.contains("nf_tables") {
            Variant::Nft
        } else {
            Variant::Legacy
        };
        Some((version, variant))
    }
}

impl Installed {
    /// Asks every iptables command of the family what it is.
    pub async fn discover(family: RuleFamily, executor: &Executor) -> Self {
        let base = match family {
            RuleFamily::V4 => "iptables",
            RuleFamily::V6 => "ip6tables",
        };
        let mut found: Vec<Iptables> = Vec::new();
        for suffix in ["", "-nft", "-legacy"] {
            let name = format!("{base}{suffix}");
            let (Some(command), Some(restore), Some(save)) = (
                executor.find(&name),
                executor.find(&format!("{name}-restore")),
                executor.find(&format!("{name}-save")),
            ) else {
                continue;
            };
            let version = executor.run_checked(&command, &["--version"], "").await;
            let Some((version, variant)) = version.ok().as_deref().and_then(Version::parse) else {
                warn!(command = %command.display(), "does not tell its version, not used");
                continue;
            };
            if found.iter().all(|other| other.variant != variant) {
                found.push(Iptables {
                    family,
                    variant,
                    version,
                    command,
                    restore,
                    save,
                    executor: executor.clone(),
                    renderings: Renderings::new(),
                });
            }
        }
        Self(found)
    }

    /// The variant the rest of the host uses: the default one, unless only the other holds rules
    /// of others.
    pub async fn in_use(&self, own: &[ChainSpec]) -> Option<Iptables> {
        let default = self.0.first()?;
        let Some(other) = self.0.get(1) else {
            return Some(default.clone());
        };
        // A variant that cannot be listed is not in use.
        let used_by_others = async |iptables: &Iptables| {
            iptables
                .foreign_rules(own)
                .await
                .is_ok_and(|count| count > 0)
        };
        if used_by_others(default).await || !used_by_others(other).await {
            return Some(default.clone());
        }
        warn!(
            default = %default.variant,
            used = %other.variant,
            "the other programs of this host keep their iptables rules in the variant that is not \
             the default; ours go there too"
        );
        Some(other.clone())
    }

    /// The commands of a variant, if there are any.
    pub fn variant(&self, variant: Variant) -> Option<&Iptables> {
        self.0.iter().find(|tool| tool.variant == variant)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Iptables> {
        self.0.iter_mut()
    }
}

impl Iptables {
    pub fn variant(&self) -> Variant {
        self.variant
    }

    pub fn family(&self) -> RuleFamily {
        self.family
    }

    pub fn supports_fully_random(&self) -> bool {
        self.version >= MODERN
    }

    /// `iptables-nft`, whatever the command is called.
    pub fn name(&self) -> String {
        let family = match self.family {
            RuleFamily::V4 => "iptables",
            RuleFamily::V6 => "ip6tables",
        };
        format!("{family}-{}", self.variant)
    }

    /// The tables of this family that ip_tables has created. Listing any other would create it.
    pub fn legacy_tables(family: RuleFamily) -> BTreeSet<String> {
        // `self` is the process, whose namespace the calling thread may have left.
        let file = match family {
            RuleFamily::V4 => "/proc/thread-self/net/ip_tables_names",
            RuleFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        let names = fs::read_to_string(file).unwrap_or_default();
        names.lines().map(str::to_owned).collect()
    }

    /// All tables there are, in one go. Creates none, and takes no lock.
    pub async fn save_all(&self) -> Result<String, FilterError> {
        self.executor.run_checked::<&str>(&self.save, &[], "").await
    }

    /// A table as `iptables-save` prints it; `None` if it holds what iptables cannot express.
    pub async fn save_table(&self, table: &str) -> Result<Option<String>, FilterError> {
        let answer = self.executor.run(&self.save, &["-t", table], "").await?;
        Ok(answer.success.then_some(answer.stdout))
    }

    async fn list(&self, table: IptablesTable) -> Result<Listing, FilterError> {
        if self.variant == Variant::Legacy
            && !Self::legacy_tables(self.family).contains(table.name())
        {
            return Ok(Listing::default());
        }
        Ok(Listing::parse(&self.rules_text(table.name()).await?))
    }

    /// A table as `-S` lists it: rules without counters.
    pub async fn rules_text(&self, table: &str) -> Result<String, FilterError> {
        let mut args = vec!["-t", table, "-S"];
        if self.version >= MODERN {
            args.push(WAIT);
        }
        self.executor.run_checked(&self.command, &args, "").await
    }

    async fn restore(&self, input: &str) -> Result<(), FilterError> {
        let mut args = vec!["--noflush"];
        if self.version >= MODERN {
            args.push(WAIT);
        }
        self.executor
            .run_checked(&self.restore, &args, input)
            .await
            .map(drop)
    }

    async fn foreign_rules(&self, own: &[ChainSpec]) -> Result<usize, FilterError> {
        let mut count = 0;
        for table in IptablesTable::ALL {
            count += self.list(table).await?.foreign_rules(own);
        }
        Ok(count)
    }

    /// Makes the chains be as specified, present or absent, and tells what that took. With
    /// `dry_run` it only tells.
    pub async fn ensure(
        &mut self,
        specs: &[ChainSpec],
        dry_run: bool,
    ) -> Result<Vec<ChainChange>, FilterError> {
        let mut changes = Vec::new();
        for table in IptablesTable::ALL {
            if specs.iter().all(|spec| spec.table != table) {
                continue;
            }
            let listing = self.list(table).await?;
            let Some(plan) = diff::plan(table, &listing, specs, &self.renderings) else {
                continue;
            };
            if !dry_run {
                self.restore(&plan.restore).await?;
                self.learn_renderings(table, specs).await?;
            }
            changes.extend(plan.changes);
        }
        Ok(changes)
    }

    /// Remembers how this iptables words our rules, so that a wording other than ours is not
    /// mistaken for a change at every check.
    async fn learn_renderings(
        &mut self,
        table: IptablesTable,
        specs: &[ChainSpec],
    ) -> Result<(), FilterError> {
        let listing = self.list(table).await?;
        for spec in specs.iter().filter(|spec| spec.table == table) {
            match listing.rendering(spec) {
                Some(rendering) => self.renderings.insert(spec.name, rendering),
                None => self.renderings.remove(spec.name),
            };
        }
        Ok(())
    }

    /// Deletes exactly these rules from the built-in chains, where present.
    pub async fn delete_rules(
        &self,
        rules: &[(IptablesTable, &'static str, String)],
    ) -> Result<bool, FilterError> {
        let mut deleted = false;
        for table in IptablesTable::ALL {
            let listing = self.list(table).await?;
            if let Some(restore) = diff::plan_deletion(table, &listing, rules) {
                self.restore(&restore).await?;
                deleted = true;
            }
        }
        Ok(deleted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variant_is_read_from_the_version() {
        let parse = |text| Version::parse(text);
        assert_eq!(
            parse("iptables v1.8.9 (nf_tables)\n"),
            Some((Version(1, 8, 9), Variant::Nft))
        );
        assert_eq!(
            parse("iptables v1.8.9 (legacy)\n"),
            Some((Version(1, 8, 9), Variant::Legacy))
        );
        assert_eq!(
            parse("ip6tables v1.4.21\n"),
            Some((Version(1, 4, 21), Variant::Legacy))
        );
        assert_eq!(
            parse("iptables v1.8\n"),
            Some((Version(1, 8, 0), Variant::Legacy))
        );
        assert_eq!(parse("busybox"), None);
    }

    #[test]
    fn random_ports_need_1_6_2() {
        assert!(Version(1, 6, 2) >= MODERN);
        assert!(Version(1, 8, 0) >= MODERN);
        assert!(Version(1, 6, 1) < MODERN);
        assert!(Version(1, 4, 21) < MODERN);
    }
}
