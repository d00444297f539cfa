//! The daemon's command line: every flag of flannel, in Go's syntax, each also as a `FLANNELD_*`
//! variable, and our own. Flags win over variables, variables over defaults.

mod draft;
mod help;
mod table;
mod value;

pub use help::{arguments, daemon_help};

use strsim::damerau_levenshtein;

use self::{
    draft::Draft,
    table::{FLAGS, Flag, RETIRED},
    value::{ValueError, list, within_quotes},
};
use super::options::{DaemonOptions, NodeIdentity};
use crate::go::args::{Args, ArgsError, Given, Shape};

/// What the daemon's command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    Run(Box<ParsedOptions>),
    Version,
    Help,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedOptions {
    pub options: DaemonOptions,
    /// What was accepted but does not do what it seems to say; to be logged.
    pub warnings: Vec<String>,
}

/// A command line that cannot be run. The texts begin with those of Go's `flag` package.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    #[error("flag provided but not defined: -{name}{}", hint(*nearest))]
    Unknown {
        name: String,
        nearest: Option<&'static str>,
    },
    #[error("bad flag syntax: {word} (flags are written as -flag=value or --flag value)")]
    Syntax { word: String },
    #[error("flag needs an argument: -{name} (write --{name}={value_name})")]
    MissingValue {
        name: String,
        value_name: &'static str,
    },
    #[error("invalid value {value:?} for {origin}: {reason}")]
    Value {
        origin: String,
        value: String,
        reason: String,
    },
}

fn hint(nearest: Option<&str>) -> String {
    nearest
        .map(|name| format!(" (did you mean --{name}?)"))
        .unwrap_or_default()
}

/// May have quotes of its own.
const PASSWORD: &str = "etcd-password";

/// Reads the command line (without the program's name) and the environment.
pub fn parse(
    args: &[String],
    env: impl Fn(&str) -> Option<String>,
) -> Result<Invocation, FlagError> {
    let mut draft = Draft::default();
    let mut given = Vec::new();
    let mut args = Args::new(args);
    while let Some(flag) = args.next_flag(shape_of).map_err(FlagError::from)? {
        if is_help(flag.name) {
            return Ok(Invocation::Help);
        }
        apply_given(&mut draft, flag)?;
        given.push(flag.name);
    }
    if draft.version {
        return Ok(Invocation::Version);
    }
    warn_of_ignored_words(&mut draft, args.rest(), given.last().copied());
    apply_environment(&mut draft, &given, &env)?;
    draft.options.kubernetes.node = node_identity(&env);
    let (options, warnings) = draft.finish();
    Ok(Invocation::Run(Box::new(ParsedOptions {
        options,
        warnings,
    })))
}

fn is_help(name: &str) -> bool {
    matches!(name, "help" | "h")
}

fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

fn shape_of(name: &str) -> Option<Shape> {
    if is_help(name) {
        return Some(Shape::Switch);
    }
    let retired = || {
        RETIRED
            .iter()
            .find(|flag| flag.name == name)
            .map(|flag| flag.shape)
    };
    find(name).map(Flag::shape).or_else(retired)
}

fn apply_given(draft: &mut Draft, Given { name, value }: Given<'_>) -> Result<(), FlagError> {
    if let Some(flag) = find(name) {
        return set(flag, draft, value, &format!("--{name}"))
            .map_err(|error| value_error(format!("flag --{name}"), value, error));
    }
    if let Some(retired) = RETIRED.iter().find(|flag| flag.name == name) {
        draft
            .warnings
            .push(format!("flag --{name} has no effect: {}", retired.reason));
    }
    Ok(())
}

/// `written` is how the flag or variable is named where the value stands.
fn set(flag: &Flag, draft: &mut Draft, value: &str, written: &str) -> Result<(), ValueError> {
    let quoted = within_quotes(value).filter(|_| flag.name != PASSWORD);
    let set = (flag.set)(draft, value);
    let Some(inner) = quoted else { return set };
    let reason = format!(
        "the value is in quotes: write {written}={inner} without them, as nothing takes them away \
         (docker --env-file and YAML lists keep them)"
    );
    Err(match set {
        Err(ValueError::Syntax(_)) => ValueError::Syntax(reason),
        _ => ValueError::Invalid(reason),
    })
}

fn value_error(origin: String, value: &str, error: ValueError) -> FlagError {
    let (ValueError::Syntax(reason) | ValueError::Invalid(reason)) = error;
    FlagError::Value {
        origin,
        value: value.to_owned(),
        reason,
    }
}

