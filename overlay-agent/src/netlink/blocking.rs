//! Single requests of callers that wait for the answer: programs are attached by bpf(2), which waits as
//! well. Each opens a socket in the network namespace of the calling thread. Within a runtime, it has to
//! be one of several threads.

use std::{future::Future, io};

use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::{
    runtime::{Builder, Handle},
    task::block_in_place,
};

use super::{
    NetlinkError,
    transport::{Request, Transport},
};

/// Carries out one change.
pub fn apply(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    wait(async {
        Transport::open()?
            .apply_one(Request::new(message, flags))
            .await
    })?
}

/// The object asked for.
pub fn query(
    operation: &'static str,
    message: RouteNetlinkMessage,
) -> io::Result<Option<RouteNetlinkMessage>> {
    let mut answers = wait(async { Transport::open()?.query(operation, vec![message]).await })?;
    answers.pop().unwrap_or(Ok(None))
}

/// All objects of a kind.
pub fn dump(
    operation: &'static str,
    message: RouteNetlinkMessage,
) -> io::Result<Vec<RouteNetlinkMessage>> {
    wait(async { Transport::open()?.dump(operation, message, Some).await })
}

fn wait<T>(work: impl Future<Output = Result<T, NetlinkError>>) -> io::Result<T> {
    let done = match Handle::try_current() {
        Ok(runtime) => block_in_place(|| runtime.block_on(work)),
        Err(_) => Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(work),
    };
    done.map_err(|error| match error {
        // Callers tell by the kernel's number what the matter is.
        NetlinkError::Open { source } | NetlinkError::Refused { source, .. } => source,
        error => io::Error::other(error),
    })
}
