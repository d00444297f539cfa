//! One HTTP GET, for health endpoints.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result};

use crate::{netns::Namespace, traffic::PATIENCE, wait::scaled};

/// Status code and body of `GET path`, asked from within a namespace.
pub fn get(namespace: &Namespace, server: SocketAddr, path: &str) -> Result<(u16, String)> {
    namespace.enter(|| {
        let mut stream = TcpStream::connect_timeout(&server, scaled(PATIENCE))?;
        stream.set_read_timeout(Some(scaled(PATIENCE)))?;
        write!(
            stream,
            "GET {path} HTTP/1.0\r\nHost: {server}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    })
}
