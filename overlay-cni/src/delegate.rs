//! Running another plugin (CNI specification, "Delegation").

use std::{
    env,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{config::Delegate, error::Error};

/// Runs it with this process's variables, and `verb` as the command; returns its result.
pub fn call(delegate: &Delegate, verb: &str) -> Result<Vec<u8>, Error> {
    call_for(delegate, verb, &[])
}

/// The same with other values of some variables.
pub fn call_for(
    delegate: &Delegate,
    verb: &str,
    variables: &[(&str, &str)],
) -> Result<Vec<u8>, Error> {
    let name = &delegate.plugin;
    let failed = |reason: String| Error::Delegate {
        name: name.clone(),
        code: None,
        reason,
    };
    let path = env::var("CNI_PATH").unwrap_or_default();
    let program = find(name, &path).ok_or_else(|| Error::NoPlugin {
        name: name.clone(),
        path,
    })?;
    let mut child = Command::new(program)
        .env("CNI_COMMAND", verb)
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut input) = child.stdin.take() {
        // A plugin that ends without reading says why.
        let _ = input.write_all(&delegate.json());
    }
    let output = child
        .wait_with_output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let text = |key: &str| said.get(key).and_then(Value::as_str).unwrap_or_default();
    let reason = match (text("msg"), text("details")) {
        ("", _) => format!("it ended with {} and said nothing", output.status),
        (message, "") => message.to_owned(),
        (message, details) => format!("{message}: {details}"),
    };
    Err(Error::Delegate {
        name: name.clone(),
        code: said.get("code").and_then(Value::as_u64),
        reason,
    })
}

/// The first program of that name in a list of directories.
fn find(name: &str, path: &str) -> Option<PathBuf> {
    path.split(':')
        .filter(|dir| !dir.is_empty())
        .map(|dir| Path::new(dir).join(name))
        .find(|path| {
            let is_program =
                |data: std::fs::Metadata| data.is_file() && data.permissions().mode() & 0o111 != 0;
            path.metadata().is_ok_and(is_program)
        })
}
