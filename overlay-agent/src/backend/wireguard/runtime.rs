//! Keeps this node's key, and the devices' keys, ports and peers as the leases say.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
};

use futures::future::{BoxFuture, FutureExt as _, ready};
use tracing::info;

use super::{
    device::{NAME, NAME_V6},
    key::{KeyFile, PublicKey, Secret},
    lease::WireGuardData,
    options::{Mode, WireGuard},
    peers::{self, Change, Peers},
    uapi::Uapi,
};
use crate::{
    backend::{BackendError, LeaseData, Runtime, Scene},
    model::PerFamily,
};

/// The tunnels of a node.
pub struct Tunnels {
    options: WireGuard,
    /// With its public part, which takes time to compute.
    key: Option<(Secret, PublicKey)>,
    /// By device, the endpoints it was last told.
    asked: BTreeMap<&'static str, BTreeMap<PublicKey, SocketAddr>>,
}

impl Tunnels {
    pub fn new(options: WireGuard) -> Self {
        Self {
            options,
            key: None,
            asked: BTreeMap::new(),
        }
    }

    /// The names of the devices of both families.
    fn devices(&self) -> PerFamily<&'static str> {
        let is_separate = self.options.mode == Mode::Separate;
        PerFamily {
            ipv4: NAME,
            ipv6: if is_separate { NAME_V6 } else { NAME },
        }
    }

    async fn keep_device(
        &mut self,
        uapi: &mut Uapi,
        name: &'static str,
        (key, public_key): (&Secret, PublicKey),
        wanted: &Peers,
    ) -> Result<(), String> {
        let port = self.options.device_port(name);
        let read = uapi.device(name).await;
        let device = read.map_err(|error| format!("cannot read the peers of {name}: {error}"))?;
        if device.public_key != Some(public_key) {
            let set = uapi.set_key(name, key).await;
            set.map_err(|error| format!("cannot set the key of {name}: {error}"))?;
        }
        if device.port != port {
            let set = uapi.set_port(name, port).await;
            set.map_err(|error| port_problem(name, port, &error))?;
        }
        let asked = self.asked.entry(name).or_default();
        let changes = peers::diff(&self.options, wanted, asked, &device.peers);
        if changes.is_empty() {
            return Ok(());
        }
        let set = uapi.apply(name, &self.options, &changes).await;
        set.map_err(|error| format!("cannot set the peers of {name}: {error}"))?;
        let removed: BTreeSet<_> = changes.iter().filter_map(removed).collect();
        info!(
            device = name,
            peers = wanted.len(),
            set = changes.len() - removed.len(),
            removed = removed.len(),
            "WireGuard peers set"
        );
        let endpoints = wanted.iter().map(|(key, peer)| (*key, peer.endpoint));
        *asked = endpoints.collect();
        Ok(())
    }
}

impl Runtime for Tunnels {
    fn prepare(
        &mut self,
        serves: PerFamily<bool>,
    ) -> BoxFuture<'_, Result<LeaseData, BackendError>> {
        let key = match KeyFile::of_node().secret() {
            Ok(key) => key,
            Err(error) => return ready(Err(BackendError::Runtime(error.to_string()))).boxed(),
        };
        let public_key = key.public();
        info!(%public_key, "this node's WireGuard key");
        self.key = Some((key, public_key));
        let devices = self.devices();
        let data = |is_served: bool, device| {
            let port = Some(self.options.device_port(device));
            is_served.then(|| WireGuardData { public_key, port }.encode())
        };
        let said = LeaseData {
            ipv4: data(serves.ipv4, devices.ipv4),
            ipv6: data(serves.ipv6, devices.ipv6),
        };
        ready(Ok(said)).boxed()
    }

    fn keep<'a>(&'a mut self, scene: &'a Scene) -> BoxFuture<'a, Vec<String>> {
        async move {
            let Some((key, public_key)) = self.key.clone() else {
                return Vec::new();
            };
            let wanted = peers::wanted(&self.options, public_key, scene);
            let mut problems = wanted.problems;
            let mut uapi = match Uapi::open().await {
                Ok(uapi) => uapi,
                Err(error) => {
                    problems.push(format!("cannot talk to the kernel's WireGuard: {error}"));
                    return problems;
                }
            };
            for (name, peers) in &wanted.devices {
                let kept = self
                    .keep_device(&mut uapi, name, (&key, public_key), peers)
                    .await;
                problems.extend(kept.err());
            }
            problems
        }
        .boxed()
    }
}

const fn removed(change: &Change) -> Option<PublicKey> {
    match change {
        Change::Remove(key) => Some(*key),
        Change::Set { .. } => None,
    }
}

fn port_problem(device: &str, port: u16, error: &io::Error) -> String {
    let remedy = if error.raw_os_error() == Some(libc::EADDRINUSE) {
        "; another program has it (`ss -ulnp`): stop that, or set ListenPort in the network config"
    } else {
        ""
    };
    format!("cannot give {device} UDP port {port}: {error}{remedy}")
}
