//! Bars and dots, a row for each cell.

use super::svg::{Anchor, COLOURS, Scale, Svg, fitted, legend_height, tick};

/// One row.
pub struct Row {
    /// Before it.
    pub label: String,
    /// Which series it belongs to.
    pub series: usize,
    /// Lengths of the parts of the bar.
    pub parts: Vec<f64>,
    /// A value marked by a line, or the standard error of a dot.
    pub extra: Option<f64>,
    /// After it.
    pub text: String,
    /// A new group begins here.
    pub starts_group: bool,
}

/// Rows over one axis.
pub struct Bars<'a> {
    /// Over the figure.
    pub title: &'a str,
    /// With the unit.
    pub x_label: &'a str,
    /// Names of the series; empty: no legend.
    pub series: &'a [String],
    /// The rows.
    pub rows: &'a [Row],
    /// Dots with errors, on an axis that need not begin at 0, instead of bars.
    pub dots: bool,
    /// A value that all are compared with.
    pub reference: Option<f64>,
}

const WIDTH: f64 = 580.0;
const LEFT: f64 = 190.0;
const ROW: f64 = 20.0;

impl Bars<'_> {
    /// The figure.
    pub fn svg(&self) -> String {
        let n_groups = self.rows.iter().filter(|r| r.starts_group).count();
        let body = ROW * self.rows.len() as f64 + 8.0 * n_groups as f64 + 6.0;
        let top = 28.0 + legend_height(8.0, WIDTH, self.series);
        let height = top + body + 44.0;
        let mut svg = Svg::new(WIDTH, height, self.title);
        // Its letters are larger than those that widths are known of.
        svg.text(0.0, 16.0, Anchor::Start, "title", &fitted(self.title, 0.8 * WIDTH));
        svg.legend(8.0, 36.0, self.series);
        let right = WIDTH - 80.0;
        let sum = |r: &Row| r.parts.iter().sum::<f64>();
        let error = |r: &Row| if self.dots { r.extra.unwrap_or(0.0) } else { 0.0 };
        let ends = self.rows.iter().flat_map(|r| [sum(r) - error(r), sum(r) + error(r)]);
        let marks = self.rows.iter().filter_map(|r| r.extra.filter(|_| !self.dots));
        let x = match self.dots {
            true => Scale::around(ends.chain(self.reference), LEFT, right, false),
            false => Scale::from_zero(ends.chain(marks), LEFT, right),
        };
        let bottom = top + body;
        for t in x.ticks(5) {
            svg.line((x.at(t), top), (x.at(t), bottom), "grid");
            svg.text(x.at(t), bottom + 16.0, Anchor::Middle, "tick", &tick(t));
        }
        svg.line((LEFT, top), (LEFT, bottom), "axis");
        svg.text((LEFT + right) / 2.0, bottom + 36.0, Anchor::Middle, "label", self.x_label);
        if let Some(r) = self.reference {
            svg.line((x.at(r), top), (x.at(r), bottom), "front");
        }
        let mut y = top + 4.0;
        for (i, row) in self.rows.iter().enumerate() {
            if row.starts_group && i > 0 {
                y += 8.0;
            }
            svg.text(LEFT - 8.0, y + 13.0, Anchor::End, "label", &fitted(&row.label, LEFT - 14.0));
            let title = format!("{}: {}", row.label, row.text);
            let middle = y + ROW / 2.0 - 1.0;
            let mut end = LEFT;
            if self.dots {
                let (v, e) = (sum(row), error(row));
                svg.line((x.at(v - e), middle), (x.at(v + e), middle), "error");
                svg.mark(x.at(v), middle, row.series, &title);
                end = x.at(v + e) + 4.0;
            } else {
                let mut from = 0.0;
                for (j, part) in row.parts.iter().enumerate() {
                    let colour = if j == 0 { COLOURS[row.series % COLOURS.len()] } else { "#bbbbbb" };
                    svg.rect((x.at(from), y + 2.0), (x.at(from + part) - x.at(from), ROW - 6.0), colour, &title);
                    from += part;
                    end = end.max(x.at(from));
                }
                if let Some(mark) = row.extra {
                    svg.line((x.at(mark), y), (x.at(mark), y + ROW - 2.0), "mark");
                    end = end.max(x.at(mark));
                }
            }
            svg.text(end + 5.0, y + 13.0, Anchor::Start, "tick", &row.text);
            y += ROW;
        }
        svg.finish()
    }
}
