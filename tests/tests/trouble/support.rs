//! The commands that judge a node.

use anyhow::{Context as _, Result};
use overlay_tests::lab::{Lab, Node};
use serde_json::Value;

pub use overlay_tests::lab::agent::judge;

/// The code that a command exits with, what it judges in which way, and all that it says.
pub type Judged = (Option<i32>, Vec<(String, String)>, Value);

/// Runs a line of words on the node.
pub fn run(node: &Node, line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let program = words.next().context("a program")?;
    node.cmd(program, words).map(drop)
}

/// Writes a wrong UDP checksum into probes that come to `other` from `one`, where there is one.
pub fn spoil_checksums(lab: &Lab, one: &Node, other: &Node) -> Result<()> {
    // Between nodes of the lab nobody looks at checksums that nobody has computed.
    one.cmd("ethtool", ["-K", "flannel.1", "tx", "off"])?;
    // From the outer UDP header on: that, vxlan, Ethernet, IPv4, and the place in the inner UDP header, in bits.
    let inner = 8 * (8 + 8 + 14 + 20);
    let (port, checksum) = (inner + 16, inner + 48);
    let rules = format!(
        "table bridge spoil {{
            chain forward {{
                type filter hook forward priority 0
                oifname {} ip saddr {} udp dport 8472 @th,{port},16 8473 @th,{checksum},16 != 0 @th,{checksum},16 set 0xdead
            }}
        }}",
        other.name, one.address
    );
    let hub = lab.underlay().hub();
    hub.run(
        "sh",
        ["-ec", &format!("nft -f - <<'RULES'\n{rules}\nRULES\n")],
    )
    .map(drop)
}
