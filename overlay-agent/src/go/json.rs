//! Go's `encoding/json` rules for decoding into a struct: keys match in any case, unknown keys are
//! ignored, of a repeated key the last one wins, `null` leaves a plain field as it is.

use std::fmt;

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The members of a JSON object in document order, each value as its own text.
#[derive(Clone, Debug)]
pub struct Object<'a> {
    members: Vec<(String, &'a str)>,
}

#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Text that is not JSON at all.
    #[error("invalid JSON at line {line}, column {column}: {reason}")]
    Syntax {
        line: usize,
        column: usize,
        reason: String,
    },
    #[error(
        "{what} is in quotes: what should be a JSON object is a text with the object in it; write \
         the object itself, without the quotes around it{}",
        if *escaped { " and the backslashes in it" } else { "" }
    )]
    Quoted { what: String, escaped: bool },
    #[error("{key} must be {expected}, not {found}")]
    Type {
        key: String,
        expected: &'static str,
        found: String,
    },
}

impl<'a> Object<'a> {
    /// Reads an object. `what` names it in the error for JSON that is no object; `null` is an empty
    /// object, as Go leaves a struct untouched then.
    pub fn parse(text: &'a str, what: &str) -> Result<Self, JsonError> {
        // Nearly all is an object. What is not is looked at for what to say of it.
        let mut deserializer = serde_json::Deserializer::from_str(text);
        if let Ok(members) = deserializer.deserialize_map(MembersVisitor)
            && deserializer.end().is_ok()
        {
            return Ok(Self { members });
        }
        let value: &RawValue = serde_json::from_str(text).map_err(|error| {
            if is_in_shell_quotes(text) {
                let (what, escaped) = (what.to_owned(), false);
                return JsonError::Quoted { what, escaped };
            }
            JsonError::syntax(&error)
        })?;
        let text = value.get();
        match text.as_bytes().first() {
            Some(b'{') => {
                let mut deserializer = serde_json::Deserializer::from_str(text);
                let members = deserializer
                    .deserialize_map(MembersVisitor)
                    .map_err(|error| JsonError::syntax(&error))?;
                Ok(Self { members })
            }
            Some(b'n') => Ok(Self {
                members: Vec::new(),
            }),
            _ if holds_object(text) => Err(JsonError::Quoted {
                what: what.to_owned(),
                escaped: text.contains('\\'),
            }),
            _ => Err(JsonError::of_type(what, "a JSON object", text)),
        }
    }

    /// The text of the value that wins for `key`, `null` included.
    pub fn raw(&self, key: &str) -> Option<&'a str> {
        self.every(key).next_back()
    }

    /// The texts of all values for `key`, in document order.
    pub fn every(&self, key: &str) -> impl DoubleEndedIterator<Item = &'a str> {
        self.members
            .iter()
            .filter(move |(name, _)| is_same_key(name, key))
            .map(|(_, text)| *text)
    }

    /// A value that decodes itself, `null` included; `None` when absent. `expected` names its type in
    /// the error.
    pub fn decoded<T: Deserialize<'a>>(
        &self,
        key: &str,
        expected: &'static str,
    ) -> Result<Option<T>, JsonError> {
        self.every(key).try_fold(None, |_, text| {
            let value = serde_json::from_str(text);
            value
                .map(Some)
                .map_err(|_| JsonError::of_type(key, expected, text))
        })
    }

    /// A boolean; `default` when absent or `null`.
    pub fn boolean(&self, key: &str, default: bool) -> Result<bool, JsonError> {
        self.plain(key, default, |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(JsonError::of_type(key, "true or false", text)),
        })
    }

    /// Warnings of the numbers written with a fraction of zeros, which flannel refuses.
    pub fn whole_fractions(&self, keys: &[&str]) -> Vec<String> {
        let found = keys.iter().filter_map(|key| {
            let text = self.every(key).find(|text| whole(text) != *text)?;
            let whole = whole(text);
            Some(format!(
                "{key} of the network config is {text}; it is taken for {whole}, but flannel \
                 refuses it: write {whole}"
            ))
        });
        found.collect()
    }

    /// A non-negative whole number; `default` when absent or `null`.
    pub fn unsigned(&self, key: &str, default: u64) -> Result<u64, JsonError> {
        self.plain(key, default, |text| {
            whole(text)
                .parse()
                .map_err(|_| JsonError::of_type(key, "a whole number from 0", text))
        })
    }

    /// A whole number; `default` when absent or `null`.
    pub fn integer(&self, key: &str, default: i64) -> Result<i64, JsonError> {
        self.plain(key, default, |text| {
            whole(text)
                .parse()
                .map_err(|_| JsonError::of_type(key, "a whole number", text))
        })
    }

    /// A string; empty when absent or `null`.
    pub fn string(&self, key: &str) -> Result<String, JsonError> {
        self.plain(key, String::new(), |text| {
            serde_json::from_str(text).map_err(|_| JsonError::of_type(key, "a string", text))
        })
    }

    /// Decodes every occurrence, as Go does: each must be valid, the last one counts, `null` changes
    /// nothing.
    fn plain<T>(
        &self,
        key: &str,
        default: T,
        decode: impl Fn(&str) -> Result<T, JsonError>,
    ) -> Result<T, JsonError> {
        self.every(key)
            .filter(|text| *text != "null")
            .try_fold(default, |_, text| decode(text))
    }
}

