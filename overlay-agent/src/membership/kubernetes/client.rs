//! The API server.

use std::{fmt::Write as _, time::Duration};

use futures::{StreamExt as _, stream::BoxStream};
use kube::{
    Client, Config, Error,
    config::{KubeConfigOptions, Kubeconfig},
    core::{
        Request, WatchEvent,
        params::{GetParams, ListParams, Patch, PatchParams, WatchParams},
    },
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{sync::Mutex, time::timeout};

use super::{
    annotations::Prefix,
    api::{ApiError, Change, NodeApi, Page},
    node::{Node, RawNode},
};
use crate::config::options::KubernetesOptions;

const NODES: &str = "/api/v1/nodes";
const CONNECT: Duration = Duration::from_secs(5);
const REQUEST: Duration = Duration::from_secs(15);
/// A slow server with many nodes takes its time for a part of the list.
const LIST: Duration = Duration::from_mins(1);
/// The server ends a watch after so many seconds.
const WATCH_SECONDS: u32 = 290;
const GONE: u16 = 410;
const NOT_FOUND: u16 = 404;
const UNAUTHORIZED: u16 = 401;

/// The API server as the options name it.
pub struct Server {
    options: KubernetesOptions,
    prefix: Prefix,
    /// Made when it is needed, and made anew when the server no longer takes its credentials.
    client: Mutex<Option<Client>>,
}

#[derive(Deserialize)]
struct RawList {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Option<Vec<RawNode>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    r#continue: Option<String>,
}

#[derive(Deserialize)]
struct RawPod {
    spec: Option<RawPodSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPodSpec {
    node_name: Option<String>,
}

impl Server {
    pub fn new(options: KubernetesOptions, prefix: Prefix) -> Self {
        Self {
            options,
            prefix,
            client: Mutex::new(None),
        }
    }

    /// The node that a pod runs on.
    pub async fn node_of_pod(&self, namespace: &str, pod: &str) -> Result<String, ApiError> {
        let request = Request::new(format!("/api/v1/namespaces/{namespace}/pods"));
        let request = request.get(pod, &GetParams::default());
        let pod: RawPod = self.ask(REQUEST, request).await?;
        let name = pod.spec.and_then(|spec| spec.node_name);
        name.filter(|name| !name.is_empty())
            .ok_or_else(|| ApiError::Failed("node name not present in pod spec".to_owned()))
    }

    async fn config(&self) -> Result<Config, String> {
        let url = self.options.api_url.as_deref();
        let url = url.map(|url| {
            let parsed = url.parse::<http::Uri>();
            parsed.map_err(|error| format!("--kube-api-url {url:?}: {error}"))
        });
        let url = url.transpose()?;
        let mut config = match (&self.options.kubeconfig_file, url) {
            (Some(path), url) => {
                let of_file =
                    |error: &dyn std::error::Error| format!("{}: {}", path.display(), chain(error));
                let file = Kubeconfig::read_from(path).map_err(|error| of_file(&error))?;
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(file, &options).await;
                let mut config = config.map_err(|error| of_file(&error))?;
                if let Some(url) = url {
                    config.cluster_url = url;
                }
                config
            }
            (None, Some(url)) => Config::new(url),
            (None, None) => Config::incluster().map_err(|error| {
                format!(
                    "this is no pod of a cluster, and neither --kubeconfig-file nor --kube-api-url is given: {}",
                    chain(&error)
                )
            })?,
        };
        config.connect_timeout = Some(CONNECT);
        // Whoever repeats a request waits longer each time.
        config.default_retry = false;
        Ok(config)
    }

    async fn client(&self) -> Result<Client, ApiError> {
        let mut made = self.client.lock().await;
        if let Some(client) = &*made {
            return Ok(client.clone());
        }
        let config = self.config().await.map_err(ApiError::Failed)?;
        let client = Client::try_from(config).map_err(|error| ApiError::Failed(chain(&error)))?;
        Ok(made.insert(client).clone())
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        deadline: Duration,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, ApiError> {
        let client = self.client().await?;
        let request = request.map_err(|error| ApiError::Failed(chain(&error)))?;
        match timeout(deadline, client.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failed(&error).await),
            Err(_) => Err(late(deadline)),
        }
    }

    async fn failed(&self, error: &Error) -> ApiError {
        if matches!(error, Error::Api(status) if status.code == UNAUTHORIZED) {
            // A token that was replaced is read again.
            *self.client.lock().await = None;
        }
        said(error)
    }
}

impl NodeApi for Server {
    async fn page(&self, after: Option<&str>, limit: Option<u32>) -> Result<Page, ApiError> {
        let params = ListParams {
            limit,
            continue_token: after.map(str::to_owned),
            ..ListParams::default()
        };
        let list: RawList = self.ask(LIST, Request::new(NODES).list(&params)).await?;
        let nodes = list.items.into_iter().flatten();
        Ok(Page {
            nodes: nodes.map(|raw| Node::new(raw, &self.prefix)).collect(),
            version: list.metadata.resource_version,
            next: list.metadata.r#continue.filter(|next| !next.is_empty()),
        })
    }

    async fn watch(
        &self,
        version: &str,
    ) -> Result<BoxStream<'static, Result<Change, ApiError>>, ApiError> {
        let client = self.client().await?;
        let params = WatchParams::default().timeout(WATCH_SECONDS);
        let request = Request::new(NODES).watch(&params, version);
        let request = request.map_err(|error| ApiError::Failed(chain(&error)))?;
        let events = match timeout(REQUEST, client.request_events::<RawNode>(request)).await {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => return Err(self.failed(&error).await),
            Err(_) => return Err(late(REQUEST)),
        };
        let prefix = self.prefix.clone();
        let changes = events.map(move |event| match event {
            Ok(WatchEvent::Added(raw) | WatchEvent::Modified(raw)) => {
                Ok(Change::Put(Node::new(raw, &prefix)))
            }
            Ok(WatchEvent::Deleted(raw)) => Ok(Change::Deleted(Node::new(raw, &prefix))),
            Ok(WatchEvent::Bookmark(mark)) => Ok(Change::Reached(mark.metadata.resource_version)),
            Ok(WatchEvent::Error(status)) => Err(said(&Error::Api(status))),
            Err(error) => Err(said(&error)),
        });
        Ok(changes.boxed())
    }

    async fn node(&self, name: &str) -> Result<Option<Node>, ApiError> {
        let client = self.client().await?;
        let request = Request::new(NODES).get(name, &GetParams::default());
        let request = request.map_err(|error| ApiError::Failed(chain(&error)))?;
        match timeout(REQUEST, client.request::<RawNode>(request)).await {
            Ok(Ok(raw)) => Ok(Some(Node::new(raw, &self.prefix))),
            Ok(Err(Error::Api(status))) if status.code == NOT_FOUND => Ok(None),
            Ok(Err(error)) => Err(self.failed(&error).await),
            Err(_) => Err(late(REQUEST)),
        }
    }

    async fn patch(&self, name: &str, patch: &Value) -> Result<Node, ApiError> {
        let request = Request::new(NODES).patch_subresource(
            "status",
            name,
            &PatchParams::default(),
            &Patch::Strategic(patch),
        );
        let raw = self.ask(REQUEST, request).await?;
        Ok(Node::new(raw, &self.prefix))
    }
}

fn late(deadline: Duration) -> ApiError {
    ApiError::Failed(format!("no answer from the API server within {deadline:?}"))
}

fn said(error: &Error) -> ApiError {
    match error {
        Error::Api(status) if status.code == GONE => ApiError::Gone(status.message.clone()),
        Error::Api(status) => ApiError::Failed(format!(
            "the API server says: {} ({})",
            status.message, status.code
        )),
        Error::Service(error) => ApiError::Failed(chain(&**error)),
        Error::HyperError(error) => ApiError::Failed(chain(error)),
        other => ApiError::Failed(chain(other)),
    }
}

/// An error with what caused it, where that is not said already.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let source_text = source.to_string();
        if !text.contains(&source_text) {
            // A String takes everything.
            let _ = write!(text, ": {source_text}");
        }
        next = source.source();
    }
    text
}
