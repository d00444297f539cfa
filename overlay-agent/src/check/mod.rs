//! The known pitfalls of hosts on which an overlay network runs: what is seen of them on this one, and what to do.
//!
//! [`Facts`] are gathered in one place ([`gather`]); what follows from them is pure ([`examine`]). A
//! pitfall is a function of [`pitfalls`], and a name that stays.

mod facts;
mod finding;
mod gather;
mod mesh;
mod pitfalls;
mod told;

pub use self::{
    facts::{BaseChain, Facts, Overlay, Rules, Saved},
    finding::{Finding, Severity},
    gather::{Places, gather, overlays, rules, subnet_file},
    mesh::examine as examine_mesh,
    told::tell,
};

/// The pitfalls that the facts show, the worst first.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = pitfalls::ALL.iter().flat_map(|look| look(facts)).collect();
    findings.sort_by_key(|finding| (finding.severity, finding.name));
    findings
}
