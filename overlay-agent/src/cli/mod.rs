//! The command line of the binary. Without a subcommand it is flanneld's: flags only, and the daemon
//! runs. Called as `mk-docker-opts.sh`, it is that script.

pub mod bugreport;
pub mod check;
pub mod cleanup;
pub mod flows;
pub mod flush;
mod glance;
mod health;
pub mod init;
pub mod monitor;
pub mod peers;
pub mod pinned;
pub mod routes;
pub mod stats;
pub mod status;
pub mod top;
pub mod trace;
pub mod ui;

use std::{
    ffi::{OsStr, OsString},
    io::{self, BufWriter, Write, stderr, stdout},
    path::Path,
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand};

use self::pinned::Pinned;
use crate::{
    config::{
        Invocation, ParsedOptions,
        flags::{self, daemon_help},
    },
    docker_opts, logging, output, run,
    view::{Host, Snapshot},
};

const PROGRAM: &str = "overlay-agent";

/// flannel's helper, for which a link to the binary can stand in.
const DOCKER_OPTS_SCRIPT: &str = "mk-docker-opts.sh";

/// The exit code of a wrong command line, as everywhere on Linux.
const USAGE_ERROR: u8 = 2;

#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The subcommands, in the order of `--help`.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon, as without a command; takes the flags below
    #[command(disable_help_flag = true)]
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },
    /// Tell whether this node's fast path is healthy, and if not, why not
    #[command(after_help = "Exit codes: 0 healthy, 1 degraded, 2 cannot tell")]
    Status(status::Args),
    /// Look for known pitfalls on this host, and say what to do about them
    #[command(after_help = "Exit codes: 0 no error and no warning, 1 some, 2 cannot tell")]
    Check(check::Args),
    /// Tell which nodes are reached through the overlay, and why the others are not
    #[command(after_help = "Exit codes: 0 all are, 1 some are in trouble, 2 cannot tell")]
    Peers(peers::Args),
    /// Tell what would become of a packet on this node, step by step, and whether it is fast
    #[command(
        after_help = "Exit codes: 0 it passes, 1 it is stopped, or passes with trouble, 2 cannot tell"
    )]
    Trace(trace::Args),
    /// Show which subnet is behind which node, and the way there
    Routes(routes::Args),
    /// Show the flows that may take the fast path
    Flows(flows::Args),
    /// Show what happened to packets, by hook and reason
    Stats(stats::Args),
    /// Show packets as the programs judge them, while it runs
    Monitor(monitor::Args),
    /// Serve a page that shows this node at a glance
    Ui(ui::Args),
    /// Show this node at a glance in the terminal, anew each second
    Top(top::Args),
    /// Make every flow earn its fast path again
    Flush(flush::Args),
    /// Write one archive with everything that a report of a problem needs, without secrets
    Bugreport(bugreport::Args),
    /// Remove everything of the agent's from this host; stop the agent first
    #[command(after_help = "Exit codes: 0 all is gone, 1 something is left, or an agent runs")]
    Cleanup(cleanup::Args),
    /// Write a peers file for a cluster without etcd; the same file goes to every node
    Init(init::Args),
    /// Write the Docker daemon's options for this node's subnet, as mk-docker-opts.sh does
    #[command(disable_help_flag = true)]
    DockerOpts {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Print the version
    Version,
}

/// Does what the command line says; `args` begins with the program's name.
pub async fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let name = args.next().unwrap_or_default();
    let args: Vec<String> = match args.map(OsString::into_string).collect() {
        Ok(args) => args,
        Err(arg) => return usage_error(&format!("argument {} is not UTF-8", arg.display())),
    };
    if Path::new(&name).file_name() == Some(OsStr::new(DOCKER_OPTS_SCRIPT)) {
        return docker_opts::main(DOCKER_OPTS_SCRIPT, &args).await;
    }
    match args.first().map(String::as_str) {
        Some("help") if args.len() == 1 => print(&help()),
        Some(word) if !word.starts_with('-') => command(&args).await,
        _ => daemon(&args).await,
    }
}

