//! What the figures are made of: text, scales, ticks, colours.

use std::fmt::Write;

/// A figure in the making.
pub struct Svg {
    out: String,
    width: f64,
}

/// Which end of a text stands at its position.
#[derive(Clone, Copy, PartialEq)]
pub enum Anchor {
    /// Its start.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// Colours that people with any kind of colour vision can tell apart (Okabe and Ito, 2008).
pub const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#4d4d4d"];

/// Height of the letters, in pixels.
pub const FONT: f64 = 12.0;

impl Svg {
    /// A figure of that many pixels, called `title` for those who cannot see it.
    pub fn new(width: f64, height: f64, title: &str) -> Self {
        let out = format!(
            "<svg viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"{}\" \
             font-family=\"inherit\" font-size=\"{FONT}\">\n",
            escape(title)
        );
        Svg { out, width }
    }

    /// A text.
    pub fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = writeln!(
            self.out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{}</text>",
            escape(text)
        );
    }

    /// A text that reads upwards.
    pub fn text_up(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let _ = writeln!(
            self.out,
            "<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\" text-anchor=\"middle\" class=\"{class}\">{}</text>",
            escape(text)
        );
    }

    /// A line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ =
            writeln!(self.out, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" class=\"{class}\"/>");
    }

    /// A filled rectangle that says `title` when pointed at.
    pub fn rect(&mut self, at: (f64, f64), size: (f64, f64), fill: &str, title: &str) {
        let _ = writeln!(
            self.out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\"><title>{}</title></rect>",
            at.0,
            at.1,
            size.0.max(0.0),
            size.1.max(0.0),
            escape(title)
        );
    }

    /// A line through points.
    pub fn path(&mut self, points: &[(f64, f64)], class: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(self.out, "<polyline points=\"{}\" class=\"{class}\"/>", points.join(" "));
    }

    /// The mark of series `i`, which has its own shape and colour.
    pub fn mark(&mut self, x: f64, y: f64, i: usize, title: &str) {
        let colour = COLOURS[i % COLOURS.len()];
        let shape = match i % 4 {
            0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\""),
            1 => format!("<rect x=\"{:.1}\" y=\"{:.1}\" width=\"9\" height=\"9\"", x - 4.5, y - 4.5),
            2 => format!("<path d=\"M{x:.1} {:.1}l5.5 9.5h-11z\"", y - 6.0),
            _ => format!("<path d=\"M{x:.1} {:.1}l6 6l-6 6l-6 -6z\"", y - 6.0),
        };
        let _ = writeln!(
            self.out,
            "{shape} fill=\"{colour}\" stroke=\"#fff\" stroke-width=\"1\"><title>{}</title></{}>",
            escape(title),
            shape.split(' ').next().unwrap_or_default().trim_start_matches('<')
        );
    }

    /// The names of all series beside their marks, from (`x`, `y`) on. Its height: [`legend_height`].
    pub fn legend(&mut self, x: f64, y: f64, names: &[String]) {
        for (i, entry) in legend_entries(x, self.width, names).into_iter().enumerate() {
            self.mark(entry.x + 6.0, y + entry.y, i, &names[i]);
            self.text(entry.x + 18.0, y + entry.y + 4.0, Anchor::Start, "label", &entry.text);
        }
    }

    /// The finished figure.
    pub fn finish(self) -> String {
        self.out + "</svg>\n"
    }
}

/// Height of a line of a legend.
const LEGEND_LINE: f64 = 20.0;

/// A name in a legend.
struct LegendEntry {
    x: f64,
    /// Below the first line.
    y: f64,
    /// The name, as much of it as a line has room for.
    text: String,
}

/// Where the names of a legend stand that begins at `x` in a figure of that width. Lines are broken at its edge.
fn legend_entries(x: f64, figure_width: f64, names: &[String]) -> Vec<LegendEntry> {
    let (mut at, mut line) = (x, 0.0);
    let entry = |name: &String| {
        let text = fitted(name, figure_width - x - 18.0);
        let width = 18.0 + text_width(&text);
        if at > x && at + width > figure_width {
            (at, line) = (x, line + LEGEND_LINE);
        }
        let entry = LegendEntry { x: at, y: line, text };
        at += width + 16.0;
        entry
    };
    names.iter().map(entry).collect()
}

/// The height of a legend that begins at `x` in a figure of that width.
pub fn legend_height(x: f64, figure_width: f64, names: &[String]) -> f64 {
    legend_entries(x, figure_width, names).last().map_or(0.0, |last| last.y + LEGEND_LINE)
}

/// About how wide a text is, in pixels.
pub fn text_width(text: &str) -> f64 {
    text.chars().count() as f64 * FONT * 0.62
}

/// The text shortened to `width` pixels.
pub fn fitted(text: &str, width: f64) -> String {
    if text_width(text) <= width {
        return text.into();
    }
    let n = (width / (FONT * 0.62)).max(2.0) as usize;
    text.chars().take(n - 1).chain(['…']).collect()
}

/// Text that means nothing to HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// From values to pixels.
#[derive(Clone, Copy)]
pub struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
    log: bool,
}

