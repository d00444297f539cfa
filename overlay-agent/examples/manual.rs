//! Writes the manual pages and the shells' completions into a directory:
//! `cargo run -p overlay-agent --example manual -- DIRECTORY`.

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

const PROGRAM: &str = "overlay-agent";

/// Commands for the administrator.
const SECTION: &str = "8";

const SYNOPSIS: &str = r"
.SH SYNOPSIS
.B overlay\-agent
.RI [ FLAG ]...
.br
.B overlay\-agent
.I COMMAND
.RI [ ARGUMENT ]...
";

const ENDING: &str = r"
.SH ENVIRONMENT
Each flag can be given as a variable instead:
.B \-\-ip\-masq
is
.BR FLANNELD_IP_MASQ .
A flag wins over its variable. Variables that are empty do not count.
.SH FILES
.TP
.I /etc/default/overlay\-agent
variables, read by the systemd unit
.TP
.I /run/flannel/subnet.env
the subnet and MTU of this node, for Docker and CNI plugins
.TP
.I /sys/fs/bpf/overlay
the pinned maps and links, which outlive the agent
.SH SEE ALSO
.BR ip (8),
.BR bpftool (8),
.BR tc (8)
";

fn main() -> Result<()> {
    let directory: PathBuf = env::args_os()
        .nth(1)
        .context("name the directory to write into")?
        .into();
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let mut definition = overlay_agent::cli::definition();
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut definition, PROGRAM, &directory)?;
    }
    pages(definition, &directory).context("cannot write the manual pages")
}

/// One page for the daemon, which lists the commands, and one for each of these.
fn pages(mut definition: Command, directory: &Path) -> io::Result<()> {
    definition.build();
    for command in definition.get_subcommands() {
        let name = format!("{PROGRAM}-{}", command.get_name());
        let command = command
            .clone()
            .name(&*name.clone().leak())
            .version(env!("CARGO_PKG_VERSION"));
        let mut text = Vec::new();
        man(command, &name).render(&mut text)?;
        write(directory, &name, &text)?;
    }
    let daemon = man(definition, PROGRAM);
    let mut text = Vec::new();
    daemon.render_title(&mut text)?;
    daemon.render_name_section(&mut text)?;
    text.write_all(SYNOPSIS.trim_start().as_bytes())?;
    daemon.render_description_section(&mut text)?;
    daemon.render_options_section(&mut text)?;
    daemon.render_subcommands_section(&mut text)?;
    text.write_all(ENDING.trim_start().as_bytes())?;
    write(directory, PROGRAM, &text)
}

fn man(command: Command, name: &str) -> Man {
    Man::new(command)
        .title(name.to_uppercase())
        .section(SECTION)
        .manual("System administration")
}

fn write(directory: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    fs::write(directory.join(format!("{name}.{SECTION}")), text)
}
