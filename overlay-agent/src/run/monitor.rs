//! Has programs that log run instead of the agent's own while `overlay-agent monitor` listens. That process has loaded
//! them, with its own rights, and reads what they say; what ends it ends its connection, and the agent's own run again.

use std::{io, os::fd::AsFd as _, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::{UnixListener, UnixStream},
    sync::Mutex,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::settler::Settler;
use crate::{
    datapath::Lent,
    lifecycle::Supervisor,
    loan::{self, Answer},
};

/// Whoever connects says at once what it wants, and reads the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// From here on the node can be listened to.
pub fn spawn(settler: Arc<Mutex<Settler>>, supervisor: &Supervisor) {
    let mut first = Some(listener());
    supervisor.spawn("monitor", move |stop| {
        let listener = first.take().unwrap_or_else(listener);
        let settler = Arc::clone(&settler);
        async move { serve(listener?, &settler, stop).await }
    });
}

fn listener() -> io::Result<UnixListener> {
    let listener = loan::listen()?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn serve(
    listener: UnixListener,
    settler: &Mutex<Settler>,
    stop: CancellationToken,
) -> io::Result<()> {
    // After a failure of this task nobody listens any more.
    give_back(settler).await;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            () = stop.cancelled() => return Ok(()),
        };
        let Some(mut stream) = of_this_user(stream) else {
            continue;
        };
        let Ok(Ok(offered)) = timeout(PATIENCE, offered(&stream)).await else {
            continue;
        };
        let answer = match offered {
            Ok(lent) => settler.lock().await.borrow_programs(lent),
            Err(answer) => answer,
        };
        let runs = answer.refused.is_none();
        let told = tell(&mut stream, &answer).await;
        if runs {
            info!("programs that log run for `overlay-agent monitor`");
            if told.is_ok() {
                listened(&listener, &mut stream, &stop).await;
            }
            give_back(settler).await;
        }
    }
}

/// Whether the other end is of the user the agent runs as.
fn of_this_user(stream: UnixStream) -> Option<UnixStream> {
    let owner = stream.peer_cred().ok()?;
    (owner.uid() == nix::unistd::geteuid().as_raw()).then_some(stream)
}

async fn offered(stream: &UnixStream) -> io::Result<Result<Lent, Answer>> {
    stream
        .async_io(Interest::READABLE, || loan::accept(stream.as_fd()))
        .await
}

async fn tell(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    let written = timeout(PATIENCE, stream.write_all(&text)).await;
    written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Waits until nobody listens any more, or the agent is to stop. One process can.
async fn listened(listener: &UnixListener, stream: &mut UnixStream, stop: &CancellationToken) {
    let by = stream.peer_cred().ok().and_then(|owner| owner.pid());
    let mut byte = [0];
    loop {
        tokio::select! {
            read = stream.read(&mut byte) => if !matches!(read, Ok(1)) { return },
            () = stop.cancelled() => return,
            other = listener.accept() => {
                let Ok((other, _)) = other else { return };
                if let Some(mut other) = of_this_user(other) {
                    let by = by.map_or_else(String::new, |pid| format!(" (process {pid})"));
                    let reason = format!("another `overlay-agent monitor` listens already{by}");
                    // What is not read of its offer would be an error there.
                    let _ = timeout(PATIENCE, offered(&other)).await;
                    let _ = tell(&mut other, &Answer::refused(reason)).await;
                }
            }
        }
    }
}

/// The agent's own programs run again, if others did.
async fn give_back(settler: &Mutex<Settler>) {
    match settler.lock().await.own_programs() {
        None => {}
        Some(true) => info!("nobody listens any more; the agent's own programs run again"),
        Some(false) => warn!("not all of the agent's own programs run again; trying on"),
    }
}
