//! Pods that the plugin makes itself (`"type": "overlay"`): no bridge between a pod and the host's routing.
//!
//! A pod has one side of a pair of devices, an address of its own, and the node's gateway address as its
//! next hop. The host has that address on each pod's device, as the `ptp` plugin gives it, and a route to
//! the pod. Neither asks the other for MAC addresses: both entries are permanent.

mod filter;
mod made;
mod message;
mod pair;
mod rtnl;
mod settings;
mod side;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

use self::{
    filter::Filter,
    made::{Given, Made},
    pair::Pair,
    settings::Settings,
};
use crate::{
    config::{Delegate, Network},
    delegate,
    error::Error,
    request::Call,
    scratch::Scratch,
    subnet::Subnet,
};

/// What a network's configuration calls these pods.
pub const NAME: &str = "overlay";

/// The first version of the specification in which plugins pass `GC` and `STATUS` on.
const PASSED_ON: &str = "1.1.0";

pub fn add(call: &Call, delegate: &Delegate, subnet: &Subnet) -> Result<Vec<u8>, Error> {
    let settings = Settings::of(delegate)?;
    let pair = Pair::of(&call.container, &call.interface);
    pair.must_be_new()?;
    let addresses = delegate.addresses_of()?;
    let given = Given::parse(&delegate::call(&addresses, "ADD")?);
    let made = given.and_then(|given| {
        let made = make(call, &settings, &pair, given)?;
        Filter::new(&call.network.data_dir).ensure(subnet, &settings)?;
        Ok(made)
    });
    match made {
        Ok(made) => made.json(&settings.version),
        Err(error) => {
            // What comes of it does not matter: the runtime calls DEL as well.
            let _ = pair.remove();
            let _ = delegate::call(&addresses, "DEL");
            Err(error)
        }
    }
}

fn make(call: &Call, settings: &Settings, pair: &Pair, given: Given) -> Result<Made, Error> {
    let sandbox = sandbox(call)?;
    let file = open(sandbox)?;
    let macs = pair.create(&file, settings)?;
    enter(&file, || pair.set_up_pod(&given, &macs))??;
    pair.set_up_host(&given, &macs)?;
    pair.wait_host()?;
    enter(&file, || pair.wait_pod())??;
    Ok(Made {
        host: (pair.host.clone(), macs.host),
        pod: (pair.pod.clone(), macs.pod, sandbox.clone()),
        given,
    })
}

/// The pod is as `ADD` said.
pub fn check(call: &Call, delegate: &Delegate) -> Result<(), Error> {
    let result = call.network.prev_result.as_ref();
    let result = result.ok_or_else(|| Error::Config {
        reason: "CHECK needs `prevResult`".to_owned(),
    })?;
    let given = Given::of(result.clone())?;
    let pair = Pair::of(&call.container, &call.interface);
    enter(&open(sandbox(call)?)?, || pair.check_pod(&given))??;
    pair.check_host(&given)?;
    let addresses = delegate.addresses_of()?;
    delegate::call(&addresses.with_result(Some(result.clone())), "CHECK").map(drop)
}

/// A pod that is gone already is no error.
pub fn del(call: &Call, delegate: &Delegate) -> Result<(), Error> {
    Pair::of(&call.container, &call.interface).remove()?;
    let addresses = delegate.addresses_of()?;
    delegate::call(
        &addresses.with_result(call.network.prev_result.clone()),
        "DEL",
    )
    .map(drop)
}

/// A pod that the runtime does not know any more.
pub fn del_stale(container: &str, delegate: &Delegate) -> Result<(), Error> {
    let interface = delegate.interface();
    Pair::of(container, interface).remove()?;
    let variables = [("CNI_CONTAINERID", container), ("CNI_IFNAME", interface)];
    delegate::call_for(&delegate.addresses_of()?, "DEL", &variables).map(drop)
}

/// `GC` and `STATUS`, for the plugin that gives addresses.
pub fn pass_on(verb: &str, network: &Network, delegate: &Delegate) -> Result<(), Error> {
    Settings::of(delegate)?;
    if network.cni_version != PASSED_ON {
        return Ok(());
    }
    let valid = network.valid_attachments.as_deref().unwrap_or_default();
    let addresses = delegate.addresses_of()?.with_attachments(valid);
    delegate::call(&addresses, verb).map(drop)
}

/// The last pod takes the rules with it.
pub fn tidy(scratch: &Scratch<'_>, data_dir: &Path) -> Result<(), Error> {
    Filter::new(data_dir).remove_unless(|| Ok(!scratch.containers()?.is_empty()))
}

fn sandbox(call: &Call) -> Result<&PathBuf, Error> {
    call.sandbox.as_ref().ok_or_else(|| Error::Environment {
        reason: "the variable CNI_NETNS is missing".to_owned(),
    })
}

fn open(sandbox: &Path) -> Result<File, Error> {
    File::open(sandbox).map_err(|source| Error::Io {
        path: sandbox.to_owned(),
        source,
    })
}

/// Runs `work` in a thread that is in the network namespace.
fn enter<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let done = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(nix::errno::Errno::EIO))
    });
    done.map_err(|errno| Error::Kernel {
        what: "entering the pod's network namespace".to_owned(),
        source: io::Error::from(errno),
    })
}