/// The variables by which flannel finds its Node.
fn node_identity(env: impl Fn(&str) -> Option<String>) -> Option<NodeIdentity> {
    let given = |name: &str| env(name).filter(|value| !value.is_empty());
    if let Some(name) = given("NODE_NAME") {
        return Some(NodeIdentity::Name(name));
    }
    let (name, namespace) = given("POD_NAME").zip(given("POD_NAMESPACE"))?;
    Some(NodeIdentity::Pod { namespace, name })
}

/// flannel applies a variable only to a flag that is not on the command line, and only logs a text
/// that is no number or boolean; it exits for values it cannot work with, wherever they come from.
fn apply_environment(
    draft: &mut Draft,
    given: &[&str],
    env: impl Fn(&str) -> Option<String>,
) -> Result<(), FlagError> {
    let mut warnings = Vec::new();
    let mut from_env = |name: &str| {
        let variable = variable_of(name);
        let mut value = env(&variable).filter(|_| !given.contains(&name))?;
        if value.ends_with('\r') {
            value.truncate(value.trim_end_matches('\r').len());
            warnings.push(format!(
                "environment variable {variable} ends with a carriage return, which is passed over: \
                 write its file with line ends of Unix"
            ));
        }
        (!value.is_empty()).then_some((variable, value))
    };
    for flag in FLAGS.iter().filter(|flag| flag.name != "version") {
        let Some((variable, value)) = from_env(flag.name) else {
            continue;
        };
        match set_from_variable(flag, draft, &value, &variable) {
            Ok(()) => {}
            Err(ValueError::Syntax(reason)) => draft.warnings.push(format!(
                "environment variable {variable} is ignored: invalid value {value:?}: {reason}"
            )),
            Err(error @ ValueError::Invalid(_)) => {
                let origin = format!("environment variable {variable}");
                return Err(value_error(origin, &value, error));
            }
        }
    }
    for retired in RETIRED {
        if let Some((variable, _)) = from_env(retired.name) {
            draft.warnings.push(format!(
                "environment variable {variable} has no effect: {}",
                retired.reason
            ));
        }
    }
    draft.warnings.extend(warnings);
    Ok(())
}

/// A variable can be given only once, so that one for several interfaces is a list. Patterns may
/// have commas of their own.
fn set_from_variable(
    flag: &Flag,
    draft: &mut Draft,
    value: &str,
    variable: &str,
) -> Result<(), ValueError> {
    let names: Vec<_> = list(value).collect();
    if flag.name != "iface" || names.len() < 2 || within_quotes(value).is_some() {
        return set(flag, draft, value, variable);
    }
    draft.warnings.push(format!(
        "environment variable {variable} is a list and means several --iface, but flannel takes it \
         for one name"
    ));
    let mut names = names.into_iter();
    names.try_for_each(|name| set(flag, draft, name, variable))
}

/// `a-b` is `FLANNELD_A_B`.
fn variable_of(name: &str) -> String {
    format!("FLANNELD_{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// Go stops at the first word that is no flag, and flannel then ignores the rest, typically after
/// `--ip-masq true`. The words themselves are not shown: a password may be among them.
fn warn_of_ignored_words(draft: &mut Draft, rest: &[String], last: Option<&str>) {
    if rest.is_empty() {
        return;
    }
    let place = last.map_or_else(String::new, |name| format!(" after --{name}"));
    let count = rest.len();
    draft.warnings.push(format!(
        "the last {count} words of the command line{place} are ignored: flags end at the first word \
         that is not a flag; a boolean takes its value as --flag=value"
    ));
}

impl From<ArgsError<'_>> for FlagError {
    fn from(error: ArgsError<'_>) -> Self {
        match error {
            ArgsError::Syntax { word } => Self::Syntax {
                word: word.to_owned(),
            },
            ArgsError::Unknown { name } => Self::Unknown {
                name: name.to_owned(),
                nearest: nearest(name),
            },
            ArgsError::MissingValue { name } => Self::MissingValue {
                name: name.to_owned(),
                value_name: find(name).map_or("VALUE", Flag::value_name),
            },
        }
    }
}

/// The flag a mistyped name probably means.
fn nearest(name: &str) -> Option<&'static str> {
    let tolerated = (name.chars().count() / 3).clamp(1, 4);
    FLAGS
        .iter()
        .map(|flag| {
            (
                damerau_levenshtein(flag.name, &name.to_lowercase()),
                flag.name,
            )
        })
        .min()
        .filter(|(distance, _)| *distance <= tolerated)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests;
