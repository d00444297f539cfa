//! The test programs that cargo builds.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    process::{self, command},
    workspace::Workspace,
};

/// The tests of one target of a crate.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// The target: a file or folder of `tests`, or the library or program that unit tests are in.
    pub name: String,
    pub path: PathBuf,
    /// The crate's folder, where cargo would start it.
    pub package: PathBuf,
}

impl Program {
    /// A command that runs the program as `cargo test` would.
    pub fn command(&self) -> std::process::Command {
        let mut command = command(&self.path);
        command
            .current_dir(&self.package)
            .env("CARGO_MANIFEST_DIR", &self.package)
            .arg("--color=never");
        command
    }

    /// The names of its tests, of those that contain `filter`.
    pub fn tests(&self, filter: Option<&str>) -> Result<Vec<String>> {
        let listed = process::output(
            self.command()
                .args(["--list", "--format=terse"])
                .args(filter),
        )?;
        let names = listed
            .lines()
            .filter_map(|line| line.strip_suffix(": test"));
        Ok(names.map(str::to_owned).collect())
    }
}

/// Builds the test programs of what `arguments` name to cargo.
pub fn build(
    workspace: &Workspace,
    arguments: &[&str],
    variables: &[(String, String)],
) -> Result<Vec<Program>> {
    let all = [&["test", "--no-run"], arguments].concat();
    built_by(workspace, &all, variables)
}

/// Builds some of the lab's test programs, and the programs that tests start. In one go: the crates of a program
/// that is built without tests have other features, and are compiled again.
pub fn build_some(workspace: &Workspace, names: &[&str]) -> Result<Vec<Program>> {
    let mut arguments = vec!["build", "--workspace", "--bins"];
    arguments.extend(names.iter().flat_map(|name| ["--test", name]));
    built_by(workspace, &arguments, &[])
}

fn built_by(
    workspace: &Workspace,
    arguments: &[&str],
    variables: &[(String, String)],
) -> Result<Vec<Program>> {
    let mut command = process::cargo();
    command
        .current_dir(workspace.root())
        .envs(variables.iter().cloned())
        .args(arguments)
        .args(["--message-format", "json-render-diagnostics"]);
    println!("{}", process::display(&command));
    Ok(programs(&process::answer(&mut command)?))
}

/// Builds some of the lab's test programs, and what is started in a lab.
pub fn of_lab(workspace: &Workspace, names: &[&str]) -> Result<Vec<Program>> {
    let mut started = process::cargo();
    started.current_dir(workspace.root()).arg("build");
    process::run(started.args(["--package", "overlay-agent", "--package", "overlay-cni"]))?;
    let mut arguments = vec!["--package", "overlay-tests"];
    arguments.extend(names.iter().flat_map(|name| ["--test", name]));
    build(workspace, &arguments, &[])
}

/// Those that cargo's messages name.
fn programs(messages: &str) -> Vec<Program> {
    messages.lines().filter_map(program).collect()
}

fn program(message: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = message["executable"].as_str()?;
    // A program that tests start is built, too.
    if !message["profile"]["test"].as_bool()? {
        return None;
    }
    let manifest = Path::new(message["manifest_path"].as_str()?);
    Some(Program {
        name: message["target"]["name"].as_str()?.to_owned(),
        path: path.into(),
        package: manifest.parent()?.to_owned(),
    })
}

/// The program of a target.
pub fn find<'a>(programs: &'a [Program], name: &str) -> Result<&'a Program> {
    let found = programs.iter().find(|program| program.name == name);
    found.with_context(|| format!("no test program {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_what_cargo_built_for_tests() {
        let artifact = |name: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/p/lab/Cargo.toml","target":{{"name":"{name}"}},"profile":{{"test":{test}}},"executable":"/t/{name}"}}"#
            )
        };
        let library = r#"{"reason":"compiler-artifact","manifest_path":"/p/lab/Cargo.toml","target":{"name":"lib"},"profile":{"test":false},"executable":null}"#;
        let messages = [
            artifact("pings", true),
            artifact("demo", false),
            library.to_owned(),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let programs = programs(&messages.join("\n"));
        let pings = Program {
            name: "pings".to_owned(),
            path: "/t/pings".into(),
            package: "/p/lab".into(),
        };
        assert_eq!(programs, [pings]);
        assert!(find(&programs, "pings").is_ok());
        assert!(find(&programs, "demo").is_err());
    }
}
