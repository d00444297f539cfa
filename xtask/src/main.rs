//! Developer commands. Each subcommand is one module; this file parses and dispatches.

mod arch;
mod bench;
mod budget;
mod build_ebpf;
mod call_chain;
mod chaos;
mod cloud;
mod debug_info;
mod demo;
mod deny;
mod disk;
mod fingerprint;
mod fuzz;
mod image;
mod kernel;
mod kubernetes;
mod libtest;
mod linker;
mod lint;
mod object_check;
mod package;
mod plot;
mod prereq;
mod process;
mod ready;
mod release;
mod report;
mod rustc;
mod stats;
mod test;
mod tool;
mod toolchain;
mod verify;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of the overlay project
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the BPF object that the agent embeds
    BuildEbpf(build_ebpf::Args),
    /// Install what is missing, build, and run every check and test (as root)
    Test(test::Args),
    /// Install what is missing, build, and show a three-node cluster at work (as root)
    Demo(demo::Args),
    /// Install what is missing, build, and measure against flannel and plain routes (as root)
    Bench(bench::Args),
    /// Install what is missing, build, and damage clusters at random, one seed after the other (as root)
    Chaos(chaos::Args),
    /// Check formatting, clippy with warnings as errors, and the crates that are used
    Lint,
    /// Look for inputs that make a parser panic, with each fuzz target for some time
    Fuzz(fuzz::Args),
    /// Build the agent to be installed, without debug information, which gets a file of its own
    Release(release::Build),
    /// Make Debian and RPM packages of the release
    Package(package::Args),
    /// Make a container image of the release
    Image(release::Build),
}

fn main() -> ExitCode {
    if rustc::is_called() {
        return rustc::run();
    }
    let result = match Cli::parse().command {
        Command::BuildEbpf(args) => build_ebpf::run(&args).map(drop),
        Command::Test(args) => test::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Chaos(args) => chaos::run(&args),
        Command::Lint => lint::run(),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Release(args) => release::run(&args),
        Command::Package(args) => package::run(&args),
        Command::Image(args) => image::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn no_command_has_a_name_twice() {
        Cli::command().debug_assert();
    }
}
