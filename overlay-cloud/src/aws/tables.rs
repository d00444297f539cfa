//! Route tables, read and written.

use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata as _,
    types::{Filter, RouteState, RouteTable},
};
use ipnetwork::Ipv4Network;

use super::{instance::Interface, problem::problem};
use crate::{exchange::Problem, plan::Route};

const DESCRIBE: &str = "ec2:DescribeRouteTables";

/// A route table.
pub struct Table {
    pub id: String,
    pub routes: Vec<Route>,
}

/// The table with this name.
pub async fn named(client: &Client, id: &str) -> Result<Table, Problem> {
    let asked = client
        .describe_route_tables()
        .route_table_ids(id)
        .send()
        .await;
    let found = asked.map_err(|error| problem(DESCRIBE, id, &error))?;
    first(found.route_tables()).ok_or_else(|| none(id, "there is no such route table"))
}

/// The table that is associated with the interface's subnet, or the main one of its VPC.
pub async fn of_interface(client: &Client, interface: &Interface) -> Result<Table, Problem> {
    let subnet = &interface.subnet;
    let of_subnet = vec![filter("association.subnet-id", subnet)];
    if let Some(table) = filtered(client, of_subnet, subnet).await? {
        return Ok(table);
    }
    let vpc = &interface.vpc;
    let main = vec![filter("association.main", "true"), filter("vpc-id", vpc)];
    let found = filtered(client, main, vpc).await?;
    found.ok_or_else(|| {
        none(
            vpc,
            "the VPC has no main route table: name one in RouteTableID",
        )
    })
}

async fn filtered(
    client: &Client,
    filters: Vec<Filter>,
    object: &str,
) -> Result<Option<Table>, Problem> {
    let asked = client.describe_route_tables().set_filters(Some(filters));
    let found = asked.send().await;
    let found = found.map_err(|error| problem(DESCRIBE, object, &error))?;
    Ok(first(found.route_tables()))
}

fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(value).build()
}

fn first(tables: &[RouteTable]) -> Option<Table> {
    let table = tables.first()?;
    let routes = table.routes().iter().filter_map(|route| {
        Some(Route {
            destination: route.destination_cidr_block()?.parse().ok()?,
            target: route.network_interface_id().map(str::to_owned),
            is_dead: route.state() == Some(&RouteState::Blackhole),
        })
    });
    Some(Table {
        id: table.route_table_id()?.to_owned(),
        routes: routes.collect(),
    })
}

fn none(object: &str, reason: &str) -> Problem {
    Problem {
        action: DESCRIBE.to_owned(),
        object: object.to_owned(),
        reason: reason.to_owned(),
        permission: None,
    }
}

fn place(destination: Ipv4Network, table: &str) -> String {
    format!("{destination} in {table}")
}

pub async fn create(
    client: &Client,
    table: &str,
    destination: Ipv4Network,
    interface: &str,
) -> Result<(), Problem> {
    let asked = client
        .create_route()
        .route_table_id(table)
        .destination_cidr_block(destination.to_string())
        .network_interface_id(interface)
        .send()
        .await;
    let asked =
        asked.map_err(|error| problem("ec2:CreateRoute", &place(destination, table), &error));
    asked.map(drop)
}

pub async fn replace(
    client: &Client,
    table: &str,
    destination: Ipv4Network,
    interface: &str,
) -> Result<(), Problem> {
    let asked = client
        .replace_route()
        .route_table_id(table)
        .destination_cidr_block(destination.to_string())
        .network_interface_id(interface)
        .send()
        .await;
    let asked =
        asked.map_err(|error| problem("ec2:ReplaceRoute", &place(destination, table), &error));
    asked.map(drop)
}

/// Another node may have removed it at the same time.
pub async fn delete(client: &Client, table: &str, destination: Ipv4Network) -> Result<(), Problem> {
    let asked = client
        .delete_route()
        .route_table_id(table)
        .destination_cidr_block(destination.to_string())
        .send()
        .await;
    match asked {
        Err(error) if error.code() != Some("InvalidRoute.NotFound") => Err(problem(
            "ec2:DeleteRoute",
            &place(destination, table),
            &error,
        )),
        _ => Ok(()),
    }
}
