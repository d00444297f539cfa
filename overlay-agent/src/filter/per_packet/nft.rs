//! Reads what `nft -j list` prints: objects, and the statements of rules. Expressions are in
//! [`super::expr`].

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{
    expr::{conditions, judges, tells_apart},
    ruleset::{Base, Chain, Effect, Hook, Item, Rule, RuleName, Ruleset, TableFamily, TableId},
};

/// Adds what `text` lists to `ruleset`. Rules come one by one: a listing may be large.
pub fn read(text: &str, ruleset: &mut Ruleset) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Listing(|object| add(&object, ruleset)).deserialize(&mut deserializer)?;
    deserializer.end()
}

fn add(object: &Value, ruleset: &mut Ruleset) {
    let Some((kind, object)) = object.as_object().and_then(|object| object.iter().next()) else {
        return;
    };
    let table = match kind.as_str() {
        "table" => "name",
        "chain" | "rule" | "map" => "table",
        _ => return,
    };
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    let (Some(family), Some(table)) = (text("family").and_then(family), text(table)) else {
        return;
    };
    let id = TableId {
        family,
        name: table.to_owned(),
        legacy: false,
    };
    let table = ruleset.tables.entry(id).or_default();
    match (kind.as_str(), text("name"), text("chain")) {
        ("chain", Some(name), _) => {
            table
                .chains
                .entry(name.to_owned())
                .or_insert_with(|| Chain {
                    base: base(object),
                    ..Chain::default()
                });
        }
        ("map", Some(name), _) => {
            table
                .maps
                .insert(name.to_owned(), object.get("elem").map(effects));
        }
        ("rule", _, Some(chain)) => {
            let rule = Rule {
                name: RuleName::Handle(
                    object
                        .get("handle")
                        .and_then(Value::as_u64)
                        .unwrap_or_default(),
                ),
                items: object
                    .get("expr")
                    .and_then(Value::as_array)
                    .map(|statements| statements.iter().flat_map(items).collect())
                    .unwrap_or_default(),
            };
            let statements = object.get("expr").and_then(Value::as_array);
            table.has_extensions |= statements
                .into_iter()
                .flatten()
                .any(|statement| statement.get("xt").is_some());
            if rule.matters() {
                let chain = table.chains.entry(chain.to_owned()).or_default();
                chain.rules.push(rule);
            }
        }
        _ => {}
    }
}

fn family(name: &str) -> Option<TableFamily> {
    Some(match name {
        "ip" => TableFamily::Ip,
        "ip6" => TableFamily::Ip6,
        "inet" => TableFamily::Inet,
        "bridge" => TableFamily::Bridge,
        "netdev" => TableFamily::Netdev,
        "arp" => TableFamily::Arp,
        _ => return None,
    })
}

fn base(chain: &Value) -> Option<Base> {
    let hook = match chain.get("hook")?.as_str()? {
        "prerouting" => Hook::Prerouting,
        "input" => Hook::Input,
        "forward" => Hook::Forward,
        "output" => Hook::Output,
        "postrouting" => Hook::Postrouting,
        "ingress" => Hook::Ingress,
        "egress" => Hook::Egress,
        _ => return None,
    };
    let devices = match chain.get("dev") {
        Some(Value::String(device)) => vec![device.clone()],
        Some(Value::Array(devices)) => devices
            .iter()
            .filter_map(|device| device.as_str().map(str::to_owned))
            .collect(),
        _ => Vec::new(),
    };
    Some(Base {
        is_nat: chain.get("type").and_then(Value::as_str) == Some("nat"),
        hook,
        devices,
    })
}

/// What the elements of a verdict map do.
fn effects(elements: &Value) -> Vec<Effect> {
    let mut effects: Vec<Effect> = elements
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|element| verdict(element.as_array()?.get(1)?))
        .collect();
    effects.sort();
    effects.dedup();
    effects
}

/// `None` for `continue`, and for what is no verdict.
fn verdict(value: &Value) -> Option<Effect> {
    let (name, argument) = value.as_object()?.iter().next()?;
    let target = || Some(argument.get("target")?.as_str()?.to_owned());
    Some(match name.as_str() {
        "accept" | "drop" => Effect::End,
        "return" => Effect::Return,
        "jump" => Effect::Jump(target()?),
        "goto" => Effect::Goto(target()?),
        "queue" => Effect::Work {
            what: "queue".into(),
            connection: false,
            ends: true,
        },
        _ => return None,
    })
}

fn items(statement: &Value) -> Vec<Item> {
    let mut items = said(statement);
    if tells_apart(statement) {
        items.insert(0, Item::TellsApart);
    }
    items
}

