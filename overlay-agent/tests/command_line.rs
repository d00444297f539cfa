//! The binary as a unit file or a script meets it: exit codes, and what goes to which stream.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

const AGENT: &str = env!("CARGO_BIN_EXE_overlay-agent");

fn call(program: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(program)
        .args(args)
        .env_clear()
        .output()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

fn agent(args: &[&str]) -> (Option<i32>, String, String) {
    call(Path::new(AGENT), args)
}

#[test]
fn help_goes_to_standard_output_and_succeeds() {
    for args in [
        &["--help"][..],
        &["-h"],
        &["-help"],
        &["help"],
        &["run", "--help"],
    ] {
        let (code, stdout, stderr) = agent(args);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(
            stdout.contains("\n  --etcd-endpoints URL"),
            "{args:?}: {stdout}"
        );
        assert!(stdout.contains("\n  docker-opts"), "{args:?}: {stdout}");
    }
}

#[test]
fn the_version_goes_to_standard_output_and_succeeds() {
    for args in [
        &["--version"][..],
        &["-version"],
        &["version"],
        &["--iface=eth0", "--version"],
    ] {
        let version = format!("overlay-agent {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(agent(args), (Some(0), version, String::new()), "{args:?}");
    }
}

#[test]
fn a_bad_flag_or_command_ends_with_2_and_a_hint_on_standard_error() {
    let (code, stdout, stderr) = agent(&["--etcd-endpoint=http://10.0.0.1:2379"]);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert_eq!(
        stderr,
        "overlay-agent: flag provided but not defined: -etcd-endpoint (did you mean \
         --etcd-endpoints?)\nTry 'overlay-agent --help' for all flags and commands.\n"
    );
    for args in [
        &["run", "--ip-masq=maybe"][..],
        &["--iface"],
        &["---x"],
        &["stats", "--bogus"],
    ] {
        let (code, stdout, stderr) = agent(args);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}: {stderr}");
    }
    let (code, _, stderr) = agent(&["stat"]);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("stats") && stderr.contains("status"),
        "{stderr}"
    );
}

#[test]
fn under_the_name_of_the_script_the_agent_writes_docker_options() {
    let dir = tempfile::tempdir().expect("a directory");
    let script = dir.path().join("mk-docker-opts.sh");
    symlink(AGENT, &script).expect("a link");
    let subnet_env = dir.path().join("subnet.env");
    fs::write(
        &subnet_env,
        "FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1450\n",
    )
    .expect("a file");
    let subnet_env = subnet_env.to_str().expect("UTF-8");

    let (code, stdout, stderr) = call(&script, &["-cf", subnet_env, "-d", "/dev/stdout"]);
    assert_eq!(
        (code, stdout.as_str(), stderr.as_str()),
        (
            Some(0),
            "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1450\"\n",
            ""
        )
    );
    let (code, stdout, _) = agent(&["docker-opts", "-cf", subnet_env, "-d", "/dev/stdout"]);
    assert_eq!(
        (code, stdout.as_str()),
        (Some(0), "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1450\"\n")
    );

    for args in [&["-x"][..], &["-h"], &["-k"]] {
        let (code, stdout, stderr) = call(&script, args);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{args:?}");
        assert!(
            stderr.contains("mk-docker-opts.sh [-f FLANNEL-ENV-FILE]"),
            "{args:?}: {stderr}"
        );
    }
}
