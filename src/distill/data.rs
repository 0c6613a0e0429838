//! Training text: plain or JSON lines, cut into windows of tokens.

use std::path::Path;

use crate::eval::json_fault;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Records of JSON lines to leave out: those whose `field` is `value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exclude {
    /// The field's name.
    pub field: String,
    /// Its value; numbers and booleans as JSON writes them.
    pub value: String,
}

impl std::str::FromStr for Exclude {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s.split_once('=') {
            Some((field, value)) if !field.is_empty() => Ok(Self { field: field.into(), value: value.into() }),
            _ => Err(format!("'{s}': expected FIELD=VALUE")),
        }
    }
}

/// The texts of a file: the `text` fields of JSON lines where the name ends in `.jsonl` or `.ndjson`, else the whole as one text.
///
/// # Errors
/// Names the file, and the line and field that are not as expected.
pub fn texts(path: &Path, content: &str, exclude: &[Exclude]) -> Result<Vec<String>> {
    let is_lines = path.extension().is_some_and(|e| e == "jsonl" || e == "ndjson");
    let name = path.display();
    if !is_lines {
        if !exclude.is_empty() {
            return Err(Error::Params(format!("--exclude: {name} is plain text, expected JSON lines (.jsonl)")));
        }
        return Ok(vec![content.to_owned()]);
    }
    let mut out = Vec::new();
    for (i, line) in content.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let error = |what: String| Error::Model { file: name.to_string(), what: format!("line {}: {what}", i + 1) };
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|e| error(format!("not JSON: {}", json_fault(&e))))?;
        let is = |e: &Exclude| match value.get(&e.field) {
            Some(serde_json::Value::String(s)) => *s == e.value,
            Some(v) => serde_json::from_str::<serde_json::Value>(&e.value).is_ok_and(|w| w == *v),
            None => false,
        };
        if exclude.iter().any(is) {
            continue;
        }
        let text = value.get("text").ok_or_else(|| error("field text is missing, expected a string".into()))?;
        let text = text.as_str().ok_or_else(|| error(format!("field text is {text}, expected a string")))?;
        out.push(text.to_owned());
    }
    Ok(out)
}

/// Windows of `n_ctx` tokens: most to train on, some held out.
///
/// The text to train on is short beside what a long run reads, and modules learn windows by heart that come again as they were: it is
/// cut elsewhere whenever it begins anew, and tokens can be exchanged ([`Windows::batch`]).
#[derive(Debug, Clone)]
pub struct Windows {
    /// What is trained on, a ring whose length is a multiple of `n_ctx`.
    train: Vec<u32>,
    n_ctx: usize,
    /// Takes the place of every window's first token.
    bos: Option<u32>,
    /// Never trained on.
    pub held_out: Vec<Vec<u32>>,
}

/// Between two texts.
const SEPARATOR: &str = "\n\n";

impl Windows {
    /// Cuts `texts`, one after the other with an empty line between them, into windows of `n_ctx` tokens, the first of each replaced by
    /// the start token where the model wants one. `n_held_out` windows, spread evenly over the text, are set aside.
    ///
    /// # Errors
    /// The tokenizer's; a text too short for two windows to train on besides those.
    pub fn new(
        tokenizer: &Tokenizer,
        texts: &[String],
        n_ctx: usize,
        n_held_out: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let mut ids = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            if i > 0 {
                ids.extend(tokenizer.encode(SEPARATOR, false, false)?);
            }
            ids.extend(tokenizer.encode(text, false, false)?);
            progress(i + 1);
        }
        let n = ids.len() / n_ctx;
        if n < n_held_out + 2 {
            return Err(Error::Impossible(format!(
                "the text has {} tokens; {} windows of {n_ctx} need at least {} (a longer text, or a smaller -c)",
                ids.len(),
                n_held_out + 2,
                (n_held_out + 2) * n_ctx
            )));
        }
        let is_held_out = |i: usize| (i + 1) * n_held_out / n > i * n_held_out / n;
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let mut windows = Self { train: Vec::new(), n_ctx, bos, held_out: Vec::new() };
        for (i, window) in ids.chunks_exact(n_ctx).enumerate() {
            if is_held_out(i) {
                windows.held_out.push(window.to_vec());
            } else {
                windows.train.extend_from_slice(window);
            }
        }
        if let Some(bos) = bos {
            windows.held_out.iter_mut().for_each(|w| w[0] = bos);
        }
        Ok(windows)
    }

    /// Windows to train on.
    pub fn n_train(&self) -> usize {
        self.train.len() / self.n_ctx
    }

    /// The `batch` windows of step `step`: all in an order that `seed` draws, then all again in another and cut elsewhere. Of every
    /// window, the part `noise` of its tokens gives way to tokens drawn from the whole text.
    pub fn batch(&self, seed: u64, step: usize, batch: usize, noise: f64) -> Vec<Vec<u32>> {
        let n = self.n_train();
        let draw = |i: usize| fastrand::Rng::with_seed(seed ^ (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let (mut order, mut offset, mut epoch) = (Vec::new(), 0, usize::MAX);
        let pick = |i: usize| {
            if i / n != epoch {
                epoch = i / n;
                let mut rng = draw(epoch);
                order = (0..n).collect();
                rng.shuffle(&mut order);
                offset = if epoch == 0 { 0 } else { rng.usize(..self.n_ctx) };
            }
            let mut window = self.window(order[i % n] * self.n_ctx + offset);
            if noise > 0.0 {
                let mut rng = draw(!i);
                for id in &mut window[usize::from(self.bos.is_some())..] {
                    if rng.f64() < noise {
                        *id = self.train[rng.usize(..self.train.len())];
                    }
                }
            }
            window
        };
        (step * batch..(step + 1) * batch).map(pick).collect()
    }

    /// The window that begins at the token `from`.
    fn window(&self, from: usize) -> Vec<u32> {
        let mut window: Vec<u32> = (from..from + self.n_ctx).map(|i| self.train[i % self.train.len()]).collect();
        if let Some(bos) = self.bos {
            window[0] = bos;
        }
        window
    }

    /// Every token.
    pub fn all(&self) -> impl Iterator<Item = u32> {
        self.train.iter().chain(self.held_out.iter().flatten()).copied()
    }

    /// The first `n` windows to train on, for calibration.
    pub fn first(&self, n: usize) -> Vec<Vec<u32>> {
        (0..n.min(self.n_train())).map(|i| self.window(i * self.n_ctx)).collect()
    }
}

/// `windows`, borrowed one by one, as training takes them.
pub fn slices(windows: &[Vec<u32>]) -> Vec<&[u32]> {
    windows.iter().map(Vec::as_slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_json_lines() {
        let lines = "{\"text\":\"a\",\"src\":\"x\"}\n\n{\"text\":\"b\",\"src\":\"y\",\"n\":3}\n";
        let path = Path::new("t.jsonl");
        assert_eq!(texts(path, lines, &[]).unwrap(), ["a", "b"]);
        for exclude in ["src=y", "n=3"] {
            assert_eq!(texts(path, lines, &[exclude.parse().unwrap()]).unwrap(), ["a"]);
        }
        assert_eq!(texts(path, lines, &["other=y".parse().unwrap()]).unwrap().len(), 2);
        assert_eq!(texts(Path::new("t.txt"), lines, &[]).unwrap(), [lines]);
        let message = texts(path, "{\"text\":\"a\"}\n{\"txt\":1}", &[]).unwrap_err().to_string();
        assert!(message.contains("t.jsonl") && message.contains("line 2") && message.contains("text"), "{message}");
        assert!(texts(path, "nonsense", &[]).unwrap_err().to_string().contains("line 1"));
        assert!(
            texts(Path::new("t.txt"), lines, &["a=b".parse().unwrap()]).unwrap_err().to_string().contains("--exclude")
        );
        assert!("=x".parse::<Exclude>().is_err() && "x".parse::<Exclude>().is_err());
    }

    /// Seven windows of four tokens each, no token twice.
    fn seven() -> Windows {
        Windows { train: (0..28).collect(), n_ctx: 4, bos: None, held_out: Vec::new() }
    }

    #[test]
    fn every_token_comes_once_in_an_epoch_and_elsewhere_in_the_next() {
        let drawn = |seed| (0..7).flat_map(|s| seven().batch(seed, s, 3, 0.0)).collect::<Vec<_>>();
        let all = drawn(1);
        for epoch in all.chunks(7) {
            let mut sorted = epoch.concat();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..28).collect::<Vec<_>>());
        }
        assert!(all[..7].iter().all(|w| w[0] % 4 == 0));
        assert!(all.iter().all(|w| w.windows(2).all(|p| p[1] == (p[0] + 1) % 28)));
        let begins: std::collections::BTreeSet<u32> = all.chunks(7).map(|epoch| epoch[0][0] % 4).collect();
        assert!(begins.len() > 1, "{begins:?}");
        assert_ne!(all[..7], all[7..14]);
        assert_eq!(all, drawn(1));
        assert_ne!(all, drawn(2));
    }

    #[test]
    fn noise_exchanges_its_part_of_the_tokens() {
        let w = Windows { train: (0..64_000).collect(), n_ctx: 64, bos: Some(70_000), held_out: Vec::new() };
        let (plain, noisy) = (w.batch(5, 3, 100, 0.0), w.batch(5, 3, 100, 0.1));
        let changed = plain.iter().flatten().zip(noisy.iter().flatten()).filter(|(a, b)| a != b).count();
        assert!((500..800).contains(&changed), "{changed} of 6400");
        assert!(noisy.iter().all(|w| w[0] == 70_000 && w[1..].iter().all(|id| *id < 64_000)));
        assert_eq!(noisy, w.batch(5, 3, 100, 0.1));
        assert_ne!(noisy[..], w.batch(5, 4, 100, 0.1)[..]);
    }

    #[test]
    fn held_out_windows_are_spread_and_apart() {
        let model = crate::Model::embedded(crate::ModelParams::default()).unwrap();
        let text = "Once upon a time there was a little dog. ".repeat(60);
        let make = |n| Windows::new(model.tokenizer(), std::slice::from_ref(&text), 16, n, &mut |_| ());
        let (all, split) = (make(0).unwrap(), make(4).unwrap());
        assert_eq!(split.held_out.len(), 4);
        assert_eq!(split.n_train() + 4, all.n_train());
        assert!(make(10_000).unwrap_err().to_string().contains("tokens"));
    }
}
