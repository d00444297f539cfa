//! CNI plugin with the input and the results of flannel's: what the agent wrote to `subnet.env` becomes
//! the configuration of another plugin, `bridge` with `host-local` unless the network says otherwise. With
//! `"type": "overlay"` there is no other: it makes the pods itself.
//!
//! The protocol is that of the CNI specification 1.1: a verb and a container in variables, the network's
//! configuration on standard input, a result or an error as JSON on standard output.

mod config;
mod delegate;
mod error;
mod install;
mod pods;
mod request;
mod scratch;
mod subnet;
mod verbs;

use std::{
    env,
    io::{Read as _, Write as _, stderr, stdin, stdout},
    path::Path,
    process::ExitCode,
};

use error::Error;
use request::Request;

fn main() -> ExitCode {
    let mut words = env::args_os();
    let name = words.next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default().to_owned();
    let words: Vec<_> = words.collect();
    // A runtime gives no arguments, and a verb.
    if install::is_name(&name) {
        return done(install::by_name(&name, &words));
    }
    if !words.is_empty() || env::var_os("CNI_COMMAND").is_none() {
        return done(install::run(&words));
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

fn done(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            let _ = writeln!(stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}
