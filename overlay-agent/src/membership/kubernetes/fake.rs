//! An API server in memory: Nodes with versions, a history that can be cut, and a plug.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use futures::{StreamExt as _, stream, stream::BoxStream};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    annotations::Prefix,
    api::{ApiError, Change, NodeApi, Page},
    node::Node,
};

pub const PREFIX: &str = "flannel.alpha.coreos.com";

pub struct Fake {
    cluster: Mutex<Cluster>,
    /// Changes with each version, and with the plug.
    wake: watch::Sender<u64>,
}

#[derive(Default)]
pub struct Cluster {
    version: u64,
    nodes: BTreeMap<String, Value>,
    /// What happened, with its version.
    history: Vec<(u64, Change)>,
    oldest: u64,
    unplugged: bool,
    /// What was written, in order.
    pub patches: Vec<Value>,
    pub pages: usize,
}

impl Fake {
    pub fn new() -> Self {
        Self {
            cluster: Mutex::default(),
            wake: watch::Sender::new(0),
        }
    }

    pub fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    /// Creates a Node, or replaces all of it.
    pub fn put(&self, name: &str, uid: &str, cidrs: &[&str], annotations: &[(&str, &str)]) {
        let annotations = annotations.iter();
        let annotations: BTreeMap<_, _> = annotations
            .map(|(name, text)| (format!("{PREFIX}/{name}"), *text))
            .collect();
        let node = json!({
            "metadata": { "name": name, "uid": uid, "annotations": annotations },
            "spec": { "podCIDR": cidrs.first(), "podCIDRs": cidrs },
        });
        self.write(name, node);
    }

    /// A node with flannel's annotations.
    pub fn flannel(&self, name: &str, cidr: &str, ip: &str) {
        let annotations = [
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("backend-data", r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}"#),
            ("public-ip", ip),
        ];
        self.put(name, name, &[cidr], &annotations);
    }

    /// Takes an annotation away.
    pub fn strip(&self, name: &str, annotation: &str) {
        let mut node = self.cluster().nodes[name].clone();
        let annotations = node["metadata"]["annotations"].as_object_mut().unwrap();
        annotations
            .remove(&format!("{PREFIX}/{annotation}"))
            .unwrap();
        self.write(name, node);
    }

    pub fn delete(&self, name: &str) {
        let mut cluster = self.cluster();
        cluster.version += 1;
        let version = cluster.version;
        let mut node = cluster.nodes.remove(name).unwrap();
        node["metadata"]["resourceVersion"] = version.to_string().into();
        cluster
            .history
            .push((version, Change::Deleted(read(&node))));
        self.wake.send_modify(|wake| *wake += 1);
    }

    /// Changes things that no watch will hear of: it has to list again.
    pub fn forget_history(&self) {
        let mut cluster = self.cluster();
        cluster.version += 1;
        cluster.oldest = cluster.version;
        cluster.history.clear();
    }

    pub fn plug(&self, is_in: bool) {
        self.cluster().unplugged = !is_in;
        self.wake.send_modify(|wake| *wake += 1);
    }

    fn write(&self, name: &str, mut node: Value) {
        let mut cluster = self.cluster();
        cluster.version += 1;
        let version = cluster.version;
        node["metadata"]["resourceVersion"] = version.to_string().into();
        cluster.history.push((version, Change::Put(read(&node))));
        cluster.nodes.insert(name.to_owned(), node);
        self.wake.send_modify(|wake| *wake += 1);
    }

    fn asked(&self) -> Result<MutexGuard<'_, Cluster>, ApiError> {
        let cluster = self.cluster();
        if cluster.unplugged {
            return Err(ApiError::Failed("connection refused".to_owned()));
        }
        Ok(cluster)
    }
}

fn read(node: &Value) -> Node {
    let raw = serde_json::from_value(node.clone()).unwrap();
    Node::new(raw, &Prefix::new(PREFIX).unwrap())
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        merge(&mut into[key], value);
    }
}

impl NodeApi for Fake {
    async fn page(&self, after: Option<&str>, limit: Option<u32>) -> Result<Page, ApiError> {
        let mut cluster = self.asked()?;
        cluster.pages += 1;
        let rest = cluster.nodes.iter();
        let mut rest = rest.filter(|(name, _)| after.is_none_or(|after| name.as_str() > after));
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        let nodes: Vec<Node> = rest
            .by_ref()
            .take(limit)
            .map(|(_, node)| read(node))
            .collect();
        let is_more = rest.next().is_some();
        Ok(Page {
            next: nodes
                .last()
                .filter(|_| is_more)
                .map(|node| node.name.clone()),
            version: cluster.version.to_string(),
            nodes,
        })
    }

    async fn watch(
        &self,
        version: &str,
    ) -> Result<BoxStream<'static, Result<Change, ApiError>>, ApiError> {
        let cluster = self.asked()?;
        let version: u64 = version.parse().unwrap();
        if version < cluster.oldest {
            let gone = Err(ApiError::Gone("too old resource version".to_owned()));
            return Ok(stream::iter([gone]).boxed());
        }
        // What happens before the stream is asked again is found in the history then.
        let events: Vec<_> = cluster
            .history
            .iter()
            .filter(|(number, _)| *number > version)
            .map(|(_, change)| Ok(change.clone()))
            .collect();
        let mut wake = self.wake.subscribe();
        let silent = stream::once(async move {
            // The stream ends with whatever happens next, as a watch may at any time.
            wake.changed().await
        });
        Ok(stream::iter(events)
            .chain(silent.filter_map(|_| async { None }))
            .boxed())
    }

    async fn node(&self, name: &str) -> Result<Option<Node>, ApiError> {
        Ok(self.asked()?.nodes.get(name).map(read))
    }

    async fn patch(&self, name: &str, patch: &Value) -> Result<Node, ApiError> {
        let mut node = {
            let mut cluster = self.asked()?;
            cluster.patches.push(patch.clone());
            let node = cluster.nodes.get(name).cloned();
            node.ok_or_else(|| ApiError::Failed("not found".to_owned()))?
        };
        merge(&mut node, patch);
        self.write(name, node.clone());
        Ok(read(&self.cluster().nodes[name]))
    }
}
