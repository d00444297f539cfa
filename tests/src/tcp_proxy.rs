//! A TCP proxy that misbehaves on demand: what stands between an agent and a server whose network
//! is cut, stalled or slow.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

/// What happens to connections and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Forward,
    /// Each piece of data is held back so long.
    Delay(Duration),
    /// Connections are accepted and no byte passes.
    Stall,
    /// Connections are closed.
    Cut,
}

/// A listener on 127.0.0.1 in front of a server.
pub struct Proxy {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (mode, receiver) = watch::channel(Mode::Forward);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, server, receiver.clone()));
            }
        });
        Ok(Self {
            address,
            mode,
            task,
        })
    }

    /// Takes effect on open connections too.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.set(Mode::Cut);
    }
}

async fn serve(client: TcpStream, server: SocketAddr, mut mode: watch::Receiver<Mode>) {
    if *mode.borrow() == Mode::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let (requests, answers) = (mode.clone(), mode.clone());
    tokio::select! {
        // An error means that the proxy is gone, which cuts as well.
        _ = mode.wait_for(|mode| *mode == Mode::Cut) => {}
        () = pump(client_read, server_write, requests) => {}
        () = pump(server_read, client_write, answers) => {}
    }
}

/// Copies until either side closes.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut piece = [0; 16 << 10];
    while let Ok(len @ 1..) = from.read(&mut piece).await {
        let pause = match mode.wait_for(|mode| *mode != Mode::Stall).await.as_deref() {
            Ok(Mode::Delay(pause)) => *pause,
            Ok(_) => Duration::ZERO,
            Err(_) => return,
        };
        sleep(pause).await;
        if to.write_all(&piece[..len]).await.is_err() {
            return;
        }
    }
}
