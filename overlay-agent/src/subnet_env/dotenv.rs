//! The dotenv syntax that people and tools write the subnet file in: `KEY=VALUE` per line, with
//! optional `export`, quotes and comments. Variables are not expanded.

use std::collections::BTreeMap;

/// The variables of a file and the numbers of the lines that are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dotenv {
    /// Of a repeated variable the last value counts.
    pub variables: BTreeMap<String, String>,
    /// Lines that were skipped, counted from 1.
    pub bad_lines: Vec<usize>,
}

impl Dotenv {
    pub fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match assignment(line) {
                Some((name, value)) => {
                    parsed.variables.insert(name.to_owned(), value);
                }
                None => parsed.bad_lines.push(number),
            }
        }
        parsed
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }
}

fn assignment(line: &str) -> Option<(&str, String)> {
    let line = match line.strip_prefix("export") {
        Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start(),
        _ => line,
    };
    let (name, value) = line.split_once('=')?;
    let name = name.trim_end();
    is_name(name).then_some(())?;
    Some((name, unquoted(value.trim_start())?))
}

/// Whether a shell takes the text as the name of a variable.
pub fn is_name(text: &str) -> bool {
    !text.starts_with(|letter: char| letter.is_ascii_digit())
        && !text.is_empty()
        && text
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// The value without quotes, escapes and a comment; `None` for a quote that does not end.
fn unquoted(text: &str) -> Option<String> {
    let mut letters = text.chars();
    match letters.next() {
        Some('\'') => letters
            .as_str()
            .split_once('\'')
            .map(|(value, _)| value.to_owned()),
        Some('"') => {
            let mut value = String::new();
            loop {
                match letters.next()? {
                    '"' => return Some(value),
                    '\\' => value.push(escaped(letters.next()?)),
                    letter => value.push(letter),
                }
            }
        }
        _ => {
            let end = text
                .char_indices()
                .zip(std::iter::once(' ').chain(text.chars()))
                .find(|((_, letter), before)| *letter == '#' && before.is_whitespace())
                .map_or(text.len(), |((position, _), _)| position);
            text.get(..end).map(|value| value.trim_end().to_owned())
        }
    }
}

fn escaped(letter: char) -> char {
    match letter {
        'n' => '\n',
        'r' => '\r',
        letter => letter,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(line: &str) -> Option<String> {
        let parsed = Dotenv::parse(line);
        assert!(parsed.bad_lines.is_empty(), "{line}: {parsed:?}");
        parsed.get("A").map(str::to_owned)
    }

    #[test]
    fn quotes_export_blanks_and_comments_do_not_belong_to_the_value() {
        for line in [
            "A=10.5.34.1/24",
            "A=\"10.5.34.1/24\"",
            "A='10.5.34.1/24'",
            "export A=10.5.34.1/24",
            "  A = 10.5.34.1/24  ",
            "A=10.5.34.1/24 # mine",
            "A=\"10.5.34.1/24\" # mine",
            "A=1\nA=10.5.34.1/24\r\n",
            "# A=1\n\nA=10.5.34.1/24",
            "\u{feff}A=10.5.34.1/24",
        ] {
            assert_eq!(value(line).as_deref(), Some("10.5.34.1/24"), "{line:?}");
        }
    }

    #[test]
    fn an_empty_value_is_a_value_and_a_hash_inside_a_word_no_comment() {
        assert_eq!(value("A=").as_deref(), Some(""));
        assert_eq!(value("A=# nothing").as_deref(), Some(""));
        assert_eq!(value("A=x#y").as_deref(), Some("x#y"));
        assert_eq!(
            value("A=\" --bip=1 --mtu=2\"").as_deref(),
            Some(" --bip=1 --mtu=2")
        );
    }

    #[test]
    fn lines_that_are_no_assignment_are_skipped_and_counted() {
        let parsed = Dotenv::parse("A=1\nnonsense\n1B=2\nC=\"open\nexport D\nE=5");
        assert_eq!(parsed.bad_lines, [2, 3, 4, 5]);
        assert_eq!(parsed.get("A"), Some("1"));
        assert_eq!(parsed.get("E"), Some("5"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text: String, line in "A ?= ?[\"'# \\\\a]*") {
            let _ = Dotenv::parse(&text);
            let _ = Dotenv::parse(&line);
        }
    }
}
