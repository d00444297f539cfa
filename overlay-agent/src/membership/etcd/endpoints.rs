//! Connections to the etcd endpoints, one client each, and the choice among them.
//!
//! etcd-client's own balancer hands requests to dead endpoints as readily as to living ones and
//! hides which one failed. Here one endpoint is used until it fails, then the next. What counts as
//! a failure of the endpoint is in [`super::verdict`].

use std::{
    error::Error as _,
    future::Future,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::{Client, ConnectOptions, Error};
use tokio::time::timeout;
use tracing::warn;

use super::{
    error::EtcdError,
    options::{self, redact},
    verdict::{self, Verdict},
    wire::Failed,
};
use crate::{config::options::EtcdOptions, metrics};

/// How long etcd may take. etcd itself gives up on a proposal after 7 s, so a slow but working
/// cluster answers within `request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// One endpoint's TCP connection and TLS handshake.
    pub connect: Duration,
    /// One request to one endpoint.
    pub request: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            request: Duration::from_secs(8),
        }
    }
}

/// Interval and patience of HTTP/2 pings on a connection that carries a watch. etcd answers pings
/// more frequent than one in 5 s by closing the connection.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// The endpoints and the clients connected to them.
pub struct Endpoints {
    options: EtcdOptions,
    deadlines: Deadlines,
    slots: Vec<Slot>,
    preferred: AtomicUsize,
    pub(super) metrics: metrics::Store,
}

struct Slot {
    url: String,
    client: Mutex<Option<Client>>,
}

/// What the endpoints that failed had to say.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is true of some of the endpoints, whatever the others are"
)]
struct Failures {
    texts: Vec<String>,
    in_doubt: bool,
    login: bool,
    tls: bool,
    /// One of them did not answer at all.
    silent: bool,
}

impl Endpoints {
    pub fn new(
        options: EtcdOptions,
        deadlines: Deadlines,
        metrics: metrics::Store,
    ) -> Result<Self, EtcdError> {
        if options.endpoints.is_empty() {
            return Err(EtcdError::Options {
                reason: "--etcd-endpoints names no endpoint".to_owned(),
            });
        }
        if options::wants_tls(&options) {
            options::tls(&options)?;
        }
        let slots = options.endpoints.iter().map(|url| Slot {
            url: url.clone(),
            client: Mutex::new(None),
        });
        Ok(Self {
            slots: slots.collect(),
            options,
            deadlines,
            preferred: AtomicUsize::new(0),
            metrics,
        })
    }

    pub fn options(&self) -> &EtcdOptions {
        &self.options
    }

    /// The URLs, without secrets.
    pub fn urls(&self) -> String {
        let urls: Vec<_> = self.slots.iter().map(|slot| redact(&slot.url)).collect();
        urls.join(",")
    }

    /// Runs a request on the endpoint in use, and on each other one until one answers.
    pub async fn call<T, F, R>(&self, operation: &'static str, request: F) -> Result<T, EtcdError>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        let (_, answer) = self.call_at(operation, request).await?;
        Ok(answer)
    }

