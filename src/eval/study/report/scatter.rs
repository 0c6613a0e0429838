//! Points with names, and the front of those that nothing beats.

use super::svg::{Anchor, FONT, Scale, Svg, legend_height, number, text_width, tick};

/// One point.
pub struct Point {
    /// Along the horizontal axis.
    pub x: f64,
    /// Along the vertical axis.
    pub y: f64,
    /// Standard error of `y`.
    pub y_error: f64,
    /// Which series it belongs to.
    pub series: usize,
    /// What stands beside it.
    pub label: String,
}

/// A figure of points. Lower is better vertically.
pub struct Scatter<'a> {
    /// Over the figure.
    pub title: &'a str,
    /// With the unit.
    pub x_label: &'a str,
    /// With the unit.
    pub y_label: &'a str,
    /// Whether more is better horizontally.
    pub more_is_better: bool,
    /// Names of the series.
    pub series: &'a [String],
    /// The points.
    pub points: &'a [Point],
}

const WIDTH: f64 = 580.0;
/// Height of what is between the legend and the axis.
const PLOT: f64 = 322.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 52.0;

impl Scatter<'_> {
    /// The figure.
    pub fn svg(&self) -> String {
        let top = 36.0 + legend_height(LEFT, WIDTH, self.series);
        let height = top + PLOT + BOTTOM;
        let mut svg = Svg::new(WIDTH, height, self.title);
        svg.text(0.0, 16.0, Anchor::Start, "title", self.title);
        svg.legend(LEFT, 36.0, self.series);
        let (right, bottom) = (WIDTH - 16.0, height - BOTTOM);
        let ys = || self.points.iter().flat_map(|p| [p.y - p.y_error, p.y, p.y + p.y_error]);
        let (min, max) = ys().fold((f64::INFINITY, 0f64), |(a, b), y| (a.min(y), b.max(y)));
        let x = Scale::around(self.points.iter().map(|p| p.x), LEFT, right, false);
        let y = Scale::around(ys(), bottom, top, min > 0.0 && max > 4.0 * min);
        for t in x.ticks(6) {
            svg.line((x.at(t), top), (x.at(t), bottom), "grid");
            svg.text(x.at(t), bottom + 18.0, Anchor::Middle, "tick", &tick(t));
        }
        for t in y.ticks(6) {
            svg.line((LEFT, y.at(t)), (right, y.at(t)), "grid");
            svg.text(LEFT - 8.0, y.at(t) + 4.0, Anchor::End, "tick", &tick(t));
        }
        svg.line((LEFT, bottom), (right, bottom), "axis");
        svg.line((LEFT, top), (LEFT, bottom), "axis");
        svg.text((LEFT + right) / 2.0, height - 10.0, Anchor::Middle, "label", self.x_label);
        svg.text_up(16.0, (top + bottom) / 2.0, "label", self.y_label);

        let at: Vec<(f64, f64)> = self.points.iter().map(|p| (x.at(p.x), y.at(p.y))).collect();
        let front: Vec<(f64, f64)> = self.front().into_iter().map(|i| at[i]).collect();
        svg.path(&front, "front");
        for (p, &(px, py)) in self.points.iter().zip(&at) {
            if p.y_error > 0.0 {
                svg.line((px, y.at(p.y - p.y_error)), (px, y.at(p.y + p.y_error)), "error");
            }
            let series = self.series.get(p.series).map_or("", String::as_str);
            svg.mark(px, py, p.series, &format!("{}, {series}: {} , {}", p.label, number(p.x), number(p.y)));
        }
        let bounds = (LEFT + 2.0, top, right, bottom);
        for (place, p) in places(&at, self.points, bounds).into_iter().zip(self.points) {
            if let Some((lx, ly)) = place {
                svg.text(lx, ly, Anchor::Start, "point", &p.label);
            }
        }
        svg.finish()
    }

    /// Numbers of the points that no other beats in both respects, from left to right.
    pub fn front(&self) -> Vec<usize> {
        let better = |a: f64, b: f64| if self.more_is_better { a >= b } else { a <= b };
        let beats = |a: &Point, b: &Point| better(a.x, b.x) && a.y <= b.y && (a.x != b.x || a.y != b.y);
        let mut front: Vec<usize> =
            (0..self.points.len()).filter(|&i| !self.points.iter().any(|p| beats(p, &self.points[i]))).collect();
        front.sort_by(|&a, &b| self.points[a].x.total_cmp(&self.points[b].x));
        front
    }
}