/// A number without its fraction, if that is zero; any other text as it is.
fn whole(text: &str) -> &str {
    match text.split_once('.') {
        Some((whole, fraction)) if !text.starts_with('"') => {
            let zero = !fraction.is_empty() && fraction.bytes().all(|digit| digit == b'0');
            if zero { whole } else { text }
        }
        _ => text,
    }
}

/// Whether a JSON string contains an object: it was encoded twice.
fn holds_object(text: &str) -> bool {
    let inner: Option<String> = serde_json::from_str(text).ok();
    inner.is_some_and(|inner| inner.trim_start().starts_with('{'))
}

/// Whether quotes that a shell would have taken away are still around an object.
fn is_in_shell_quotes(text: &str) -> bool {
    let inner = |quote| text.trim().strip_prefix(quote)?.strip_suffix(quote);
    let inner = inner('\'').or_else(|| inner('"'));
    inner.is_some_and(|inner| inner.trim_start().starts_with('{'))
}

fn is_same_key(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other) || !one.is_ascii() && fold(one).eq(fold(other))
}

/// Go's folding of keys: ASCII case, and the two letters of Unicode that fold onto ASCII ones.
fn fold(key: &str) -> impl Iterator<Item = char> {
    key.chars().map(|letter| match letter {
        '\u{017f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    })
}

impl JsonError {
    fn syntax(error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let reason = text
            .split(" at line ")
            .next()
            .unwrap_or_default()
            .to_owned();
        Self::Syntax {
            line: error.line(),
            column: error.column(),
            reason,
        }
    }

    pub(crate) fn of_type(key: &str, expected: &'static str, text: &str) -> Self {
        Self::Type {
            key: key.to_owned(),
            expected,
            found: describe(text),
        }
    }
}

/// A JSON value for an error message: what it is, and its text if short.
fn describe(text: &str) -> String {
    match text.as_bytes().first() {
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "an array".to_owned(),
        Some(b'"') if text.len() <= 40 => format!("the string {text}"),
        Some(b'"') => "a long string".to_owned(),
        _ if text.len() <= 40 => text.to_owned(),
        _ => "a long number".to_owned(),
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Vec<(String, &'de str)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let value: &RawValue = map.next_value()?;
            members.push((key, value.get()));
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(text: &str) -> Object<'_> {
        Object::parse(text, "the value").unwrap()
    }

    #[test]
    fn keys_match_in_any_case_and_the_last_one_wins() {
        let object = object(r#"{"SubnetLen": 24, "subnetlen": 25, "SUBNETLEN": 26}"#);
        assert_eq!(object.unsigned("SubnetLen", 0).unwrap(), 26);
    }

    #[test]
    fn a_key_with_the_long_s_or_the_kelvin_sign_matches_as_in_go() {
        assert_eq!(
            object("{\"\u{017f}ubnetLen\": 24}")
                .unsigned("SubnetLen", 0)
                .unwrap(),
            24
        );
        assert_eq!(object("{\"Bac\u{212a}end\": 1}").raw("Backend"), Some("1"));
    }

    #[test]
    fn null_leaves_what_an_earlier_key_or_the_default_gave() {
        assert_eq!(
            object(r#"{"A": 5, "a": null}"#).unsigned("A", 1).unwrap(),
            5
        );
        assert!(object(r#"{"A": null}"#).boolean("A", true).unwrap());
    }

    #[test]
    fn every_occurrence_of_a_key_must_have_the_right_type() {
        assert!(object(r#"{"A": "x", "a": 5}"#).unsigned("A", 1).is_err());
    }

    #[test]
    fn numbers_in_quotes_fractions_and_negative_lengths_are_refused() {
        for text in [
            r#""24""#,
            r#""24.0""#,
            "24.5",
            "2e1",
            "-1",
            "true",
            "[]",
            "{}",
        ] {
            let document = format!(r#"{{"A": {text}}}"#);
            assert!(object(&document).unsigned("A", 0).is_err(), "{text}");
        }
    }

    #[test]
    fn a_whole_number_with_a_fraction_of_zeros_is_that_number_and_is_told() {
        let object = object(r#"{"A": 24.0, "B": 24, "C": -1.00, "D": "1.0"}"#);
        assert_eq!(object.unsigned("A", 0).unwrap(), 24);
        assert_eq!(object.integer("C", 0).unwrap(), -1);
        assert_eq!(
            object.whole_fractions(&["A", "B", "D", "E"]),
            [
                "A of the network config is 24.0; it is taken for 24, but flannel refuses it: write 24"
            ]
        );
    }

    #[test]
    fn an_object_in_quotes_is_named_as_that() {
        const TOLD: &str = "the value is in quotes: what should be a JSON object is a text with the \
                            object in it; write the object itself, without the quotes around it";
        for (text, more) in [
            (r#""{\"A\": 1}""#, " and the backslashes in it"),
            (r#""{}""#, ""),
            (r#"'{"A": 1}'"#, ""),
            (r#""{"A": 1}""#, ""),
        ] {
            let error = Object::parse(text, "the value").unwrap_err();
            assert_eq!(error.to_string(), format!("{TOLD}{more}"), "{text}");
        }
    }

    #[test]
    fn a_type_error_names_the_key_what_it_must_be_and_what_it_is() {
        let error = object(r#"{"subnetlen": "24"}"#)
            .unsigned("SubnetLen", 0)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"SubnetLen must be a whole number from 0, not the string "24""#
        );
    }

    #[test]
    fn trailing_text_and_broken_json_are_syntax_errors_with_a_place() {
        for text in [
            "",
            "{",
            "{} x",
            r#"{"A": 1,}"#,
            "// c\n{}",
            r#"{"A": "\q"}"#,
        ] {
            let error = Object::parse(text, "the value").unwrap_err();
            assert!(
                error.to_string().starts_with("invalid JSON at line "),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn json_that_is_no_object_is_refused_except_null() {
        for text in ["[]", "1", r#""x""#, "true"] {
            let error = Object::parse(text, "the network config")
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("the network config must be a JSON object, not "),
                "{error}"
            );
        }
        assert!(object(" null ").raw("A").is_none());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_decoder_panic(text: String) {
            if let Ok(object) = Object::parse(&text, "x") {
                let _ = (object.boolean("A", true), object.unsigned("A", 0), object.string("A"));
            }
        }
    }
}
