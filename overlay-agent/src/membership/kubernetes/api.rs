//! What is asked of the API server. Tests answer from memory.

use futures::stream::BoxStream;
use serde_json::Value;
use thiserror::Error;

use super::node::Node;
use crate::model::StoreError;

/// Nodes of the cluster, a part of the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub nodes: Vec<Node>,
    /// Of the whole list: changes after it are watched.
    pub version: String,
    /// Where the next part begins; `None` after the last one.
    pub next: Option<String>,
}

/// One message of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(Node),
    /// With the Node as it was in the end.
    Deleted(Node),
    /// Everything up to this version has been delivered.
    Reached(String),
}

/// Why the API server did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ApiError {
    /// That version is no longer known: list again.
    #[error("the API server no longer knows that version of the nodes: {0}")]
    Gone(String),
    #[error("{0}")]
    Failed(String),
}

impl From<ApiError> for StoreError {
    fn from(error: ApiError) -> Self {
        Self {
            reason: error.to_string(),
        }
    }
}

/// The Nodes of an API server. Every request but the watch itself has a deadline.
pub trait NodeApi: Send + Sync + 'static {
    /// The part of the list that begins at `after`, with up to `limit` Nodes; all the rest without a limit.
    fn page(
        &self,
        after: Option<&str>,
        limit: Option<u32>,
    ) -> impl Future<Output = Result<Page, ApiError>> + Send;

    /// The changes after a version. The server ends a watch every few minutes.
    fn watch(
        &self,
        version: &str,
    ) -> impl Future<Output = Result<BoxStream<'static, Result<Change, ApiError>>, ApiError>> + Send;

    /// One Node; `None` if there is none of this name.
    fn node(&self, name: &str) -> impl Future<Output = Result<Option<Node>, ApiError>> + Send;

    /// Changes the status of a Node, and the annotations with it. Returns the Node as it is then.
    fn patch(
        &self,
        name: &str,
        patch: &Value,
    ) -> impl Future<Output = Result<Node, ApiError>> + Send;
}

/// So many Nodes are asked for at a time: a few megabytes, while they are read.
const PAGE: u32 = 250;

/// All Nodes, at one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub nodes: Vec<Node>,
    pub version: String,
}

impl Listing {
    /// Reads the list page by page. A server that forgets the list meanwhile is asked for all of it at once.
    pub async fn read(api: &impl NodeApi) -> Result<Self, ApiError> {
        match Self::by_pages(api, Some(PAGE)).await {
            Err(ApiError::Gone(_)) => Self::by_pages(api, None).await,
            other => other,
        }
    }

    async fn by_pages(api: &impl NodeApi, limit: Option<u32>) -> Result<Self, ApiError> {
        let mut listing = Self::default();
        let mut after = None;
        loop {
            let page = api.page(after.as_deref(), limit).await?;
            listing.nodes.extend(page.nodes);
            listing.version = page.version;
            after = page.next;
            if after.is_none() {
                return Ok(listing);
            }
        }
    }
}
