//! The findings as a web page that needs nothing else: four heat maps, and the damage of every layer beside them.

use super::{Findings, MEASURES};
use std::fmt::Write;

const CELL: usize = 12;
const MARGIN: usize = 30;

/// The page.
pub fn page(f: &Findings) -> String {
    let mut out = String::new();
    let title = format!("Attention of {}", escape(&f.name));
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n<style>body{{font-family:\
         sans-serif;margin:2em}}section{{display:inline-block;margin:0 2em 2em 0;vertical-align:top}}svg text{{font-size:8px;\
         fill:#333}}h2{{font-size:1em}}</style></head>\n<body><h1>{title}</h1>\n<p>Rows and columns are layers. Similarity of \
         attention weights, mean over heads; matched: heads paired so that they are most alike. Bars: KL divergence from the \
         unchanged model per token when that layer alone is of kind {} with the nearest earlier layer of the same heads and \
         window as its source.</p>\n",
        f.kind
    );
    for (i, (name, matrix)) in MEASURES.iter().zip(f.matrices()).enumerate() {
        let correlation = f.correlation(i).map_or("not known".into(), |c| format!("{c:.2}"));
        let _ = write!(
            out,
            "<section><h2>{} (rank correlation with the damage: {correlation})</h2>",
            name.replace('_', ", ")
        );
        heat_map(&mut out, f, matrix, i < 2);
        out.push_str("</section>\n");
    }
    out.push_str("</body></html>\n");
    out
}

fn heat_map(out: &mut String, f: &Findings, matrix: &[f64], more_is_alike: bool) {
    let n = f.similarity.n_layer;
    let side = n * CELL;
    let (bars, width, height) = (MARGIN + side + 10, MARGIN + side + 180, MARGIN + side + 10);
    let _ = write!(out, "<svg width=\"{width}\" height=\"{height}\" role=\"img\">");
    let worst = match more_is_alike {
        true => matrix.iter().copied().fold(f64::INFINITY, f64::min),
        false => matrix.iter().copied().fold(0.0, f64::max),
    };
    let best = if more_is_alike { 1.0 } else { 0.0 };
    for row in 0..n {
        let y = MARGIN + row * CELL;
        let _ = write!(out, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{row}</text>", MARGIN - 3, y + CELL - 3);
        let _ = write!(out, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{row}</text>", y + CELL / 2, MARGIN - 4);
        for column in 0..n {
            let value = matrix[row * n + column];
            let (fill, text) = cell(value, worst, best);
            let x = MARGIN + column * CELL;
            let _ = write!(
                out,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"{fill}\"><title>{row} and {column}: \
                 {text}</title></rect>"
            );
        }
    }
    let most = f.damage.iter().map(|d| d.kl).fold(f64::MIN_POSITIVE, f64::max);
    let _ = write!(out, "<text x=\"{bars}\" y=\"{}\">damage (KL)</text>", MARGIN - 4);
    for d in &f.damage {
        let (y, length) = (MARGIN + d.layer * CELL, (d.kl / most * 110.0).max(0.0));
        let _ = write!(
            out,
            "<rect x=\"{bars}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\" fill=\"#b5442c\"><title>layer {} from {}: KL {:.4}, \
             perplexity {:.2}</title></rect><text x=\"{:.1}\" y=\"{}\">{:.3}</text>",
            y + 1,
            CELL - 2,
            d.layer,
            d.source,
            d.kl,
            d.perplexity,
            bars as f64 + length + 3.0,
            y + CELL - 3,
            d.kl
        );
    }
    out.push_str("</svg>");
}

/// The colour of a value between the `worst` and the `best`, and what is said of it; NaN: layers that cannot be compared.
fn cell(value: f64, worst: f64, best: f64) -> (String, String) {
    if value.is_nan() {
        return ("#dddddd".into(), "cannot be compared".into());
    }
    let part = if worst == best { 1.0 } else { ((value - worst) / (best - worst)).clamp(0.0, 1.0) };
    (colour(part), format!("{value:.4}"))
}

/// From white (unlike) to dark blue (alike).
fn colour(part: f64) -> String {
    let mix = |from: f64, to: f64| (from + (to - from) * part).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(255.0, 8.0), mix(255.0, 48.0), mix(255.0, 107.0))
}

fn escape(s: &str) -> String {
    s.chars()
        .map(|c| match c {
            '<' => "&lt;".into(),
            '>' => "&gt;".into(),
            '&' => "&amp;".into(),
            '"' => "&quot;".into(),
            c => c.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_the_page() {
        assert_eq!(escape("<script>\"&"), "&lt;script&gt;&quot;&amp;");
    }

    #[test]
    fn colours_run_from_white_to_blue() {
        assert_eq!(colour(0.0), "#ffffff");
        assert_eq!(colour(1.0), "#08306b");
    }

    #[test]
    fn cells_without_a_value_and_cells_that_are_all_alike() {
        assert_eq!(cell(0.5, 0.5, 1.0), ("#ffffff".into(), "0.5000".into()));
        for worst in [0.5, 1.0] {
            assert_eq!(cell(f64::NAN, worst, 1.0), ("#dddddd".into(), "cannot be compared".into()));
            assert_eq!(cell(1.0, worst, 1.0).0, "#08306b");
        }
    }
}