impl Scale {
    /// A scale that shows all `values` with some room around them between the pixels `start` and `end`.
    pub fn around(values: impl Iterator<Item = f64>, start: f64, end: f64, log: bool) -> Self {
        let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in values.filter(|v| v.is_finite() && (!log || *v > 0.0)) {
            (min, max) = (min.min(v), max.max(v));
        }
        if min > max {
            (min, max) = if log { (0.1, 1.0) } else { (0.0, 1.0) };
        }
        let (from, to) = if log { (min.ln(), max.ln()) } else { (min, max) };
        let room = if to > from { 0.08 * (to - from) } else { 0.1 * from.abs().max(0.1) };
        // A scale of what cannot be negative does not begin below 0.
        let from = if !log && min >= 0.0 { (from - room).max(0.0) } else { from - room };
        Scale { from, to: to + room, start, end, log }
    }

    /// A scale from 0 to the largest of `values`.
    pub fn from_zero(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let max = values.filter(|v| v.is_finite()).fold(0.0, f64::max);
        Scale { from: 0.0, to: if max > 0.0 { 1.05 * max } else { 1.0 }, start, end, log: false }
    }

    /// The pixel of `value`.
    pub fn at(&self, value: f64) -> f64 {
        let value = if self.log { value.max(f64::MIN_POSITIVE).ln() } else { value };
        self.start + (value - self.from) / (self.to - self.from) * (self.end - self.start)
    }

    /// Round values within the scale, about `n`.
    pub fn ticks(&self, n: usize) -> Vec<f64> {
        if self.log {
            let (from, to) = (self.from.exp(), self.to.exp());
            let decades = from.log10().floor() as i32..=to.log10().ceil() as i32;
            let of = |steps: &'static [f64]| -> Vec<f64> {
                let all = decades.clone().flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)));
                all.filter(|t| *t >= from && *t <= to).collect()
            };
            let few = [&[1.0][..], &[1.0, 3.0], &[1.0, 2.0, 5.0]].map(of).into_iter().find(|t| t.len() >= 3);
            if let Some(few) = few {
                return few;
            }
            return linear_ticks(from, to, n);
        }
        linear_ticks(self.from, self.to, n)
    }
}

fn linear_ticks(from: f64, to: f64, n: usize) -> Vec<f64> {
    let rough = (to - from) / n.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|s| s * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
    let first = (from / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|t| *t <= to + 1e-9 * step).take(50).collect()
}

/// A number with as many digits as it deserves.
pub fn number(v: f64) -> String {
    let a = v.abs();
    let digits = match a {
        _ if a == 0.0 => return "0".into(),
        _ if a >= 100.0 => 0,
        _ if a >= 10.0 => 1,
        _ if a >= 1.0 => 2,
        _ if a >= 0.01 => 3,
        _ if a >= 0.0001 => 5,
        _ => return format!("{v:.0e}"),
    };
    format!("{v:.digits$}")
}

/// A tick's label: without needless zeros.
pub fn tick(v: f64) -> String {
    let text = format!("{v:.5}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() || text == "-0" { "0".into() } else { text.into() }
}

/// Colour `part` of the way from one to another, each as (red, green, blue).
pub fn mix(from: (u8, u8, u8), to: (u8, u8, u8), part: f64) -> String {
    let part = part.clamp(0.0, 1.0);
    let one = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * part).round() as u8;
    format!("#{:02x}{:02x}{:02x}", one(from.0, to.0), one(from.1, to.1), one(from.2, to.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let s = Scale::around([0.0, 10.0].into_iter(), 0.0, 100.0, false);
        assert_eq!(s.ticks(5), [0.0, 5.0, 10.0]);
        let s = Scale::around([0.002, 0.5].into_iter(), 0.0, 100.0, true);
        assert!(s.ticks(5).len() >= 3 && s.ticks(5).iter().all(|t| s.at(*t) >= 0.0 && s.at(*t) <= 100.0));
        let s = Scale::around([20.0, 30.0].into_iter(), 100.0, 0.0, true);
        assert!(s.ticks(4).len() >= 2, "{:?}", s.ticks(4));
        assert!(s.at(20.0) > s.at(30.0));
        // One value, and none, still make a scale.
        for values in [vec![5.0], vec![], vec![f64::NAN]] {
            for log in [false, true] {
                assert!(Scale::around(values.iter().copied(), 0.0, 1.0, log).at(5.0).is_finite());
            }
        }
    }

    #[test]
    fn legends_stay_within_the_figure_and_have_their_height() {
        let names = |n: usize, len: usize| vec!["x".repeat(len); n];
        assert_eq!(legend_height(8.0, 580.0, &[]), 0.0);
        assert_eq!(legend_height(8.0, 580.0, &names(1, 300)), LEGEND_LINE);
        // A little over half the figure each: no two of them share a line.
        assert_eq!(legend_height(8.0, 580.0, &names(3, 40)), 3.0 * LEGEND_LINE);
        for len in [1, 10, 40, 300] {
            for e in legend_entries(8.0, 580.0, &names(20, len)) {
                assert!(e.x + 18.0 + text_width(&e.text) <= 580.0, "{len}: {} {}", e.x, e.text);
            }
        }
    }

    #[test]
    fn numbers_and_texts() {
        assert_eq!([123.4, 12.34, 0.1234, 0.001234, 0.0].map(number), ["123", "12.3", "0.123", "0.00123", "0"]);
        assert_eq!([0.5, 100.0, -0.0, 0.001].map(tick), ["0.5", "100", "0", "0.001"]);
        assert_eq!(fitted("abcdefgh", 30.0), "abc…");
        assert_eq!(escape("<a b=\"c\">&"), "&lt;a b=&quot;c&quot;&gt;&amp;");
        assert_eq!(mix((0, 0, 0), (255, 255, 255), 0.5), "#808080");
    }
}
