//! What the benchmark's JSON says, as far as charts are made of it.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Clean samples, and what they are of.
pub struct Measured {
    /// Commit, machine and kernel, for below a chart.
    pub origin: String,
    samples: Vec<Sample>,
}

struct Sample {
    round: u64,
    variant: String,
    figures: serde_json::Map<String, Value>,
}

/// The middle one of several values, and the extremes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

impl Measured {
    pub fn of(json: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
        let samples = json["report"]["samples"].as_array();
        let samples = samples.context("there are no samples in it")?;
        let clean = samples.iter().filter(|sample| sample["clean"] == true);
        Ok(Self {
            origin: format!(
                "Commit {}, {} rounds, {}, Linux {}",
                text(&json["commit"]),
                json["rounds"],
                text(&json["machine"]["cpu"]),
                text(&json["machine"]["kernel"]),
            ),
            samples: clean
                .map(|sample| Sample {
                    round: sample["round"].as_u64().unwrap_or_default(),
                    variant: text(&sample["variant"]),
                    figures: sample["figures"].as_object().cloned().unwrap_or_default(),
                })
                .collect(),
        })
    }

    /// The values of a figure, by round.
    fn values<'a>(&'a self, variant: &'a str, figure: &'a str) -> impl Iterator<Item = (u64, f64)> {
        let of_variant = self
            .samples
            .iter()
            .filter(move |sample| sample.variant == variant);
        of_variant
            .filter_map(move |sample| Some((sample.round, sample.figures.get(figure)?.as_f64()?)))
    }

    /// `None` if it was not measured.
    pub fn figure(&self, variant: &str, figure: &str) -> Option<Spread> {
        Spread::of(self.values(variant, figure).map(|(_, value)| value))
    }

    /// Of one variant to another, round by round.
    pub fn ratio(&self, variant: &str, against: &str, figure: &str) -> Option<Spread> {
        let ratios = self.values(variant, figure).filter_map(|(round, value)| {
            let mut others = self.values(against, figure);
            let (_, other) = others.find(|(at, _)| *at == round)?;
            Some(value / other)
        });
        Spread::of(ratios)
    }
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let upper = values.len() / 2;
        let lower = upper - usize::from(values.len().is_multiple_of(2) && upper > 0);
        Some(Self {
            least: *values.first()?,
            median: f64::midpoint(*values.get(lower)?, *values.get(upper)?),
            most: *values.last()?,
        })
    }

    /// One divided by it: of a rate the time that one takes.
    pub fn inverse(self) -> Self {
        Self {
            least: 1.0 / self.most,
            median: 1.0 / self.median,
            most: 1.0 / self.least,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_is_between_the_two() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[]), None);
        let found = spread(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((found.least, found.median, found.most), (1.0, 2.5, 4.0));
        let inverse = found.inverse();
        assert_eq!((inverse.least, inverse.most), (0.25, 1.0));
        let found = spread(&[5.0, 1.0, 2.0]).unwrap();
        assert_eq!((found.least, found.median), (1.0, 2.0));
    }
}
