//! The page: what was studied, the figures, every cell, and what failed.

use super::bars::{Bars, Row};
use super::scatter::{Point, Scatter};
use super::svg::{escape, number};
use super::tables::{Colours, Heat, interaction, measured, percent, plain, signed, values};
use super::{Group, task_metrics, tests};
use crate::eval::study::{Record, Status};
use serde_json::Value;
use std::fmt::Write;

const STYLE: &str = "\
:root{color-scheme:light}body{font:15px/1.5 system-ui,'Segoe UI','Liberation Sans',Arial,sans-serif;color:#1f2328;background:#fff;\
max-width:1200px;margin:0 auto;padding:28px 20px 60px}h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:36px 0 6px;\
padding-top:14px;border-top:1px solid #d8dde3}h3{font-size:16px;margin:20px 0 4px}p{margin:6px 0;max-width:900px}.facts{color:#57606a}\
.figures{display:flex;flex-wrap:wrap;gap:20px 36px;align-items:flex-start;margin:14px 0}svg{display:block;max-width:100%;height:auto}\
svg text{fill:#1f2328}svg .title{font-size:14px;font-weight:600}svg .tick,svg .small{fill:#57606a}svg .small{font-size:10.5px}\
svg .value{font-weight:600}svg .point{paint-order:stroke;stroke:#fff;stroke-width:3px}svg .grid{stroke:#e6e9ed}svg .axis{stroke:#8c959f}svg .error{stroke:#6e7781;stroke-width:1.3}\
svg .front{fill:none;stroke:#6e7781;stroke-width:1.5;stroke-dasharray:5 4}svg .mark{stroke:#1f2328;stroke-width:2}\
table{border-collapse:collapse;font-size:12px;font-variant-numeric:tabular-nums}.scroll{overflow-x:auto}\
th,td{padding:4px 7px;text-align:right;border-bottom:1px solid #e6e9ed;white-space:nowrap}th{color:#57606a;font-weight:600;\
border-bottom:1px solid #8c959f}.name{text-align:left}.failed td{white-space:normal;text-align:left;color:#a40e26}code{font-size:12px}";

const MIB: f64 = (1 << 20) as f64;

/// The report as one page of HTML. `analyses`: name and JSON of `lisa-cpp analyze` for models that have one.
pub fn html(title: &str, records: &[Record], analyses: &[(String, Value)]) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{0}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{0}</h1>\n",
        escape(title)
    );
    facts(&mut out, records);
    let groups = Group::all(records);
    let tasks = task_metrics(records);
    let tests = tests(records);
    for g in &groups {
        let _ = writeln!(out, "<h2>{}, cache {}</h2>", escape(&g.model), escape(&g.kv));
        group(&mut out, g, &tasks, &tests);
    }
    for (name, analysis) in analyses {
        if let Some(svg) = super::analysis::svg(analysis) {
            let _ = write!(out, "<h2>Layers of {}</h2>\n<div class=\"figures\">{svg}</div>\n", escape(name));
        }
    }
    cells(&mut out, records, &tests);
    failures(&mut out, records);
    provenance(&mut out, records);
    out.push_str("</body></html>\n");
    out
}

/// What holds for all cells.
fn facts(out: &mut String, records: &[Record]) {
    let n_failed = records.iter().filter(|r| r.status == Status::Failed).count();
    let failed = if n_failed > 0 { format!(", {n_failed} of which failed") } else { String::new() };
    let _ = write!(out, "<p class=\"facts\">{} cells{failed}", records.len());
    if let Some(r) = records.iter().find(|r| r.status == Status::Ok) {
        let p = |key: &str| match &r.provenance[key] {
            Value::String(s) => s.clone(),
            Value::Null => "?".into(),
            v => v.to_string(),
        };
        let _ = write!(
            out,
            " · lisa-cpp {} · {} threads of {} ({})",
            escape(&p("version")),
            escape(&p("threads")),
            escape(&p("cpu")),
            escape(&p("kernels"))
        );
        let d = &r.quality["divergence"];
        if let (Some(n), Some(n_ctx)) = (d["n_scored"].as_u64(), d["n_ctx"].as_u64()) {
            let text = r.provenance["text"].as_str().unwrap_or("a text");
            let baseline = r.provenance["baseline"].as_str().unwrap_or("the baseline");
            let _ = write!(
                out,
                "<br>Perplexity and divergence: {n} positions of {}, windows of {n_ctx}, second halves; baseline: {}, no \
                 sharing, f16 cache",
                escape(text),
                escape(baseline)
            );
        }
    }
    out.push_str("</p>\n");
}

