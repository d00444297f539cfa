//! Follows the chains and finds the rules that judge packets one by one and decide by it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use overlay_common::slow::{EGRESS, INGRESS, TCP, UDP};

use super::{
    Scope,
    reach::{ANY_PORT, IPV4, IPV6, Reach, product, simplified},
    ruleset::{
        Base, Chain, Effect, Holds, Hook, Item, Rule, RuleName, RuleTable, Ruleset, TableFamily,
        TableId, state,
    },
};

/// The kernel follows sixteen jumps.
const MAX_DEPTH: usize = 16;
/// A rule set in which more rules have to be looked at is taken to judge everything.
const MAX_STEPS: usize = 2_000_000;

/// A rule that judges packets one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub table: TableId,
    pub chain: String,
    pub rule: RuleName,
    /// By what: `limit`, `string`, `queue`.
    pub by: String,
    /// What it can match.
    pub reach: Vec<Reach>,
}

/// What there is to know about a rule set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub rules: Vec<Finding>,
    /// Verdict maps that had to be taken for anything because what they hold is not known.
    pub unknown_maps: BTreeSet<(TableId, String)>,
    /// The rule set is larger than could be followed.
    pub is_too_large: bool,
    /// Directions in which a rule treats some of the tunnel packets between two nodes otherwise than others:
    /// bits of [`overlay_common::slow`].
    pub outer: u8,
}

/// Whose way through the host is followed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Role {
    /// A pod's own packet.
    Inner,
    /// The tunnel packet around it, received or sent.
    Outer { direction: u8 },
}

/// What to make of a verdict map that has not been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownMap {
    /// It is about to be read.
    Passes,
    /// It may lead to any chain.
    LeadsAnywhere,
}

pub fn find(ruleset: &Ruleset, scope: &Scope, unknown_map: UnknownMap) -> Findings {
    let mut findings = Findings::default();
    let mut steps = 0;
    // Untracked packets exist where a rule makes them so.
    let states = if has_untracked(ruleset) {
        state::ALL
    } else {
        state::ALL & !state::UNTRACKED
    };
    for (id, table) in &ruleset.tables {
        for (name, chain) in &table.chains {
            let Some(base) = chain.base.as_ref().filter(|base| !base.is_nat) else {
                continue;
            };
            for (role, reach) in roles(id.family, base, scope) {
                let mut walk = Walk {
                    id,
                    table,
                    scope,
                    unknown_map,
                    role,
                    narrows_by_name: !matches!(
                        id.family,
                        TableFamily::Bridge | TableFamily::Netdev
                    ) && base.hook != Hook::Ingress,
                    findings: &mut findings,
                    steps: &mut steps,
                    done: HashMap::new(),
                    effects: BTreeMap::new(),
                };
                walk.chain(name, chain, &[reach], states, 0);
            }
        }
    }
    if steps > MAX_STEPS {
        findings.is_too_large = true;
    }
    findings
}

fn has_untracked(ruleset: &Ruleset) -> bool {
    let rules = ruleset
        .tables
        .values()
        .flat_map(|table| table.chains.values())
        .flat_map(|chain| &chain.rules);
    rules
        .flat_map(|rule| &rule.items)
        .any(|item| *item == Item::Effect(Effect::Untrack))
}

/// As whose packets a base chain meets those of pods.
fn roles(family: TableFamily, base: &Base, scope: &Scope) -> Vec<(Role, Reach)> {
    let families = match family {
        TableFamily::Ip => IPV4,
        TableFamily::Ip6 => IPV6,
        TableFamily::Inet | TableFamily::Bridge | TableFamily::Netdev => IPV4 | IPV6,
        TableFamily::Arp => return Vec::new(),
    };
    if !base.devices.is_empty() && base.devices.iter().all(|device| device == "lo") {
        return Vec::new();
    }
    let is_bridge = family == TableFamily::Bridge;
    let inner = match base.hook {
        Hook::Prerouting | Hook::Postrouting | Hook::Ingress | Hook::Egress => true,
        // What a bridge forwards by itself goes from pod to pod of this node.
        Hook::Forward => !is_bridge,
        Hook::Input | Hook::Output => is_bridge,
    };
    let outer = match base.hook {
        Hook::Prerouting | Hook::Input | Hook::Ingress => INGRESS,
        Hook::Postrouting | Hook::Output | Hook::Egress => EGRESS,
        Hook::Forward => 0,
    };
    let is_vtep = |device: &String| scope.vteps.contains(device);
    let outer = if !base.devices.is_empty() && base.devices.iter().all(is_vtep) {
        0
    } else {
        outer
    };
    let mut roles = Vec::new();
    if inner {
        roles.push((Role::Inner, Reach::families(families)));
    }
    for (bit, port) in [(IPV4, scope.ipv4_port), (IPV6, scope.ipv6_port)] {
        if let Some(port) = port.filter(|_| outer != 0 && families & bit != 0) {
            let reach = Reach {
                families: bit,
                protocols: UDP,
                directions: outer,
                destination_ports: (port, port),
                ..Reach::ALL
            };
            roles.push((Role::Outer { direction: outer }, reach));
        }
    }
    roles
}

