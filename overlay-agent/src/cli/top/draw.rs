//! One screen.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Cell, Paragraph, Row as Cells, Sparkline, Table, Tabs},
};

use super::{Tab, View, rows};
use crate::{
    cli::{
        glance::{Glance, Rates},
        health::Health,
    },
    datapath::FastShare,
    history::Sample,
};

/// Problems beyond these are left to `status`.
const MOST_PROBLEMS: usize = 4;
/// Of the words before the hour.
const LABEL: u16 = 46;
const KEYS: &str = "tab: next table   arrows, page up and down: move   q: quit";

pub fn draw(view: &View, frame: &mut Frame<'_>) {
    let problems = view
        .glance
        .as_ref()
        .map_or(0, |glance| glance.problems.len());
    let problem_lines = u16::try_from(problems.min(MOST_PROBLEMS)).unwrap_or_default();
    let [head, trouble, from, to, tabs, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(problem_lines),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(2),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    if let Some(glance) = &view.glance {
        frame.render_widget(title(glance), head);
        let lines = glance.problems.iter().take(MOST_PROBLEMS);
        let lines: Vec<Line<'_>> = lines.map(|text| Line::from(&**text).red()).collect();
        frame.render_widget(Paragraph::new(lines), trouble);
        let carried = glance.carried.as_ref();
        let rates = carried.map(|carried| &carried.from_pods);
        share(
            "from pods",
            rates,
            glance,
            |sample| sample.from_pods,
            frame,
            from,
        );
        let rates = carried.map(|carried| &carried.to_pods);
        share("to pods", rates, glance, |sample| sample.to_pods, frame, to);
    }
    let titles = Tab::ALL.map(Tab::title);
    let chosen = Style::new().add_modifier(Modifier::REVERSED);
    let titles = Tabs::new(titles)
        .select(view.tab as usize)
        .highlight_style(chosen);
    frame.render_widget(titles, tabs);
    table(view, frame, body);
    frame.render_widget(Line::from(KEYS).dim(), foot);
}

fn title(glance: &Glance) -> Line<'_> {
    let colour = match glance.health {
        Health::Healthy => Color::Green,
        Health::Degraded => Color::Red,
        Health::Unknown => Color::Yellow,
    };
    let subnets: Vec<String> = glance.subnets.iter().map(ToString::to_string).collect();
    Line::from(vec![
        Span::from(&*glance.host).bold(),
        Span::from("  "),
        Span::from(glance.health.name()).fg(colour).bold(),
        Span::from(format!(
            "  {}  overlay-agent {}",
            subnets.join(" "),
            glance.version
        )),
    ])
}

/// A line about one direction: now, and over the last hour.
fn share(
    direction: &str,
    rates: Option<&Rates>,
    glance: &Glance,
    pick: impl Fn(&Sample) -> FastShare,
    frame: &mut Frame<'_>,
    area: Rect,
) {
    let now = match rates {
        None => "-".to_owned(),
        Some(Rates {
            fast_percent: None, ..
        }) => "no packets now".to_owned(),
        Some(Rates {
            fast_percent: Some(percent),
            fast_per_second,
            kernel_per_second,
        }) => {
            let all = rows::number(fast_per_second + kernel_per_second);
            format!("{percent:.2} % of {all}/s")
        }
    };
    let [label, hour] =
        Layout::horizontal([Constraint::Length(LABEL), Constraint::Min(0)]).areas(area);
    let text = format!("fast, {direction:<10} {now}");
    frame.render_widget(Line::from(text), label);
    if let Some(history) = &glance.history {
        let data = rows::shares(&history.samples, hour.width.into(), pick);
        let spark = Sparkline::default().data(data).max(100);
        frame.render_widget(spark.green().absent_value_symbol("·"), hour);
    }
}

fn table(view: &View, frame: &mut Frame<'_>, area: Rect) {
    let rows = view.rows();
    if rows.is_empty() {
        frame.render_widget(Line::from(view.absence()), area);
        return;
    }
    let columns = rows::columns(view.tab);
    let (titles, widths): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    let shown = rows.into_iter().skip(view.from).map(|row| {
        let cells = Cells::new(row.cells.into_iter().map(Cell::from));
        if row.trouble { cells.red() } else { cells }
    });
    let table = Table::new(shown, widths).header(Cells::new(titles).bold());
    frame.render_widget(table, area);
}
