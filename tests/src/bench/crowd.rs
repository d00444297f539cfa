//! A large cluster around the two nodes: leases of nodes that do not exist, pods that say nothing,
//! flows that are over.

use std::{fmt::Write as _, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData};
use etcd_client::{Client, Txn, TxnOp};
use overlay_common::{
    config::Config,
    family::V4,
    flow::{Flow, FlowKey4, FlowWords},
    maps,
    node::MODE_TUNNEL,
};

use crate::lab::{Lab, Node, store::PREFIX};

/// Nodes with a lease, the two real ones among them.
pub const NODES: u32 = 1_000;
/// Pods of each real node, the measured one among them.
pub const PODS: u32 = 250;
/// Flows in the table of each real node.
pub const FLOWS: u32 = 100_000;

/// Operations of one transaction: etcd's limit is 128.
const CHUNK: usize = 100;
/// First subnet of the invented nodes, above those that agents pick from.
const FIRST_SUBNET: u32 = u32::from_be_bytes([10, 72, 0, 0]);
const FIRST_ADDRESS: u32 = u32::from_be_bytes([172, 31, 0, 10]);

/// A network with room for so many nodes; agents take their subnets from its beginning.
pub const CONFIG: &str = r#"{"Network":"10.64.0.0/12","SubnetLen":24,
    "SubnetMin":"10.64.1.0","SubnetMax":"10.71.255.0","Backend":{"Type":"vxlan"}}"#;

/// Publishes the invented nodes' leases.
pub fn publish(lab: &Lab) -> Result<()> {
    let endpoints = lab.store().endpoints();
    lab.underlay().router().enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut client = Client::connect([endpoints], None).await?;
            let leases: Vec<_> = (0..NODES - 2).map(lease).collect();
            for chunk in leases.chunks(CHUNK) {
                let put = |(key, value): &(String, String)| {
                    TxnOp::put(key.as_bytes(), value.as_bytes(), None)
                };
                let puts: Vec<_> = chunk.iter().map(put).collect();
                client.txn(Txn::new().and_then(puts)).await?;
            }
            Ok(())
        })
    })
}

/// Key and value of an invented node's lease.
fn lease(index: u32) -> (String, String) {
    let subnet = Ipv4Addr::from(FIRST_SUBNET + (index << 8));
    let address = Ipv4Addr::from(FIRST_ADDRESS + index);
    let [.., high, low] = index.to_be_bytes();
    let value = format!(
        r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}}}"#
    );
    (format!("{PREFIX}/subnets/{subnet}-24"), value)
}

/// Adds veths behind the bridge of `node` until it has [`PODS`]. Their other ends are in the hub:
/// nothing ever talks there.
pub fn add_pods(lab: &Lab, node: &Node) -> Result<()> {
    let hub = lab.underlay().hub().name();
    let mut lines = String::new();
    for index in 1..PODS {
        let name = &node.name;
        // Writing to a String cannot fail.
        let _ = write!(
            lines,
            "link add vethx{index} type veth peer name {name}x{index} netns {hub}\n\
             link set vethx{index} master cni0 up\n"
        );
    }
    node.namespace.ip_batch(&lines)?;
    let mut ups = String::new();
    for index in 1..PODS {
        let _ = writeln!(ups, "link set {}x{index} up", node.name);
    }
    lab.underlay().hub().ip_batch(&ups)
}

/// Fills the flow table of `node` with flows of other pods, all with live permits.
pub fn fill_flows(node: &Node) -> Result<()> {
    let config = MapData::from_pin(node.map_pin(maps::CONFIG))?;
    let config = Array::<_, Config>::try_from(Map::Array(config))?.get(&0, 0)?;
    let flows = MapData::from_pin(node.map_pin(maps::FLOWS4)).context("the flow table")?;
    let mut flows = HashMap::<_, FlowKey4, Flow>::try_from(Map::LruHashMap(flows))?;
    let subnet = u32::from_be_bytes(config.subnet.octets);
    for index in 0..FLOWS {
        let words = FlowWords::<V4>::new(
            Ipv4Addr::from(subnet + 3 + index % 250).into(),
            Ipv4Addr::from(FIRST_SUBNET + index % (NODES << 8)).into(),
            u16::try_from(index % 60_000)?,
            80,
            6,
        );
        let flow = Flow {
            id: words.id(),
            egress_until: u64::MAX,
            ingress_until: u64::MAX,
            generation: config.generation,
            node: u16::try_from(1 + index % NODES)?,
            egress_mode: MODE_TUNNEL,
            ingress_mode: MODE_TUNNEL,
            ..Flow::default()
        };
        flows.insert(words.key(), flow, 0)?;
    }
    Ok(())
}
