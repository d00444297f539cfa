//! From the variables of the subnet file to the text of Docker's env file.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{DockerOptsError, args::Args};

const PREFIX: &str = "DOCKER_OPT_";

/// `variables`: the environment, overlaid with the subnet file, as a shell that sources it has them.
pub fn render(
    args: &Args,
    mut variables: BTreeMap<String, String>,
) -> Result<String, DockerOptsError> {
    let given = |name: &str| {
        variables
            .get(name)
            .filter(|value| !value.is_empty())
            .cloned()
    };
    let bip = given("FLANNEL_SUBNET").map(|subnet| ("BIP", format!("--bip={subnet}")));
    let mtu = given("FLANNEL_MTU").map(|mtu| ("MTU", format!("--mtu={mtu}")));
    let ip_masq = match given("FLANNEL_IPMASQ").filter(|_| args.ip_masq) {
        None => None,
        // Either flannel masquerades or Docker does.
        Some(flannel) => match flannel.as_str() {
            "true" => Some(("IPMASQ", "--ip-masq=false".to_owned())),
            "false" => Some(("IPMASQ", "--ip-masq=true".to_owned())),
            _ => return Err(DockerOptsError::IpMasq(flannel)),
        },
    };
    let mut combined = given(&args.key)
        .map(|options| options + " ")
        .unwrap_or_default();
    for (name, option) in [bip, mtu, ip_masq].into_iter().flatten() {
        variables.insert(format!("{PREFIX}{name}"), option);
    }

    let mut text = String::new();
    for (name, option) in variables
        .iter()
        .filter(|(name, _)| name.starts_with(PREFIX))
    {
        if args.individual {
            let _ = writeln!(text, "{name}=\"{option}\"");
        }
        combined.push(' ');
        combined.push_str(option);
    }
    if args.combined {
        let _ = writeln!(text, "{}=\"{combined}\"", args.key);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subnet_env::dotenv::Dotenv;

    const SAMPLE: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\n\
                          FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";

    fn both() -> Args {
        Args {
            individual: true,
            combined: true,
            ..Args::default()
        }
    }

    fn text(args: &Args, file: &str) -> String {
        render(args, Dotenv::parse(file).variables).unwrap()
    }

    #[test]
    fn the_sample_of_flannel_gives_its_expected_texts() {
        assert_eq!(
            text(&both(), SAMPLE),
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
             DOCKER_OPT_MTU=\"--mtu=1472\"\n\
             DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
        );
        assert_eq!(
            text(
                &Args {
                    combined: false,
                    ..both()
                },
                SAMPLE
            ),
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
             DOCKER_OPT_MTU=\"--mtu=1472\"\n"
        );
        assert_eq!(
            text(
                &Args {
                    individual: false,
                    ..both()
                },
                SAMPLE
            ),
            "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
        );
        assert_eq!(
            text(
                &Args {
                    individual: false,
                    key: "CUSTOM_KEY".to_owned(),
                    ..both()
                },
                SAMPLE
            ),
            "CUSTOM_KEY=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
        );
        assert_eq!(
            text(
                &Args {
                    ip_masq: false,
                    ..both()
                },
                SAMPLE
            ),
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
             DOCKER_OPT_MTU=\"--mtu=1472\"\n\
             DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n"
        );
    }

    #[test]
    fn docker_does_not_masquerade_where_flannel_does() {
        let masq = SAMPLE.replace("=false", "=true");
        assert!(text(&both(), &masq).contains("DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n"));
        let error = render(&both(), Dotenv::parse("FLANNEL_IPMASQ=yes").variables).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Invalid value of FLANNEL_IPMASQ: yes; it must be true or false"
        );
    }

    #[test]
    fn other_options_of_the_environment_are_included_and_the_combined_variable_is_extended() {
        let file = format!("{SAMPLE}DOCKER_OPT_LOG=\"--log-level=warn\"\nDOCKER_OPTS=\"-D\"\n");
        assert_eq!(
            text(&both(), &file),
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
             DOCKER_OPT_LOG=\"--log-level=warn\"\n\
             DOCKER_OPT_MTU=\"--mtu=1472\"\n\
             DOCKER_OPTS=\"-D  --bip=10.1.74.1/24 --ip-masq=true --log-level=warn --mtu=1472\"\n"
        );
    }

    #[test]
    fn without_a_subnet_file_the_options_are_empty() {
        assert_eq!(text(&both(), ""), "DOCKER_OPTS=\"\"\n");
    }
}