async fn command(args: &[String]) -> ExitCode {
    let cli = match Cli::try_parse_from(std::iter::once(PROGRAM).chain(args.iter().map(|a| &**a))) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match cli.command {
        Command::Run { flags } => daemon(&flags).await,
        Command::Status(args) => {
            let snapshot = look(&args.pinned).await;
            let host = Host::read().await;
            warn(&host.missing);
            report(|out| status::run(&args, snapshot, &host, out))
        }
        Command::Check(args) => {
            let found = check::look(&args).await;
            report(|out| check::print(&found, &args, out))
        }
        Command::Trace(args) => {
            let judged = trace::look(&args).await;
            let code = report(|out| trace::print(&judged?, &args, out));
            if args.watch {
                let ended = trace::watch(&args).await;
                return report(|_| ended.map(|()| code));
            }
            code
        }
        Command::Routes(args) => {
            let snapshot = look(&args.pinned).await;
            report(|out| routes::run(&args, snapshot, out))
        }
        Command::Peers(args) => report(|out| peers::run(&args, out)),
        Command::Flows(args) => report(|out| flows::run(&args, out)),
        Command::Stats(args) => report(|out| stats::run(&args, out)),
        Command::Monitor(args) => {
            let ended = monitor::run(&args).await;
            report(|_| ended)
        }
        Command::Top(args) => finish(top::run(&args).await),
        Command::Ui(args) => finish(ui::run(&args).await),
        Command::Flush(args) => report(|out| flush::run(&args, out)),
        Command::Init(args) => report(|out| init::run(&args, out)),
        Command::Cleanup(args) => {
            let done = cleanup::run(&args).await;
            report(|out| cleanup::print(&done?, &args, out))
        }
        Command::Bugreport(args) => {
            let written = bugreport::run(&args).await;
            report(|out| bugreport::print(&written?, &args, out))
        }
        Command::DockerOpts { args } => {
            docker_opts::main(&format!("{PROGRAM} docker-opts"), &args).await
        }
        Command::Version => print(&version()),
    }
}

/// What the node has; what cannot be read of the kernel tier is left out, and said.
async fn look(pinned: &Pinned) -> Snapshot {
    let snapshot = Snapshot::read(&pinned.pins()).await;
    warn(&snapshot.kernel.missing);
    snapshot
}

fn warn(sentences: &[String]) {
    for sentence in sentences {
        let _ = writeln!(stderr(), "{sentence}");
    }
}

async fn daemon(args: &[String]) -> ExitCode {
    let ParsedOptions { options, warnings } =
        match flags::parse(args, |name| std::env::var(name).ok()) {
            Ok(Invocation::Help) => return print(&help()),
            Ok(Invocation::Version) => return print(&version()),
            Ok(Invocation::Run(parsed)) => *parsed,
            Err(error) => return usage_error(&error.to_string()),
        };
    logging::init(options.log, options.datapath.log);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    // As a task, beside those it hears from: this thread would have to be woken for each.
    let ended = tokio::spawn(run::run(options)).await;
    ended.map_err(Into::into).flatten().unwrap_or_else(|error| {
        tracing::error!("{}", output::one_line(&error));
        ExitCode::FAILURE
    })
}

/// Runs an operator command. A reader that has gone away is no error.
fn report(command: impl FnOnce(&mut dyn Write) -> anyhow::Result<ExitCode>) -> ExitCode {
    let mut out = BufWriter::new(stdout());
    let result = command(&mut out).and_then(|code| {
        out.flush()?;
        Ok(code)
    });
    let is_broken_pipe = |error: &anyhow::Error| {
        error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(stderr(), "{PROGRAM}: {}", output::one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// How a command ends that prints as it goes.
fn finish(result: anyhow::Result<()>) -> ExitCode {
    report(|_| result.map(|()| ExitCode::SUCCESS))
}

fn usage_error(message: &str) -> ExitCode {
    let _ = writeln!(
        stderr(),
        "{PROGRAM}: {message}\nTry '{PROGRAM} --help' for all flags and commands."
    );
    ExitCode::from(USAGE_ERROR)
}

/// A reader that has gone away is no error.
fn print(text: &str) -> ExitCode {
    let _ = stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn version() -> String {
    format!("{PROGRAM} {}\n", env!("CARGO_PKG_VERSION"))
}

/// The whole command line, as manual pages and completions are made of it.
pub fn definition() -> clap::Command {
    Cli::command()
        .bin_name(PROGRAM)
        .subcommand_required(false)
        .disable_version_flag(true)
        .args(flags::arguments())
}

fn help() -> String {
    let commands: Vec<(String, String)> = Cli::command()
        .get_subcommands()
        .map(|command| {
            let about = command
                .get_about()
                .map(ToString::to_string)
                .unwrap_or_default();
            (command.get_name().to_owned(), about)
        })
        .collect();
    daemon_help(&commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_subcommands_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_manual_pages_are_made_of_has_every_flag_and_is_consistent() {
        let definition = definition();
        definition.clone().debug_assert();
        let mut flags = definition.get_opts().filter_map(clap::Arg::get_long);
        assert!(flags.any(|flag| flag == "etcd-endpoints"));
    }

    #[test]
    fn run_passes_every_flag_to_the_daemon() {
        let cli = Cli::parse_from([PROGRAM, "run", "-h", "--iface=eth0", "-v", "4", "--version"]);
        let Command::Run { flags } = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(flags, ["-h", "--iface=eth0", "-v", "4", "--version"]);
    }

    #[test]
    fn help_lists_every_subcommand_and_every_flag() {
        let help = help();
        for command in Cli::command().get_subcommands() {
            assert!(
                help.contains(&format!("\n  {}", command.get_name())),
                "{help}"
            );
        }
        assert!(help.contains("--etcd-endpoints"), "{help}");
    }
}
