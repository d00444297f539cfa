//! The routes of a network, read and written.

use std::{env, time::Duration};

use google_cloud_compute_v1::{
    client,
    errors::OperationError,
    model::{Operation, Route as Resource, route::warnings::Code},
};
use google_cloud_gax::{
    exponential_backoff::{ExponentialBackoff, ExponentialBackoffBuilder},
    options::RequestOptionsBuilder as _,
    paginator::ItemPaginator as _,
};
use google_cloud_lro::Poller as _;
use ipnetwork::Ipv4Network;

use super::{metadata::Instance, names, problem::problem};
use crate::{exchange::Problem, plan::Route};

/// Another endpoint of the API than the public one.
const VARIABLE: &str = "OVERLAY_GCE_ENDPOINT";
pub const INSERT: &str = "compute.routes.insert";
const LIST: &str = "compute.routes.list";
const DELETE: &str = "compute.routes.delete";
const CREATE_PERMISSION: &str = "compute.routes.create";
/// flannel's, and the API's own default.
const PRIORITY: u32 = 1000;

/// The routes of a node's network.
pub struct Routes {
    client: client::Routes,
    project: String,
    network: String,
}

impl Routes {
    pub async fn connect(instance: &Instance) -> Result<Self, Problem> {
        let mut builder = client::Routes::builder();
        if let Ok(endpoint) = env::var(VARIABLE) {
            builder = builder.with_endpoint(endpoint);
        }
        let client = builder.build().await.map_err(|error| Problem {
            action: "connect".to_owned(),
            object: "the Compute Engine API".to_owned(),
            reason: error.to_string(),
            permission: None,
        })?;
        Ok(Self {
            client,
            project: instance.project.clone(),
            network: instance.network_path(),
        })
    }

    /// Those that flannel may have made.
    pub async fn list(&self) -> Result<Vec<Route>, Problem> {
        let request = self.client.list().set_project(&self.project);
        let mut items = request
            .set_filter(format!("name eq {}.*", names::PREFIX))
            .by_item();
        let mut found = Vec::new();
        while let Some(item) = items.next().await {
            let item = item.map_err(|error| problem(LIST, LIST, &self.network, &error))?;
            found.extend(self.route(&item));
        }
        Ok(found)
    }

    fn route(&self, resource: &Resource) -> Option<Route> {
        let name = resource.name.as_deref()?;
        let network = resource.network.as_deref()?;
        let destination: Ipv4Network = resource.dest_range.as_deref()?.parse().ok()?;
        let is_one = name == names::route(destination) && names::path(network) == self.network;
        let hop = resource.next_hop_instance.as_deref();
        let gone = Some(Code::NextHopInstanceNotFound);
        is_one.then(|| Route {
            destination,
            target: hop.map(|url| names::path(url).to_owned()),
            is_dead: resource.warnings.iter().any(|warning| warning.code == gone),
        })
    }

    pub async fn insert(
        &self,
        destination: Ipv4Network,
        instance: &Instance,
    ) -> Result<(), Problem> {
        let name = names::route(destination);
        let route = Resource::new()
            .set_name(&name)
            .set_dest_range(destination.to_string())
            .set_network(&self.network)
            .set_next_hop_instance(instance.path())
            .set_priority(PRIORITY);
        let request = self.client.insert().set_project(&self.project);
        let request = request
            .set_body(route)
            .with_polling_backoff_policy(pauses());
        let operation = request.poller().until_done().await;
        let operation =
            operation.map_err(|error| problem(INSERT, CREATE_PERMISSION, &name, &error))?;
        finished(INSERT, &name, operation)
    }

    /// Another node may have removed it at the same time.
    pub async fn delete(&self, destination: Ipv4Network) -> Result<(), Problem> {
        let name = names::route(destination);
        let request = self.client.delete().set_project(&self.project);
        let request = request
            .set_route(&name)
            .with_polling_backoff_policy(pauses());
        match request.poller().until_done().await {
            Ok(operation) => finished(DELETE, &name, operation),
            Err(error) if error.http_status_code() == Some(404) => Ok(()),
            Err(error) => Err(problem(DELETE, DELETE, &name, &error)),
        }
    }
}

/// An operation that is done may have failed.
fn finished(action: &str, name: &str, operation: Operation) -> Result<(), Problem> {
    let done = operation.to_result();
    done.map(drop).map_err(|error| Problem {
        action: action.to_owned(),
        object: name.to_owned(),
        reason: reason(&error),
        permission: None,
    })
}

fn reason(error: &OperationError) -> String {
    let OperationError::Generic(generic) = error else {
        return error.to_string();
    };
    let details = generic.details.iter().flat_map(|details| &details.errors);
    let told = details.map(|error| {
        let parts = [error.code.as_deref(), error.message.as_deref()];
        parts.into_iter().flatten().collect::<Vec<_>>().join(": ")
    });
    let told: Vec<String> = told.collect();
    if told.is_empty() {
        return error.to_string();
    }
    told.join(", ")
}

/// Between questions whether an operation is done. It takes seconds as a rule.
fn pauses() -> ExponentialBackoff {
    let builder = ExponentialBackoffBuilder::new()
        .with_initial_delay(Duration::from_millis(500))
        .with_maximum_delay(Duration::from_secs(3));
    builder.clamp()
}
