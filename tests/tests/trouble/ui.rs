//! `overlay-agent ui`: what the page is made of is there, with an agent and without one.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    http,
    lab::{Lab, scenario},
    ui,
};

#[test]
fn the_page_has_peers_flows_drops_and_repairs_and_what_is_left_when_the_agent_is_gone() {
    scenario(Lab::builder().nodes(2), |lab| {
        let flow = ui::eventful(lab)?;
        let node = lab.node(0);
        let server = ui::serve(lab, node)?;
        let glance = ui::wait_for_glance(node, &server, ui::is_eventful)?;
        ensure!(glance["health"] == "healthy", "{glance:#}");
        let pod = node.pods()[0].address.to_string();
        let busiest = &glance["flows"]["flows"][0];
        ensure!(busiest["local"] == *pod, "{busiest:#} is not of {pod}");

        let (status, page) = http::get(&node.namespace, ui::ADDRESS.into(), "/")?;
        ensure!(
            status == 200 && page.starts_with("<!DOCTYPE html>"),
            "{page}"
        );
        ensure!(refuses_a_name(lab)?, "a page of another site could read it");

        node.kill_agent()?;
        ui::wait_for_glance(node, &server, |glance| {
            ensure!(glance["health"] == "degraded", "still healthy");
            ensure!(glance["history"].is_null(), "somebody remembers");
            ensure!(glance["peers"]["health"] == "unknown", "somebody asks");
            let flows = glance["flows"]["flows"].as_array().context("flows")?;
            ensure!(!flows.is_empty(), "the flow goes on");
            Ok(())
        })?;
        flow.stop().map(drop)
    });
}

/// Whether a request by a name that leads here is refused.
fn refuses_a_name(lab: &Lab) -> Result<bool> {
    lab.node(0).enter(|| {
        let mut stream = TcpStream::connect(SocketAddr::from(ui::ADDRESS))?;
        let request =
            "GET /glance.json HTTP/1.1\r\nHost: rebound.example\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 421"))
    })
}
