//! A report as Markdown tables.

use std::fmt::Write as _;

use super::{
    figure::Figure,
    report::{Report, Series},
    target::{self, Bound, Target},
    variant,
};

/// Medians with their spread, and targets. A cell of `–` means that no round was clean.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    for figure in Figure::ALL {
        let rows = variant::ALL
            .iter()
            .filter(|variant| figure.applies_to(variant))
            .map(|variant| (variant.name, report.series(variant, figure)));
        text.push_str(&of_variants(figure.title(), rows, figure.digits()));
    }
    text.push_str("### Targets\n\n| figure | target | median | least – most | rounds | met |\n");
    text.push_str("|---|---|---|---|---|---|\n");
    for target in &target::ALL {
        text.push_str(&target_line(report, target));
    }
    text
}

/// One figure of several variants.
pub fn of_variants(
    title: &str,
    rows: impl IntoIterator<Item = (&'static str, Series)>,
    digits: usize,
) -> String {
    let mut text =
        format!("### {title}\n\n| variant | median | least – most | rounds |\n|---|---|---|---|\n");
    for (variant, series) in rows {
        let cells = cells(&series, digits);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {variant} | {cells} | {} |", series.count());
    }
    text.push('\n');
    text
}

fn target_line(report: &Report, target: &Target) -> String {
    let series = report.result(target);
    let digits = if target.against.is_some() { 3 } else { 0 };
    let against = target
        .against
        .map_or_else(String::new, |against| format!(" / {}", against.name));
    let bound = match target.bound {
        Some(Bound::AtMost(bound)) => format!("≤ {bound}"),
        Some(Bound::AtLeast(bound)) => format!("≥ {bound}"),
        None => String::new(),
    };
    let met = target.bound.zip(series.median());
    let met = met.map_or("–", |(bound, median)| {
        if bound.is_met(median) {
            "yes"
        } else {
            "**no**"
        }
    });
    format!(
        "| {}: {}{against} | {bound} | {} | {} | {met} |\n",
        target.figure.title(),
        target.variant.name,
        cells(&series, digits),
        series.count(),
    )
}

fn cells(series: &Series, digits: usize) -> String {
    match series.median().zip(series.range()) {
        Some((median, (least, most))) => {
            format!("{median:.digits$} | {least:.digits$} – {most:.digits$}")
        }
        None => "– | –".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_without_clean_rounds_is_a_dash() {
        assert_eq!(cells(&Series::default(), 0), "– | –");
        assert_eq!(
            cells(&Series::new(vec![1.25, 1.5]), 2),
            "1.38 | 1.25 – 1.50"
        );
    }

    #[test]
    fn every_variant_and_target_has_a_line() {
        let report = Report {
            samples: Vec::new(),
            rounds: 5,
        };
        let text = render(&report);
        for variant in variant::ALL {
            assert!(text.contains(&format!("| {} |", variant.name)), "{text}");
        }
        let bounds = target::ALL.iter().filter(|target| target.bound.is_some());
        assert_eq!(
            text.matches("| ≤ ").count() + text.matches("| ≥ ").count(),
            bounds.count()
        );
    }
}
