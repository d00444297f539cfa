//! The clouds' own routes carry what pods send to other nodes: flannel's backends `aws-vpc` and `gce`. Each
//! node has a route for its own subnet, and none in its kernel.
//!
//! What speaks with the cloud is a program of its own, [`PROGRAM`](helper::PROGRAM): nobody else has to have its libraries.

mod exchange;
mod helper;
mod runtime;

use serde::Deserialize;

use self::{exchange::Cloud, runtime::Routes};
use super::{BackendError, ChangedKeys, Kind, Parsed, Runtime};
use crate::{
    go::json::{JsonError, Object},
    model::{Family, Forwarding},
};

/// The aws-vpc backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsVpc {
    /// None means that of the node's subnet.
    route_tables: Vec<String>,
}

/// The gce backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gce;

/// `RouteTableID`, as flannel takes it.
#[derive(Deserialize)]
#[serde(untagged)]
enum RouteTables {
    One(String),
    Several(Vec<String>),
}

impl Kind for AwsVpc {
    const TYPE: &'static str = "aws-vpc";
    /// flannel's nodes do not say it.
    const LEASE_TYPE: &'static str = "";

    fn parse(options: &str, with_ipv6: bool) -> Parsed<Self> {
        ipv4_only::<Self>(with_ipv6)?;
        let route_tables = route_tables(options).map_err(|reason| BackendError::Options {
            backend: "VPC",
            reason: reason.into(),
        })?;
        Ok((Self { route_tables }, Vec::new()))
    }

    /// What is in the other tables was put there for those in force.
    fn reload(&self, read: &Self, keys: &mut ChangedKeys) -> Self {
        if self != read {
            keys.postponed.push("Backend.RouteTableID");
        }
        self.clone()
    }

    fn forwarding<F: Family>(&self) -> Forwarding {
        Forwarding::NONE
    }

    fn runtime(&self) -> Option<Box<dyn Runtime>> {
        let routes = Routes::new(Cloud::AwsVpc, Self::TYPE, self.route_tables.clone());
        Some(Box::new(routes))
    }
}

impl Kind for Gce {
    const TYPE: &'static str = "gce";
    /// flannel's nodes do not say it.
    const LEASE_TYPE: &'static str = "";

    fn parse(_: &str, with_ipv6: bool) -> Parsed<Self> {
        ipv4_only::<Self>(with_ipv6)?;
        Ok((Self, Vec::new()))
    }

    fn reload(&self, _: &Self, _: &mut ChangedKeys) -> Self {
        *self
    }

    fn forwarding<F: Family>(&self) -> Forwarding {
        Forwarding::NONE
    }

    fn runtime(&self) -> Option<Box<dyn Runtime>> {
        let routes = Routes::new(Cloud::Gce, Self::TYPE, Vec::new());
        Some(Box::new(routes))
    }
}

fn ipv4_only<K: Kind>(with_ipv6: bool) -> Result<(), BackendError> {
    if with_ipv6 {
        return Err(BackendError::Ipv4Only { backend: K::TYPE });
    }
    Ok(())
}

/// An empty text is no table.
fn route_tables(options: &str) -> Result<Vec<String>, JsonError> {
    let object = Object::parse(options, "Backend")?;
    let expected = "the ID of a route table or a list of such";
    let read = object.decoded::<Option<RouteTables>>("RouteTableID", expected)?;
    let mut tables = match read.flatten() {
        None => Vec::new(),
        Some(RouteTables::One(table)) => vec![table],
        Some(RouteTables::Several(tables)) => tables,
    };
    tables.retain(|table| !table.is_empty());
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(options: &str) -> Vec<String> {
        AwsVpc::parse(options, false).unwrap().0.route_tables
    }

    #[test]
    fn route_tables_are_none_one_or_several_as_in_flannel() {
        for none in [
            "{}",
            r#"{"RouteTableID":null}"#,
            r#"{"RouteTableID":""}"#,
            r#"{"RouteTableID":[]}"#,
        ] {
            assert!(tables(none).is_empty(), "{none}");
        }
        assert_eq!(tables(r#"{"routetableid":"rtb-1"}"#), ["rtb-1"]);
        let several = r#"{"Type":"aws-vpc","RouteTableID":["rtb-1","rtb-2"]}"#;
        assert_eq!(tables(several), ["rtb-1", "rtb-2"]);
        for wrong in [r#"{"RouteTableID":7}"#, r#"{"RouteTableID":["rtb-1",7]}"#] {
            let error = AwsVpc::parse(wrong, false).unwrap_err().to_string();
            assert!(
                error.starts_with(
                    "error decoding VPC backend config: RouteTableID must be the ID of a route table"
                ),
                "{error}"
            );
        }
    }

    #[test]
    fn the_clouds_backends_carry_ipv4_only() {
        for error in [
            AwsVpc::parse("{}", true).unwrap_err(),
            Gce::parse("{}", true).unwrap_err(),
        ] {
            assert!(error.to_string().contains("carries IPv4 only"), "{error}");
        }
    }
}