/// What the statement says of packets and does to them.
fn said(statement: &Value) -> Vec<Item> {
    let Some((name, argument)) = statement
        .as_object()
        .and_then(|object| object.iter().next())
    else {
        return unknown("a statement");
    };
    let work = |what: &str, connection, ends| {
        vec![Item::Effect(Effect::Work {
            what: what.to_owned(),
            connection,
            ends,
        })]
    };
    let change = |connection| vec![Item::Effect(Effect::Change { connection })];
    match name.as_str() {
        "match" => {
            let part = |key| argument.get(key).unwrap_or(&Value::Null);
            let op = part("op").as_str().unwrap_or("==");
            conditions(op, part("left"), part("right"))
        }
        "accept" | "drop" | "return" | "jump" | "goto" | "queue" => {
            verdict(statement).map(Item::Effect).into_iter().collect()
        }
        "limit" | "quota" | "ct count" => vec![Item::Judge(name.clone())],
        "vmap" => lookup(argument),
        "mangle" => mangle(argument),
        // A flow that is handed over to a flowtable passes the same rules before.
        "counter" | "log" | "last" | "continue" | "comment" | "flow" | "ct timeout" => Vec::new(),
        "notrack" => vec![Item::Effect(Effect::Untrack)],
        "ct helper" => work("conntrack helper", true, false),
        "synproxy" => work("synproxy", true, true),
        "ct expectation" | "secmark" => change(true),
        "set" | "map" | "meter" => dynamic(argument),
        "reject" | "snat" | "dnat" | "masquerade" | "redirect" | "fwd" => {
            vec![Item::Effect(Effect::End)]
        }
        // Only where there is a socket.
        "tproxy" => vec![Item::Condition, Item::Effect(Effect::End)],
        "xt" => xt(argument),
        // `dup` copies each packet, `reset` takes an option out of it.
        other => work(other, false, false),
    }
}

/// A match or target of iptables, of which `nft` tells the name at most.
fn xt(argument: &Value) -> Vec<Item> {
    let text = |key| argument.get(key).and_then(Value::as_str);
    let (Some(kind), Some(name)) = (text("type"), text("name")) else {
        return unknown("an extension of iptables");
    };
    super::save::extension(kind == "target", name)
}

/// Something that may judge, and may do anything.
fn unknown(what: &str) -> Vec<Item> {
    vec![Item::Effect(Effect::Work {
        what: what.to_owned(),
        connection: false,
        ends: false,
    })]
}

/// `KEY vmap { VALUE : VERDICT, … }` and `KEY vmap @NAME`.
fn lookup(argument: &Value) -> Vec<Item> {
    let key = argument.get("key").unwrap_or(&Value::Null);
    let data = argument.get("data").unwrap_or(&Value::Null);
    // What is not found is passed by, which the branches say; the key itself lets everything pass.
    let mut items: Vec<Item> = judges(key).map(Item::Judge).into_iter().collect();
    if let Some(name) = data.as_str().and_then(|name| name.strip_prefix('@')) {
        items.push(Item::Map(name.to_owned()));
        return items;
    }
    let elements = data.get("set").and_then(Value::as_array);
    let branches = elements.into_iter().flatten().filter_map(|element| {
        let [value, then] = element.as_array()?.as_slice() else {
            return None;
        };
        // The lookup itself judges already, if anything does.
        let narrowing = conditions("==", key, value)
            .into_iter()
            .filter(|item| !matches!(item, Item::Judge(_)));
        Some((narrowing.collect(), verdict(then)?))
    });
    items.push(Item::Branches(branches.collect()));
    items
}

/// `KEY set VALUE`.
fn mangle(argument: &Value) -> Vec<Item> {
    let part = |key| argument.get(key).unwrap_or(&Value::Null);
    let (key, value) = (part("key"), part("value"));
    let mut items: Vec<Item> = judges(value).map(Item::Judge).into_iter().collect();
    let field = key.get("payload").map(|payload| {
        let text = |key| payload.get(key).and_then(Value::as_str).unwrap_or_default();
        (text("protocol"), text("field"))
    });
    items.push(Item::Effect(match field {
        // The stamp covers these.
        Some(
            ("ip" | "ip6", "saddr" | "daddr" | "dscp" | "ttl" | "hoplimit")
            | ("tcp" | "udp" | "sctp" | "th", "sport" | "dport"),
        ) => Effect::Change { connection: false },
        Some(_) => Effect::Work {
            what: "payload".into(),
            connection: false,
            ends: false,
        },
        // Only SYN has a segment size.
        None if key.pointer("/tcp option/name").and_then(Value::as_str) == Some("maxseg") => {
            Effect::Change { connection: false }
        }
        None if key.get("meta").is_some() => Effect::Change { connection: false },
        None if key.get("ct").is_some() => Effect::Change { connection: true },
        None => Effect::Work {
            what: "a change of the packet".into(),
            connection: false,
            ends: false,
        },
    }));
    items
}

/// `add @SET { KEY limit … }`: goes on for what the statements within let pass.
fn dynamic(argument: &Value) -> Vec<Item> {
    let statements = argument.get("stmt");
    let within: Vec<&Value> = match statements {
        Some(Value::Array(statements)) => statements.iter().collect(),
        Some(statement) => vec![statement],
        None => Vec::new(),
    };
    let mut items: Vec<Item> = within.into_iter().flat_map(items).collect();
    // Others decide by the set. A full one ends the rule.
    items.insert(0, Item::Effect(Effect::Change { connection: false }));
    items.insert(1, Item::Condition);
    items
}

/// Hands the objects of a listing over one after the other.
struct Listing<F>(F);

impl<'de, F: FnMut(Value)> DeserializeSeed<'de> for Listing<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(Value)> Visitor<'de> for Listing<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the key \"nftables\"")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut found = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "nftables" {
                map.next_value_seed(Objects(&mut self.0))?;
                found = true;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if found {
            Ok(())
        } else {
            Err(de::Error::missing_field("nftables"))
        }
    }
}

struct Objects<'a, F>(&'a mut F);

impl<'de, F: FnMut(Value)> DeserializeSeed<'de> for Objects<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(Value)> Visitor<'de> for Objects<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(object) = list.next_element()? {
            (self.0)(object);
        }
        Ok(())
    }
}
