//! Go's `flag` syntax: `-x`, `--x`, `-x=v`, `-x v`; a switch takes its value only after `=`; the
//! first word that is not a flag, or `--`, ends the flags.

/// Whether a flag takes a separate word as its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `-x` means `-x=true`.
    Switch,
    Valued,
}

/// One flag as it stands on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given<'a> {
    pub name: &'a str,
    pub value: &'a str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgsError<'a> {
    Syntax { word: &'a str },
    Unknown { name: &'a str },
    MissingValue { name: &'a str },
}

/// The part of the command line that is still to be read.
#[derive(Clone, Debug)]
pub struct Args<'a> {
    rest: &'a [String],
}

impl<'a> Args<'a> {
    pub fn new(args: &'a [String]) -> Self {
        Self { rest: args }
    }

    /// What follows the last flag read.
    pub fn rest(&self) -> &'a [String] {
        self.rest
    }

    /// The next flag, or `None` at the end of the flags. `shape_of` knows the flags.
    pub fn next_flag(
        &mut self,
        shape_of: impl Fn(&str) -> Option<Shape>,
    ) -> Result<Option<Given<'a>>, ArgsError<'a>> {
        let Some((word, rest)) = self.rest.split_first() else {
            return Ok(None);
        };
        let Some(text) = word.strip_prefix('-').filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        self.rest = rest;
        let text = text.strip_prefix('-').unwrap_or(text);
        if text.is_empty() {
            return Ok(None);
        }
        if text.starts_with(['-', '=']) {
            return Err(ArgsError::Syntax { word });
        }
        let (name, attached) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let shape = shape_of(name).ok_or(ArgsError::Unknown { name })?;
        let value = match (attached, shape) {
            (Some(value), _) => value,
            (None, Shape::Switch) => "true",
            (None, Shape::Valued) => {
                let (value, rest) = self
                    .rest
                    .split_first()
                    .ok_or(ArgsError::MissingValue { name })?;
                self.rest = rest;
                value
            }
        };
        Ok(Some(Given { name, value }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(name: &str) -> Option<Shape> {
        match name {
            "masq" => Some(Shape::Switch),
            "iface" => Some(Shape::Valued),
            _ => None,
        }
    }

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|word| (*word).to_owned()).collect()
    }

    /// Reads all flags; returns them as `name=value`, and how many words are left.
    fn read(text: &[&str]) -> Result<(Vec<String>, usize), String> {
        let words = words(text);
        let mut args = Args::new(&words);
        let mut seen = Vec::new();
        loop {
            match args.next_flag(shape) {
                Ok(Some(given)) => seen.push(format!("{}={}", given.name, given.value)),
                Ok(None) => return Ok((seen, args.rest().len())),
                Err(error) => return Err(format!("{error:?}")),
            }
        }
    }

    #[test]
    fn one_and_two_dashes_equals_sign_and_blank_mean_the_same() {
        for text in [
            &["-iface=eth0"][..],
            &["--iface=eth0"],
            &["-iface", "eth0"],
            &["--iface", "eth0"],
        ] {
            assert_eq!(
                read(text),
                Ok((vec!["iface=eth0".to_owned()], 0)),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_switch_takes_no_separate_word() {
        assert_eq!(
            read(&["--masq", "true", "--iface=eth0"]),
            Ok((vec!["masq=true".to_owned()], 2))
        );
        assert_eq!(
            read(&["--masq=false"]),
            Ok((vec!["masq=false".to_owned()], 0))
        );
    }

    #[test]
    fn a_value_may_be_empty_contain_equals_signs_or_start_with_a_dash() {
        assert_eq!(read(&["--iface="]), Ok((vec!["iface=".to_owned()], 0)));
        assert_eq!(
            read(&["--iface=a=b"]),
            Ok((vec!["iface=a=b".to_owned()], 0))
        );
        assert_eq!(
            read(&["--iface", "-masq"]),
            Ok((vec!["iface=-masq".to_owned()], 0))
        );
    }

    #[test]
    fn a_word_a_lone_dash_and_two_dashes_end_the_flags() {
        assert_eq!(read(&["word", "--masq"]), Ok((vec![], 2)));
        assert_eq!(read(&["-", "--masq"]), Ok((vec![], 2)));
        assert_eq!(read(&["--", "--masq"]), Ok((vec![], 1)));
    }

    #[test]
    fn what_go_refuses_is_refused() {
        assert_eq!(
            read(&["---masq"]),
            Err(r#"Syntax { word: "---masq" }"#.to_owned())
        );
        assert_eq!(read(&["-=x"]), Err(r#"Syntax { word: "-=x" }"#.to_owned()));
        assert_eq!(
            read(&["--bogus=1"]),
            Err(r#"Unknown { name: "bogus" }"#.to_owned())
        );
        assert_eq!(
            read(&["--iface"]),
            Err(r#"MissingValue { name: "iface" }"#.to_owned())
        );
    }
}
