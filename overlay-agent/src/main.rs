//! The binary: flanneld's command line, and the operator's commands.

use std::process::ExitCode;

use overlay_agent::lifecycle::{memory, privileges};

fn main() -> ExitCode {
    memory::share_heap();
    privileges::divide();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("overlay-agent: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(overlay_agent::cli::main(std::env::args_os()));
    // A system call that does not return must not hold up the exit.
    runtime.shutdown_background();
    code
}
