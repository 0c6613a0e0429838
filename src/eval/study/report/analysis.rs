//! What `lisa-cpp analyze --json` found: how alike layers attend, and what sharing each does.

use super::svg::{Anchor, Svg, mix, number};
use serde_json::Value;

const CELL: f64 = 13.0;
const EDGE: f64 = 34.0;
const TOP: f64 = 44.0;
const BARS: f64 = 180.0;

/// The cosine similarity of all pairs of layers, row by row: nothing for layers that cannot be compared, which have not as many
/// heads. `None` for JSON of another kind.
fn matrix(analysis: &Value) -> Option<Vec<Vec<Option<f64>>>> {
    let matrix: Vec<Vec<Option<f64>>> = serde_json::from_value(analysis["similarity"]["cosine"].clone()).ok()?;
    let n = matrix.len();
    (n > 0 && matrix.iter().all(|row| row.len() == n)).then_some(matrix)
}

/// Whether this is what `lisa-cpp analyze --json` prints.
pub fn is_analysis(analysis: &Value) -> bool {
    matrix(analysis).is_some()
}

/// The cosine similarity of all pairs of layers, with each layer's damage beside its row; `None` for JSON of another kind.
pub fn svg(analysis: &Value) -> Option<String> {
    let matrix = matrix(analysis)?;
    let n = matrix.len();
    let side = CELL * n as f64;
    let title = "Similarity of attention weights (cosine, mean over heads) and damage of sharing one layer";
    let (width, height) = ((EDGE + side + 30.0 + BARS).max(620.0), TOP + side + 34.0);
    let mut svg = Svg::new(width, height, title);
    svg.text(0.0, 16.0, Anchor::Start, "title", title);
    let worst = matrix.iter().flatten().flatten().copied().fold(1.0, f64::min);
    for (i, row) in matrix.iter().enumerate() {
        let y = TOP + CELL * i as f64;
        // Every layer's number where there is room for it, else every other one's.
        if i % 2 == 0 {
            svg.text(EDGE - 4.0, y + CELL - 2.0, Anchor::End, "small", &i.to_string());
            svg.text(EDGE + CELL * (i as f64 + 0.5), TOP - 5.0, Anchor::Middle, "small", &i.to_string());
        }
        for (j, &v) in row.iter().enumerate() {
            let (fill, text) = match v {
                Some(v) => {
                    let part = (v - worst) / (1.0 - worst).max(1e-9);
                    (mix((255, 255, 255), (8, 69, 148), part), format!("{v:.3}"))
                }
                None => ("#dddddd".into(), "cannot be compared".into()),
            };
            svg.rect((EDGE + CELL * j as f64, y), (CELL, CELL), &fill, &format!("layers {i} and {j}: {text}"));
        }
    }
    let about = format!("white {worst:.2}, dark 1.00; rows and columns are layers");
    svg.text(EDGE, TOP + side + 20.0, Anchor::Start, "tick", &about);
    let left = EDGE + side + 30.0;
    let layers = analysis["layers"].as_array().map_or(&[][..], Vec::as_slice);
    let damage: Vec<(usize, f64)> = layers
        .iter()
        .filter_map(|l| Some((l["layer"].as_u64()? as usize, l["kl"].as_f64()?)))
        .filter(|l| l.0 < n)
        .collect();
    let most = damage.iter().map(|d| d.1).fold(f64::MIN_POSITIVE, f64::max);
    svg.text(left, TOP - 5.0, Anchor::Start, "small", "KL divergence when shared alone, nats");
    for (layer, kl) in damage {
        let y = TOP + CELL * layer as f64;
        let length = (kl / most).max(0.0) * (BARS - 60.0);
        svg.rect((left, y + 1.5), (length, CELL - 3.0), "#d55e00", &format!("layer {layer}: {kl:.4}"));
        svg.text(left + length + 4.0, y + CELL - 2.5, Anchor::Start, "small", &number(kl));
    }
    Some(svg.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn heat_map_and_bars_of_an_analysis() {
        let a = json!({ "layers": [{ "layer": 1, "kl": 0.25 }],
            "similarity": { "cosine": [[1.0, 0.5], [0.5, 1.0]] } });
        let svg = svg(&a).unwrap();
        assert!(svg.contains("layers 0 and 1: 0.500") && svg.contains("layer 1: 0.2500"), "{svg}");
        assert!(is_analysis(&a) && super::svg(&json!({})).is_none());
        assert!(super::svg(&json!({ "similarity": { "cosine": [[1.0], []] } })).is_none());
    }

    /// As of models with layers of different numbers of heads.
    #[test]
    fn layers_that_cannot_be_compared_are_grey() {
        let a = json!({ "layers": [], "similarity": { "cosine": [[1.0, null], [null, 1.0]] } });
        let svg = svg(&a).unwrap();
        assert_eq!((svg.matches("#dddddd").count(), svg.matches("cannot be compared").count()), (2, 2), "{svg}");
        assert!(!svg.contains("NaN"), "{svg}");
    }
}