/// All figures of one model and cache type.
fn group(out: &mut String, g: &Group, tasks: &[(String, String)], tests: &[String]) {
    let has_ppl = g.records().iter().any(|r| measured(r, "/quality/divergence/ppl").is_some());
    if has_ppl {
        fronts(out, g, tests);
        heat_tables(out, g);
    }
    let mut figures = String::new();
    for (task, metric) in tasks {
        // One figure for each benchmark: the length-normalised accuracy where there is one.
        let normalised = tasks.iter().any(|(t, m)| t == task && m == "acc_norm");
        if metric == "acc_bytes" || (metric == "acc" && normalised) {
            continue;
        }
        figures.push_str(&task_figure(g, task, metric));
    }
    section(out, "Benchmarks", "Bars are standard errors; the dashed line is the first cell.", &figures);
    figures.clear();
    for test in tests {
        figures.push_str(&speed_figure(g, test));
    }
    section(out, "Speed", "Mean of the repetitions ± standard deviation.", &figures);
    section(
        out,
        "Memory",
        "Coloured: weights; grey: cache for a context of 4096 tokens; line: the largest resident set of the run that measured speed.",
        &memory_figure(g),
    );
}

fn section(out: &mut String, title: &str, about: &str, figures: &str) {
    if !figures.is_empty() {
        let _ =
            write!(out, "<h3>{title}</h3>\n<p class=\"facts\">{about}</p>\n<div class=\"figures\">{figures}</div>\n");
    }
}

/// Quality against size and against speed.
fn fronts(out: &mut String, g: &Group, tests: &[String]) {
    let points = |x: &dyn Fn(&Record) -> Option<f64>| -> Vec<Point> {
        let point = |r: &&Record| {
            let (y, _) = measured(r, "/quality/divergence/ppl")?;
            // How sure the perplexity is relative to the baseline's, which all cells share.
            let y_error = y * measured(r, "/quality/divergence/ln_ppl_ratio")?.1;
            Some(Point { x: x(r)?, y, y_error, series: g.series(r), label: r.cell.quant.clone() })
        };
        g.records().iter().filter_map(point).collect()
    };
    let mut figures = String::new();
    let mut figure = |title: &str, x_label: &str, more_is_better: bool, points: Vec<Point>| {
        if !points.is_empty() {
            let y_label = "perplexity (lower is better)";
            let s = Scatter { title, x_label, y_label, more_is_better, series: &g.sharings, points: &points };
            figures.push_str(&s.svg());
        }
    };
    let weights = |r: &Record| r.number("/memory/weight_bytes").map(|b| b / MIB);
    figure("Quality against size", "weights, MiB (fewer is better)", false, points(&weights));
    if let Some(test) = tests.iter().find(|t| t.starts_with("tg")) {
        let x_label = format!("generation ({test}), tokens/s (more is better)");
        figure("Quality against speed", &x_label, true, points(&|r| r.rate(test)));
    }
    section(
        out,
        "Pareto fronts",
        "Dashed: cells that no other beats in both respects. Vertical bars: standard error relative to the baseline on the same text.",
        &figures,
    );
}

/// Quantisation against sharing.
fn heat_tables(out: &mut String, g: &Group) {
    let mut figures = String::new();
    let mut table = |title: &str, about: &str, values: &[Option<(f64, f64)>], colours, format| {
        let (rows, columns) = (&g.quants[..], &g.sharings[..]);
        figures.push_str(&Heat { title, about, rows, columns, values, colours, format }.svg());
    };
    let of = |pointer: &str| values(g, |r| measured(r, pointer));
    let ratio = of("/quality/divergence/ln_ppl_ratio");
    table("Damage: ln(PPL / PPL of the baseline)", "0: as good as the baseline", &ratio, Colours::Signed, signed);
    let both = g.sharings.len() > 1 && g.quants.len() > 1;
    if let Some((reference, excess)) = interaction(g).filter(|_| both) {
        let about = format!("beyond the sum of both alone, at {reference}; 0: it does");
        table("Does the damage add up?", &about, &excess, Colours::Signed, signed);
    }
    let kld = of("/quality/divergence/kld");
    table("Mean KL divergence from the baseline, nats", "0: the same predictions", &kld, Colours::More, plain);
    let top = of("/quality/divergence/same_top_p");
    table("Same most likely token as the baseline", "100 %: always", &top, Colours::Less, percent);
    section(
        out,
        "Quantisation and sharing",
        "Rows: quantisation; columns: way of sharing attention. The damage adds up where a combination is no worse than quantisation \
         alone and sharing alone together; above 0 they make each other worse.",
        &figures,
    );
}

