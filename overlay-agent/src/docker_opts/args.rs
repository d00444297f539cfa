//! The options, in `getopts` syntax: letters may share a dash, a value may be attached, the first
//! other word ends the options.

use std::path::PathBuf;

use crate::{config::options::DEFAULT_SUBNET_FILE, subnet_env::dotenv::is_name};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    Write(Args),
    Help,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// The subnet file to read.
    pub flannel_env: PathBuf,
    /// The file to write.
    pub docker_env: PathBuf,
    /// One variable per option.
    pub individual: bool,
    /// All options in one variable.
    pub combined: bool,
    /// Name of that variable.
    pub key: String,
    /// Say whether Docker shall masquerade.
    pub ip_masq: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    #[error("unknown option -{0}")]
    Unknown(char),
    #[error("option -{0} needs a value")]
    MissingValue(char),
    #[error("{0:?} cannot be the name of a variable")]
    Key(String),
    #[error("help is shown below")]
    Usage,
}

pub fn usage(program: &str) -> String {
    format!(
        "{program} [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]

Generate Docker daemon options based on flannel env file
OPTIONS:
\t-f\tPath to flannel env file. Defaults to /run/flannel/subnet.env
\t-d\tPath to Docker env file to write to. Defaults to /run/docker_opts.env
\t-i\tOutput each Docker option as individual var. e.g. DOCKER_OPT_MTU=1500
\t-c\tOutput combined Docker options into DOCKER_OPTS var
\t-k\tSet the combined options key to this value (default DOCKER_OPTS=)
\t-m\tDo not output --ip-masq (useful for older Docker version)

"
    )
}

impl Default for Args {
    fn default() -> Self {
        Self {
            flannel_env: PathBuf::from(DEFAULT_SUBNET_FILE),
            docker_env: PathBuf::from("/run/docker_opts.env"),
            individual: false,
            combined: false,
            key: "DOCKER_OPTS".to_owned(),
            ip_masq: true,
        }
    }
}

pub fn parse(words: &[String]) -> Result<Invocation, ArgsError> {
    let mut args = Args::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--help" {
            return Ok(Invocation::Help);
        }
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            break;
        };
        if letters == "-" {
            break;
        }
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            let mut value = || {
                let attached = std::mem::replace(&mut letters, "".chars());
                match attached.as_str() {
                    "" => words.next().cloned().ok_or(ArgsError::MissingValue(letter)),
                    value => Ok(value.to_owned()),
                }
            };
            match letter {
                'f' => args.flannel_env = value()?.into(),
                'd' => args.docker_env = value()?.into(),
                'k' => args.key = value()?,
                'i' => args.individual = true,
                'c' => args.combined = true,
                'm' => args.ip_masq = false,
                'h' | '?' => return Err(ArgsError::Usage),
                letter => return Err(ArgsError::Unknown(letter)),
            }
        }
    }
    if !is_name(&args.key) {
        return Err(ArgsError::Key(args.key));
    }
    if !args.individual && !args.combined {
        args.individual = true;
        args.combined = true;
    }
    Ok(Invocation::Write(args))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Invocation, ArgsError> {
        parse(
            &words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    fn written(words: &[&str]) -> Args {
        match parsed(words) {
            Ok(Invocation::Write(args)) => args,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn without_options_both_forms_are_written_to_the_usual_file() {
        let both = Args {
            individual: true,
            combined: true,
            ..Args::default()
        };
        assert_eq!(written(&[]), both);
        assert_eq!(written(&["-i", "-c"]), both);
        assert_eq!(written(&["-ic"]), both);
    }

    #[test]
    fn values_are_attached_or_the_next_word() {
        let expected = Args {
            flannel_env: "/a".into(),
            docker_env: "/b".into(),
            key: "KEY".to_owned(),
            combined: true,
            ip_masq: false,
            ..Args::default()
        };
        assert_eq!(
            written(&["-c", "-m", "-f", "/a", "-d", "/b", "-k", "KEY"]),
            expected
        );
        assert_eq!(written(&["-cmf/a", "-d/b", "-kKEY"]), expected);
    }

    #[test]
    fn the_first_other_word_ends_the_options() {
        let expected = Args {
            individual: true,
            ..Args::default()
        };
        assert_eq!(written(&["-i", "word", "-c"]), expected);
        assert_eq!(written(&["-i", "--", "-c"]), expected);
    }

    #[test]
    fn anything_else_is_an_error_and_help_is_help() {
        assert_eq!(parsed(&["-x"]), Err(ArgsError::Unknown('x')));
        assert_eq!(parsed(&["--long"]), Err(ArgsError::Unknown('-')));
        assert_eq!(parsed(&["-k"]), Err(ArgsError::MissingValue('k')));
        assert_eq!(
            parsed(&["-k", "$(reboot)"]),
            Err(ArgsError::Key("$(reboot)".to_owned()))
        );
        assert_eq!(parsed(&["-h"]), Err(ArgsError::Usage));
        assert_eq!(parsed(&["-?"]), Err(ArgsError::Usage));
        assert_eq!(parsed(&["--help"]), Ok(Invocation::Help));
    }

    #[test]
    fn the_usage_is_as_committed() {
        insta::assert_snapshot!(usage("mk-docker-opts.sh"));
    }
}
