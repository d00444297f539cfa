//! The packet filter, as its own tools list it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    check::facts::{BaseChain, Rules, Saved},
    filter::{
        RuleFamily,
        exec::Executor,
        iptables::{Installed, Iptables, Variant},
    },
};

/// Tables of iptables' own.
const IPTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];

pub async fn read(executor: &Executor, missing: &mut Vec<String>) -> Rules {
    let mut rules = Rules::default();
    for family in RuleFamily::ALL {
        let installed = Installed::discover(family, executor).await;
        for variant in [Variant::Nft, Variant::Legacy] {
            let is_legacy = variant == Variant::Legacy;
            if is_legacy && Iptables::legacy_tables(family).is_empty() {
                continue;
            }
            let Some(tool) = installed.variant(variant) else {
                if is_legacy {
                    missing.push(format!(
                        "rules of ip_tables ({}) are left out: no iptables-legacy",
                        family.nft()
                    ));
                }
                continue;
            };
            match tool.save_all().await {
                Ok(text) => {
                    let saved =
                        Saved::parse(tool.name(), is_legacy, family == RuleFamily::V6, &text);
                    rules.iptables.push(saved);
                }
                Err(error) => {
                    missing.push(format!("rules of {} are left out: {error}", tool.name()));
                }
            }
        }
    }
    let Some(nft) = executor.find("nft") else {
        missing.push("rules of nftables are left out: nft is not installed".to_owned());
        return rules;
    };
    match executor
        .run_checked(&nft, &["-j", "list", "chains"], "")
        .await
    {
        Ok(text) => {
            let listed = chains(&text);
            rules.tables = listed.tables;
            rules.base_chains = listed.base_chains;
        }
        Err(error) => missing.push(format!("rules of nftables are left out: {error}")),
    }
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    for chain in &mut rules.base_chains {
        if !texts.contains_key(&chain.table) {
            let words = ["list", "table"].into_iter().chain(chain.table.split(' '));
            let words: Vec<&str> = words.collect();
            let text = executor.run_checked(&nft, &words, "").await;
            texts.insert(chain.table.clone(), text.unwrap_or_default());
        }
        chain.text.clone_from(&texts[&chain.table]);
    }
    rules
}

struct Listed {
    tables: BTreeSet<String>,
    base_chains: Vec<BaseChain>,
}

fn chains(text: &str) -> Listed {
    let mut listed = Listed {
        tables: BTreeSet::new(),
        base_chains: Vec::new(),
    };
    let listing: Value = serde_json::from_str(text).unwrap_or_default();
    let objects = listing.get("nftables").and_then(Value::as_array);
    for object in objects.into_iter().flatten() {
        let Some(chain) = object.get("chain") else {
            continue;
        };
        let text = |key: &str| chain.get(key).and_then(Value::as_str);
        let (Some(family), Some(table), Some(name)) = (text("family"), text("table"), text("name"))
        else {
            continue;
        };
        let id = format!("{family} {table}");
        let is_iptables = matches!(family, "ip" | "ip6") && IPTABLES.contains(&table);
        if let (Some(hook), false) = (text("hook"), is_iptables) {
            listed.base_chains.push(BaseChain {
                table: id.clone(),
                chain: name.to_owned(),
                hook: hook.to_owned(),
                drops: text("policy") == Some("drop"),
                text: String::new(),
            });
        }
        listed.tables.insert(id);
    }
    listed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_chains_of_others_are_found_and_those_of_iptables_are_not() {
        let text = r#"{"nftables":[{"metainfo":{"version":"1"}},
            {"chain":{"family":"ip","table":"filter","name":"FORWARD","handle":1,"type":"filter","hook":"forward","prio":0,"policy":"drop"}},
            {"chain":{"family":"inet","table":"fw","name":"fwd","handle":1,"type":"filter","hook":"forward","prio":0,"policy":"drop"}},
            {"chain":{"family":"inet","table":"fw","name":"extra","handle":2}}]}"#;
        let listed = chains(text);
        assert_eq!(listed.base_chains.len(), 1);
        assert!(listed.base_chains[0].drops && listed.base_chains[0].table == "inet fw");
        assert_eq!(listed.tables.len(), 2);
        assert!(chains("nothing").tables.is_empty());
    }
}
