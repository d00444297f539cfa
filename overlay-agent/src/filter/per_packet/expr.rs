//! Expressions of nftables: what they say about flows, and whether they look at the single packet.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use overlay_common::slow::{ICMP, SCTP, TCP, UDP};
use serde_json::Value;

use super::{
    reach::{IPV4, IPV6, Ports, Reach, network_around},
    ruleset::{Holds, Item, state, tcp},
};

/// What `LEFT OP RIGHT` adds to a rule. With any other operator than those of nft, what looking at
/// `left` means by itself.
pub fn conditions(op: &str, left: &Value, right: &Value) -> Vec<Item> {
    let mut items = Vec::new();
    items.extend(protocol_of(left).map(|reach| Item::Only(reach.to_vec())));
    let narrowed = match kind(left) {
        Kind::Payload(protocol, field) => payload(op, protocol, field, right),
        Kind::Masked(protocol, field, mask) => masked(op, protocol, field, mask, right),
        Kind::Meta(key) => meta(op, key, right),
        Kind::State => states(op, right).map(Item::States),
        Kind::Other => None,
    };
    match narrowed {
        Some(item) => items.push(item),
        None => items.push(judges(left).map_or(Item::Condition, Item::Judge)),
    }
    items
}

enum Kind<'a> {
    Payload(&'a str, &'a str),
    /// A field of a header, and what it is combined with by `&`.
    Masked(&'a str, &'a str, &'a Value),
    Meta(&'a str),
    State,
    Other,
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

fn field(value: &Value) -> Option<(&str, &str)> {
    let payload = value.get("payload")?;
    // Of a packet within the packet.
    if payload.get("tunnel").is_some() {
        return None;
    }
    Some((text(payload, "protocol")?, text(payload, "field")?))
}

fn kind(left: &Value) -> Kind<'_> {
    if let Some((protocol, field)) = field(left) {
        return Kind::Payload(protocol, field);
    }
    if let Some([inner, mask]) = left.get("&").and_then(Value::as_array).map(Vec::as_slice)
        && let Some((protocol, field)) = field(inner)
    {
        return Kind::Masked(protocol, field, mask);
    }
    if let Some(key) = left.get("meta").and_then(|meta| text(meta, "key")) {
        return Kind::Meta(key);
    }
    match left.get("ct").and_then(|ct| text(ct, "key")) {
        Some("state") => Kind::State,
        _ => Kind::Other,
    }
}

/// The packets that have the header at all.
fn protocol_of(left: &Value) -> Option<[Reach; 1]> {
    let inner = left.get("&").and_then(|both| both.get(0)).unwrap_or(left);
    if inner.get("tcp option").is_some() {
        return Some([Reach::protocols(TCP)]);
    }
    let (protocol, _) = field(inner)?;
    Some([match protocol {
        "ip" => Reach::families(IPV4),
        "ip6" => Reach::families(IPV6),
        "tcp" => Reach::protocols(TCP),
        "udp" => Reach::protocols(UDP),
        "sctp" => Reach::protocols(SCTP),
        "icmp" => Reach::families(IPV4).and(&Reach::protocols(ICMP))?,
        "icmpv6" => Reach::families(IPV6).and(&Reach::protocols(ICMP))?,
        _ => return None,
    }])
}

/// Whether looking at this means looking at the single packet, and at what of it.
pub fn judges(expression: &Value) -> Option<String> {
    let (name, argument) = match expression {
        Value::Object(object) => object.iter().next()?,
        Value::Array(parts) => return parts.iter().find_map(judges),
        // Numbers, names, references to sets.
        _ => return None,
    };
    let is_of_the_flow = match name.as_str() {
        "payload" => is_field_of_the_flow(expression),
        "meta" => !matches!(
            text(argument, "key"),
            Some("length" | "random" | "cpu" | "time" | "day" | "hour") | None
        ),
        "ct" => !matches!(
            text(argument, "key"),
            Some("bytes" | "packets" | "avgpkt" | "expiration") | None
        ),
        // What is fast has neither options nor extension headers.
        "exthdr" | "ip option" | "dccp option" | "fib" | "rt" | "socket" | "osf" | "ipsec"
        | "symhash" | "tunnel" | "prefix" | "range" => true,
        "&" | "|" | "^" | "<<" | ">>" | "concat" | "set" => return judges(argument),
        "jhash" => return argument.get("expr").and_then(judges),
        "map" => return argument.get("key").and_then(judges),
        "elem" => return argument.get("val").and_then(judges),
        _ => false,
    };
    (!is_of_the_flow).then(|| match field(expression) {
        Some((protocol, field)) => format!("{protocol} {field}"),
        None => match text(argument, "key") {
            Some(key) => format!("{name} {key}"),
            None => name.clone(),
        },
    })
}

/// Whether tunnel packets to one node, with the same mark, may be told apart by this: by the source port,
/// which stands for what is in them, or by the process that sent it.
pub fn tells_apart(value: &Value) -> bool {
    match value {
        Value::Object(object) => object.iter().any(|(name, argument)| {
            let field = text(argument, "field");
            let key = text(argument, "key");
            match name.as_str() {
                "payload" => field == Some("sport"),
                "meta" => matches!(key, Some("skuid" | "skgid" | "cgroup" | "priority")),
                "ct" => key.is_some_and(|key| key.contains("proto-") || key == "id"),
                "socket" | "symhash" | "osf" => true,
                _ => tells_apart(argument),
            }
        }),
        Value::Array(parts) => parts.iter().any(tells_apart),
        _ => false,
    }
}

fn is_field_of_the_flow(expression: &Value) -> bool {
    let Some((protocol, field)) = field(expression) else {
        return false;
    };
    match protocol {
        "ip" => matches!(
            field,
            "saddr" | "daddr" | "protocol" | "version" | "hdrlength"
        ),
        "ip6" => matches!(field, "saddr" | "daddr" | "nexthdr" | "version"),
        "tcp" | "udp" | "sctp" | "th" => matches!(field, "sport" | "dport"),
        "icmp" | "icmpv6" => matches!(field, "type" | "code" | "id"),
        "ether" => true,
        other => is_never_fast(other),
    }
}

fn is_never_fast(protocol: &str) -> bool {
    matches!(
        protocol,
        "vlan" | "arp" | "dccp" | "udplite" | "esp" | "ah" | "comp" | "igmp"
    )
}

fn payload(op: &str, protocol: &str, field: &str, right: &Value) -> Option<Item> {
    if is_never_fast(protocol) {
        return Some(Item::Only(Vec::new()));
    }
    match (protocol, field) {
        ("ip" | "ip6", "saddr") => addresses(op, right, Reach::from),
        ("ip" | "ip6", "daddr") => addresses(op, right, Reach::to),
        ("ip", "protocol") | ("ip6", "nexthdr") => protocols(op, right),
        ("tcp" | "udp" | "sctp" | "th", "sport") => {
            ports(op, protocol, right, |source_ports| Reach {
                source_ports,
                ..Reach::protocols(TCP | UDP | SCTP)
            })
        }
        ("tcp" | "udp" | "sctp" | "th", "dport") => {
            ports(op, protocol, right, |destination_ports| Reach {
                destination_ports,
                ..Reach::protocols(TCP | UDP | SCTP)
            })
        }
        ("tcp", "flags") => Some(Item::Flags(flags(op, right))),
        ("icmp" | "icmpv6", "type") if is_equal(op) => {
            let echo = |value: &Value| match value {
                Value::String(name) => matches!(name.as_str(), "echo-request" | "echo-reply"),
                Value::Number(number) => {
                    matches!(number.as_u64(), Some(0 | 8 | 128 | 129))
                }
                _ => true,
            };
            let any = elements(right)?.into_iter().any(echo);
            (!any).then(|| Item::Only(Vec::new()))
        }
        _ => None,
    }
}

fn masked(op: &str, protocol: &str, field: &str, mask: &Value, right: &Value) -> Option<Item> {
    match (protocol, field) {
        ("tcp", "flags") => {
            let holds = match (flag_bits(mask), flag_bits(right), op) {
                (Some(mask), Some(value), "==") => tcp::equal(mask, value),
                (Some(mask), Some(value), "!=") => tcp::equal(mask, value).not(),
                _ => Holds::Sometimes,
            };
            Some(Item::Flags(holds))
        }
        // Nothing fast is a fragment: neither the offset nor "more fragments" is ever set.
        ("ip", "frag-off") if mask.as_u64().is_some_and(|mask| mask & !0x3fff == 0) => {
            let is_zero = right.as_u64() == Some(0);
            match op {
                "==" if is_zero => Some(Item::Only(vec![Reach::ALL])),
                "!=" if is_zero => Some(Item::Only(Vec::new())),
                "==" => Some(Item::Only(Vec::new())),
                _ => Some(Item::Only(vec![Reach::ALL])),
            }
        }
        _ => None,
    }
}

fn meta(op: &str, key: &str, right: &Value) -> Option<Item> {
    match key {
        "l4proto" => protocols(op, right),
        "nfproto" | "protocol" if is_equal(op) => {
            let families = elements(right)?
                .into_iter()
                .map(|value| match value.as_str() {
                    Some("ipv4" | "ip") => IPV4,
                    Some("ipv6" | "ip6") => IPV6,
                    Some(_) => 0,
                    None => IPV4 | IPV6,
                });
            let families = families.fold(0, |all, family| all | family);
            let reach = (families != 0).then(|| Reach::families(families));
            Some(Item::Only(reach.into_iter().collect()))
        }
        "iif" | "iifname" | "oif" | "oifname" if is_equal(op) => {
            let names: Option<Vec<String>> = elements(right)?
                .into_iter()
                .map(|value| value.as_str().map(str::to_owned))
                .collect();
            Some(Item::Interface {
                incoming: key.starts_with('i'),
                names: names?,
            })
        }
        _ => None,
    }
}

fn is_equal(op: &str) -> bool {
    matches!(op, "==" | "in")
}

/// An element of a set without its timeout, comment or counter.
fn elem(value: &Value) -> Option<&Value> {
    value.get("elem")?.get("val")
}

/// What is compared with, one by one; `None` where it is not written in the rule.
fn elements(right: &Value) -> Option<Vec<&Value>> {
    let inner = |value| elem(value).unwrap_or(value);
    let list = match right {
        Value::String(name) if name.starts_with('@') => return None,
        Value::Null => return None,
        Value::Array(list) => list.iter().map(inner).collect(),
        Value::Object(object) if object.contains_key("set") => {
            object["set"].as_array()?.iter().map(inner).collect()
        }
        one => vec![inner(one)],
    };
    Some(list)
}

fn addresses(op: &str, right: &Value, reach: fn(IpNetwork) -> Reach) -> Option<Item> {
    if !is_equal(op) {
        return None;
    }
    let networks: Option<Vec<IpNetwork>> = elements(right)?.into_iter().map(network).collect();
    Some(Item::Only(networks?.into_iter().map(reach).collect()))
}

fn network(value: &Value) -> Option<IpNetwork> {
    let address = |value: &Value| -> Option<IpAddr> { value.as_str()?.parse().ok() };
    if let Some(prefix) = value.get("prefix") {
        let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
        return IpNetwork::new(address(prefix.get("addr")?)?, length).ok();
    }
    if let Some([first, last]) = value
        .get("range")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
    {
        return network_around(address(first)?, address(last)?);
    }
    let address = address(value)?;
    network_around(address, address)
}

fn protocols(op: &str, right: &Value) -> Option<Item> {
    if !is_equal(op) {
        return None;
    }
    let mut found = 0;
    for value in elements(right)? {
        found |= match (value.as_str(), value.as_u64()) {
            (Some("tcp"), _) | (_, Some(6)) => TCP,
            (Some("udp"), _) | (_, Some(17)) => UDP,
            (Some("sctp"), _) | (_, Some(132)) => SCTP,
            (Some("icmp" | "icmpv6" | "ipv6-icmp"), _) | (_, Some(1 | 58)) => ICMP,
            (None, None) => return None,
            _ => 0,
        };
    }
    let reach = (found != 0).then(|| Reach::protocols(found));
    Some(Item::Only(reach.into_iter().collect()))
}

fn ports(op: &str, protocol: &str, right: &Value, reach: impl Fn(Ports) -> Reach) -> Option<Item> {
    let ranges: Vec<Ports> = match op {
        "==" | "in" => elements(right)?
            .into_iter()
            .map(port_range)
            .collect::<Option<_>>()?,
        "<" | "<=" | ">" | ">=" => {
            let bound = u16::try_from(right.as_u64()?).ok()?;
            match op {
                "<" => bound.checked_sub(1).map(|last| (0, last)),
                "<=" => Some((0, bound)),
                ">" => bound.checked_add(1).map(|first| (first, u16::MAX)),
                _ => Some((bound, u16::MAX)),
            }
            .into_iter()
            .collect()
        }
        _ => return None,
    };
    let mut found: Vec<Reach> = ranges.into_iter().map(reach).collect();
    if protocol == "th" {
        // Of ICMP these bytes are something else.
        found.push(Reach::protocols(ICMP));
    }
    Some(Item::Only(found))
}

fn port_range(value: &Value) -> Option<Ports> {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    if let Some([first, last]) = value
        .get("range")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
    {
        return Some((port(first)?, port(last)?));
    }
    port(value).map(|port| (port, port))
}

fn flags(op: &str, right: &Value) -> Holds {
    match (op, flag_bits(right)) {
        ("==", Some(bits)) => tcp::equal(0xff, bits),
        ("!=", Some(bits)) => tcp::equal(0xff, bits).not(),
        ("in", Some(bits)) => tcp::any(bits),
        ("!", Some(bits)) => tcp::any(bits).not(),
        _ => Holds::Sometimes,
    }
}

/// Of names, of a list of them, or of a number.
fn flag_bits(value: &Value) -> Option<u8> {
    match value {
        Value::String(name) => tcp::parse(name),
        Value::Number(number) => u8::try_from(number.as_u64()?).ok(),
        Value::Array(list) => list
            .iter()
            .try_fold(0, |all, one| Some(all | flag_bits(one)?)),
        Value::Object(object) => flag_bits(object.get("|")?),
        _ => None,
    }
}

/// The states in which `ct state OP RIGHT` may hold.
fn states(op: &str, right: &Value) -> Option<u8> {
    let list = right.get("|").unwrap_or(right);
    let named = elements(list)?
        .into_iter()
        .try_fold(0, |all, value| Some(all | state::parse(value.as_str()?)?))?;
    Some(match op {
        "==" | "in" => named,
        // Compared with several states at once, which no packet is in.
        "!=" if right.get("|").is_some() => state::ALL,
        "!" | "!=" => state::ALL & !named,
        _ => return None,
    })
}
