use std::{fs, os::unix::fs::MetadataExt as _};

use super::*;

fn ipv4() -> Ipv4Lines {
    Ipv4Lines {
        network: "10.42.0.0/16".parse().unwrap(),
        subnet: "10.42.0.0/24".parse().unwrap(),
    }
}

fn ipv6() -> Ipv6Lines {
    Ipv6Lines {
        network: "2001:cafe:42::/56".parse().unwrap(),
        subnet: "2001:cafe:42::/64".parse().unwrap(),
    }
}

fn sample() -> SubnetEnv {
    SubnetEnv {
        ipv4: Some(ipv4()),
        ipv6: None,
        mtu: 1450,
        ip_masq: false,
    }
}

#[test]
fn the_text_is_that_of_flannel() {
    assert_eq!(
        sample().to_string(),
        "FLANNEL_NETWORK=10.42.0.0/16\n\
         FLANNEL_SUBNET=10.42.0.1/24\n\
         FLANNEL_MTU=1450\n\
         FLANNEL_IPMASQ=false\n"
    );
    assert_eq!(
        SubnetEnv {
            ipv4: Some(ipv4()),
            ipv6: Some(ipv6()),
            mtu: 1450,
            ip_masq: true
        }
        .to_string(),
        "FLANNEL_NETWORK=10.42.0.0/16\n\
         FLANNEL_SUBNET=10.42.0.1/24\n\
         FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\n\
         FLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\n\
         FLANNEL_MTU=1450\n\
         FLANNEL_IPMASQ=true\n"
    );
    assert_eq!(
        SubnetEnv {
            ipv4: None,
            ipv6: Some(ipv6()),
            mtu: 1430,
            ip_masq: true
        }
        .to_string(),
        "FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\n\
         FLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\n\
         FLANNEL_MTU=1430\n\
         FLANNEL_IPMASQ=true\n"
    );
}

#[test]
fn the_file_is_readable_by_everyone_in_a_directory_that_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flannel/subnet.env");
    assert_eq!(sample().write(&path).unwrap(), Written::Changed);
    assert_eq!(fs::read_to_string(&path).unwrap(), sample().to_string());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
    let left: Vec<_> = fs::read_dir(dir.path().join("flannel")).unwrap().collect();
    assert_eq!(left.len(), 1, "no temporary file is left: {left:?}");
}

#[test]
fn a_file_with_the_same_contents_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("subnet.env");
    sample().write(&path).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    assert_eq!(sample().write(&path).unwrap(), Written::Unchanged);
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(
        SubnetEnv {
            mtu: 1400,
            ..sample()
        }
        .write(&path)
        .unwrap(),
        Written::Changed
    );
    assert!(
        fs::read_to_string(&path)
            .unwrap()
            .contains("FLANNEL_MTU=1400\n")
    );
}

#[test]
fn a_file_that_cannot_be_written_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = sample()
        .write(&file.join("subnet.env"))
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("cannot create the directory "), "{error}");
    let error = sample().write(dir.path()).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot write {}: ", dir.path().display())),
        "{error}"
    );
}

#[test]
fn what_was_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("subnet.env");
    let written = SubnetEnv {
        ipv6: Some(ipv6()),
        ..sample()
    };
    written.write(&path).unwrap();
    assert_eq!(
        Previous::read(&path).unwrap(),
        Previous {
            ipv4_network: Some(ipv4().network),
            ipv4_subnet: Some(ipv4().subnet),
            ipv6_network: Some(ipv6().network),
            ipv6_subnet: Some(ipv6().subnet),
            warnings: vec![],
        }
    );
}

#[test]
fn an_absent_file_says_nothing_and_an_unreadable_one_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        Previous::read(&dir.path().join("absent")).unwrap(),
        Previous::default()
    );
    let error = Previous::read(dir.path()).unwrap_err().to_string();
    assert!(error.starts_with("cannot read "), "{error}");
}

#[test]
fn a_hand_written_subnet_is_understood() {
    let previous = Previous::parse("# pinned\nexport FLANNEL_SUBNET=\"172.7.21.1/24\"\n");
    assert_eq!(previous.ipv4_subnet, Some("172.7.21.0/24".parse().unwrap()));
    assert_eq!(previous.warnings, Vec::<String>::new());
}

#[test]
fn a_file_that_docker_options_were_written_into_names_no_subnet() {
    let text = "DOCKER_OPT_BIP=\"--bip=172.17.46.1/24\"\nDOCKER_OPTS=\" --bip=172.17.46.1/24\"\n";
    assert_eq!(Previous::parse(text), Previous::default());
}

#[test]
fn bad_and_several_subnets_are_skipped_with_a_warning() {
    let previous = Previous::parse(
        "FLANNEL_SUBNET=nonsense,fd00::1/64,10.5.34.1/24\nFLANNEL_NETWORK=10.5.0.0/16,10.6.0.0/16\n???\n",
    );
    assert_eq!(previous.ipv4_subnet, Some("10.5.34.0/24".parse().unwrap()));
    assert_eq!(previous.ipv4_network, None);
    assert_eq!(
        previous.warnings,
        [
            "line 3 is no assignment and is skipped",
            "FLANNEL_NETWORK: there must be one subnet, not 2",
            r#"FLANNEL_SUBNET: "nonsense" is no subnet and is skipped"#,
            r#"FLANNEL_SUBNET: "fd00::1/64" is no subnet and is skipped"#,
        ]
    );
}