    /// As [`Endpoints::call`], and says which endpoint answered, or what is known of the failure.
    pub async fn call_at<T, F, R>(
        &self,
        operation: &'static str,
        request: F,
    ) -> Result<(usize, T), Failed>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        let started = Instant::now();
        let answer = self.answer_of(operation, request).await;
        let took = started.elapsed();
        self.metrics.requested(operation, took, answer.is_ok());
        answer
    }

    async fn answer_of<T, F, R>(
        &self,
        operation: &'static str,
        request: F,
    ) -> Result<(usize, T), Failed>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        let mut failures = Failures::default();
        let first = self.preferred.load(Ordering::Relaxed);
        for index in (first..).take(self.slots.len()) {
            let Some((index, slot)) = self.slot(index) else {
                break;
            };
            let mut logins = 0;
            let failure = loop {
                let attempt = Box::pin(async { request(self.client(slot).await?).await });
                let Ok(answer) = timeout(self.deadlines.request, attempt).await else {
                    failures.silent = true;
                    failures.in_doubt = true;
                    break format!("no answer within {:?}", self.deadlines.request);
                };
                let error = match answer {
                    Ok(answer) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Ok((index, answer));
                    }
                    Err(error) => error,
                };
                match judge(&error) {
                    Verdict::StaleLogin if logins == 0 => {
                        logins += 1;
                        slot.disconnect();
                        continue;
                    }
                    Verdict::StaleLogin | Verdict::Login => failures.login = true,
                    Verdict::Endpoint { in_doubt } => {
                        failures.silent |= !is_answer(&error);
                        failures.in_doubt |= in_doubt;
                    }
                    Verdict::Denied => {
                        let error = self.denied(operation, describe(&error));
                        return Err(failures.and_then(error));
                    }
                    Verdict::Refused => {
                        let reason = describe(&error);
                        let error = EtcdError::Rejected { operation, reason };
                        return Err(failures.and_then(error));
                    }
                }
                break describe(&error);
            };
            slot.disconnect();
            failures.tls |= is_tls_failure(&failure);
            let hint = self.hint(&slot.url, &failure);
            failures
                .texts
                .push(format!("{}: {failure}{hint}", redact(&slot.url)));
        }
        Err(failures.into_failed(operation))
    }

    /// Reports that a stream of an endpoint broke: the next request connects anew, to another
    /// endpoint if there is one.
    pub fn stream_broke(
        &self,
        endpoint: usize,
        operation: &'static str,
        error: &Error,
    ) -> EtcdError {
        let url = match self.slot(endpoint) {
            Some((_, slot)) => {
                slot.disconnect();
                redact(&slot.url)
            }
            None => String::new(),
        };
        let reason = describe(error);
        match judge(error) {
            Verdict::Refused => EtcdError::Rejected { operation, reason },
            Verdict::Denied => self.denied(operation, reason),
            Verdict::StaleLogin | Verdict::Login => EtcdError::Login { reason },
            Verdict::Endpoint { .. } => {
                let next = endpoint.wrapping_add(1);
                let _ = self.preferred.compare_exchange(
                    endpoint,
                    next,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                EtcdError::Unreachable {
                    failures: format!("{url}: {reason}"),
                }
            }
        }
    }

    fn denied(&self, operation: &'static str, reason: String) -> EtcdError {
        EtcdError::Denied {
            operation,
            prefix: options::key(&self.options, ""),
            reason,
        }
    }

    /// What a bare failure of a connection may mean. In TLS 1.3 a server that misses the client's
    /// certificate closes the connection after the client takes it for established.
    fn hint(&self, url: &str, failure: &str) -> &'static str {
        const DROPPED: [&str; 4] = [
            "connection closed",
            "handshake eof",
            "broken pipe",
            // The kernel's text has a capital letter, the library's own has none.
            "connection reset",
        ];
        let failure = failure.to_lowercase();
        let dropped = DROPPED.iter().any(|text| failure.contains(text));
        if url.starts_with("http://") && dropped {
            " (if etcd speaks TLS, the scheme must be https://)"
        } else if failure.contains("received corrupt message") {
            " (if etcd speaks no TLS, the scheme must be http://)"
        } else if dropped && self.options.client_identity.is_none() {
            " (if etcd speaks no TLS, the scheme must be http://; if it asks for a client \
             certificate, give --etcd-certfile and --etcd-keyfile)"
        } else if dropped {
            " (if etcd speaks no TLS, the scheme must be http://)"
        } else {
            ""
        }
    }

    fn slot(&self, index: usize) -> Option<(usize, &Slot)> {
        let index = index.checked_rem(self.slots.len())?;
        self.slots.get(index).map(|slot| (index, slot))
    }

    async fn client(&self, slot: &Slot) -> Result<Client, Error> {
        let connected = slot.lock().clone();
        if let Some(client) = connected {
            return Ok(client);
        }
        let client = self.connect(&slot.url).await?;
        *slot.lock() = Some(client.clone());
        Ok(client)
    }

    async fn connect(&self, url: &str) -> Result<Client, Error> {
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(self.deadlines.connect)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            // etcd closes connections that are pinged without a stream open.
            .with_keep_alive_while_idle(false)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if url.starts_with("https://") {
            let tls = options::tls(&self.options);
            let tls = tls.map_err(|error| Error::InvalidArgs(error.to_string()))?;
            connect = connect.with_tls(tls.timeout(self.deadlines.connect));
        }
        let Some(credentials) = &self.options.credentials else {
            return Client::connect([url], Some(connect)).await;
        };
        let name = &credentials.username;
        let login = connect
            .clone()
            .with_user(name, credentials.password.expose());
        match Client::connect([url], Some(login)).await {
            Err(Error::GRpcStatus(status)) if is_auth_off(status.message()) => {
                warn!(
                    user = %name,
                    "etcd has authentication switched off; going on without a login"
                );
                Client::connect([url], Some(connect)).await
            }
            result => result,
        }
    }
}

impl Failures {
    /// The failure of a request that one endpoint refused after these could not serve it.
    fn and_then(self, error: EtcdError) -> Failed {
        Failed {
            error,
            in_doubt: self.in_doubt,
        }
    }

    /// The failure of a request that no endpoint could serve.
    fn into_failed(self, operation: &'static str) -> Failed {
        let failures = self.texts.join("; ");
        let error = if self.tls {
            EtcdError::Tls { failures }
        } else if self.login {
            EtcdError::Login { reason: failures }
        } else if self.silent || failures.is_empty() {
            EtcdError::Unreachable { failures }
        } else {
            EtcdError::Rejected {
                operation,
                reason: failures,
            }
        };
        Failed {
            error,
            in_doubt: self.in_doubt,
        }
    }
}

fn judge(error: &Error) -> Verdict {
    match error {
        Error::GRpcStatus(status) if is_answer(error) => {
            verdict::of_status(i32::from(status.code()), status.message())
        }
        Error::WatchError(reason) => verdict::of_watch(reason),
        // A connection that broke may have done so after it carried the request.
        Error::GRpcStatus(_) => Verdict::Endpoint { in_doubt: true },
        // What is wrong with a URL or with files is wrong before anything is sent.
        _ => Verdict::Endpoint { in_doubt: false },
    }
}

/// Whether a server said so. tonic reports a failed connection as a status with a source; etcd's own
/// have none.
fn is_answer(error: &Error) -> bool {
    match error {
        Error::GRpcStatus(status) => status.source().is_none(),
        Error::WatchError(_) => true,
        _ => false,
    }
}

impl Slot {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disconnect(&self) {
        self.lock().take();
    }
}

/// Everything an error knows, except tonic's own text.
fn describe(error: &Error) -> String {
    let (mut text, mut cause) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        Error::TransportError(error) => (error.to_string(), error.source()),
        error => (error.to_string(), None),
    };
    while let Some(error) = cause {
        let next = error.to_string();
        if next != "transport error" && !text.contains(&next) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// rustls errors arrive as texts inside I/O errors.
fn is_tls_failure(text: &str) -> bool {
    [
        "certificate",
        "received fatal alert",
        "received corrupt message",
    ]
    .iter()
    .any(|part| text.contains(part))
}

fn is_auth_off(message: &str) -> bool {
    message.contains("authentication is not enabled")
}
