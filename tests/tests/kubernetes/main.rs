//! Clusters whose leases are the Nodes of a real kube-apiserver. They need one that was built:
//! `cargo xtask test --kubernetes` does that.

mod chart;
mod cluster;
mod credentials;
mod stock;
mod watch;
mod ways;

use anyhow::Result;
use overlay_tests::{
    kubernetes::{self, ApiServer},
    lab::{Builder, Lab, scenario},
    requirements::announce_skip,
};

/// Runs `test` on a lab with an API server, or says that there is none.
fn with_api_server(
    name: &str,
    builder: Builder,
    test: impl FnOnce(&mut Lab, &mut ApiServer) -> Result<()>,
) {
    let Some(program) = kubernetes::program() else {
        return announce_skip(
            name,
            "no kube-apiserver was built here: `cargo xtask test --kubernetes` does it",
        );
    };
    scenario(builder, |lab| {
        let mut server = ApiServer::start(lab, program)?;
        test(lab, &mut server)
    });
}
