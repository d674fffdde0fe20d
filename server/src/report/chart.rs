//! Charts as inline SVG: no script, no font, no file beside the page.
//!
//! Colours come from the page's style sheet by class (`s0`, `s1`, …), so that a chart follows the
//! reader's light or dark scheme. Values show on hovering (`<title>`).

use std::fmt::Write;

use super::text::Escaped;

const WIDTH: f64 = 640.0;
/// A heat map takes the page's whole width.
const WIDE: f64 = 1080.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 42.0;

/// Colours the style sheet has; further series begin again.
pub const COLOURS: usize = 8;

/// A named line.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, ascending in x.
    pub points: Vec<(f64, f64)>,
}

/// Lines over rounds, with single values as dots behind them.
#[derive(Debug, Clone)]
pub struct LineChart<'a> {
    /// What the chart shows, for readers that do not see it.
    pub label: &'a str,
    /// What is along the bottom.
    pub x_label: &'a str,
    /// The lines.
    pub series: Vec<Series>,
    /// Dots behind the lines with what they say on hovering.
    pub dots: Vec<(f64, f64, String)>,
    /// How a value is written.
    pub format: fn(f64) -> String,
}

/// Bars over rounds, stacked.
#[derive(Debug, Clone)]
pub struct BarChart<'a> {
    /// What the chart shows, for readers that do not see it.
    pub label: &'a str,
    /// What is along the bottom.
    pub x_label: &'a str,
    /// Names of the parts of a bar, from the bottom up.
    pub parts: Vec<String>,
    /// Position and parts of each bar.
    pub bars: Vec<(u32, Vec<f64>)>,
    /// How a value is written.
    pub format: fn(f64) -> String,
    /// Steps of the vertical axis are this, or ten or so times this: 1 or 1024.
    pub unit: f64,
}

/// Cells of clients and rounds, darker where the value is higher.
#[derive(Debug, Clone)]
pub struct HeatMap<'a> {
    /// What the chart shows, for readers that do not see it.
    pub label: &'a str,
    /// What is along the bottom.
    pub x_label: &'a str,
    /// Names of the rows.
    pub rows: Vec<String>,
    /// Number of columns; they are rounds 1 and up.
    pub columns: u32,
    /// Row, round, value.
    pub cells: Vec<(usize, u32, f64)>,
    /// How a value is written.
    pub format: fn(f64) -> String,
}

/// A linear scale from values to the drawing.
#[derive(Debug, Clone, Copy)]
struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Scale {
    fn at(self, value: f64) -> f64 {
        self.start + (value - self.from) / (self.to - self.from) * (self.end - self.start)
    }
}

/// Round steps of an axis that covers `from` to `to` with about `wanted` steps.
fn ticks(from: f64, to: f64, wanted: usize, unit: f64) -> Vec<f64> {
    let rough = (to - from) / wanted as f64 / unit;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&step| step >= rough);
    let step = step.unwrap_or(rough) * unit;
    let first = (from / step).ceil() as i64;
    let last = (to / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// The range of finite values with a little air; `None` without any.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return None;
    }
    let air = if high > low { (high - low) * 0.06 } else { (high.abs() * 0.05).max(1e-3) };
    Some((low - air, high + air))
}

fn open(svg: &mut String, label: &str, (width, height): (f64, f64)) {
    let label = Escaped(label);
    let _ = write!(
        svg,
        r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}"><title>{label}</title>"#
    );
}

/// Grid, ticks and the label of the horizontal axis.
fn axes(svg: &mut String, x: Scale, y: Scale, y_ticks: &[f64], format: fn(f64) -> String) {
    for &value in y_ticks {
        let at = y.at(value);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0,
            Escaped(&format(value)),
        );
    }
    for value in ticks(x.from, x.to, 8, 1.0) {
        // Rounds are whole numbers.
        if value.fract() == 0.0 {
            let _ = write!(
                svg,
                r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">{value}</text>"#,
                x.at(value),
                HEIGHT - BOTTOM + 18.0,
            );
        }
    }
}

fn axis_label(svg: &mut String, text: &str, (width, height): (f64, f64)) {
    let _ = write!(
        svg,
        r#"<text class="axis" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
        (LEFT + width - RIGHT) / 2.0,
        height - 6.0,
        Escaped(text),
    );
}

