//! `overlay-agent ui`: a page that shows this node at a glance, in a browser.
//!
//! Whoever reaches the address sees the node's peers and flows, so it is one of the host itself unless another
//! is asked for; and the page is given only to who asks for it by an address, so that no page of another site can
//! make its name lead here.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
    routing::get,
};
use tokio::{net::TcpListener, sync::Mutex, time::Instant};

use super::glance::Glancer;
use crate::datapath::{DEFAULT_PIN_DIR, PinDir};

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8474);
const PAGE: &str = include_str!("ui.html");
/// Stands in the page where the nonce of its style and script is to be.
const NONCE: &str = "{nonce}";
/// However many pages are open, the node is looked at this often at the most.
const FRESH: Duration = Duration::from_secs(1);
/// For every answer.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Directory on a BPF file system where the agent pins its maps and links
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Where to serve the page; whoever reaches that address can read it
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = LISTEN)]
    pub listen: SocketAddr,
}

/// What all requests share.
struct Desk {
    glancer: Glancer,
    /// The last answer, and when it was made.
    last: Option<(Instant, String)>,
}

type Shared = Arc<Mutex<Desk>>;

/// Serves the page until the process is ended.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener
        .with_context(|| format!("cannot listen on {}; choose another --listen", args.listen))?;
    let address = listener.local_addr()?;
    let mut out = std::io::stdout();
    writeln!(out, "http://{address}/ shows this node, until Ctrl-C")?;
    if !address.ip().is_loopback() {
        writeln!(out, "Whoever reaches {address} sees its peers and flows.")?;
    }
    axum::serve(listener, router(PinDir::new(&args.pin_dir))).await?;
    Ok(())
}

fn router(pins: PinDir) -> Router {
    let desk = Desk {
        glancer: Glancer::new(pins),
        last: None,
    };
    Router::new()
        .route("/", get(page))
        .route("/glance.json", get(glance))
        .with_state(Arc::new(Mutex::new(desk)))
        .layer(from_fn(guard))
}

/// Refuses requests that name this host in another way than by an address, and has browsers be careful with
/// the others.
async fn guard(request: Request, next: Next) -> Response {
    if !names_an_address(request.headers()) {
        let text = "This page is served to who asks for it by an IP address, or as localhost.\n";
        return (StatusCode::MISDIRECTED_REQUEST, text).into_response();
    }
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        let value = header::HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

fn names_an_address(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let Ok(host) = host.to_str() else {
        return false;
    };
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let inside = { without_port.strip_prefix('[') }.and_then(|rest| rest.strip_suffix(']'));
    match inside {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            without_port.eq_ignore_ascii_case("localhost")
                || without_port.parse::<Ipv4Addr>().is_ok()
        }
    }
}

async fn page() -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy),
    ];
    (headers, PAGE.replace(NONCE, &nonce)).into_response()
}

async fn glance(State(desk): State<Shared>) -> Response {
    // Those who come meanwhile get the same answer.
    let mut desk = desk.lock().await;
    let text = match &desk.last {
        Some((at, text)) if at.elapsed() < FRESH => text.clone(),
        _ => {
            let glance = desk.glancer.look().await;
            match serde_json::to_string(&glance) {
                Ok(text) => {
                    desk.last = Some((Instant::now(), text.clone()));
                    text
                }
                Err(error) => {
                    let text = format!("cannot write the JSON: {error}");
                    return (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
                }
            }
        }
    };
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    /// The answer to a request for `path` with these lines, headers first.
    async fn ask(path: &str, lines: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pins = PinDir::new(Path::new("/nonexistent"));
        let serving = tokio::spawn(async move { axum::serve(listener, router(pins)).await });
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serving.abort();
        answer
    }

    #[tokio::test]
    async fn the_page_lets_nothing_in_but_its_own_script_which_is_new_each_time() {
        let (one, other) = (
            ask("/", "Host: localhost\r\n").await,
            ask("/", "Host: localhost\r\n").await,
        );
        let nonce = |answer: &str| {
            let (_, rest) = answer.split_once("script-src 'nonce-").unwrap();
            let (nonce, _) = rest.split_once('\'').unwrap();
            assert!(
                answer.contains(&format!("<script nonce=\"{nonce}\">")),
                "{answer}"
            );
            assert!(
                answer.contains(&format!("<style nonce=\"{nonce}\">")),
                "{answer}"
            );
            nonce.to_owned()
        };
        assert_ne!(nonce(&one), nonce(&other));
        assert!(one.starts_with("HTTP/1.1 200"), "{one}");
        assert!(one.contains("default-src 'none'"), "{one}");
        assert!(one.contains("x-content-type-options: nosniff"), "{one}");
    }

    #[test]
    fn the_page_has_no_outside_resources_and_writes_text_only() {
        for word in [
            "http:",
            "https:",
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
        ] {
            assert!(
                !PAGE
                    .replace("http://www.w3.org/2000/svg", "")
                    .contains(word),
                "{word}"
            );
        }
    }

    #[tokio::test]
    async fn names_that_others_may_have_lead_here_are_refused() {
        for host in [
            "evil.example",
            "evil.example:8474",
            "127.0.0.1.evil.example",
            "[::1",
            "",
        ] {
            let answer = ask("/glance.json", &format!("Host: {host}\r\n")).await;
            assert!(!answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
        }
        let twice = "Host: localhost\r\nHost: evil.example\r\n";
        let answer = ask("/", twice).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
        for host in ["127.0.0.1:8474", "LocalHost", "[::1]:8474", "10.0.0.7"] {
            let answer = ask("/", &format!("Host: {host}\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_host_without_an_overlay_says_so() {
        let answer = ask("/glance.json", "Host: localhost\r\n").await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("application/json"), "{head}");
        let glance: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(glance["health"], "unknown");
        assert_eq!(glance["packets"], serde_json::json!([]));
        assert!(glance["flows"]["reason"].is_string(), "{glance}");
    }
}
