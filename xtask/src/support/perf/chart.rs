//! Charts as SVG, with nothing from elsewhere: a metric over commits, and how its samples lie.
//!
//! Colours are classes, so that the page chooses them for light and dark; what a mark stands for is told where
//! the pointer rests on it.

use super::judge::figure;
use super::stats::{median, quantile};
use crate::support::html::escape;

/// Width and height. Pixels.
const SIZE: (f64, f64) = (640.0, 170.0);
/// Room on the left for figures, and above and below.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 24.0;
/// Lines of the grid at most, and colours.
const LINES: usize = 4;
const COLOURS: usize = 5;
/// Bars of a distribution.
const BARS: usize = 48;

/// What one run saw, in a chart over commits.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Which commit, counted from the oldest.
    pub column: usize,
    /// Which line it belongs to: runs of one machine are one.
    pub line: usize,
    /// Of a tree with changes.
    pub dirty: bool,
    /// What was seen.
    pub samples: Vec<f64>,
    /// What it stands for.
    pub title: String,
}

/// A scale of figures on a side of a chart.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// One that shows all of `low` to `high`, with lines at round figures.
    fn new(low: f64, high: f64) -> Axis {
        // Where all are equal, a little around them.
        let room = if high > low { high - low } else { (high.abs() * 0.1).max(1.0) };
        let (low, high) = if high > low { (low, high) } else { (low - room, high + room) };
        let rough = room / LINES as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|s| *s >= rough);
        let step = step.unwrap_or(power * 10.0);
        Axis { low: (low / step).floor() * step, high: (high / step).ceil() * step, step }
    }

    /// From 0 to 1.
    fn part(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn lines(&self) -> Vec<f64> {
        let lines = ((self.high - self.low) / self.step).round() as usize;
        (0..=lines).map(|n| self.low + n as f64 * self.step).collect()
    }
}

/// A metric over commits; nothing of no marks. `columns` are the commits' names.
pub fn over_commits(marks: &[Mark], columns: &[String], what: &str) -> String {
    let middles: Vec<f64> = marks.iter().filter_map(|mark| median(&mark.samples)).collect();
    let ends = |mark: &Mark| Some((quantile(&mark.samples, 0.25)?, quantile(&mark.samples, 0.75)?));
    let shown = || marks.iter().filter_map(ends).flat_map(|(low, high)| [low, high]);
    let (low, high) =
        (shown().fold(f64::INFINITY, f64::min), shown().fold(f64::NEG_INFINITY, f64::max));
    if middles.is_empty() {
        return String::new();
    }
    let axis = Axis::new(low, high);
    let (width, height) = SIZE;
    let y = |value: f64| height - BOTTOM - axis.part(value) * (height - TOP - BOTTOM);
    let each = (width - LEFT - RIGHT) / columns.len().max(1) as f64;
    let x = |column: usize| LEFT + each * (column as f64 + 0.5);
    let mut text = start(what);
    for line in axis.lines() {
        let at = y(line);
        text += &format!(
            "<line class=\"g\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            width - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            figure(line)
        );
    }
    // Names where there is room for them.
    let every = (70.0 / each).ceil().max(1.0) as usize;
    for (column, name) in columns.iter().enumerate().step_by(every) {
        text += &format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(column),
            height - 7.0,
            escape(name)
        );
    }
    let lines = marks.iter().map(|mark| mark.line).max().unwrap_or(0);
    for line in 0..=lines {
        let mut corners = Vec::new();
        for column in 0..columns.len() {
            let here = |m: &&Mark| m.line == line && m.column == column && !m.dirty;
            let seen: Vec<f64> =
                marks.iter().filter(here).filter_map(|mark| median(&mark.samples)).collect();
            corners
                .extend(median(&seen).map(|middle| format!("{:.1},{:.1}", x(column), y(middle))));
        }
        text +=
            &format!("<polyline class=\"c{}\" points=\"{}\"/>", line % COLOURS, corners.join(" "));
    }
    for mark in marks {
        let (Some(middle), Some((low, high))) = (median(&mark.samples), ends(mark)) else {
            continue;
        };
        let (x, colour) = (x(mark.column), mark.line % COLOURS);
        let hollow = if mark.dirty { " h" } else { "" };
        text += &format!(
            "<g class=\"c{colour}{hollow}\"><title>{}: {} ({} to {})</title>\
             <line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>\
             <circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3.5\"/></g>",
            escape(&mark.title),
            figure(middle),
            figure(low),
            figure(high),
            y(low),
            y(high),
            y(middle)
        );
    }
    text + "</svg>"
}