/// Names of series with their colours, as a list below the chart.
fn legend(out: &mut String, names: impl Iterator<Item = String>) {
    out.push_str(r#"<ul class="legend">"#);
    for (i, name) in names.enumerate() {
        let _ = write!(out, r#"<li class="s{}">{}</li>"#, i % COLOURS, Escaped(&name));
    }
    out.push_str("</ul>");
}

impl LineChart<'_> {
    /// The chart and its legend as HTML; `None` when there is nothing to draw.
    pub fn render(&self) -> Option<String> {
        let points = || self.series.iter().flat_map(|series| series.points.iter().copied());
        let dots = || self.dots.iter().map(|&(x, y, _)| (x, y));
        let (low, high) = range(points().chain(dots()).map(|(_, y)| y))?;
        let (first, last) = points()
            .chain(dots())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), (x, _)| (a.min(x), b.max(x)));
        let (first, last) = if last > first { (first, last) } else { (first - 0.5, last + 0.5) };
        let x = Scale { from: first, to: last, start: LEFT + 8.0, end: WIDTH - RIGHT - 8.0 };
        let y = Scale { from: low, to: high, start: HEIGHT - BOTTOM, end: TOP };

        let mut svg = String::new();
        open(&mut svg, self.label, (WIDTH, HEIGHT));
        axes(&mut svg, x, y, &ticks(low, high, 5, 1.0), self.format);
        for (at, value, says) in &self.dots {
            if value.is_finite() {
                let _ = write!(
                    svg,
                    r#"<circle class="dot" cx="{:.1}" cy="{:.1}" r="3"><title>{}</title></circle>"#,
                    x.at(*at),
                    y.at(*value),
                    Escaped(says),
                );
            }
        }
        for (i, series) in self.series.iter().enumerate() {
            self.line(&mut svg, i % COLOURS, series, x, y);
        }
        axis_label(&mut svg, self.x_label, (WIDTH, HEIGHT));
        svg.push_str("</svg>");
        if self.series.len() > 1 {
            legend(&mut svg, self.series.iter().map(|series| series.name.clone()));
        }
        Some(svg)
    }

    fn line(&self, svg: &mut String, colour: usize, series: &Series, x: Scale, y: Scale) {
        let finite = || series.points.iter().filter(|(_, value)| value.is_finite());
        let _ = write!(svg, r#"<polyline class="line s{colour}" points=""#);
        for &(at, value) in finite() {
            let _ = write!(svg, "{:.1},{:.1} ", x.at(at), y.at(value));
        }
        svg.push_str(r#""/>"#);
        // Markers on a long line would hide it; they still answer to the pointer.
        let radius = if series.points.len() > 60 { 1.5 } else { 3.0 };
        for &(at, value) in finite() {
            let _ = write!(
                svg,
                r#"<circle class="mark s{colour}" cx="{:.1}" cy="{:.1}" r="{radius}"><title>{}, {} {at}: {}</title></circle>"#,
                x.at(at),
                y.at(value),
                Escaped(&series.name),
                Escaped(self.x_label),
                Escaped(&(self.format)(value)),
            );
        }
    }
}

impl BarChart<'_> {
    /// The chart and its legend as HTML; `None` when there is nothing to draw.
    pub fn render(&self) -> Option<String> {
        let highest = self.bars.iter().map(|(_, parts)| parts.iter().sum::<f64>());
        let highest = highest.fold(0.0, f64::max);
        let first = f64::from(self.bars.first()?.0) - 0.5;
        let last = f64::from(self.bars.last()?.0) + 0.5;
        if highest <= 0.0 {
            return None;
        }
        let x = Scale { from: first, to: last, start: LEFT, end: WIDTH - RIGHT };
        let y = Scale { from: 0.0, to: highest * 1.06, start: HEIGHT - BOTTOM, end: TOP };

        let mut unit = 1.0;
        while self.unit > 1.0 && highest >= unit * self.unit {
            unit *= self.unit;
        }
        let mut svg = String::new();
        open(&mut svg, self.label, (WIDTH, HEIGHT));
        axes(&mut svg, x, y, &ticks(0.0, highest * 1.06, 5, unit), self.format);
        let slot = x.at(1.0) - x.at(0.0);
        let width = (slot * 0.72).clamp(0.8, 46.0);
        for (round, parts) in &self.bars {
            let mut below = 0.0;
            for (i, &part) in parts.iter().enumerate() {
                let top = y.at(below + part);
                let _ = write!(
                    svg,
                    r#"<rect class="bar s{}" x="{:.1}" y="{top:.1}" width="{width:.1}" height="{:.1}"><title>{} {round}, {}: {}</title></rect>"#,
                    i % COLOURS,
                    x.at(f64::from(*round)) - width / 2.0,
                    y.at(below) - top,
                    Escaped(self.x_label),
                    Escaped(&self.parts[i]),
                    Escaped(&(self.format)(part)),
                );
                below += part;
            }
        }
        axis_label(&mut svg, self.x_label, (WIDTH, HEIGHT));
        svg.push_str("</svg>");
        if self.parts.len() > 1 {
            legend(&mut svg, self.parts.iter().cloned());
        }
        Some(svg)
    }
}