/// A row for every cell of the group that has a figure; quantisations are groups.
fn rows(g: &Group, row: impl Fn(&Record) -> Option<(Vec<f64>, Option<f64>, String)>) -> Vec<Row> {
    let mut all: Vec<Row> = Vec::new();
    let mut previous = String::new();
    for q in &g.quants {
        for s in &g.sharings {
            let Some(r) = g.find(q, s) else { continue };
            let Some((parts, extra, text)) = row(r) else { continue };
            let starts_group = previous != *q;
            previous.clone_from(q);
            let label = if starts_group { q.clone() } else { String::new() };
            all.push(Row { label, series: g.series(r), parts, extra, text, starts_group });
        }
    }
    all
}

fn figure(g: &Group, title: &str, x_label: &str, rows: &[Row], dots: bool) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let reference = rows.first().filter(|_| dots).map(|r| r.parts.iter().sum());
    Bars { title, x_label, series: &g.sharings, rows, dots, reference }.svg()
}

fn task_figure(g: &Group, task: &str, metric: &str) -> String {
    let is_fraction = metric.starts_with("acc");
    let rows = rows(g, |r| {
        let factor = if is_fraction { 100.0 } else { 1.0 };
        let value = factor * r.of_task(task, metric, "value")?;
        // A single question tells nothing about its error.
        let error = r.of_task(task, metric, "error").map(|e| factor * e);
        let text = error.map_or(format!("{value:.1}"), |error| format!("{value:.1} ± {error:.1}"));
        Some((vec![value], error, text))
    });
    let n = g.records().iter().find_map(|r| r.quality["tasks"][task]["n"].as_u64());
    let title = n.map_or(task.to_owned(), |n| format!("{task}, {n} questions"));
    let x_label =
        if is_fraction { format!("{metric}, % (more is better)") } else { format!("{metric} (lower is better)") };
    figure(g, &title, &x_label, &rows, true)
}

fn speed_figure(g: &Group, test: &str) -> String {
    let rows = rows(g, |r| {
        let all = r.speed["tests"].as_array()?;
        let t = all.iter().find(|t| t["test"] == test)?;
        let (mean, deviation) = (t["mean"].as_f64()?, t["deviation"].as_f64()?);
        Some((vec![mean], None, format!("{} ± {}", number(mean), number(deviation))))
    });
    let (name, depth) = test.split_once(" @ d").unwrap_or((test, ""));
    let what = match name.split_at_checked(2) {
        Some(("pp", n)) => format!("Prompt of {n} tokens"),
        Some(("tg", n)) => format!("Generation of {n} tokens"),
        _ => name.to_owned(),
    };
    let title = if depth.is_empty() { what } else { format!("{what} after {depth}") };
    figure(g, &title, "tokens/s (more is better)", &rows, false)
}

fn memory_figure(g: &Group) -> String {
    let rows = rows(g, |r| {
        let mib = |pointer: &str| r.number(pointer).map(|b| b / MIB);
        let (weights, cache) = (mib("/memory/weight_bytes")?, mib("/memory/kv_bytes_of_context")?);
        Some((vec![weights, cache], mib("/memory/peak_rss_bytes"), format!("{} + {}", number(weights), number(cache))))
    });
    figure(g, "Weights, cache, peak", "MiB (fewer is better)", &rows, false)
}

