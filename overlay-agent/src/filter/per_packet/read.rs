//! Reads the rule set with the host's own tools, and no more of it than matters: tables without a
//! chain that sees packets one by one are not listed, and of sets only verdict maps.

use std::{collections::BTreeSet, path::PathBuf};

use super::{
    Scope, nft, present,
    ruleset::{RuleName, Ruleset, TableFamily, TableId},
    save,
    walk::{Findings, UnknownMap, find},
};
use crate::filter::{
    error::FilterError,
    exec::Executor,
    family::RuleFamily,
    iptables::{Installed, Iptables, Variant},
};

/// Verdict maps read by name; what others hold is taken for anything.
const MAX_MAPS: usize = 64;
/// Chains listed for the texts of their rules.
const MAX_CHAINS: usize = 16;

/// The tools of this host.
#[derive(Clone, Debug)]
pub struct Tools {
    executor: Executor,
    nft: Option<PathBuf>,
    iptables: Vec<(RuleFamily, Installed)>,
}

/// Why what the rule set says is not known.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error("{what} lists its rules in a form that is not understood: {source}")]
    Listing {
        what: String,
        source: serde_json::Error,
    },
    #[error("there are rules that only {tool} can list, which is not installed: install it")]
    NoTool { tool: &'static str },
}

impl Tools {
    pub async fn find(executor: &Executor) -> Self {
        let mut iptables = Vec::new();
        for family in RuleFamily::ALL {
            iptables.push((family, Installed::discover(family, executor).await));
        }
        Self {
            executor: executor.clone(),
            nft: executor.find("nft"),
            iptables,
        }
    }

    /// The rules that judge packets one by one.
    pub async fn findings(&self, scope: &Scope) -> Result<Findings, ReadError> {
        let mut ruleset = Ruleset::default();
        self.read_legacy(&mut ruleset).await?;
        self.read_nf_tables(&mut ruleset).await?;
        let mut findings = find(&ruleset, scope, UnknownMap::Passes);
        let mut asked = BTreeSet::new();
        while !findings.unknown_maps.is_empty() {
            let unknown: Vec<_> = findings.unknown_maps.difference(&asked).cloned().collect();
            if unknown.is_empty() || asked.len() + unknown.len() > MAX_MAPS {
                findings = find(&ruleset, scope, UnknownMap::LeadsAnywhere);
                break;
            }
            for (table, name) in unknown {
                self.nft(
                    &["list", "map", table.family.name(), &table.name, &name],
                    &mut ruleset,
                )
                .await?;
                asked.insert((table, name));
            }
            findings = find(&ruleset, scope, UnknownMap::Passes);
        }
        self.name_rules(&mut findings).await?;
        Ok(findings)
    }

    async fn read_legacy(&self, ruleset: &mut Ruleset) -> Result<(), ReadError> {
        for (family, installed) in &self.iptables {
            if Iptables::legacy_tables(*family).is_empty() {
                continue;
            }
            let tool = installed
                .variant(Variant::Legacy)
                .ok_or(ReadError::NoTool {
                    tool: "iptables-legacy",
                })?;
            insert(*family, true, &tool.save_all().await?, ruleset);
        }
        Ok(())
    }

    async fn read_nf_tables(&self, ruleset: &mut Ruleset) -> Result<(), ReadError> {
        if self.nft.is_none() {
            // Without nf_tables in the kernel the question fails.
            if present::has_tables().await.unwrap_or_default() {
                return Err(ReadError::NoTool { tool: "nft" });
            }
            return Ok(());
        }
        let mut chains = Ruleset::default();
        self.nft(&["list", "chains"], &mut chains).await?;
        let tables = chains.tables.into_iter().filter(|(id, table)| {
            let judges = |chain: &super::ruleset::Chain| {
                chain.base.as_ref().is_some_and(|base| !base.is_nat)
            };
            id.family != TableFamily::Arp && table.chains.values().any(judges)
        });
        for (id, _) in tables {
            self.nft(&["list", "table", id.family.name(), &id.name], ruleset)
                .await?;
            let has_extensions = ruleset
                .tables
                .get(&id)
                .is_some_and(|table| table.has_extensions);
            if has_extensions {
                self.read_extensions(&id, ruleset).await?;
            }
        }
        Ok(())
    }

    /// Lists a table of iptables again with its own tool, which knows what its extensions say. What it
    /// refuses, because the table holds other rules as well, stays as `nft` told it.
    async fn read_extensions(&self, id: &TableId, ruleset: &mut Ruleset) -> Result<(), ReadError> {
        let family = match id.family {
            TableFamily::Ip => RuleFamily::V4,
            TableFamily::Ip6 => RuleFamily::V6,
            _ => return Ok(()),
        };
        let installed = self.iptables.iter().find(|(of, _)| *of == family);
        let tool = installed.and_then(|(_, installed)| installed.variant(Variant::Nft));
        if let Some(tool) = tool
            && let Some(text) = tool.save_table(&id.name).await?
        {
            insert(family, false, &text, ruleset);
        }
        Ok(())
    }

    /// Adds what `nft` lists, without the elements of sets; what has vanished meanwhile adds nothing.
    async fn nft(&self, args: &[&str], ruleset: &mut Ruleset) -> Result<(), ReadError> {
        let Some(command) = &self.nft else {
            return Ok(());
        };
        let is_map = args.contains(&"map");
        let options: &[&str] = if is_map { &["-j"] } else { &["-j", "-t"] };
        let all = [options, args].concat();
        let answer = self.executor.run(command, &all, "").await?;
        if !answer.success {
            if answer.stderr.contains("No such file or directory") {
                return Ok(());
            }
            return Err(FilterError::refused(command, answer.stderr).into());
        }
        nft::read(&answer.stdout, ruleset).map_err(|source| ReadError::Listing {
            what: format!("{} {}", command.display(), all.join(" ")),
            source,
        })
    }

    /// Replaces handles by the texts of the rules, as far as `nft` tells them.
    async fn name_rules(&self, findings: &mut Findings) -> Result<(), ReadError> {
        let Some(command) = &self.nft else {
            return Ok(());
        };
        let chains: BTreeSet<(TableId, String)> = findings
            .rules
            .iter()
            .filter(|finding| matches!(finding.rule, RuleName::Handle(_)))
            .map(|finding| (finding.table.clone(), finding.chain.clone()))
            .collect();
        for (table, chain) in chains.into_iter().take(MAX_CHAINS) {
            let args = [
                "-a",
                "-t",
                "list",
                "chain",
                table.family.name(),
                &table.name,
                &chain,
            ];
            let answer = self.executor.run(command, &args, "").await?;
            let lines: Vec<(&str, &str)> = answer
                .stdout
                .lines()
                .filter_map(|line| line.rsplit_once(" # handle "))
                .collect();
            for finding in &mut findings.rules {
                if let RuleName::Handle(handle) = finding.rule
                    && (&finding.table, &finding.chain) == (&table, &chain)
                {
                    let number = handle.to_string();
                    let line = lines.iter().find(|(_, handle)| *handle == number);
                    if let Some((text, _)) = line {
                        finding.rule = RuleName::Text(text.trim().to_owned());
                    }
                }
            }
        }
        Ok(())
    }
}

fn insert(family: RuleFamily, legacy: bool, text: &str, ruleset: &mut Ruleset) {
    save::read(family, text, |name, table| {
        let id = TableId {
            family: match family {
                RuleFamily::V4 => TableFamily::Ip,
                RuleFamily::V6 => TableFamily::Ip6,
            },
            name: name.to_owned(),
            legacy,
        };
        ruleset.tables.insert(id, table);
    });
}
