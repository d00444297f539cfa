//! Horizontal bars with their names on the left, as both charts have them.

use anyhow::{Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

const WIDTH: u32 = 920;
/// Of the names.
const LEFT: i32 = 290;
const RIGHT: i32 = 60;
/// Of the title and the explanation below it.
const TOP: i32 = 84;
/// Of the axis, the legend and the origin.
const BOTTOM: i32 = 92;
const BAR: i32 = 16;
const GAP: i32 = 5;
const GROUP_GAP: i32 = 14;
const FONT: &str = "sans-serif";
/// The backend takes sizes in a unit of its own, and writes pixels.
const PER_PIXEL: f64 = 1.24;

/// Colours that are told apart by people who see few of them, too.
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
pub const ORANGE: RGBColor = RGBColor(230, 159, 0);
pub const GREEN: RGBColor = RGBColor(0, 158, 115);
pub const SKY: RGBColor = RGBColor(86, 180, 233);
pub const GRAY: RGBColor = RGBColor(150, 150, 150);

/// One bar.
pub struct Bar {
    pub name: String,
    /// From the left on: how long, and in which colour.
    pub parts: Vec<(f64, RGBColor)>,
    /// Written behind it.
    pub value: String,
    /// From where to where the value was measured.
    pub range: Option<(f64, f64)>,
}

/// Bars that belong together, below a heading if they have one.
pub struct Group {
    pub heading: Option<String>,
    pub bars: Vec<Bar>,
}

/// A value that all bars are compared with.
pub struct Mark {
    pub at: f64,
    pub name: String,
}

pub struct Chart<'a> {
    pub title: &'a str,
    pub explanation: &'a str,
    /// What the axis counts, and the distance of its marks.
    pub axis: &'a str,
    pub step: f64,
    pub legend: Vec<(&'a str, RGBColor)>,
    pub groups: Vec<Group>,
    pub mark: Option<Mark>,
    pub origin: &'a str,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Chart<'_> {
    /// The SVG.
    pub fn draw(&self) -> Result<String> {
        let height = TOP + self.rows_height() + BOTTOM;
        let mut svg = String::new();
        {
            let size = (WIDTH, height.cast_unsigned());
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            self.draw_on(&area, height)
                .and_then(|()| area.present())
                .map_err(|error| anyhow!("cannot draw: {error}"))?;
        }
        Ok(svg)
    }

    fn rows_height(&self) -> i32 {
        let of_group = |group: &Group| {
            let bars = i32::try_from(group.bars.len()).unwrap_or_default();
            let heading = i32::from(group.heading.is_some());
            (bars + heading) * (BAR + GAP) + GROUP_GAP
        };
        self.groups.iter().map(of_group).sum()
    }

    fn draw_on(
        &self,
        area: &Area<'_>,
        height: i32,
    ) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        area.fill(&WHITE)?;
        text(area, self.title, (20, 26), 20.0, HPos::Left, BLACK)?;
        text(
            area,
            self.explanation,
            (20, 52),
            14.0,
            HPos::Left,
            GRAY_TEXT,
        )?;
        let bottom = height - BOTTOM;
        let most = self.most();
        let mut value = 0.0;
        while value <= most + self.step / 2.0 {
            let x = self.x(value);
            let line = PathElement::new([(x, TOP), (x, bottom)], RGBColor(222, 222, 222));
            area.draw(&line)?;
            let label = number(value, usize::from(self.step < 1.0));
            text(area, &label, (x, bottom + 12), 13.0, HPos::Center, BLACK)?;
            value += self.step;
        }
        let middle = i32::midpoint(LEFT, WIDTH.cast_signed() - RIGHT);
        text(
            area,
            self.axis,
            (middle, bottom + 31),
            13.0,
            HPos::Center,
            BLACK,
        )?;
        self.draw_bars(area)?;
        if let Some(mark) = &self.mark {
            let x = self.x(mark.at);
            let line = PathElement::new([(x, TOP - 4), (x, bottom)], BLACK.stroke_width(2));
            area.draw(&line)?;
            text(area, &mark.name, (x + 5, TOP - 7), 13.0, HPos::Left, BLACK)?;
        }
        let mut x = 20;
        for (name, colour) in &self.legend {
            let y = bottom + 54;
            area.draw(&Rectangle::new(
                [(x, y - 7), (x + 14, y + 7)],
                colour.filled(),
            ))?;
            text(area, name, (x + 20, y), 13.0, HPos::Left, BLACK)?;
            let letters = i32::try_from(name.chars().count()).unwrap_or_default();
            x += 48 + letters * 7;
        }
        text(
            area,
            self.origin,
            (20, bottom + 77),
            12.0,
            HPos::Left,
            GRAY_TEXT,
        )
    }

    fn draw_bars(&self, area: &Area<'_>) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let mut y = TOP + GROUP_GAP / 2;
        for group in &self.groups {
            if let Some(heading) = &group.heading {
                text(area, heading, (20, y + BAR / 2), 14.0, HPos::Left, BLACK)?;
                y += BAR + GAP;
            }
            for bar in &group.bars {
                let middle = y + BAR / 2;
                text(
                    area,
                    &bar.name,
                    (LEFT - 8, middle),
                    13.0,
                    HPos::Right,
                    BLACK,
                )?;
                let mut from = 0.0;
                for (length, colour) in &bar.parts {
                    let corners = [(self.x(from), y), (self.x(from + length), y + BAR)];
                    area.draw(&Rectangle::new(corners, colour.filled()))?;
                    from += length;
                }
                let mut end = self.x(from);
                if let Some((least, most)) = bar.range {
                    let ends = [(self.x(least), middle), (self.x(most), middle)];
                    area.draw(&PathElement::new(ends, BLACK))?;
                    for (x, middle) in ends {
                        let stop = [(x, middle - 4), (x, middle + 4)];
                        area.draw(&PathElement::new(stop, BLACK))?;
                        end = end.max(x);
                    }
                }
                text(area, &bar.value, (end + 6, middle), 13.0, HPos::Left, BLACK)?;
                y += BAR + GAP;
            }
            y += GROUP_GAP;
        }
        Ok(())
    }

    /// The end of the axis: a mark of it.
    fn most(&self) -> f64 {
        let bars = self.groups.iter().flat_map(|group| &group.bars);
        let ends = bars.map(|bar| {
            let length: f64 = bar.parts.iter().map(|(length, _)| length).sum();
            bar.range.map_or(length, |(_, most)| length.max(most))
        });
        let mark = self.mark.as_ref().map_or(0.0, |mark| mark.at);
        (ends.fold(mark, f64::max) / self.step).ceil() * self.step
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "a place within the picture"
    )]
    fn x(&self, value: f64) -> i32 {
        let room = f64::from(WIDTH.cast_signed() - LEFT - RIGHT);
        LEFT + (value / self.most() * room).round() as i32
    }
}

const GRAY_TEXT: RGBColor = RGBColor(90, 90, 90);

fn text(
    area: &Area<'_>,
    text: &str,
    place: (i32, i32),
    size: f64,
    anchor: HPos,
    colour: RGBColor,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let style = TextStyle::from((FONT, size * PER_PIXEL).into_font())
        .color(&colour)
        .pos(Pos::new(anchor, VPos::Center));
    area.draw(&Text::new(text.to_owned(), place, style))
}

/// With its thousands apart.
pub fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let whole = text.split('.').next().unwrap_or_default().len();
    let mut spaced = String::new();
    for (place, digit) in text.chars().enumerate() {
        if place > 0 && place < whole && (whole - place).is_multiple_of(3) {
            spaced.push(' ');
        }
        spaced.push(digit);
    }
    spaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(number(1_234_567.0, 0), "1 234 567");
        assert_eq!(number(999.0, 0), "999");
        assert_eq!(number(0.41, 2), "0.41");
        assert_eq!(number(1_000.25, 1), "1 000.2");
    }
}
