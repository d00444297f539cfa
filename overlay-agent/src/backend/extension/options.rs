//! The commands of the extension backend in the network config.

use super::command::CommandLine;
use crate::{
    backend::{BackendError, Parsed},
    go::json::{JsonError, Object},
};

/// The extension backend. Each command may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extension {
    /// Before the node has a lease; its output is `BackendData`.
    pub pre_startup: Option<CommandLine>,
    pub post_startup: Option<CommandLine>,
    /// When the agent is told to stop.
    pub shutdown: Option<CommandLine>,
    pub subnet_add: Option<CommandLine>,
    pub subnet_remove: Option<CommandLine>,
}

pub const PRE_STARTUP: &str = "PreStartupCommand";
pub const POST_STARTUP: &str = "PostStartupCommand";
pub const SHUTDOWN: &str = "ShutdownCommand";
pub const SUBNET_ADD: &str = "SubnetAddCommand";
pub const SUBNET_REMOVE: &str = "SubnetRemoveCommand";

impl Extension {
    fn commands(&self) -> [(&'static str, &Option<CommandLine>); 5] {
        [
            ("Backend.PreStartupCommand", &self.pre_startup),
            ("Backend.PostStartupCommand", &self.post_startup),
            ("Backend.ShutdownCommand", &self.shutdown),
            ("Backend.SubnetAddCommand", &self.subnet_add),
            ("Backend.SubnetRemoveCommand", &self.subnet_remove),
        ]
    }

    /// The keys of the commands that are not those of `other`.
    pub fn differing(&self, other: &Self) -> impl Iterator<Item = &'static str> {
        let pairs = self.commands().into_iter().zip(other.commands());
        pairs.filter_map(|((key, one), (_, other))| (one != other).then_some(key))
    }
}

pub fn parse(options: &str) -> Parsed<Extension> {
    let mut warnings = Vec::new();
    let backend = read(options, &mut warnings).map_err(|reason| BackendError::Options {
        backend: "extension",
        reason: reason.into(),
    })?;
    Ok((backend, warnings))
}

fn read(options: &str, warnings: &mut Vec<String>) -> Result<Extension, JsonError> {
    let object = Object::parse(options, "Backend")?;
    let mut command = |key| command(&object, key, warnings);
    Ok(Extension {
        pre_startup: command(PRE_STARTUP)?,
        post_startup: command(POST_STARTUP)?,
        shutdown: command(SHUTDOWN)?,
        subnet_add: command(SUBNET_ADD)?,
        subnet_remove: command(SUBNET_REMOVE)?,
    })
}

fn command(
    object: &Object<'_>,
    key: &str,
    warnings: &mut Vec<String>,
) -> Result<Option<CommandLine>, JsonError> {
    let line = CommandLine::new(&object.string(key)?);
    if let Some(sign) = line.as_ref().and_then(CommandLine::shell_sign) {
        warnings.push(format!(
            "{key} has a `{sign}`, which is handed over as it is: commands run without a shell, as flannel \
             since v0.28.2 runs them; call a script instead"
        ));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_in_any_case_and_an_empty_command_is_none() {
        let text =
            r#"{"Type":"extension","prestartupcommand":"/bin/a $SUBNET","SubnetAddCommand":" "}"#;
        let (backend, warnings) = parse(text).unwrap();
        let expected = Extension {
            pre_startup: CommandLine::new("/bin/a $SUBNET"),
            ..Extension::default()
        };
        assert_eq!((backend, warnings), (expected, Vec::new()));
        assert!(parse(r#"{"SubnetAddCommand":["a"]}"#).is_err());
    }

    #[test]
    fn a_command_for_a_shell_is_warned_of() {
        for text in [
            "a; b",
            "a | b",
            "echo 'a b'",
            "a > /b",
            "$(a)",
            "a && b",
            "`a`",
        ] {
            let json = format!(r#"{{"SubnetAddCommand":"{text}"}}"#);
            let (_, warnings) = parse(&json).unwrap();
            assert!(
                warnings[0].starts_with("SubnetAddCommand has a `"),
                "{warnings:?}"
            );
        }
    }
}