/// Where each label can stand without touching another, a point or the edge; `None` where it cannot.
fn places(
    at: &[(f64, f64)],
    points: &[Point],
    (left, top, right, bottom): (f64, f64, f64, f64),
) -> Vec<Option<(f64, f64)>> {
    let mut boxes: Vec<(f64, f64, f64, f64)> = at.iter().map(|&(x, y)| (x - 6.0, y - 6.0, x + 6.0, y + 6.0)).collect();
    at.iter()
        .zip(points)
        .map(|(&(x, y), p)| {
            let (w, h) = (text_width(&p.label), FONT);
            let candidates = [
                (x + 9.0, y + 4.0),
                (x - w - 9.0, y + 4.0),
                (x - w / 2.0, y - 10.0),
                (x - w / 2.0, y + h + 8.0),
                (x + 7.0, y - 8.0),
                (x - w - 7.0, y - 8.0),
                (x + 7.0, y + h + 5.0),
                (x - w - 7.0, y + h + 5.0),
            ];
            let fits = |&(lx, ly): &(f64, f64)| {
                let b = (lx, ly - h, lx + w, ly + 2.0);
                let inside = b.0 >= left && b.1 >= top && b.2 <= right && b.3 <= bottom;
                inside && boxes.iter().all(|o| b.2 < o.0 || b.0 > o.2 || b.3 < o.1 || b.1 > o.3)
            };
            let place = candidates.iter().copied().find(fits);
            if let Some((lx, ly)) = place {
                boxes.push((lx, ly - h, lx + w, ly + 2.0));
            }
            place
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scatter<'a>(points: &'a [Point], more_is_better: bool) -> Scatter<'a> {
        Scatter { title: "t", x_label: "x", y_label: "y", more_is_better, series: &[], points }
    }

    fn points(all: &[(f64, f64)]) -> Vec<Point> {
        all.iter().map(|&(x, y)| Point { x, y, y_error: 0.0, series: 0, label: format!("{x}-{y}") }).collect()
    }

    #[test]
    fn the_front_is_what_nothing_beats() {
        let p = points(&[(1.0, 9.0), (2.0, 5.0), (3.0, 6.0), (4.0, 1.0), (2.0, 7.0)]);
        assert_eq!(scatter(&p, false).front(), [0, 1, 3]);
        assert_eq!(scatter(&p, true).front(), [3]);
    }

    #[test]
    fn labels_do_not_touch() {
        let p = points(&[(1.0, 1.0), (1.001, 1.001), (1.002, 1.0), (5.0, 5.0)]);
        let at: Vec<_> = p.iter().map(|p| (50.0 + 20.0 * p.x, 50.0 + 20.0 * p.y)).collect();
        let placed = places(&at, &p, (0.0, 0.0, 400.0, 400.0));
        let boxes: Vec<_> = placed
            .iter()
            .zip(&p)
            .filter_map(|(at, p)| at.map(|(x, y)| (x, y - FONT, x + text_width(&p.label), y)))
            .collect();
        assert!(boxes.len() >= 2);
        for (i, a) in boxes.iter().enumerate() {
            for b in &boxes[..i] {
                assert!(a.2 <= b.0 || a.0 >= b.2 || a.3 <= b.1 || a.1 >= b.3, "{a:?} {b:?}");
            }
        }
    }
}
