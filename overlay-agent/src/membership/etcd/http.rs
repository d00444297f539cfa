//! What etcd's servers tell by plain HTTP, at the ports and with the credentials of API v3.

use std::{error::Error, future::Future, path::Path, time::Duration};

use ::http::{Request, Response, header::AUTHORIZATION};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::future::join_all;
use kube::{Client, Config, client::Body};
use tokio::time::timeout;
use tracing::debug;

use super::options::redact;
use crate::config::options::EtcdOptions;

/// What a server gets to answer in. All are asked at once.
const PATIENCE: Duration = Duration::from_secs(2);

pub type Failure = Box<dyn Error + Send + Sync>;

/// What the first server with an answer says; `read` makes of a response what is wanted of it.
pub async fn ask<T, F>(
    options: &EtcdOptions,
    path: &str,
    read: impl Fn(Response<Body>) -> F + Copy,
) -> Option<T>
where
    F: Future<Output = Result<Option<T>, Failure>>,
{
    let asked = options.endpoints.iter().map(|url| async move {
        let answer = timeout(PATIENCE, async {
            read(get(options, url, path).await?).await
        })
        .await;
        answer
            .unwrap_or_else(|late| Err(late.into()))
            .unwrap_or_else(|error| {
                debug!(url = redact(url), path, %error, "no answer by HTTP");
                None
            })
    });
    join_all(asked).await.into_iter().flatten().next()
}

async fn get(options: &EtcdOptions, url: &str, path: &str) -> Result<Response<Body>, Failure> {
    let with_scheme = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let mut config = Config::new(with_scheme.parse()?);
    config.default_retry = false;
    if let Some(path) = &options.ca_file {
        config.root_cert = Some(Vec::new());
        config.root_cert_file = Some(path.clone());
    }
    if let Some(files) = &options.client_identity {
        let text = |path: &Path| path.to_str().map(str::to_owned);
        config.auth_info.client_certificate = text(&files.cert_file);
        config.auth_info.client_key = text(&files.key_file);
    }
    let mut request = Request::get(path);
    if let Some(credentials) = &options.credentials {
        let (name, password) = (&credentials.username, credentials.password.expose());
        let login = STANDARD.encode(format!("{name}:{password}"));
        request = request.header(AUTHORIZATION, format!("Basic {login}"));
    }
    let client = Client::try_from(config)?;
    Ok(client.send(request.body(Body::empty())?).await?)
}