/// Every cell in numbers.
fn cells(out: &mut String, records: &[Record], tests: &[String]) {
    out.push_str("<h2>All cells</h2>\n<div class=\"scroll\"><table>\n<tr>");
    for name in ["model", "quantisation", "sharing", "cache"] {
        let _ = write!(out, "<th class=\"name\">{name}</th>");
    }
    for name in ["perplexity", "KL", "same top", "weights MiB", "KV bytes/token", "peak MiB", "first token ms"] {
        let _ = write!(out, "<th>{name}</th>");
    }
    for test in tests {
        let _ = write!(out, "<th>{}</th>", escape(test));
    }
    out.push_str("</tr>\n");
    for r in records.iter().filter(|r| r.status == Status::Ok) {
        out.push_str("<tr>");
        for name in [&r.cell.model, &r.cell.quant, &r.cell.sharing, &r.cell.kv] {
            let _ = write!(out, "<td class=\"name\">{}</td>", escape(name));
        }
        let figure = |pointer: &str, write: &dyn Fn(f64) -> String| r.number(pointer).map_or("–".into(), write);
        let mib = |b: f64| format!("{:.1}", b / MIB);
        let ppl = measured(r, "/quality/divergence/ppl");
        let ppl = ppl.map_or("–".into(), |(v, e)| format!("{v:.3} ± {e:.3}"));
        for text in [
            ppl,
            figure("/quality/divergence/kld/value", &|v| format!("{v:.5}")),
            figure("/quality/divergence/same_top_p/value", &percent),
            figure("/memory/weight_bytes", &mib),
            figure("/memory/kv_bytes_per_token", &|v| format!("{v}")),
            figure("/memory/peak_rss_bytes", &mib),
            figure("/speed/time_to_first_token_ms", &|v| format!("{v:.0}")),
        ] {
            let _ = write!(out, "<td>{text}</td>");
        }
        for test in tests {
            let _ = write!(out, "<td>{}</td>", r.rate(test).map_or("–".into(), |v| format!("{v:.1}")));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

fn failures(out: &mut String, records: &[Record]) {
    let failed: Vec<_> = records.iter().filter(|r| r.status == Status::Failed).collect();
    if failed.is_empty() {
        return;
    }
    out.push_str("<h2>Failed</h2>\n<table class=\"failed\">\n");
    for r in failed {
        let c = &r.cell;
        let names = [&c.model, &c.quant, &c.sharing, &c.kv].map(|n| escape(n)).join(", ");
        let error = r.error.as_deref().unwrap_or("no message");
        let _ = writeln!(out, "<tr><td class=\"name\">{names}</td><td class=\"name\">{}</td></tr>", escape(error));
    }
    out.push_str("</table>\n");
}

/// Which files the figures are of.
fn provenance(out: &mut String, records: &[Record]) {
    out.push_str("<h2>Files</h2>\n<div class=\"scroll\"><table>\n");
    let mut seen: Vec<(String, String)> = Vec::new();
    for files in records.iter().filter_map(|r| r.provenance.get("files")?.as_object()) {
        for (path, hash) in files {
            let file = (path.clone(), hash.as_str().unwrap_or_default().to_owned());
            if !seen.contains(&file) {
                let _ = writeln!(
                    out,
                    "<tr><td class=\"name\">{}</td><td class=\"name\"><code>sha256 {}</code></td></tr>",
                    escape(&file.0),
                    escape(&file.1)
                );
                seen.push(file);
            }
        }
    }
    out.push_str("</table></div>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::study::record::tests::record;

    #[test]
    fn every_part_is_there_and_names_are_harmless() {
        let mut all = vec![
            record(0, "Q8_0", "none", 0.0, Status::Ok),
            record(1, "Q8_0", "<b>&", 0.1, Status::Ok),
            record(2, "Q4_0", "none", 0.2, Status::Ok),
            record(3, "Q4_0", "<b>&", 0.3, Status::Failed),
        ];
        all[1].quality["tasks"]["piqa"]["acc_norm"] = serde_json::json!({ "value": 0.5, "error": 0.1 });
        let page = html("A <study>", &all, &[]);
        assert!(!page.contains("<b>") && page.contains("&lt;b&gt;&amp;"), "{page}");
        for part in
            ["A &lt;study&gt;", "Pareto fronts", "Does the damage add up?", "Generation of 64", "piqa", "it broke"]
        {
            assert!(page.contains(part), "{part} is missing");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        for outside in ["http://", "https://", "src=", "href="] {
            assert!(!page.contains(outside), "the page needs {outside}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }

    #[test]
    fn a_study_without_quality_and_one_without_records() {
        let mut all = vec![record(0, "Q8_0", "none", 0.0, Status::Ok)];
        all[0].quality = Value::Null;
        assert!(html("t", &all, &[]).contains("Speed"));
        assert!(html("t", &[], &[]).contains("0 cells"));
    }
}
