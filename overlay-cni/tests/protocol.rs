//! The plugin as a runtime calls it: variables, standard input, standard output, exit code.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

fn call(variables: &[(&str, &str)], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_overlay-cni"))
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("its input");
    // It may end without reading.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn said(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

#[test]
fn it_tells_its_versions() {
    let output = call(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion":"1.1.0"}"#);
    assert!(output.status.success());
    let versions = &said(&output)["supportedVersions"];
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let known = versions.as_array().expect("a list");
        assert!(known.contains(&json!(version)), "{versions}");
    }
}

#[test]
fn an_error_is_json_of_the_callers_version_and_exit_code_1() {
    let output = call(&[("CNI_COMMAND", "ADD")], r#"{"cniVersion":"1.0.0"}"#);
    assert_eq!(output.status.code(), Some(1));
    let error = said(&output);
    assert_eq!(
        (&error["cniVersion"], &error["code"]),
        (&json!("1.0.0"), &json!(4))
    );
    assert!(error["msg"].to_string().contains("CNI_PATH"), "{error}");

    let variables = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/nonexistent")];
    assert_eq!(said(&call(&variables, "junk"))["code"], 6);
}

#[test]
fn a_person_is_told_what_it_is_for() {
    let output = call(&[], "");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("overlay-cni install"), "{text}");
}
