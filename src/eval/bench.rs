//! Speed of prompt processing and generation, as `llama-bench` measures it, and how near generation comes to the limit
//! that the memory sets.

use std::sync::Arc;
use std::time::Instant;

use crate::compute::{Pool, SharedBuf};
use crate::model::Model;
use crate::runtime::{Session, SessionParams};
use crate::{Error, Result};

/// One measured test.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Measurement {
    /// `pp512`: a prompt of 512 tokens; `tg128`: 128 tokens generated; `@ d2048`: after 2048 tokens of context.
    pub test: String,
    /// Tokens per second of each repetition.
    pub tokens_per_second: Vec<f64>,
    /// For generation: bytes of weights and cache read per token, over time and over the memory's bandwidth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_fraction: Option<f64>,
}

impl Measurement {
    /// The best repetition: the one the rest of the machine disturbed least.
    pub fn best(&self) -> f64 {
        self.tokens_per_second.iter().copied().fold(0.0, f64::max)
    }

    /// Mean and standard deviation over the repetitions.
    pub fn mean_and_deviation(&self) -> (f64, f64) {
        let n = self.tokens_per_second.len() as f64;
        let mean = self.tokens_per_second.iter().sum::<f64>() / n;
        let squares: f64 = self.tokens_per_second.iter().map(|x| (x - mean).powi(2)).sum();
        (mean, if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
    }
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchParams {
    /// Prompt length; 0 leaves the test out.
    pub n_prompt: usize,
    /// Tokens to generate; 0 leaves the test out.
    pub n_gen: usize,
    /// Tokens in the context before each test.
    pub n_depth: usize,
    /// Repetitions of each test, after one that is not counted.
    pub repetitions: usize,
}

/// Measures prompt processing and generation on random tokens; `report` hears each result as it is done.
///
/// # Errors
/// As [`Session::new`] and [`Session::prefill`].
pub fn bench(
    model: &Arc<Model>,
    session: &SessionParams,
    p: &BenchParams,
    report: &mut dyn FnMut(&Measurement),
) -> Result<Vec<Measurement>> {
    if p.repetitions == 0 {
        return Err(Error::Params("-r must be at least 1".into()));
    }
    let n_ctx = p.n_depth + p.n_prompt.max(p.n_gen);
    let mut session = Session::new(model.clone(), SessionParams { n_ctx: n_ctx.max(1), ..session.clone() })?;
    let ids = random_ids(model.decoder().n_vocab(), n_ctx);
    if p.n_depth > 0 {
        session.prefill(&ids[..p.n_depth], &mut |_| ())?;
    }
    let depth = if p.n_depth > 0 { format!(" @ d{}", p.n_depth) } else { String::new() };
    let mut results = Vec::new();
    if p.n_prompt > 0 {
        let rates = repeat(&mut session, p, p.n_prompt, |s| {
            s.prefill(&ids[p.n_depth..p.n_depth + p.n_prompt], &mut |_| ()).map(drop)
        })?;
        let test = format!("pp{}{depth}", p.n_prompt);
        results.push(Measurement { test, tokens_per_second: rates, bandwidth_fraction: None });
        report(&results[results.len() - 1]);
    }
    if p.n_gen > 0 {
        let rates = repeat(&mut session, p, p.n_gen, |s| {
            ids[p.n_depth..p.n_depth + p.n_gen].iter().try_for_each(|&id| s.decode(id).map(drop))
        })?;
        let test = format!("tg{}{depth}", p.n_gen);
        let mut m = Measurement { test, tokens_per_second: rates, bandwidth_fraction: None };
        let cached = session.cache().bytes_per_token() * (p.n_depth + p.n_gen / 2);
        // Of an embedding table that is not the output head too, a token needs one row.
        let decoder = model.decoder();
        let embedding = decoder.output.as_ref().map_or(0, |_| decoder.embed.weight.n_bytes());
        let bytes = (model.n_weight_bytes() - embedding + cached) as f64;
        m.bandwidth_fraction = Some(bytes * m.best() / read_bandwidth(session.n_threads())?);
        results.push(m);
        report(&results[results.len() - 1]);
    }
    Ok(results)
}

fn repeat(
    session: &mut Session,
    p: &BenchParams,
    n_tokens: usize,
    mut test: impl FnMut(&mut Session) -> Result<()>,
) -> Result<Vec<f64>> {
    let mut rates = Vec::with_capacity(p.repetitions);
    for i in 0..=p.repetitions {
        session.truncate(p.n_depth);
        let start = Instant::now();
        test(session)?;
        if i > 0 {
            rates.push(n_tokens as f64 / start.elapsed().as_secs_f64());
        }
    }
    session.truncate(p.n_depth);
    Ok(rates)
}

/// Token ids that look random but are the same in every run.
fn random_ids(n_vocab: usize, n: usize) -> Vec<u32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % n_vocab.max(1) as u64) as u32
    };
    (0..n).map(|_| next()).collect()
}

/// Bytes per second that `n_threads` read from memory together: the best of several passes over 256 MiB.
fn read_bandwidth(n_threads: usize) -> Result<f64> {
    const BYTES: usize = 256 << 20;
    let mut pool = Pool::new(n_threads).map_err(crate::model::thread_error)?;
    let mut buf = SharedBuf::<f32>::new(BYTES / 4);
    buf.as_mut_slice().fill(1.0); // touch every page
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        pool.run(|w| {
            // SAFETY: only read here.
            let part = unsafe { buf.get(w.share(buf.len())) };
            let mut sums = [0f32; 64];
            for chunk in part.chunks_exact(64) {
                sums.iter_mut().zip(chunk).for_each(|(s, x)| *s += x);
            }
            std::hint::black_box(sums);
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(BYTES as f64 / best)
}
