//! Quantisation against sharing as coloured tables, and whether the damage of the two adds up.

use super::Group;
use super::svg::{Anchor, Svg, fitted, mix, number};
use crate::eval::study::Record;
use crate::eval::study::grid::NO_SHARING;

const CELL: (f64, f64) = (112.0, 34.0);
const LEFT: f64 = 120.0;
const TOP: f64 = 74.0;

/// A table of figures with a colour for each.
pub struct Heat<'a> {
    /// Over the table.
    pub title: &'a str,
    /// Under the title.
    pub about: &'a str,
    /// Rows: quantisations.
    pub rows: &'a [String],
    /// Columns: ways of sharing.
    pub columns: &'a [String],
    /// Values and their errors, row by row.
    pub values: &'a [Option<(f64, f64)>],
    /// The colours run from blue over white to red, white at 0; otherwise from white to blue, or the other way round.
    pub colours: Colours,
    /// How a value is written.
    pub format: fn(f64) -> String,
}

/// What the colours of a table say.
#[derive(Clone, Copy, PartialEq)]
pub enum Colours {
    /// Less than 0 is blue, more is red.
    Signed,
    /// More is darker.
    More,
    /// Less is darker.
    Less,
}

impl Heat<'_> {
    /// The figure.
    pub fn svg(&self) -> String {
        let width = (LEFT + CELL.0 * self.columns.len() as f64).max(380.0) + 8.0;
        let height = TOP + CELL.1 * self.rows.len() as f64 + 8.0;
        let mut svg = Svg::new(width, height, self.title);
        svg.text(0.0, 16.0, Anchor::Start, "title", self.title);
        svg.text(0.0, 34.0, Anchor::Start, "tick", self.about);
        for (j, name) in self.columns.iter().enumerate() {
            let x = LEFT + CELL.0 * (j as f64 + 0.5);
            svg.text(x, TOP - 8.0, Anchor::Middle, "label", &fitted(name, CELL.0 - 6.0));
        }
        let all = || self.values.iter().flatten().map(|v| v.0).filter(|v| v.is_finite());
        let (min, max) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
        let most = min.abs().max(max.abs()).max(f64::MIN_POSITIVE);
        for (i, name) in self.rows.iter().enumerate() {
            let y = TOP + CELL.1 * i as f64;
            svg.text(LEFT - 8.0, y + 21.0, Anchor::End, "label", &fitted(name, LEFT - 14.0));
            for (j, column) in self.columns.iter().enumerate() {
                let at = (LEFT + CELL.0 * j as f64, y);
                let size = (CELL.0 - 2.0, CELL.1 - 2.0);
                let Some((value, error)) = self.values[i * self.columns.len() + j] else {
                    svg.rect(at, size, "#f2f2f2", "not measured");
                    svg.text(at.0 + CELL.0 / 2.0, y + 21.0, Anchor::Middle, "tick", "–");
                    continue;
                };
                let part = match self.colours {
                    Colours::Signed => value / most,
                    Colours::More => (value - min) / (max - min).max(f64::MIN_POSITIVE),
                    Colours::Less => (max - value) / (max - min).max(f64::MIN_POSITIVE),
                };
                // Never so dark that the figures cannot be read.
                let fill = match part < 0.0 {
                    true => mix((255, 255, 255), (116, 173, 209), -part),
                    false if self.colours == Colours::Signed => mix((255, 255, 255), (244, 146, 110), part),
                    false => mix((255, 255, 255), (134, 182, 222), part),
                };
                let (value, error) = ((self.format)(value), (self.format)(error).replace('+', ""));
                svg.rect(at, size, &fill, &format!("{name}, {column}: {value} ± {error}"));
                svg.text(at.0 + CELL.0 / 2.0 - 1.0, y + 15.0, Anchor::Middle, "value", &value);
                svg.text(at.0 + CELL.0 / 2.0 - 1.0, y + 28.0, Anchor::Middle, "small", &format!("± {error}"));
            }
        }
        svg.finish()
    }
}

