//! What overlay-agent and overlay-cloud say to each other: a request by standard input, an answer by
//! standard output, each a JSON object. Both programs compile this file.

use std::{fmt, net::Ipv4Addr};

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

/// How a node's part of the cloud is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub cloud: Cloud,
    /// The pod network. Routes of other destinations are nobody's business here.
    pub network: Ipv4Network,
    /// The subnet that the node leases; `None` if another node has it now.
    pub subnet: Option<Ipv4Network>,
    /// The node's own address, by which the clouds know its interface.
    pub address: Ipv4Addr,
    /// Route tables of AWS; none means that of the node's subnet in the VPC.
    pub route_tables: Vec<String>,
    /// A route of the subnet that leads to another live node is replaced, not only reported.
    pub take_over: bool,
}

/// Whose routes they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cloud {
    AwsVpc,
    Gce,
}

/// What came of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What was changed, each a sentence.
    pub changes: Vec<String>,
    pub problems: Vec<Problem>,
}

/// What could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The action of the cloud's API.
    pub action: String,
    /// What it was about.
    pub object: String,
    pub reason: String,
    /// What the credentials lack, if that is the reason.
    pub permission: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            action,
            object,
            reason,
            permission,
        } = self;
        write!(f, "{action} for {object} failed: {reason}")?;
        match permission {
            Some(permission) => write!(f, "; the node's credentials lack {permission}"),
            None => Ok(()),
        }
    }
}
