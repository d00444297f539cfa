//! A small HTTP server inside a namespace, which answers as a test says: the double of a service.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{netns::Namespace, traffic::PATIENCE, wait::scaled};

/// A request. Names of headers are in lower case.
#[derive(Clone, Debug)]
pub struct Request {
    pub client: IpAddr,
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A running server. It stops when it is dropped.
#[derive(Debug)]
pub struct Double {
    stop: Arc<AtomicBool>,
}

impl Double {
    pub fn serve(
        namespace: &Namespace,
        address: SocketAddr,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = namespace.enter(|| TcpListener::bind(address));
        let listener = listener.with_context(|| format!("listen on {address}"))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, answer) = (Arc::clone(&stop), Arc::new(answer));
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, client)) => {
                        let answer = Arc::clone(&answer);
                        // A connection that breaks is the client's to report.
                        thread::spawn(move || converse(&stream, client.ip(), &*answer));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Ok(Self { stop })
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Answers one request.
fn converse(
    mut stream: &TcpStream,
    client: IpAddr,
    answer: &(impl Fn(&Request) -> Answer + ?Sized),
) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(scaled(PATIENCE)))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = words.next().zip(words.next()).context("no request")?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length");
    let length = length.map_or(Ok(0), |length| length.parse())?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let request = Request {
        client,
        method,
        path,
        headers,
        body: String::from_utf8(body)?,
    };
    let said = answer(&request);
    let headers = said.headers.iter();
    let headers: Vec<String> = headers
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    write!(
        stream,
        "HTTP/1.1 {} as asked\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{}",
        said.status,
        said.body.len(),
        said.body,
        headers = headers.concat(),
    )?;
    Ok(())
}
