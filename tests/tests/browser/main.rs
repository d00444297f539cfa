//! The page of `overlay-agent ui` in headless Chromium, where there is one: `cargo xtask test --browser` installs it.

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    lab::{Lab, Node, scenario},
    skip, ui,
};

/// Where a picture of the page is to go, if one is wanted.
const PICTURE: &str = "OVERLAY_UI_PICTURE";
/// The page asks every two seconds; rates are known from the second answer on.
const TIME: &str = "--virtual-time-budget=9000";

/// Opens the page as root may, with a profile of its own.
fn chromium(lab: &Lab, node: &Node, arguments: &[&str]) -> Result<String> {
    let profile = lab.dir().join("chromium");
    fs::create_dir_all(&profile)?;
    let profile = format!("--user-data-dir={}", profile.display());
    let (address, port) = ui::ADDRESS;
    let url = format!("http://{}:{port}/", std::net::Ipv4Addr::from(address));
    let usual = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1100,1500",
        "--hide-scrollbars",
        TIME,
        &profile,
    ];
    let mut command = node.namespace.command("chromium");
    let output = command.args(usual).args(arguments).arg(&url).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "chromium: {errors}");
    // What the page's policy refuses, and errors of its script.
    for word in ["Content Security Policy", "Uncaught"] {
        ensure!(!errors.contains(word), "{errors}");
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The text of the element with this id, tags and all.
fn part<'a>(dom: &'a str, id: &str) -> Result<&'a str> {
    let (_, rest) = dom
        .split_once(&format!("id=\"{id}\""))
        .context("no such element")?;
    let end = ["</table>", "</section>", "</strong>", "</span>", "</svg>"]
        .into_iter()
        .filter_map(|end| rest.find(end))
        .min();
    rest.get(..end.context("no end")?).context("cut")
}

#[test]
fn the_page_shows_peers_the_fast_share_flows_drops_and_repairs() {
    if !Path::new("/usr/bin/chromium").exists() {
        skip!("there is no Chromium: `cargo xtask test --browser` installs it");
    }
    scenario(Lab::builder().nodes(2), |lab| {
        let flow = ui::eventful(lab)?;
        let node = lab.node(0);
        let server = ui::serve(lab, node)?;
        ui::wait_for_glance(node, &server, ui::is_eventful)?;
        let log = ["--enable-logging=stderr", "--dump-dom"];
        let dom = chromium(lab, node, &log)?;
        let has = |id: &str, text: &str| -> Result<()> {
            let part = part(&dom, id).with_context(|| format!("{id} in {dom}"))?;
            ensure!(part.contains(text), "{text} is not in {id}: {part}");
            Ok(())
        };
        has("health", "healthy")?;
        let peer = lab.node(1).address.to_string();
        has("peers", &peer)?;
        has("peers", "✓ healthy")?;
        has("fast-from", " %")?;
        has("hour", "class=\"curve from\"")?;
        has("flows", &node.pods()[0].address.to_string())?;
        has("packets", "pod_tunnel")?;
        has("packets", "A pod tried to send tunnel packets to a node")?;
        has("events", "repair: IPv4 routes: 1 added")?;
        if let Some(picture) = env::var_os(PICTURE) {
            let picture = Path::new(&picture).display().to_string();
            chromium(lab, node, &[&format!("--screenshot={picture}")])?;
        }
        flow.stop().map(drop)
    });
}
