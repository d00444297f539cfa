//! The text of `--help`.

use std::fmt::Write as _;

use super::table::{FLAGS, Flag, Form, Group, RETIRED};

/// `commands`: name and one-line description of each subcommand.
pub fn daemon_help(commands: &[(String, String)]) -> String {
    let mut text = String::from(
        "Node daemon of an overlay network, compatible with flanneld; forwards with eBPF.\n\n\
         Usage: overlay-agent [FLAG]...              run the daemon\n       \
         overlay-agent COMMAND [ARGUMENT]...  see overlay-agent COMMAND --help\n",
    );
    let width = commands
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    text.push_str("\nCommands:\n");
    for (name, about) in commands {
        line(&mut text, &format!("  {name:width$}  {about}"));
    }
    text.push_str(
        "\nFlags are written -flag or --flag, with '=' or a blank before the value; a boolean takes\n\
         '=' only. Each can be given as a variable instead: --ip-masq is FLANNELD_IP_MASQ.\n",
    );
    for group in Group::ALL {
        let _ = write!(text, "\n{}:\n", group.title());
        for flag in FLAGS.iter().filter(|flag| flag.group == group) {
            describe(&mut text, flag);
        }
    }
    text.push_str("  -h, --help\n        print this text and exit\n");
    text.push_str("\nAccepted for compatibility, without effect:\n");
    let names: Vec<String> = RETIRED
        .iter()
        .map(|flag| format!("--{}", flag.name))
        .collect();
    wrap(&mut text, &names.join(" "), 2);
    text
}

/// The flags as clap has them, for texts that are made by its generators. What reads a command line
/// is [`super::parse`]: clap knows nothing of Go's syntax.
pub fn arguments() -> Vec<clap::Arg> {
    FLAGS.iter().map(argument).collect()
}

fn argument(flag: &Flag) -> clap::Arg {
    let argument = clap::Arg::new(flag.name)
        .long(flag.name)
        .help(flag.help)
        .help_heading(flag.group.title());
    match flag.form {
        Form::Switch => argument.action(clap::ArgAction::SetTrue),
        Form::Value(name) => {
            let argument = argument.value_name(name).action(clap::ArgAction::Set);
            match flag.default {
                "" => argument,
                default => argument.default_value(default),
            }
        }
    }
}

fn describe(text: &mut String, flag: &Flag) {
    let value = match flag.form {
        Form::Switch => String::new(),
        Form::Value(name) => format!(" {name}"),
    };
    line(text, &format!("  --{}{value}", flag.name));
    let default = match flag.default {
        "" => String::new(),
        default => format!(" (default {default})"),
    };
    wrap(text, &format!("{}{default}", flag.help), 8);
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// Writes words in lines of at most 96 columns.
fn wrap(text: &mut String, words: &str, indent: usize) {
    const WIDTH: usize = 96;
    let mut column = 0;
    for word in words.split(' ') {
        if column > 0 && column + 1 + word.len() > WIDTH {
            text.push('\n');
            column = 0;
        }
        if column == 0 {
            let _ = write!(text, "{:indent$}", "");
            column = indent;
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += word.len();
    }
    text.push('\n');
}

impl Group {
    const ALL: [Self; 7] = [
        Self::LeaseStore,
        Self::Interface,
        Self::Subnet,
        Self::Filter,
        Self::Datapath,
        Self::Kubernetes,
        Self::General,
    ];

    const fn title(self) -> &'static str {
        match self {
            Self::LeaseStore => "Lease store",
            Self::Interface => "Underlay interface and advertised address",
            Self::Subnet => "Subnet",
            Self::Filter => "Packet filter and routes",
            Self::Datapath => "Datapath",
            Self::Kubernetes => "Kubernetes (read for compatibility)",
            Self::General => "General",
        }
    }
}