/// A figure of every cell of a group, row by row: quantisations, and in each the ways of sharing.
pub fn values(group: &Group, figure: impl Fn(&Record) -> Option<(f64, f64)>) -> Vec<Option<(f64, f64)>> {
    let cells = group.quants.iter().flat_map(|q| group.sharings.iter().map(move |s| (q, s)));
    cells.map(|(q, s)| figure(group.find(q, s)?)).collect()
}

/// A figure and its standard error.
pub type Measured = (f64, f64);

/// A figure with the error that stands beside it.
pub fn measured(record: &Record, pointer: &str) -> Option<(f64, f64)> {
    let value = record.number(&format!("{pointer}/value"))?;
    Some((value, record.number(&format!("{pointer}/error")).unwrap_or(0.0)))
}

/// How much worse (in `ln` perplexity) each combination is than quantisation and sharing are together when each is alone:
/// `combined - quantised - shared + neither`, with neither in the row that is least damaged. `None` without that row.
pub fn interaction(group: &Group) -> Option<(String, Vec<Option<Measured>>)> {
    let ln_ratio = |q: &str, s: &str| measured(group.find(q, s)?, "/quality/divergence/ln_ppl_ratio");
    let alone = |q: &&String| measured(group.find(q, NO_SHARING)?, "/quality/divergence/kld").map(|v| v.0);
    let reference = group
        .quants
        .iter()
        .filter(|q| alone(q).is_some())
        .min_by(|a, b| alone(a).unwrap_or(f64::MAX).total_cmp(&alone(b).unwrap_or(f64::MAX)))?;
    let neither = ln_ratio(reference, NO_SHARING)?;
    let excess = |q: &String, s: &String| {
        let (both, quantised, shared) = (ln_ratio(q, s)?, ln_ratio(q, NO_SHARING)?, ln_ratio(reference, s)?);
        if q == reference || s == NO_SHARING {
            // 0 by definition.
            return Some((0.0, 0.0));
        }
        let error = [both, quantised, shared, neither].iter().map(|v| v.1 * v.1).sum::<f64>().sqrt();
        Some((both.0 - quantised.0 - shared.0 + neither.0, error))
    };
    let cells = group.quants.iter().flat_map(|q| group.sharings.iter().map(move |s| (q, s)));
    Some((reference.clone(), cells.map(|(q, s)| excess(q, s)).collect()))
}

/// A number with its sign.
pub fn signed(v: f64) -> String {
    if v == 0.0 { "0".into() } else { format!("{v:+.3}") }
}

/// A fraction in percent.
pub fn percent(v: f64) -> String {
    format!("{:.1} %", 100.0 * v)
}

/// A number as it is.
pub fn plain(v: f64) -> String {
    number(v)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::study::record::Status;
    use crate::eval::study::record::tests::record;

    #[test]
    fn damage_that_adds_up_has_no_excess() {
        let all = [
            record(0, "Q8_0", "none", 0.01, Status::Ok),
            record(1, "Q8_0", "five", 0.11, Status::Ok),
            record(2, "Q4_0", "none", 0.21, Status::Ok),
            record(3, "Q4_0", "five", 0.36, Status::Ok),
        ];
        let group = Group::all(&all).remove(0);
        let (reference, excess) = interaction(&group).unwrap();
        assert_eq!(reference, "Q8_0");
        let excess: Vec<f64> = excess.into_iter().map(|v| v.unwrap().0).collect();
        // 0.36 is 0.05 more than 0.21 + (0.11 - 0.01).
        assert_eq!(excess[..3], [0.0, 0.0, 0.0]);
        assert!((excess[3] - 0.05).abs() < 1e-12);
    }

    #[test]
    fn what_was_not_measured_is_left_open() {
        let all = [record(0, "Q8_0", "none", 0.01, Status::Ok), record(1, "Q4_0", "five", 0.3, Status::Ok)];
        let group = Group::all(&all).remove(0);
        let open = values(&group, |r| measured(r, "/quality/divergence/kld"));
        assert_eq!(open.iter().filter(|v| v.is_none()).count(), 2);
        let svg = Heat {
            title: "t",
            about: "a",
            rows: &group.quants,
            columns: &group.sharings,
            values: &open,
            colours: Colours::More,
            format: plain,
        };
        assert_eq!(svg.svg().matches("not measured").count(), 2);
    }
}
