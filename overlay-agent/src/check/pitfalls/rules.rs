//! The packet filter.

use ipnetwork::IpNetwork;

use crate::check::{
    facts::{Facts, Overlay, Saved},
    finding::Finding,
};

const OWN_FORWARD: &str = "-j FLANNEL-FWD";

/// A rule set that refuses to forward what it does not know.
pub fn forward(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (overlay, saved) in pairs(facts) {
        let policy = saved
            .policies
            .get("FORWARD")
            .map_or("ACCEPT", String::as_str);
        let rules: Vec<&str> = saved.chain("filter", "FORWARD").collect();
        let refuses = |rule: &&str| is_verdict(rule, &["DROP", "REJECT"]) && is_unconditional(rule);
        let accepts = |rule: &&str| rule.contains(OWN_FORWARD) || accepts_network(rule, overlay);
        let refusal = rules.iter().position(refuses);
        let acceptance = rules.iter().position(accepts);
        let by = match (acceptance, refusal) {
            (Some(earlier), Some(later)) if earlier < later => continue,
            (_, Some(at)) => format!("the rule {}", rules[at]),
            (None, None) if policy != "ACCEPT" => format!("the policy {policy} of FORWARD"),
            _ => continue,
        };
        findings.push(Finding::error(
            "forward_policy",
            format!("{by} in {} drops what pods send to other nodes", saved.tool),
            "leave --iptables-forward-rules on, so that FLANNEL-FWD accepts the pod network first; Docker sets the \
             policy DROP",
        ));
    }
    for chain in &facts.rules.base_chains {
        let mentions = |overlay: &Overlay| {
            let network = overlay.network.map(|network| network.to_string());
            network.is_some_and(|network| chain.text.contains(&network))
        };
        if chain.hook == "forward"
            && chain.drops
            && facts.is_a_node()
            && !facts.overlays.iter().any(mentions)
        {
            findings.push(Finding::warning(
                "forward_policy",
                format!(
                    "chain {} of table {} drops what it does not accept, and does not mention the pod network; what \
                     other tables accept does not count there",
                    chain.chain, chain.table
                ),
                "a rule there that accepts the pod network, as source and as destination",
            ));
        }
    }
    findings
}

/// A firewall on this node at which the tunnel ends.
pub fn port_blocked(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (overlay, saved) in pairs(facts) {
        let Some(port) = overlay.port else { continue };
        let named = format!("--dport {port} ");
        let hits = |rule: &str| rule.contains("-p udp") && format!("{rule} ").contains(&named);
        for (chain, what) in [("INPUT", "come from"), ("OUTPUT", "go to")] {
            let rules: Vec<&str> = saved.chain("filter", chain).collect();
            let relevant = |rule: &&&str| hits(rule) || is_unconditional(rule);
            let first = rules.iter().find(relevant).filter(|rule| hits(rule));
            let verdict = first.filter(|rule| is_verdict(rule, &["DROP", "REJECT"]));
            if let Some(rule) = verdict {
                findings.push(Finding::error(
                    "port_blocked",
                    format!(
                        "the rule {rule} in {} drops tunnel packets that {what} other nodes",
                        saved.tool
                    ),
                    format!("accept UDP port {port} between the nodes before it"),
                ));
            }
        }
        let drops = saved
            .policies
            .get("INPUT")
            .is_some_and(|policy| policy == "DROP");
        let rules = || saved.rules.iter().filter(|(table, _)| table == "filter");
        let underlay = overlay
            .underlay
            .as_ref()
            .map(|underlay| format!("-i {} ", underlay.name));
        let may_accept = |rule: &str| {
            let mine = underlay.as_ref().is_some_and(|u| rule.contains(u));
            hits(rule) || rule.contains("--dports") || mine || rule.starts_with("-A INPUT -s ")
        };
        if drops && !rules().any(|(_, rule)| may_accept(rule)) {
            findings.push(Finding::warning(
                "port_blocked",
                format!(
                    "the policy of INPUT in {} is DROP, and no rule mentions UDP port {port}: what other nodes send \
                     through the tunnel may not get in",
                    saved.tool
                ),
                format!("accept UDP port {port} from the other nodes"),
            ));
        }
    }
    findings
}

