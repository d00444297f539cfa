//! What Go's `encoding/json` writes: no blanks, `<`, `>`, `&` and the two line separators of
//! JavaScript escaped, in parts that are taken over as they are as well.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

/// The JSON of a value, in the order of its fields. serde fails for keys that are no text; such a
/// value has no JSON.
pub fn to_string(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    let written = value.serialize(&mut Serializer::with_formatter(&mut out, Go));
    let text = written.ok().and_then(|()| String::from_utf8(out).ok());
    text.unwrap_or_default()
}

/// JSON text without the blanks between tokens. serde would write numbers and escapes in its own way.
pub fn compact(json: &str) -> String {
    if !json.bytes().any(|byte| byte.is_ascii_whitespace()) {
        return json.to_owned();
    }
    let (mut out, mut quoted, mut escaped) = (String::new(), false, false);
    for c in json.chars() {
        if !quoted && c.is_ascii_whitespace() {
            continue;
        }
        out.push(c);
        match c {
            '"' if !escaped => quoted = !quoted,
            '\\' if quoted => {
                escaped = !escaped;
                continue;
            }
            _ => {}
        }
        escaped = false;
    }
    out
}

struct Go;

impl Formatter for Go {
    fn write_string_fragment<W: Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        write_html_safe(writer, fragment)
    }

    fn write_raw_fragment<W: Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        write_html_safe(writer, fragment)
    }

    fn write_char_escape<W: Write + ?Sized>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        let short: &[u8] = match escape {
            CharEscape::Quote => b"\\\"",
            CharEscape::ReverseSolidus => b"\\\\",
            CharEscape::Solidus => b"/",
            CharEscape::LineFeed => b"\\n",
            CharEscape::CarriageReturn => b"\\r",
            CharEscape::Tab => b"\\t",
            CharEscape::Backspace => return write_unicode_escape(writer, '\u{8}'),
            CharEscape::FormFeed => return write_unicode_escape(writer, '\u{c}'),
            CharEscape::AsciiControl(byte) => return write_unicode_escape(writer, byte.into()),
        };
        writer.write_all(short)
    }
}

/// Go escapes what could end a `<script>`, and the two line separators of JavaScript.
fn write_html_safe<W: Write + ?Sized>(writer: &mut W, text: &str) -> io::Result<()> {
    let mut rest = text;
    while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        let (plain, special) = rest.split_at(at);
        writer.write_all(plain.as_bytes())?;
        let mut characters = special.chars();
        if let Some(character) = characters.next() {
            write_unicode_escape(writer, character)?;
        }
        rest = characters.as_str();
    }
    writer.write_all(rest.as_bytes())
}

fn write_unicode_escape<W: Write + ?Sized>(writer: &mut W, character: char) -> io::Result<()> {
    write!(writer, "\\u{:04x}", u32::from(character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped_as_in_go() {
        for (text, json) in [
            ("plain", r#""plain""#),
            ("\"\\/\n\r\t", r#""\"\\/\n\r\t""#),
            ("\u{8}\u{c}\u{1}", r#""\u0008\u000c\u0001""#),
            ("<a> & b", r#""\u003ca\u003e \u0026 b""#),
            ("\u{2028}é\u{2029}", r#""\u2028é\u2029""#),
        ] {
            assert_eq!(to_string(&text), json);
        }
    }

    #[test]
    fn what_is_between_tokens_goes_and_what_is_in_quotes_stays() {
        let spread = " { \"a b\" : [ 1.50 , \"\\\" \\\\\" ],\n\"c\":\tnull } ";
        assert_eq!(compact(spread), r#"{"a b":[1.50,"\" \\"],"c":null}"#);
    }
}