impl HeatMap<'_> {
    /// The map and its scale as HTML; `None` when there is nothing to draw.
    pub fn render(&self) -> Option<String> {
        let finite = || self.cells.iter().filter(|(_, _, value)| value.is_finite());
        let (low, high) = finite()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &(_, _, v)| (a.min(v), b.max(v)));
        if low > high || self.columns == 0 {
            return None;
        }
        let row_height = if self.rows.len() > 16 { 16.0 } else { 22.0 };
        let height = TOP + row_height * self.rows.len() as f64 + BOTTOM;
        let column_width = (WIDE - LEFT - RIGHT) / f64::from(self.columns);
        let gap = if column_width > 5.0 { 1.5 } else { 0.2 };

        let mut svg = String::new();
        open(&mut svg, self.label, (WIDE, height));
        for (row, name) in self.rows.iter().enumerate() {
            let _ = write!(
                svg,
                r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                LEFT - 8.0,
                TOP + row_height * (row as f64 + 0.5) + 4.0,
                Escaped(name),
            );
        }
        for &(row, round, value) in finite() {
            let share = if high > low { (value - low) / (high - low) } else { 0.5 };
            let _ = write!(
                svg,
                r#"<rect class="cell" style="opacity:{:.2}" x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" rx="2"><title>{}, {} {round}: {}</title></rect>"#,
                0.12 + 0.88 * share,
                LEFT + column_width * f64::from(round - 1),
                TOP + row_height * row as f64,
                (column_width - gap).max(0.5),
                row_height - gap,
                Escaped(&self.rows[row]),
                Escaped(self.x_label),
                Escaped(&(self.format)(value)),
            );
        }
        let x =
            Scale { from: 0.5, to: f64::from(self.columns) + 0.5, start: LEFT, end: WIDE - RIGHT };
        for value in ticks(x.from, x.to, 8, 1.0).into_iter().filter(|v| v.fract() == 0.0) {
            let _ = write!(
                svg,
                r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">{value}</text>"#,
                x.at(value),
                height - BOTTOM + 16.0,
            );
        }
        axis_label(&mut svg, self.x_label, (WIDE, height));
        let _ = write!(
            svg,
            r#"</svg><p class="scale"><span>{}</span><i></i><span>{}</span></p>"#,
            Escaped(&(self.format)(low)),
            Escaped(&(self.format)(high)),
        );
        Some(svg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(value: f64) -> String {
        format!("{value:.2}")
    }

    #[test]
    fn axes_have_round_steps_that_cover_the_range() {
        assert_eq!(ticks(0.0, 10.0, 5, 1.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(1.93, 2.61, 5, 1.0).len(), 4);
        assert_eq!(ticks(0.0, 4096.0, 4, 1024.0), [0.0, 1024.0, 2048.0, 3072.0, 4096.0]);
    }

    #[test]
    fn a_chart_survives_one_point_equal_points_and_values_that_are_no_numbers() {
        let chart = |points: Vec<(f64, f64)>| LineChart {
            label: "loss",
            x_label: "round",
            series: vec![Series { name: "a".into(), points }],
            dots: Vec::new(),
            format: plain,
        };
        assert_eq!(chart(vec![]).render(), None);
        assert_eq!(chart(vec![(1.0, f64::NAN)]).render(), None);
        for points in [vec![(1.0, 2.0)], vec![(1.0, 2.0), (2.0, 2.0), (3.0, f64::NAN)]] {
            let svg = chart(points).render().unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn names_are_escaped_wherever_they_appear() {
        let hostile = "<script>alert('x')</script>";
        let line = LineChart {
            label: hostile,
            x_label: hostile,
            series: ["a", hostile]
                .map(|name| Series { name: name.into(), points: vec![(0.0, 1.0), (1.0, 2.0)] })
                .to_vec(),
            dots: vec![(0.0, 1.5, hostile.into())],
            format: plain,
        };
        let bars = BarChart {
            label: hostile,
            x_label: hostile,
            parts: vec![hostile.into(), "b".into()],
            bars: vec![(1, vec![1.0, 2.0])],
            format: plain,
            unit: 1024.0,
        };
        let heat = HeatMap {
            label: hostile,
            x_label: hostile,
            rows: vec![hostile.into()],
            columns: 2,
            cells: vec![(0, 1, 1.0), (0, 2, 2.0)],
            format: plain,
        };
        for svg in [line.render(), bars.render(), heat.render()] {
            let svg = svg.unwrap();
            assert!(!svg.contains("<script"), "{svg}");
            assert!(svg.contains("&lt;script&gt;"));
        }
    }
}
