//! Printing for the operator commands and for tests that show evidence: one report, as a table for
//! people or as JSON for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table as Grid, presets};
use serde::Serialize;

/// `-o` of the operator commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
}

/// What an operator command found out.
pub trait Report: Serialize {
    /// Prints it for people.
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()>;
}

pub fn print(report: &impl Report, format: Format, out: &mut dyn Write) -> io::Result<()> {
    match format {
        Format::Table => report.write_table(out),
        Format::Json => {
            let text = serde_json::to_string_pretty(report)?;
            writeln!(out, "{text}")
        }
    }
}

/// An error and its causes in one line. Many errors quote their cause in their own text, which is not
/// said twice.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}

/// Columns under headers, two spaces apart.
pub struct Table {
    grid: Grid,
}

impl Table {
    /// A header that ends in `>` makes a column of numbers, aligned to the right.
    pub fn new(headers: &[&str]) -> Self {
        let mut grid = Grid::new();
        grid.load_style(presets::NOTHING);
        grid.set_content_arrangement(ContentArrangement::Disabled);
        grid.set_header(headers.iter().map(|header| header.trim_end_matches('>')));
        for (column, header) in grid.column_iter_mut().zip(headers) {
            column.set_padding((0, 2));
            if header.ends_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self { grid }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.grid.add_row(cells.into_iter().collect::<Vec<_>>());
    }

    pub fn is_empty(&self) -> bool {
        self.grid.is_empty()
    }

    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.grid.trim_fmt())
    }
}

/// Pairs of name and value, the values below each other.
pub fn write_pairs(out: &mut dyn Write, pairs: &[(impl AsRef<str>, String)]) -> io::Result<()> {
    let names = pairs.iter().map(|(name, _)| name.as_ref().len());
    let width = names.max().unwrap_or(0) + 1;
    for (name, value) in pairs {
        writeln!(out, "{:<width$} {value}", format!("{}:", name.as_ref()))?;
    }
    Ok(())
}

/// `1234567` as `1 234 567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_is_quoted_already_is_not_said_twice() {
        let cause = anyhow::anyhow!("no such file");
        let quoting = cause.context("cannot read x: no such file");
        let outer = quoting.context("cannot start");
        assert_eq!(
            one_line(&outer),
            "cannot start: cannot read x: no such file"
        );
    }

    #[test]
    fn columns_line_up_and_numbers_are_right_aligned() {
        let mut table = Table::new(&["NAME", "COUNT>", "NOTE"]);
        table.row(["a".into(), grouped(5), "x".into()]);
        table.row(["longer".into(), grouped(1_234_567), String::new()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAME        COUNT  NOTE\na               5  x\nlonger  1 234 567\n"
        );
    }
}
