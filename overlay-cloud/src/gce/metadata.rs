//! Which instance this node is, as its metadata server says.

use std::{env, net::Ipv4Addr, time::Duration};

use serde::Deserialize;

use super::names;
use crate::exchange::Problem;

/// As Google's own libraries have it.
const VARIABLE: &str = "GCE_METADATA_HOST";
const HOST: &str = "metadata.google.internal";
const LIMIT: Duration = Duration::from_secs(10);

/// This node.
pub struct Instance {
    pub project: String,
    pub zone: String,
    pub name: String,
    /// The network whose routes lead to the node's address.
    pub network: String,
}

/// `instance/?recursive=true`, as far as it is of interest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    name: String,
    zone: String,
    network_interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
struct Interface {
    ip: String,
    network: String,
}

impl Instance {
    /// The path of the instance, which next hops are written as.
    pub fn path(&self) -> String {
        let Self {
            project,
            zone,
            name,
            ..
        } = self;
        format!("projects/{project}/zones/{zone}/instances/{name}")
    }

    pub fn network_path(&self) -> String {
        format!("projects/{}/global/networks/{}", self.project, self.network)
    }
}

/// The instance, whose network is that of the interface with the address.
pub async fn instance(address: Ipv4Addr) -> Result<Instance, Problem> {
    let project = get("project/project-id").await?;
    let path = "instance/?recursive=true";
    let text = get(path).await?;
    let told: Told =
        serde_json::from_str(&text).map_err(|error| problem(path, &error.to_string()))?;
    let ip = address.to_string();
    let mut interfaces = told.network_interfaces.iter();
    let interface = interfaces.find(|interface| interface.ip == ip);
    let interface = interface.ok_or_else(|| {
        problem(
            path,
            &format!("no interface of the instance has the node's address {ip}: see --iface"),
        )
    })?;
    Ok(Instance {
        project: names::base(project.trim()).to_owned(),
        zone: names::base(&told.zone).to_owned(),
        name: told.name,
        network: names::base(&interface.network).to_owned(),
    })
}

async fn get(path: &str) -> Result<String, Problem> {
    let host = env::var(VARIABLE).unwrap_or_else(|_| HOST.to_owned());
    let asked = async {
        let request = reqwest::Client::builder().timeout(LIMIT).build()?;
        let request = request
            .get(format!("http://{host}/computeMetadata/v1/{path}"))
            .header("Metadata-Flavor", "Google");
        request.send().await?.error_for_status()?.text().await
    };
    asked.await.map_err(|error| {
        problem(
            path,
            &format!("the metadata server does not answer: {error}"),
        )
    })
}

fn problem(path: &str, reason: &str) -> Problem {
    Problem {
        action: format!("GET computeMetadata/v1/{path}"),
        object: "this instance".to_owned(),
        reason: reason.to_owned(),
        permission: None,
    }
}
