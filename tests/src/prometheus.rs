//! A Prometheus that reads agents each second.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    http,
    netns::Namespace,
    process::{Daemon, Lifetime},
};

const PORT: u16 = 9090;

/// Ends when it is dropped.
pub struct Prometheus {
    namespace: Namespace,
    server: SocketAddr,
    daemon: Daemon,
}

impl Prometheus {
    /// Runs at `address` of a namespace, with `dir` for its files, and reads `agents`. `rules`: a file of alert rules.
    pub fn start(
        namespace: &Namespace,
        address: Ipv4Addr,
        agents: &[SocketAddr],
        rules: &Path,
        dir: &Path,
    ) -> Result<Self> {
        let server = SocketAddr::new(address.into(), PORT);
        fs::create_dir_all(dir)?;
        let config = dir.join("prometheus.yml");
        let agents: Vec<_> = agents.iter().map(|agent| format!("'{agent}'")).collect();
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n\
             - job_name: overlay-agent\n  \
               static_configs: [{{targets: [{}]}}]\n",
            rules.display(),
            agents.join(", ")
        );
        fs::write(&config, text)?;
        let mut command = namespace.command("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.join("data").display()
            ))
            .arg(format!("--web.listen-address={server}"))
            .arg("--log.level=warn");
        let log = dir.join("log");
        Ok(Self {
            namespace: namespace.clone(),
            server,
            daemon: Daemon::start("prometheus", command, &log, Lifetime::Bound)?,
        })
    }

    /// A hopeless error unless it is running.
    pub fn check_running(&self) -> Result<()> {
        self.daemon.check_running()
    }

    /// What it makes of an expression.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let encoded = expression.bytes().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "%{byte:02X}");
            text
        });
        let path = format!("/api/v1/query?query={encoded}");
        let (status, body) = http::get(&self.namespace, self.server, &path)?;
        ensure!(status == 200, "{expression}: {status} {body}");
        let answer: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
        let result = answer["data"]["result"].as_array().context("no result")?;
        Ok(result.clone())
    }
}