struct Walk<'a> {
    id: &'a TableId,
    table: &'a RuleTable,
    scope: &'a Scope,
    unknown_map: UnknownMap,
    role: Role,
    /// Whether names of interfaces are those of the host's IP layer.
    narrows_by_name: bool,
    findings: &'a mut Findings,
    steps: &'a mut usize,
    /// What walks through a chain came to.
    done: HashMap<(String, Vec<Reach>, u8), u8>,
    /// Whether a chain does anything.
    effects: BTreeMap<String, bool>,
}

/// A packet on its way through one rule.
struct Passage {
    reach: Vec<Reach>,
    states: u8,
    /// Those that the rule itself asks for.
    asked: u8,
    /// Nothing but the state of the connection decided whether it got here.
    by_state_alone: bool,
    /// What of the packet itself decided.
    judged: Option<String>,
    /// Something decided that tunnel packets between two nodes differ in.
    is_told_apart: bool,
}

impl Passage {
    /// Whether tunnel packets that differ in nothing else but their source ports may be treated differently: by
    /// what the rule asks, or as it is only for those that begin a connection of the host's.
    const fn tells_apart(&self) -> bool {
        let is_for_new = self.asked & (state::NEW | state::ESTABLISHED) == state::NEW;
        self.is_told_apart || is_for_new
    }
}

/// What becomes of the states a packet may be in, in one chain.
struct Course {
    /// Those that still get to the next rule.
    here: u8,
    /// Those that have left for the rule after the jump.
    returned: u8,
}

