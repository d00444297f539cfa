//! From samples to medians, spreads and ratios. Samples taken while the machine was busy do not
//! count.

use serde_json::{Value, json};

use super::{
    figure::Figure,
    sample::Sample,
    target::{self, Bound, Target},
    variant::{self, Variant},
};

/// Values of several rounds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    sorted: Vec<f64>,
}

impl Series {
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self { sorted: values }
    }

    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    pub fn median(&self) -> Option<f64> {
        let middle = self.sorted.len() / 2;
        let upper = *self.sorted.get(middle)?;
        if self.sorted.len() % 2 == 1 {
            return Some(upper);
        }
        Some(f64::midpoint(*self.sorted.get(middle - 1)?, upper))
    }

    pub fn range(&self) -> Option<(f64, f64)> {
        Some((*self.sorted.first()?, *self.sorted.last()?))
    }

    /// Distance between the extremes, as a fraction of the median.
    pub fn spread(&self) -> Option<f64> {
        let (least, most) = self.range()?;
        Some((most - least) / self.median()?)
    }

    fn to_json(&self) -> Value {
        json!({
            "rounds": self.count(),
            "median": self.median(),
            "range": self.range().map(|(least, most)| [least, most]),
            "spread": self.spread(),
        })
    }
}

/// All samples of a benchmark.
pub struct Report {
    pub samples: Vec<Sample>,
    pub rounds: usize,
}

impl Report {
    /// The figure in one round, if a clean sample has it.
    fn value(&self, round: usize, variant: &Variant, figure: Figure) -> Option<f64> {
        self.samples
            .iter()
            .filter(|sample| sample.round == round && sample.variant == variant)
            .filter(|sample| sample.is_clean())
            .find_map(|sample| sample.figure(figure))
    }

    pub fn series(&self, variant: &Variant, figure: Figure) -> Series {
        let value = |round| self.value(round, variant, figure);
        Series::new((0..self.rounds).filter_map(value).collect())
    }

    /// What a target speaks of, round by round.
    pub fn result(&self, target: &Target) -> Series {
        let Some(against) = target.against else {
            return self.series(target.variant, target.figure);
        };
        let ratio = |round| {
            let value = self.value(round, target.variant, target.figure)?;
            Some(value / self.value(round, against, target.figure)?)
        };
        Series::new((0..self.rounds).filter_map(ratio).collect())
    }

    pub fn clean_samples(&self) -> usize {
        self.samples
            .iter()
            .filter(|sample| sample.is_clean())
            .count()
    }

    pub fn to_json(&self) -> Value {
        let figures: Vec<_> = variant::ALL
            .iter()
            .flat_map(|variant| Figure::ALL.map(|figure| (variant, figure)))
            .filter(|(variant, figure)| figure.applies_to(variant))
            .map(|(variant, figure)| {
                json!({
                    "variant": variant.name,
                    "figure": figure.name(),
                    "result": self.series(variant, figure).to_json(),
                })
            })
            .collect();
        let targets: Vec<_> = target::ALL
            .iter()
            .map(|target| {
                let series = self.result(target);
                let (at_most, at_least) = match target.bound {
                    Some(Bound::AtMost(bound)) => (Some(bound), None),
                    Some(Bound::AtLeast(bound)) => (None, Some(bound)),
                    None => (None, None),
                };
                json!({
                    "figure": target.figure.name(),
                    "variant": target.variant.name,
                    "against": target.against.map(|against| against.name),
                    "at_most": at_most,
                    "at_least": at_least,
                    "result": series.to_json(),
                    "met": target.bound.and_then(|bound| Some(bound.is_met(series.median()?))),
                })
            })
            .collect();
        json!({
            "figures": figures,
            "targets": targets,
            "samples": self.samples.iter().map(Sample::to_json).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Series::new(vec![4.0, 1.0, 3.0, 2.0]).median(), Some(2.5));
        assert_eq!(Series::new(vec![3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(Series::default().median(), None);
    }

    #[test]
    fn the_spread_is_relative_to_the_median() {
        assert_eq!(Series::new(vec![9.0, 10.0, 12.0]).spread(), Some(0.3));
    }
}
