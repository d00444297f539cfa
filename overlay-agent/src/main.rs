//! The binary: flanneld's command line, and the operator's commands.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    overlay_agent::cli::main(std::env::args_os()).await
}
