//! What each verb does.

use serde_json::json;

use crate::{
    config::{Delegate, Network},
    delegate,
    error::Error,
    pods,
    request::{Call, Request, VERSIONS},
    scratch::Scratch,
    subnet::Subnet,
};

/// Returns what goes to standard output.
pub fn run(request: &Request) -> Result<Vec<u8>, Error> {
    match request {
        Request::Version { asked } => {
            let answer = json!({ "cniVersion": asked, "supportedVersions": VERSIONS });
            Ok(answer.to_string().into_bytes())
        }
        Request::Add(call) => add(call),
        Request::Check(call) => check(call),
        Request::Del(call) => del(call),
        Request::Gc(network) => gc(network),
        Request::Status(network) => status(network),
    }
}

fn add(call: &Call) -> Result<Vec<u8>, Error> {
    let network = &call.network;
    let subnet = Subnet::read(&network.subnet_file)?;
    let mut delegate = network.delegate(&subnet)?;
    if is_own(&delegate) {
        delegate = delegate.with_interface(&call.interface);
    }
    // First: what the plugin leaves behind when it fails is removed by it.
    Scratch::new(&network.data_dir).keep(&call.container, &delegate)?;
    if is_own(&delegate) {
        return pods::add(call, &delegate, &subnet);
    }
    delegate::call(&delegate, "ADD")
}

/// Whether there is no other plugin that makes the pod.
fn is_own(delegate: &Delegate) -> bool {
    delegate.plugin == pods::NAME
}

fn check(call: &Call) -> Result<Vec<u8>, Error> {
    let scratch = Scratch::new(&call.network.data_dir);
    let Some(delegate) = scratch.find(&call.container)? else {
        return Err(Error::Config {
            reason: format!(
                "nothing is known of container {} in {}",
                call.container,
                call.network.data_dir.display()
            ),
        });
    };
    if is_own(&delegate) {
        return pods::check(call, &delegate).map(|()| Vec::new());
    }
    let delegate = delegate.with_result(call.network.prev_result.clone());
    delegate::call(&delegate, "CHECK")
}

/// A pod that is gone already is no error.
fn del(call: &Call) -> Result<Vec<u8>, Error> {
    let scratch = Scratch::new(&call.network.data_dir);
    let delegate = scratch.find(&call.container)?;
    let had_own = delegate.as_ref().is_some_and(is_own);
    match delegate {
        Some(delegate) if had_own => pods::del(call, &delegate)?,
        Some(delegate) => {
            let delegate = delegate.with_result(call.network.prev_result.clone());
            delegate::call(&delegate, "DEL")?;
        }
        None => {}
    }
    scratch.forget(&call.container)?;
    if had_own {
        pods::tidy(&scratch, &call.network.data_dir)?;
    }
    Ok(Vec::new())
}

/// The plugin removes what belongs to no pod, and then what was kept for it goes.
fn gc(network: &Network) -> Result<Vec<u8>, Error> {
    let valid = network.valid_attachments.as_deref().unwrap_or_default();
    let delegate = network.delegate(&Subnet::read(&network.subnet_file)?)?;
    if is_own(&delegate) {
        pods::pass_on("GC", network, &delegate)?;
    } else {
        delegate::call(&delegate.with_attachments(valid), "GC")?;
    }
    let scratch = Scratch::new(&network.data_dir);
    for container in scratch.containers()? {
        if valid.iter().any(|stays| stays.container == container) {
            continue;
        }
        if let Some(own) = scratch.find(&container)?.filter(is_own) {
            pods::del_stale(&container, &own)?;
        }
        scratch.forget(&container)?;
    }
    pods::tidy(&scratch, &network.data_dir)?;
    Ok(Vec::new())
}

/// Pods can be made as soon as the node has its subnet.
fn status(network: &Network) -> Result<Vec<u8>, Error> {
    let subnet = Subnet::read(&network.subnet_file);
    let subnet = subnet.map_err(|error| Error::Unavailable {
        reason: error.to_string(),
    })?;
    let delegate = network.delegate(&subnet)?;
    if is_own(&delegate) {
        pods::pass_on("STATUS", network, &delegate)?;
    } else {
        delegate::call(&delegate, "STATUS")?;
    }
    Ok(Vec::new())
}
