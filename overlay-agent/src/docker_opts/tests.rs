use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, symlink},
};

use super::*;
use crate::underlay::{UnderlayLink, UnderlayRoute};

const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\n\
                          FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";

fn host(destination: &str, gateway: Option<&str>) -> HostSnapshot {
    HostSnapshot {
        links: vec![UnderlayLink {
            ifindex: 7,
            name: "eth0".to_owned(),
            mtu: 1500,
            hardware: true,
            ethernet: true,
        }],
        routes: vec![UnderlayRoute {
            destination: destination.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            interfaces: vec![7],
        }],
        ..HostSnapshot::default()
    }
}

#[test]
fn only_a_route_to_exactly_this_subnet_via_a_gateway_is_in_the_way() {
    let subnet = "10.1.74.1/24".parse().unwrap();
    let found = |destination, gateway| route_via(&host(destination, gateway), subnet);
    assert_eq!(
        found("10.1.74.0/24", Some("10.0.0.9")).as_deref(),
        Some("10.1.74.0/24 via 10.0.0.9 dev eth0")
    );
    assert_eq!(found("10.1.74.0/24", None), None);
    assert_eq!(found("10.1.75.0/24", Some("10.0.0.9")), None);
    assert_eq!(found("10.1.0.0/16", Some("10.0.0.9")), None);
}

#[test]
fn the_subnet_file_overrides_the_environment() {
    let environment = [
        ("FLANNEL_MTU", "1"),
        ("DOCKER_OPT_X", "-x"),
        ("HOME", "/root"),
    ]
    .map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let variables = sourced(environment.into_iter(), SUBNET_ENV);
    assert_eq!(variables["FLANNEL_MTU"], "1472");
    assert_eq!(variables["DOCKER_OPT_X"], "-x");
}

#[tokio::test]
async fn the_output_may_be_the_subnet_file_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("subnet.env");
    fs::write(&path, SUBNET_ENV).unwrap();
    let args = Args {
        flannel_env: path.clone(),
        docker_env: path.clone(),
        individual: true,
        combined: true,
        key: "DOCKER_NETWORK_OPTIONS".to_owned(),
        ..Args::default()
    };
    write(&args).await.unwrap();
    let once = fs::read_to_string(&path).unwrap();
    assert_eq!(
        once,
        "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
         DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
         DOCKER_OPT_MTU=\"--mtu=1472\"\n\
         DOCKER_NETWORK_OPTIONS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
    );
}

#[tokio::test]
async fn a_device_and_a_symbolic_link_are_written_to_and_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let args = Args {
        flannel_env: dir.path().join("absent"),
        docker_env: "/dev/null".into(),
        ..Args::default()
    };
    write(&args).await.unwrap();
    let link = dir.path().join("link");
    symlink(dir.path().join("target"), &link).unwrap();
    write(&Args {
        docker_env: link.clone(),
        combined: true,
        ..args
    })
    .await
    .unwrap();

    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&link).unwrap(), "DOCKER_OPTS=\"\"\n");
    let kind = fs::metadata("/dev/null").unwrap().file_type();
    assert!(kind.is_char_device(), "{kind:?}");
}

#[tokio::test]
async fn a_bad_subnet_file_leaves_the_output_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    fs::write(&input, "FLANNEL_IPMASQ=yes\n").unwrap();
    fs::write(&output, "before").unwrap();
    let args = Args {
        flannel_env: input,
        docker_env: output.clone(),
        ..Args::default()
    };
    let error = write(&args).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "Invalid value of FLANNEL_IPMASQ: yes; it must be true or false"
    );
    assert_eq!(fs::read_to_string(&output).unwrap(), "before");
}
