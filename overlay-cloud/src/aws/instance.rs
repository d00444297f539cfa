//! Which instance and which of its interfaces this node is.

use std::net::Ipv4Addr;

use aws_config::imds;
use aws_sdk_ec2::{
    Client,
    error::DisplayErrorContext,
    types::{AttributeBooleanValue, Instance, InstanceNetworkInterface, Reservation},
};

use super::problem::problem;
use crate::exchange::Problem;

/// An elastic network interface.
pub struct Interface {
    pub id: String,
    /// The subnet of the VPC, and the VPC.
    pub subnet: String,
    pub vpc: String,
    /// Packets whose source or destination is not its own address are dropped.
    pub checks_addresses: bool,
}

/// The instance's own name, asked of the metadata service by a session token (IMDSv2).
pub async fn id(metadata: &imds::Client) -> Result<String, Problem> {
    let asked = metadata.get("/latest/meta-data/instance-id").await;
    asked.map(String::from).map_err(|error| Problem {
        action: "GET meta-data/instance-id".to_owned(),
        object: "this instance".to_owned(),
        reason: format!(
            "the instance metadata service (IMDSv2) does not answer: {}; from a container it needs a hop limit of 2",
            DisplayErrorContext(&error)
        ),
        permission: None,
    })
}

/// The interface of the instance that has the address.
pub async fn interface(
    client: &Client,
    instance: &str,
    address: Ipv4Addr,
) -> Result<Interface, Problem> {
    const ACTION: &str = "ec2:DescribeInstances";
    let asked = client
        .describe_instances()
        .instance_ids(instance)
        .send()
        .await;
    let found = asked.map_err(|error| problem(ACTION, instance, &error))?;
    let instances = found.reservations().iter().flat_map(Reservation::instances);
    let mut interfaces = instances.flat_map(Instance::network_interfaces);
    let interface = interfaces.find(|interface| has(interface, address));
    let known = interface.and_then(|interface| {
        Some(Interface {
            id: interface.network_interface_id()?.to_owned(),
            subnet: interface.subnet_id()?.to_owned(),
            vpc: interface.vpc_id()?.to_owned(),
            checks_addresses: interface.source_dest_check().unwrap_or(true),
        })
    });
    known.ok_or_else(|| Problem {
        action: ACTION.to_owned(),
        object: instance.to_owned(),
        reason: format!(
            "no interface of the instance has the node's address {address}: see --iface"
        ),
        permission: None,
    })
}

fn has(interface: &InstanceNetworkInterface, address: Ipv4Addr) -> bool {
    let text = address.to_string();
    let mut addresses = interface.private_ip_addresses().iter();
    addresses.any(|address| address.private_ip_address() == Some(text.as_str()))
        || interface.private_ip_address() == Some(text.as_str())
}

/// Has the interface take packets of pods.
pub async fn stop_checking(client: &Client, interface: &str) -> Result<(), Problem> {
    let off = AttributeBooleanValue::builder().value(false).build();
    let asked = client
        .modify_network_interface_attribute()
        .network_interface_id(interface)
        .source_dest_check(off)
        .send()
        .await;
    let asked =
        asked.map_err(|error| problem("ec2:ModifyNetworkInterfaceAttribute", interface, &error));
    asked.map(drop)
}
