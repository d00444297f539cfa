//! Routes in the route tables of a VPC, as flannel's backend aws-vpc has them.

mod instance;
mod problem;
mod tables;

use std::time::Duration;

use aws_config::{BehaviorVersion, SdkConfig, imds, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_ec2::Client;

use self::tables::Table;
use crate::{
    exchange::{Answer, Problem, Request},
    plan::{Node, Step, foreign, plan},
};

/// A single try of a request; the agent limits the whole.
const ATTEMPT: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 4;

pub async fn serve(request: &Request, answer: &mut Answer) -> Result<(), Problem> {
    let config = configure().await?;
    let metadata = imds::Client::builder().build();
    let id = instance::id(&metadata).await?;
    let client = Client::new(&config);
    let interface = instance::interface(&client, &id, request.address).await?;
    if interface.checks_addresses {
        let done = instance::stop_checking(&client, &interface.id).await;
        let change = format!("the source/destination check of {} is off", interface.id);
        answer.note(change, done);
    }
    let node = Node {
        network: request.network,
        subnet: request.subnet,
        target: &interface.id,
        take_over: request.take_over,
    };
    let tables = if request.route_tables.is_empty() {
        vec![tables::of_interface(&client, &interface).await?]
    } else {
        named(&client, &request.route_tables, answer).await
    };
    for table in tables {
        for step in plan(&table.routes, &node) {
            let done = take(&client, &table.id, &step, &interface.id).await;
            answer.note(step.done(&table.id, &interface.id), done);
        }
    }
    Ok(())
}

/// The usual chain for credentials, and the region of the environment, a profile or the instance.
async fn configure() -> Result<SdkConfig, Problem> {
    let timeouts = TimeoutConfig::builder()
        .operation_attempt_timeout(ATTEMPT)
        .build();
    let config = aws_config::defaults(BehaviorVersion::latest())
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .load()
        .await;
    if config.region().is_some() {
        return Ok(config);
    }
    Err(Problem {
        action: "GET placement/region".to_owned(),
        object: "this instance".to_owned(),
        reason: "the region is neither in AWS_REGION nor told by the instance metadata service"
            .to_owned(),
        permission: None,
    })
}

/// The tables that can be read. One that cannot does not keep the route out of the others.
async fn named(client: &Client, ids: &[String], answer: &mut Answer) -> Vec<Table> {
    let mut found = Vec::new();
    for id in ids {
        match tables::named(client, id).await {
            Ok(table) => found.push(table),
            Err(problem) => answer.problems.push(problem),
        }
    }
    found
}

async fn take(client: &Client, table: &str, step: &Step, interface: &str) -> Result<(), Problem> {
    match step {
        Step::Delete(destination) => tables::delete(client, table, *destination).await,
        Step::Create(destination) => tables::create(client, table, *destination, interface).await,
        Step::Replace(destination, _) => {
            tables::replace(client, table, *destination, interface).await
        }
        Step::Foreign(destination, target) => Err(Problem {
            action: "ec2:ReplaceRoute".to_owned(),
            object: format!("{destination} in {table}"),
            reason: foreign(target),
            permission: None,
        }),
    }
}