/// How samples lie: bars of the newer ones, and the outline of the older ones. What lies beyond 95 of a hundred
/// is counted in the last bar.
pub fn distribution(older: &[f64], newer: &[f64], what: &str) -> String {
    let all = [older, newer].concat();
    let least = all.iter().copied().fold(f64::INFINITY, f64::min);
    let Some(most) = quantile(&all, 0.95) else { return String::new() };
    let axis = Axis::new(least, most);
    let (width, height) = SIZE;
    let counts = |samples: &[f64]| {
        let mut counts = [0.0; BARS];
        for sample in samples {
            let bar = (axis.part(*sample) * BARS as f64) as usize;
            counts[bar.min(BARS - 1)] += 1.0 / samples.len() as f64;
        }
        counts
    };
    let (before, now) = (counts(older), counts(newer));
    let highest = before.iter().chain(&now).copied().fold(f64::MIN_POSITIVE, f64::max);
    let each = (width - LEFT - RIGHT) / BARS as f64;
    let x = |bar: usize| LEFT + each * bar as f64;
    let y = |part: f64| height - BOTTOM - part / highest * (height - TOP - BOTTOM);
    let mut text = start(what);
    for (bar, part) in now.iter().enumerate().filter(|(_, part)| **part > 0.0) {
        let (top, tall) = (y(*part), y(0.0) - y(*part));
        text += &format!(
            "<rect class=\"c0\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{tall:.1}\"/>",
            x(bar),
            each - 1.0
        );
    }
    if !older.is_empty() {
        let steps = before.iter().enumerate();
        let corners: Vec<String> = steps
            .map(|(bar, part)| {
                let y = y(*part);
                format!("{:.1},{y:.1} {:.1},{y:.1}", x(bar), x(bar + 1))
            })
            .collect();
        text += &format!("<polyline class=\"c1\" points=\"{}\"/>", corners.join(" "));
    }
    for line in axis.lines() {
        text += &format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            LEFT + axis.part(line) * (width - LEFT - RIGHT),
            height - 7.0,
            figure(line)
        );
    }
    text + "</svg>"
}

fn start(what: &str) -> String {
    let (width, height) = SIZE;
    format!(
        "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\
         <title>{}</title>",
        escape(what)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_show_all_at_round_figures() {
        for (low, high, lines) in [
            (0.0, 100.0, vec![0.0, 50.0, 100.0]),
            (93.0, 105.0, vec![90.0, 95.0, 100.0, 105.0]),
            (95.0, 95.0, vec![85.0, 90.0, 95.0, 100.0, 105.0]),
            (0.0, 0.0, vec![-1.0, -0.5, 0.0, 0.5, 1.0]),
        ] {
            let axis = Axis::new(low, high);
            assert_eq!(axis.lines(), lines, "{low} to {high}");
            assert!(axis.low <= low && axis.high >= high);
        }
        let axis = Axis::new(0.0, 100.0);
        assert_eq!([-5.0, 0.0, 50.0, 200.0].map(|v| axis.part(v)), [0.0, 0.0, 0.5, 1.0]);
    }

    #[test]
    fn marks_stand_where_their_figures_say() {
        let mark = |column, dirty, samples: &[f64]| Mark {
            column,
            line: 0,
            dirty,
            samples: samples.to_vec(),
            title: "a <b>".to_owned(),
        };
        let marks = [mark(0, false, &[0.0]), mark(1, false, &[100.0]), mark(1, true, &[50.0])];
        let columns = ["aaa".to_owned(), "bbb".to_owned()];
        let chart = over_commits(&marks, &columns, "what");
        // The oldest at the bottom left, the newest at the top right; a dirty one is on no line.
        assert!(chart.contains("points=\"214.0,146.0 490.0,10.0\""), "{chart}");
        assert!(chart.contains("class=\"c0 h\"") && chart.contains("cy=\"78.0\""), "{chart}");
        assert!(chart.contains("a &lt;b&gt;: 100 (100 to 100)"), "{chart}");
        assert!(chart.contains(">aaa</text>") && chart.ends_with("</svg>"), "{chart}");
        assert_eq!(over_commits(&[], &[], "nothing"), "");
        assert_eq!(over_commits(&[mark(0, false, &[])], &columns, "nothing"), "");
    }

    #[test]
    fn a_distribution_counts_each_sample_once() {
        let newer: Vec<f64> = (0..96).map(f64::from).collect();
        let chart = distribution(&[], &newer, "what");
        // 48 bars to 100, the first round figure that 95 of a hundred lie below.
        assert_eq!(chart.matches("<rect").count(), 46);
        assert_eq!(chart.matches("<polyline").count(), 0);
        let chart = distribution(&[1.0, 1.0, 2.0], &[5.0; 9], "what");
        assert_eq!((chart.matches("<rect").count(), chart.matches("<polyline").count()), (1, 1));
        assert_eq!(distribution(&[], &[], "what"), "");
    }
}
