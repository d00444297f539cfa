//! The Docker daemon's options for this node's subnet: flannel's `mk-docker-opts.sh`, with its
//! options, its output and its exit codes.

pub mod args;
pub mod text;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{Write as _, stderr, stdout},
    process::ExitCode,
};

use ipnetwork::{IpNetwork, Ipv4Network};

use self::args::{Args, Invocation};
use crate::{
    subnet_env::{FileError, atomic, dotenv::Dotenv},
    underlay::{self, HostSnapshot},
};

#[derive(Debug, thiserror::Error)]
pub enum DockerOptsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("Invalid value of FLANNEL_IPMASQ: {0}; it must be true or false")]
    IpMasq(String),
    #[error(
        "Your routing table already contains the subnet: {0}; Docker's bridge would hide what is \
         behind that route: remove it, or lease another subnet"
    )]
    Routed(String),
}

/// Runs the command; `program` is the name it was called by, `args` what follows.
pub async fn main(program: &str, args: &[String]) -> ExitCode {
    let args = match args::parse(args) {
        Ok(Invocation::Write(args)) => args,
        Ok(Invocation::Help) => {
            let _ = stdout().write_all(args::usage(program).as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let message = format!("{program}: {error}\n{}", args::usage(program));
            let _ = stderr().write_all(message.as_bytes());
            return ExitCode::FAILURE;
        }
    };
    match write(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn write(args: &Args) -> Result<(), DockerOptsError> {
    let file = atomic::read(&args.flannel_env)?;
    if file.is_none() {
        complain(&format!(
            "{} does not exist: the options say nothing about the subnet",
            args.flannel_env.display()
        ));
    }
    let variables = sourced(std::env::vars_os(), file.as_deref().unwrap_or_default());
    let subnet: Option<Ipv4Network> = variables
        .get("FLANNEL_SUBNET")
        .and_then(|text| text.parse().ok());
    // The subnet file itself may be the output.
    atomic::replace_or_write(&args.docker_env, text::render(args, variables)?.as_bytes())?;
    let Some(subnet) = subnet else {
        return Ok(());
    };
    match underlay::snapshot(None).await {
        Ok(host) => {
            route_via(&host, subnet).map_or(Ok(()), |route| Err(DockerOptsError::Routed(route)))
        }
        Err(error) => {
            complain(&format!(
                "the routing table is not checked for the subnet: {error}"
            ));
            Ok(())
        }
    }
}

/// The environment with the file's variables over it, as a shell that sources the file has them.
fn sourced(
    environment: impl Iterator<Item = (OsString, OsString)>,
    file: &str,
) -> BTreeMap<String, String> {
    let mut variables: BTreeMap<String, String> = environment
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    variables.extend(Dotenv::parse(file).variables);
    variables
}

/// The route that leads the whole subnet elsewhere, in the words of `ip route`.
fn route_via(host: &HostSnapshot, subnet: Ipv4Network) -> Option<String> {
    let route = host.routes.iter().find(|route| {
        let IpNetwork::V4(destination) = route.destination else {
            return false;
        };
        destination.network() == subnet.network()
            && destination.prefix() == subnet.prefix()
            && route.gateway.is_some()
    })?;
    let gateway = route
        .gateway
        .map(|gateway| format!(" via {gateway}"))
        .unwrap_or_default();
    let device = host
        .links
        .iter()
        .find(|link| route.interfaces.first() == Some(&link.ifindex))
        .map(|link| format!(" dev {}", link.name))
        .unwrap_or_default();
    Some(format!("{}{gateway}{device}", route.destination))
}

fn complain(message: &str) {
    let _ = writeln!(stderr(), "{message}");
}

#[cfg(test)]
mod tests;
