//! The records as a table for other programs: a row for each cell.

use crate::eval::study::Record;

/// Names of columns and where their figures are in a record.
const FIGURES: [(&str, &str); 17] = [
    ("ppl", "/quality/divergence/ppl/value"),
    ("ppl_error", "/quality/divergence/ppl/error"),
    ("ppl_base", "/quality/divergence/ppl_base/value"),
    ("ln_ppl_ratio", "/quality/divergence/ln_ppl_ratio/value"),
    ("ln_ppl_ratio_error", "/quality/divergence/ln_ppl_ratio/error"),
    ("kld", "/quality/divergence/kld/value"),
    ("kld_error", "/quality/divergence/kld/error"),
    ("kld_max", "/quality/divergence/kld_distribution/maximum"),
    ("same_top_p", "/quality/divergence/same_top_p/value"),
    ("same_top_p_error", "/quality/divergence/same_top_p/error"),
    ("rms_delta_p", "/quality/divergence/rms_delta_p/value"),
    ("time_to_first_token_ms", "/speed/time_to_first_token_ms"),
    ("load_ms", "/speed/load_ms"),
    ("file_bytes", "/memory/file_bytes"),
    ("weight_bytes", "/memory/weight_bytes"),
    ("kv_bytes_per_token", "/memory/kv_bytes_per_token"),
    ("peak_rss_bytes", "/memory/peak_rss_bytes"),
];

/// The table, with the names of its columns in the first line (RFC 4180).
pub fn csv(records: &[Record]) -> String {
    let tasks = super::task_metrics(records);
    let tests = super::tests(records);
    let mut names: Vec<String> = ["key", "model", "quant", "sharing", "kv", "status"].map(String::from).to_vec();
    names.extend(FIGURES.iter().map(|f| f.0.to_owned()));
    names.extend(tasks.iter().flat_map(|(t, m)| [format!("{t}_{m}"), format!("{t}_{m}_error")]));
    names.extend(tests.iter().flat_map(|t| [format!("{t}_tokens_per_second"), format!("{t}_deviation")]));
    names.push("error".into());
    let mut out = row(&names);
    for r in records {
        let c = &r.cell;
        let status = format!("{:?}", r.status).to_lowercase();
        let mut all = vec![r.key.clone(), c.model.clone(), c.quant.clone(), c.sharing.clone(), c.kv.clone(), status];
        let text = |v: Option<f64>| v.map_or(String::new(), |v| v.to_string());
        all.extend(FIGURES.iter().map(|f| text(r.number(f.1))));
        for (t, m) in &tasks {
            all.extend(["value", "error"].map(|part| text(r.of_task(t, m, part))));
        }
        for t in &tests {
            let test = r.speed["tests"].as_array().and_then(|all| all.iter().find(|x| x["test"] == t.as_str()));
            all.extend(["mean", "deviation"].map(|part| text(test.and_then(|x| x[part].as_f64()))));
        }
        all.push(r.error.clone().unwrap_or_default());
        out.push_str(&row(&all));
    }
    out
}

fn row(fields: &[String]) -> String {
    let quoted = |f: &String| match f.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", f.replace('"', "\"\"")),
        false => f.clone(),
    };
    fields.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::study::record::Status;
    use crate::eval::study::record::tests::record;

    #[test]
    fn a_row_for_each_cell() {
        let mut all = [record(0, "Q4_0", "a, \"b\"", 0.1, Status::Ok), record(1, "Q8_0", "none", 0.0, Status::Failed)];
        all[0].quality["tasks"]["a/b.jsonl"]["acc"] = serde_json::json!({ "value": 0.5, "error": 0.1 });
        let text = csv(&all);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("key,model,quant,sharing,kv,status,ppl,"), "{text}");
        assert!(
            lines[0].contains("a/b.jsonl_acc,a/b.jsonl_acc_error") && lines[0].contains("tg64_tokens_per_second"),
            "{text}"
        );
        assert!(lines[1].contains("\"a, \"\"b\"\"\"") && lines[1].contains(",0.5,0.1,"), "{text}");
        assert!(lines[2].ends_with(",it broke"), "{text}");
    }
}
