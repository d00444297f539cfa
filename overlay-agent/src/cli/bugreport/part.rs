//! A text of the archive.

/// Longer texts are cut off.
const LIMIT: usize = 4 << 20;

pub struct Part {
    pub name: String,
    pub text: String,
}

impl Part {
    pub fn new(name: &str, mut text: String) -> Self {
        if text.len() > LIMIT {
            text.truncate(text.floor_char_boundary(LIMIT));
            text.push_str("\n# cut off here\n");
        }
        Self {
            name: name.to_owned(),
            text,
        }
    }
}
