//! The binary: flanneld's command line, and the operator's commands.

use std::{num::NonZero, process::ExitCode, thread};

use overlay_agent::lifecycle::{memory, privileges};

/// While one thread is in a system call that does not return, another has to go on.
const FEWEST_THREADS: usize = 2;
/// There is never more to do at a time, and each takes memory.
const MOST_THREADS: usize = 4;

fn main() -> ExitCode {
    memory::share_heap();
    privileges::divide();
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(processors.clamp(FEWEST_THREADS, MOST_THREADS))
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
