//! The `nft` command: what it understands, and replacing whole tables of ours in one transaction.

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use tracing::warn;

use super::{
    error::FilterError,
    exec::Executor,
    family::RuleFamily,
    iptables::diff::ChangeKind,
    rules::{Dialect, NftTable, POD_SOURCE_TABLE},
};

/// A table of ours by family and name.
pub type TableId = (RuleFamily, &'static str);

/// Every table this agent may own.
pub const OWN_TABLES: [TableId; 4] = [
    (RuleFamily::V4, "flannel-ipv4"),
    (RuleFamily::V6, "flannel-ipv6"),
    (RuleFamily::V4, POD_SOURCE_TABLE),
    (RuleFamily::V6, POD_SOURCE_TABLE),
];

#[derive(Clone, Debug)]
pub struct Nft {
    command: PathBuf,
    executor: Executor,
    dialect: Dialect,
    /// How this nft lists a table, by the text it was written with. Versions differ in wording.
    renderings: BTreeMap<String, String>,
}

impl Nft {
    /// Finds `nft` and what it and the kernel understand. `None` when it is not installed, or
    /// cannot create a nat chain here.
    pub async fn discover(executor: &Executor) -> Option<Self> {
        let command = executor.find("nft")?;
        let mut refusal = String::new();
        // Best first; nothing is changed by a check run.
        for (comments, fully_random) in [(true, true), (true, false), (false, true), (false, false)]
        {
            let dialect = Dialect {
                comments,
                fully_random,
            };
            let answer = executor
                .run(&command, &["-c", "-f", "-"], &probe(dialect))
                .await
                .ok()?;
            if answer.success {
                let executor = executor.clone();
                return Some(Self {
                    command,
                    executor,
                    dialect,
                    renderings: BTreeMap::new(),
                });
            }
            refusal = answer.stderr;
        }
        warn!(command = %command.display(), refusal, "cannot create nat rules, not used");
        None
    }

    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    async fn list(&self, (family, name): TableId) -> Result<Option<String>, FilterError> {
        let args = ["list", "table", family.nft(), name];
        let answer = self.executor.run(&self.command, &args, "").await?;
        if answer.success {
            return Ok(Some(answer.stdout));
        }
        if answer.stderr.contains("No such file or directory") {
            return Ok(None);
        }
        Err(FilterError::refused(&self.command, answer.stderr))
    }

    /// Makes a table be exactly as written, and tells what that took.
    pub async fn ensure(&mut self, table: &NftTable) -> Result<Option<ChangeKind>, FilterError> {
        let id = (table.family, table.name);
        let listed = self.list(id).await?;
        let rendering = self.renderings.get(&table.text).unwrap_or(&table.text);
        if listed.as_ref() == Some(rendering) {
            return Ok(None);
        }
        let restore = format!("{}{}", deletion(id), table.text);
        self.executor
            .run_checked(&self.command, &["-f", "-"], &restore)
            .await?;
        match self.list(id).await? {
            Some(rendering) if rendering != table.text => {
                self.renderings.insert(table.text.clone(), rendering);
            }
            _ => {
                self.renderings.remove(&table.text);
            }
        }
        Ok(Some(if listed.is_some() {
            ChangeKind::Repaired
        } else {
            ChangeKind::Installed
        }))
    }

    /// Removes a table of ours; tells whether it was there.
    pub async fn remove(&self, id: TableId, dry_run: bool) -> Result<bool, FilterError> {
        if self.list(id).await?.is_none() {
            return Ok(false);
        }
        if !dry_run {
            self.executor
                .run_checked(&self.command, &["-f", "-"], &deletion(id))
                .await?;
        }
        Ok(true)
    }
}

/// Deletes a table whether or not it exists.
fn deletion((family, name): TableId) -> String {
    format!(
        "add table {0} {name}\ndelete table {0} {name}\n",
        family.nft()
    )
}

/// Everything our tables are made of, in a table that exists for the check run only.
fn probe(dialect: Dialect) -> String {
    let mut text = String::from("table ip overlay-probe {\n");
    if dialect.comments {
        text.push_str("\tcomment \"probe\"\n");
    }
    text.push_str("\tchain probe {\n");
    if dialect.comments {
        text.push_str("\t\tcomment \"probe\"\n");
    }
    text.push_str("\t\ttype nat hook postrouting priority srcnat - 1; policy accept;\n");
    text.push_str("\t\tip saddr 192.0.2.0/24 snat to ip saddr\n");
    let random = if dialect.fully_random {
        " fully-random"
    } else {
        ""
    };
    _ = writeln!(text, "\t\tip saddr 192.0.2.0/24 masquerade{random}");
    text.push_str("\t}\n}\n");
    text
}
