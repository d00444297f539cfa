//! CNI plugin with the input and the results of flannel's: what the agent wrote to `subnet.env` becomes
//! the configuration of another plugin, `bridge` with `host-local` unless the network says otherwise.
//!
//! The protocol is that of the CNI specification 1.1: a verb and a container in variables, the network's
//! configuration on standard input, a result or an error as JSON on standard output.

mod config;
mod delegate;
mod error;
mod install;
mod request;
mod scratch;
mod subnet;
mod verbs;

use std::{
    env,
    io::{Read as _, Write as _, stderr, stdin, stdout},
    process::ExitCode,
};

use error::Error;
use request::Request;

fn main() -> ExitCode {
    // A runtime gives no arguments, and a verb.
    let words: Vec<_> = env::args_os().skip(1).collect();
    if !words.is_empty() || env::var_os("CNI_COMMAND").is_none() {
        return match install::run(&words) {
            Ok(()) => ExitCode::SUCCESS,
            Err(text) => {
                let _ = writeln!(stderr(), "{text}");
                ExitCode::FAILURE
            }
        };
    }
    let mut input = Vec::new();
    let read = stdin().read_to_end(&mut input);
    let answer = match read {
        Ok(_) => Request::new(|name| env::var(name).ok(), &input)
            .and_then(|request| verbs::run(&request)),
        Err(source) => Err(Error::Input { source }),
    };
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.json(&request::version(&input)), ExitCode::FAILURE),
    };
    // A runtime that does not read the answer sees the exit code.
    let _ = stdout().write_all(&text);
    code
}
