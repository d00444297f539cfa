//! The API server ends a watch after the time that the client asks for: minutes, in which this test waits.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use overlay_tests::{kubernetes::ApiServer, lab::Lab, wait::wait_for};
use serde_json::json;

use crate::{
    cluster::wait_route,
    credentials::{GHOST, create_ghost},
    with_api_server,
};

/// More than an agent asks for.
const LATEST: Duration = Duration::from_mins(6);

/// Watches of Nodes that have ended, but for those of the server itself.
fn ended(server: &ApiServer) -> Result<usize> {
    let log = fs::read_to_string(server.log())?;
    // Its own begin with other words.
    let is_ours =
        |line: &&str| line.contains(r#""HTTP" verb="GET" URI="/api/v1/nodes?&watch=true&"#);
    Ok(log.lines().filter(is_ours).count())
}

#[test]
fn a_watch_that_the_server_ends_goes_on_where_it_was() {
    let name = "a_watch_that_the_server_ends_goes_on_where_it_was";
    with_api_server(name, Lab::builder().nodes(1), |lab, server| {
        let node = lab.node(0);
        server.create_node(&node.name, &["10.5.1.0/24"], &json!({}))?;
        server.start_agent(lab, node)?;
        node.wait_ready()?;
        let before = ended(server)?;
        wait_for("the server to end the watch", LATEST, || {
            ensure!(ended(server)? > before, "it goes on");
            Ok(())
        })?;
        create_ghost(server)?;
        wait_route(node, GHOST, true)?;
        let log = fs::read_to_string(node.log_file())?;
        for word in ["listed again", "no changes from the API server"] {
            ensure!(!log.contains(word), "{log}");
        }
        Ok(())
    });
}
