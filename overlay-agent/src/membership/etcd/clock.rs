//! The servers' clock, which stands above every answer by HTTP (RFC 9110 section 6.6.1).

use std::time::{Duration, SystemTime};

use ::http::{Response, header::DATE};
use kube::client::Body;

use super::http;
use crate::config::options::EtcdOptions;

/// Answered without credentials, too.
const PATH: &str = "/version";
/// The date has no fractions.
const HALF: Duration = Duration::from_millis(500);

/// What time it is there; `None` if no server says.
pub async fn now(options: &EtcdOptions) -> Option<SystemTime> {
    http::ask(options, PATH, read).await
}

async fn read(answer: Response<Body>) -> Result<Option<SystemTime>, http::Failure> {
    let Some(date) = answer.headers().get(DATE) else {
        return Ok(None);
    };
    Ok(Some(httpdate::parse_http_date(date.to_str()?)? + HALF))
}