/// Docker's and others' rules that hide pods behind their node.
pub fn masquerade(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (overlay, saved) in pairs(facts) {
        let Some(subnet) = overlay.subnet else {
            continue;
        };
        let table = if overlay.vtep.is_ipv4() { "ip" } else { "ip6" };
        let kept = facts
            .rules
            .tables
            .contains(&format!("{table} overlay-agent"));
        let mut chain = saved.chain("nat", "POSTROUTING");
        let hides = |rule: &&str| {
            is_verdict(rule, &["MASQUERADE"])
                && !rule.contains(" -d ")
                && !rule.contains("-m mark")
                && source(rule).is_some_and(|of| of.contains(subnet.network()))
        };
        if kept {
            continue;
        }
        let Some(rule) = chain
            .by_ref()
            .take_while(|rule| !rule.contains("OVERLAY-PODSRC"))
            .find(hides)
        else {
            continue;
        };
        findings.push(Finding::warning(
            "docker_masquerade",
            format!(
                "the rule {rule} in {} gives packets to pods of other nodes the address of this node",
                saved.tool
            ),
            "leave --pod-source-keep on; or start Docker with --ip-masq=false and the agent with --ip-masq",
        ));
    }
    findings
}

/// Two sets of rules that know nothing of each other.
pub fn mixed(facts: &Facts) -> Vec<Finding> {
    let of = |is_legacy: bool, is_ipv6: bool| {
        let mut saved = facts.rules.iptables.iter();
        saved.find(move |saved| {
            saved.is_legacy == is_legacy && saved.is_ipv6 == is_ipv6 && !saved.rules.is_empty()
        })
    };
    let mut findings = Vec::new();
    for is_ipv6 in [false, true] {
        if let (Some(legacy), Some(nft)) = (of(true, is_ipv6), of(false, is_ipv6)) {
            findings.push(Finding::warning(
                "mixed_rules",
                format!(
                    "there are {} rules of {} and {} of {}: a packet has to pass both sets, and each program sees one",
                    legacy.rules.len(),
                    legacy.tool,
                    nft.rules.len(),
                    nft.tool
                ),
                format!(
                    "have all programs use one of them (update-alternatives --config iptables), and remove the rules \
                     of the other: {}-save shows them",
                    legacy.tool
                ),
            ));
        }
    }
    findings
}

/// Each overlay with the rules of its family.
fn pairs(facts: &Facts) -> impl Iterator<Item = (&Overlay, &Saved)> {
    facts.overlays.iter().flat_map(|overlay| {
        let saved = facts.rules.iptables.iter();
        let same = saved.filter(|saved| saved.is_ipv6 == overlay.vtep.is_ipv6());
        same.map(move |saved| (overlay, saved))
    })
}

fn is_verdict(rule: &str, verdicts: &[&str]) -> bool {
    let mut words = rule.split_whitespace();
    let target = words
        .by_ref()
        .find(|word| *word == "-j")
        .and_then(|_| words.next());
    target.is_some_and(|target| verdicts.contains(&target))
}

/// `-A CHAIN -j TARGET`, and what the target has of its own.
fn is_unconditional(rule: &str) -> bool {
    let mut words = rule.split_whitespace().skip(2);
    words.next() == Some("-j") && is_verdict(rule, &["DROP", "REJECT", "ACCEPT"])
}

fn accepts_network(rule: &str, overlay: &Overlay) -> bool {
    let is_in = |of: IpNetwork| {
        overlay
            .network
            .is_some_and(|network| of.contains(network.network()))
    };
    is_verdict(rule, &["ACCEPT"]) && (is_unconditional(rule) || source(rule).is_some_and(is_in))
}

fn source(rule: &str) -> Option<IpNetwork> {
    let mut words = rule.split_whitespace();
    let before = words.by_ref().take_while(|word| *word != "-s").last();
    (before != Some("!")).then(|| words.next()?.parse().ok())?
}