impl Walk<'_> {
    /// Returns the states in which packets get to the rule behind the jump.
    fn chain(
        &mut self,
        name: &str,
        chain: &Chain,
        reach: &[Reach],
        states: u8,
        depth: usize,
    ) -> u8 {
        let key = (name.to_owned(), reach.to_vec(), states);
        if let Some(&done) = self.done.get(&key) {
            return done;
        }
        if depth > MAX_DEPTH {
            return states;
        }
        let mut course = Course {
            here: states,
            returned: 0,
        };
        for (index, rule) in chain.rules.iter().enumerate() {
            *self.steps += 1;
            if *self.steps > MAX_STEPS || course.here == 0 {
                break;
            }
            let passage = Passage {
                reach: reach.to_vec(),
                states: course.here,
                asked: state::ALL,
                by_state_alone: true,
                judged: None,
                is_told_apart: false,
            };
            let at = Place {
                name,
                rule,
                rest: &chain.rules[index + 1..],
                depth,
            };
            self.items(&rule.items, passage, &at, &mut course);
        }
        let left = course.here | course.returned;
        self.done.insert(key, left);
        left
    }

    fn items(&mut self, items: &[Item], mut passage: Passage, at: &Place<'_>, course: &mut Course) {
        for item in items {
            match item {
                Item::Only(alternatives) => {
                    passage.reach = product(&passage.reach, alternatives);
                    passage.by_state_alone = false;
                }
                Item::Interface { incoming, names } => {
                    passage.by_state_alone = false;
                    if self.narrows_by_name {
                        let reach = self.interface(*incoming, names);
                        passage.reach = product(&passage.reach, &reach);
                    }
                }
                Item::Condition => passage.by_state_alone = false,
                Item::TellsApart => {
                    passage.by_state_alone = false;
                    passage.is_told_apart = true;
                }
                Item::States(states) => {
                    passage.states &= states;
                    passage.asked &= states;
                }
                Item::Flags(holds) => self.flags(*holds, &mut passage),
                Item::Judge(by) => {
                    passage.by_state_alone = false;
                    passage.judged.get_or_insert_with(|| by.clone());
                }
                Item::Effect(effect) => self.effect(effect, &passage, at, course),
                Item::Branches(branches) => {
                    for (items, effect) in branches {
                        let branch = Passage {
                            reach: passage.reach.clone(),
                            judged: passage.judged.clone(),
                            ..passage
                        };
                        let mut items = items.clone();
                        items.push(Item::Effect(effect.clone()));
                        self.items(&items, branch, at, course);
                    }
                }
                Item::Map(name) => {
                    passage.by_state_alone = false;
                    for effect in self.map(name) {
                        self.effect(&effect, &passage, at, course);
                    }
                }
            }
            if passage.reach.is_empty() || passage.states == 0 {
                return;
            }
        }
    }

    fn flags(&self, holds: Holds, passage: &mut Passage) {
        passage.by_state_alone = false;
        match holds {
            Holds::Sometimes => {
                passage.judged.get_or_insert_with(|| "TCP flags".to_owned());
                passage.reach = product(&passage.reach, &[Reach::protocols(TCP)]);
            }
            // In trusted mode packets with any flags are fast.
            Holds::Never if !self.scope.trusted => passage.reach.clear(),
            Holds::Never | Holds::Always => {
                passage.reach = product(&passage.reach, &[Reach::protocols(TCP)]);
            }
        }
    }

    /// The directions in which pods' packets, or tunnel packets, go by one of these interfaces.
    fn interface(&self, incoming: bool, names: &[String]) -> Vec<Reach> {
        let is_named = |known: &String| names.iter().any(|name| is_match(name, known));
        if let Role::Outer { direction } = self.role {
            let meets = incoming == (direction == INGRESS);
            return if meets && !self.scope.underlays.iter().any(is_named) {
                Vec::new()
            } else {
                vec![Reach::ALL]
            };
        }
        let (outside, inside) = if incoming {
            (INGRESS, EGRESS)
        } else {
            (EGRESS, INGRESS)
        };
        let is_outside =
            |name: &String| self.scope.vteps.contains(name) || self.scope.underlays.contains(name);
        let mut directions = 0;
        if self.scope.vteps.iter().any(is_named) || self.scope.underlays.iter().any(is_named) {
            directions |= outside;
        }
        if names.iter().any(|name| name != "lo" && !is_outside(name)) {
            directions |= inside;
        }
        if directions == 0 {
            return Vec::new();
        }
        vec![Reach::directions(directions)]
    }

    fn map(&mut self, name: &str) -> Vec<Effect> {
        if let Some(Some(effects)) = self.table.maps.get(name) {
            return effects.clone();
        }
        self.findings
            .unknown_maps
            .insert((self.id.clone(), name.to_owned()));
        if self.unknown_map == UnknownMap::Passes {
            return Vec::new();
        }
        let chains = self.table.chains.iter();
        let targets = chains.filter(|(_, chain)| chain.base.is_none());
        targets
            .map(|(name, _)| Effect::Jump(name.clone()))
            .chain([Effect::End])
            .collect()
    }

    fn effect(&mut self, effect: &Effect, passage: &Passage, at: &Place<'_>, course: &mut Course) {
        if let Effect::Work {
            what, connection, ..
        } = effect
        {
            self.report(what.clone(), passage, at, *connection);
        } else if (passage.judged.is_some() || passage.tells_apart()) && self.decides(effect, at) {
            if let Some(by) = &passage.judged {
                let connection = matches!(effect, Effect::Change { connection: true });
                self.report(by.clone(), passage, at, connection);
            }
            if passage.tells_apart() {
                self.tell_apart(passage);
            }
        }
        self.go_on(effect, passage, at, course);
    }

    /// Whether anything follows for the packet from what a rule does.
    fn decides(&mut self, effect: &Effect, at: &Place<'_>) -> bool {
        match effect {
            Effect::Return => self.do_anything(at.rest, 0),
            Effect::Jump(target) => self.does_anything(target, 0),
            Effect::Goto(target) => self.does_anything(target, 0) || self.do_anything(at.rest, 0),
            Effect::End | Effect::Change { .. } | Effect::Untrack | Effect::Work { .. } => true,
        }
    }

    fn tell_apart(&mut self, passage: &Passage) {
        if let Role::Outer { direction } = self.role
            && !passage.reach.is_empty()
        {
            self.findings.outer |= direction;
        }
    }

    fn go_on(&mut self, effect: &Effect, passage: &Passage, at: &Place<'_>, course: &mut Course) {
        let mut passed = 0;
        let mut returned = 0;
        match effect {
            Effect::End | Effect::Work { ends: true, .. } => {}
            Effect::Return => returned = passage.states,
            Effect::Jump(target) => passed = self.jump(target, passage, at.depth),
            Effect::Goto(target) => returned = self.jump(target, passage, at.depth),
            Effect::Change { .. } | Effect::Untrack | Effect::Work { .. } => return,
        }
        course.returned |= returned;
        if passage.by_state_alone {
            course.here = course.here & !passage.states | passed;
        }
    }

    fn jump(&mut self, target: &str, passage: &Passage, depth: usize) -> u8 {
        match self.table.chains.get(target) {
            Some(chain) => self.chain(target, chain, &passage.reach, passage.states, depth + 1),
            None => passage.states,
        }
    }

    fn report(&mut self, by: String, passage: &Passage, at: &Place<'_>, connection: bool) {
        let mut reach: Vec<Reach> = passage
            .reach
            .iter()
            .filter_map(|reach| self.fast(*reach, passage.states))
            .collect();
        if connection {
            reach.extend(reach.clone().into_iter().map(Reach::reversed));
        }
        if reach.is_empty() {
            return;
        }
        if let Role::Outer { direction } = self.role {
            self.findings.outer |= direction;
            let all = |reach: &Reach| Reach {
                families: reach.families,
                directions: direction,
                ..Reach::ALL
            };
            reach = reach.iter().map(all).collect();
        }
        if self.scope.trusted {
            // There a flow is all that goes between two pods.
            for reach in &mut reach {
                reach.protocols = Reach::ALL.protocols;
                (reach.source_ports, reach.destination_ports) = (ANY_PORT, ANY_PORT);
            }
        }
        let rules = &mut self.findings.rules;
        let known = rules.iter_mut().find(|found| {
            found.table == *self.id
                && found.chain == at.name
                && found.rule == at.rule.name
                && found.by == by
        });
        if let Some(found) = known {
            found.reach = simplified(found.reach.drain(..).chain(reach));
            return;
        }
        rules.push(Finding {
            table: self.id.clone(),
            chain: at.name.to_owned(),
            rule: at.rule.name.clone(),
            by,
            reach: simplified(reach),
        });
    }

    /// What of `reach` may be fast in these states. The connection of a TCP segment that is neither its
    /// first nor its last is established; other packets may be in any state however many there were.
    fn fast(&self, reach: Reach, states: u8) -> Option<Reach> {
        let is_open = states & (state::ESTABLISHED | state::UNTRACKED) != 0;
        if is_open || self.scope.trusted {
            return Some(reach);
        }
        let protocols = reach.protocols & !TCP;
        (protocols != 0).then_some(Reach { protocols, ..reach })
    }

    /// Whether a chain does more than to write logs.
    fn does_anything(&mut self, name: &str, depth: usize) -> bool {
        if let Some(&known) = self.effects.get(name) {
            return known;
        }
        let does = match self.table.chains.get(name) {
            Some(_) if depth > MAX_DEPTH => true,
            Some(chain) => self.do_anything(&chain.rules, depth),
            None => true,
        };
        self.effects.insert(name.to_owned(), does);
        does
    }

    fn do_anything(&mut self, rules: &[Rule], depth: usize) -> bool {
        rules
            .iter()
            .flat_map(|rule| &rule.items)
            .any(|item| match item {
                Item::Effect(effect) => self.is_anything(effect, depth),
                Item::Branches(branches) => branches
                    .iter()
                    .any(|(_, effect)| self.is_anything(effect, depth)),
                Item::Map(_) => true,
                _ => false,
            })
    }

    fn is_anything(&mut self, effect: &Effect, depth: usize) -> bool {
        match effect {
            Effect::Jump(target) | Effect::Goto(target) => self.does_anything(target, depth + 1),
            Effect::Return => false,
            Effect::End | Effect::Change { .. } | Effect::Untrack | Effect::Work { .. } => true,
        }
    }
}

/// Which rule is being looked at.
struct Place<'a> {
    /// Of the chain.
    name: &'a str,
    rule: &'a Rule,
    /// The rules behind it.
    rest: &'a [Rule],
    depth: usize,
}

/// Whether the name of an interface, which may end in `*`, stands for `known`.
fn is_match(name: &str, known: &str) -> bool {
    match name.strip_suffix('*') {
        Some(prefix) => known.starts_with(prefix),
        None => name == known,
    }
}
