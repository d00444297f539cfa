//! `/healthz` and `/readyz`, worded as flannel words them, and `/metrics`.

use std::{future::Future, io, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::get,
};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::Readiness;
use crate::metrics::{self, Metrics};

/// How long a port may be taken by a daemon that just ended: a child that it was starting shares the
/// listener until it executes its program.
const PATIENCE: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_millis(20);

#[derive(Debug, Error)]
pub enum HealthError {
    #[error(
        "cannot listen on {address} for health checks: {source}; choose another --healthz-ip or \
         --healthz-port, or 0 for no health server"
    )]
    Listen { address: String, source: io::Error },
    #[error("the health server failed: {source}")]
    Serve { source: io::Error },
}

/// A bound, not yet serving, health server.
#[derive(Debug)]
pub struct HealthServer {
    listener: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
}

impl HealthServer {
    /// Binds `--healthz-ip`, which may be a host name and, when empty, is every address, as in Go;
    /// and `--healthz-port`. Port 0, flannel's word for "no server", is the caller's to check: here
    /// it takes any free port.
    pub async fn bind(
        host: &str,
        port: u16,
        readiness: Readiness,
        metrics: Metrics,
    ) -> Result<Self, HealthError> {
        let host = if host.is_empty() { "0.0.0.0" } else { host };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match TcpListener::bind((host, port)).await {
                Ok(listener) => {
                    return Ok(Self {
                        listener,
                        readiness,
                        metrics,
                    });
                }
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline =>
                {
                    sleep(RETRY).await;
                }
                Err(source) => {
                    return Err(HealthError::Listen {
                        address: format!("{host}:{port}"),
                        source,
                    });
                }
            }
        }
    }

    /// Serves until `stop` completes. Connections still open are dropped then: a health check is
    /// answered at once or not worth waiting for.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), HealthError> {
        let service = axum::serve(self.listener, router(self.readiness, self.metrics));
        tokio::select! {
            served = service => served.map_err(|source| HealthError::Serve { source }),
            () = stop => Ok(()),
        }
    }
}

fn router(readiness: Readiness, metrics: Metrics) -> Router {
    let scrape = Router::new()
        .route("/metrics", get(scrape))
        .with_state(metrics);
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(readiness)
        .merge(scrape)
}

async fn healthz() -> &'static str {
    "flanneld is running"
}

/// The first line is flannel's; what follows says what is missing.
async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let unmet = readiness.unmet();
    if unmet.is_empty() {
        return (StatusCode::OK, "flanneld is ready".into());
    }
    let mut body = String::from("flanneld is not ready yet");
    for unmet in unmet {
        body.push('\n');
        body.push_str(&unmet.to_string());
    }
    (StatusCode::SERVICE_UNAVAILABLE, body)
}

/// Reading the maps blocks, if not for long.
async fn scrape(State(metrics): State<Metrics>) -> Response {
    match spawn_blocking(move || metrics.render()).await {
        Ok(Ok(text)) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(panic) => failed(&panic),
    }
}

fn failed(error: &dyn std::fmt::Display) -> Response {
    let text = format!("cannot write the metrics: {error}");
    (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::health::Condition;

    async fn get(address: SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        let status = head.lines().next().unwrap_or_default();
        (status.to_owned(), body.to_owned())
    }

    async fn started() -> (SocketAddr, Readiness, CancellationToken) {
        let readiness = Readiness::default();
        let metrics = Metrics::default();
        metrics.register(readiness.clone());
        let server = HealthServer::bind("127.0.0.1", 0, readiness.clone(), metrics)
            .await
            .unwrap();
        let address = server.listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(server.serve(stop.clone().cancelled_owned()));
        (address, readiness, stop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_is_taken_for_a_moment_is_waited_for_and_one_that_stays_taken_is_not() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let bind =
            || HealthServer::bind("127.0.0.1", port, Readiness::default(), Metrics::default());
        let error = bind().await.unwrap_err();
        assert!(matches!(error, HealthError::Listen { .. }), "{error}");
        tokio::spawn(async move {
            sleep(PATIENCE / 2).await;
            drop(taken);
        });
        bind().await.unwrap();
    }

    #[tokio::test]
    async fn healthz_answers_as_flannel_does() {
        let (address, _, _stop) = started().await;
        let answer = get(address, "/healthz").await;
        assert_eq!(
            answer,
            ("HTTP/1.1 200 OK".into(), "flanneld is running".into())
        );
    }

    #[tokio::test]
    async fn readyz_names_what_is_missing_until_nothing_is() {
        let (address, readiness, _stop) = started().await;
        for condition in Condition::ALL {
            readiness.satisfy(condition);
        }
        readiness.fail(Condition::LeaseHeld, "waiting for etcd");
        let answer = get(address, "/readyz").await;
        assert_eq!(
            answer,
            (
                "HTTP/1.1 503 Service Unavailable".into(),
                "flanneld is not ready yet\nlease: waiting for etcd".into()
            )
        );
        readiness.satisfy(Condition::LeaseHeld);
        let answer = get(address, "/readyz").await;
        assert_eq!(
            answer,
            ("HTTP/1.1 200 OK".into(), "flanneld is ready".into())
        );
        readiness.fail(Condition::PeersInSync, "map full");
        let (status, _) = get(address, "/readyz").await;
        assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    }

    #[tokio::test]
    async fn metrics_tell_which_conditions_hold() {
        let (address, readiness, _stop) = started().await;
        for condition in Condition::ALL {
            readiness.satisfy(condition);
        }
        readiness.fail(Condition::LeaseHeld, "waiting for etcd");
        let (status, text) = get(address, "/metrics").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        for line in [
            "overlay_ready 0",
            "overlay_condition{condition=\"lease\"} 0",
            "overlay_condition{condition=\"underlay\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        readiness.satisfy(Condition::LeaseHeld);
        let (_, text) = get(address, "/metrics").await;
        assert!(text.lines().any(|line| line == "overlay_ready 1"), "{text}");
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_that_names_the_flags() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = HealthServer::bind("127.0.0.1", port, Readiness::default(), Metrics::default())
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("--healthz-port"), "{text}");
        assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
    }

    #[tokio::test]
    async fn an_address_that_is_none_is_an_error_that_names_the_flag() {
        let error = HealthServer::bind("no such host", 0, Readiness::default(), Metrics::default())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("--healthz-ip"), "{error}");
    }

    #[tokio::test]
    async fn a_host_name_and_an_empty_address_are_accepted_as_in_flannel() {
        for host in ["localhost", ""] {
            let server = HealthServer::bind(host, 0, Readiness::default(), Metrics::default())
                .await
                .unwrap();
            let port = server.listener.local_addr().unwrap().port();
            TcpStream::connect(("localhost", port)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn stopping_does_not_wait_for_an_idle_connection() {
        let readiness = Readiness::default();
        let server = HealthServer::bind("127.0.0.1", 0, readiness, Metrics::default())
            .await
            .unwrap();
        let address = server.listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(server.serve(stop.clone().cancelled_owned()));
        let _idle = TcpStream::connect(address).await.unwrap();
        stop.cancel();
        let ended = tokio::time::timeout(std::time::Duration::from_millis(500), serving).await;
        ended.unwrap().unwrap().unwrap();
    }
}
