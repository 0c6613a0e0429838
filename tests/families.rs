//! Every model family against an independent implementation: tiny random-weight models and the logits llama.cpp gives
//! for them (see `data/families/README.md`).

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use flate2::read::GzDecoder;
use lisa_cpp::attention::CacheType;
use lisa_cpp::{Model, ModelFile, ModelParams, Session, SessionParams};
use serde::Deserialize;

/// Largest difference to the reference where nothing is rounded below F32, in units of the logits' spread: what the
/// order of F32 sums and the digits of rope angles at position 300 account for.
const TOLERANCE: f64 = 1e-4;

/// What one model answered, as packed by `make.py`.
#[derive(Deserialize)]
struct Reference {
    runs: Vec<Run>,
}

/// One sequence through the model: `logits[i]` belongs to position `positions[i]` of `ids`.
#[derive(Deserialize)]
struct Run {
    n_ctx: usize,
    ids: Vec<u32>,
    shift: Option<Shift>,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

/// A context shift on the way: after `at` tokens, the `n_discard` that follow the first `n_keep` are forgotten.
#[derive(Deserialize, Clone, Copy)]
struct Shift {
    at: usize,
    n_keep: usize,
    n_discard: usize,
}

impl Run {
    /// Standard deviation of the reference logits: errors are told in units of it.
    fn spread(&self) -> f64 {
        let all = || self.logits.iter().flatten().map(|&x| f64::from(x));
        let n = all().count() as f64;
        let mean = all().sum::<f64>() / n;
        (all().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt()
    }

    /// The largest difference to the reference over all kept positions, in units of the spread.
    fn error(&self, logits: &[Vec<f32>]) -> f64 {
        assert_eq!(logits.len(), self.ids.len());
        let kept = self.positions.iter().zip(&self.logits);
        kept.map(|(&p, reference)| difference(&logits[p], reference)).fold(0.0, f64::max) / self.spread()
    }
}

/// Largest absolute difference; NaN anywhere counts as infinite.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let worst = |d: f64| if d.is_nan() { f64::INFINITY } else { d };
    a.iter().zip(b).map(|(&a, &b)| worst((f64::from(a) - f64::from(b)).abs())).fold(0.0, f64::max)
}

fn gunzip(path: &Path) -> Vec<u8> {
    let packed = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes).expect("gzip data");
    bytes
}

struct Family {
    name: &'static str,
    model: Arc<Model>,
    reference: Reference,
}

impl Family {
    fn load(name: &'static str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families");
        let file = ModelFile::from_bytes(name, gunzip(&folder.join(format!("{name}.gguf.gz"))));
        let model = Model::load(&file, ModelParams::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let reference = gunzip(&folder.join(format!("{name}.json.gz")));
        let reference = serde_json::from_slice(&reference).expect("reference logits");
        Self { name, model: Arc::new(model), reference }
    }

    fn session(&self, run: &Run, cache: CacheType, n_batch: usize, n_ubatch: usize, n_threads: usize) -> Session {
        let params = SessionParams {
            n_ctx: run.n_ctx,
            n_batch,
            n_ubatch,
            n_threads,
            n_threads_batch: n_threads,
            cache_type_k: cache,
            cache_type_v: cache,
            exact: true,
        };
        Session::new(self.model.clone(), params).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// Logits after each of `run`'s tokens.
    fn logits(&self, run: &Run, cache: CacheType, n_ubatch: usize, n_threads: usize) -> Vec<Vec<f32>> {
        let mut session = self.session(run, cache, 512, n_ubatch, n_threads);
        let Some(Shift { at, n_keep, n_discard }) = run.shift else {
            return collect(&mut session, &run.ids);
        };
        let mut rows = collect(&mut session, &run.ids[..at]);
        session.shift(n_keep, n_discard).expect("context shift");
        assert_eq!(session.n_past(), at - n_discard);
        rows.extend(collect(&mut session, &run.ids[at..]));
        rows
    }

    /// The runs without a context shift.
    fn plain_runs(&self) -> impl Iterator<Item = &Run> {
        self.reference.runs.iter().filter(|run| run.shift.is_none())
    }
}

fn collect(session: &mut Session, ids: &[u32]) -> Vec<Vec<f32>> {
    let first = session.n_past();
    let mut rows = Vec::new();
    let each = &mut |index: usize, row: &[f32]| {
        assert_eq!(index, rows.len(), "rows come in order");
        rows.push(row.to_vec());
    };
    session.logits_each(ids, each).expect("forward pass");
    assert_eq!(rows.len(), ids.len());
    assert_eq!(session.n_past(), first + ids.len());
    rows
}

/// With an F32 cache nothing is rounded on either side: what is left is the order of F32 sums.
fn matches_the_reference(name: &'static str) {
    let family = Family::load(name);
    for (r, run) in family.reference.runs.iter().enumerate() {
        let error = run.error(&family.logits(run, CacheType::F32, 512, 2));
        assert!(error <= TOLERANCE, "{name}, run {r}: logits differ by {error:.1e} of their spread");
    }
}

/// Only quantised weights take int8 activations: F32 weights give the same bits in the default mode.
fn default_mode_keeps_float_weights_exact(name: &'static str) {
    let family = Family::load(name);
    let run = &family.reference.runs[0];
    let params = SessionParams { n_ctx: run.n_ctx, n_threads: 2, ..Default::default() };
    let mut session = Session::new(family.model.clone(), params).expect("session");
    assert!(collect(&mut session, &run.ids) == family.logits(run, CacheType::F16, 512, 2), "{name}");
}

/// Rounded keys and values move the logits, by no less and no more than their precision accounts for.
fn compressed_caches_stay_close(name: &'static str) {
    let family = Family::load(name);
    for (r, run) in family.reference.runs.iter().enumerate() {
        for (cache, at_least, at_most) in [(CacheType::F16, 2e-4, 0.02), (CacheType::Q8_0, 0.01, 0.3)] {
            let head_dim = family.model.config().head_dim_k;
            if cache == CacheType::Q8_0 && !head_dim.is_multiple_of(32) {
                let params = SessionParams { cache_type_k: cache, cache_type_v: cache, ..Default::default() };
                let refused = Session::new(family.model.clone(), params).err().expect("blocks of 32 do not fit");
                assert!(refused.to_string().contains(&head_dim.to_string()), "{name}: {refused}");
                continue;
            }
            let error = run.error(&family.logits(run, cache, 512, 2));
            let expected = at_least..=at_most;
            assert!(
                expected.contains(&error),
                "{name}, run {r}, {cache:?}: logits differ by {error:.1e} of their spread"
            );
        }
    }
}

/// One batch, ubatches that straddle tiles and windows, token by token, and a prefill that goes on from a cache are
/// the same computation.
fn any_batching_is_the_same(name: &'static str) {
    let family = Family::load(name);
    for run in family.plain_runs() {
        for n_ubatch in [1, 7, 32] {
            let error = run.error(&family.logits(run, CacheType::F32, n_ubatch, 2));
            assert!(error <= TOLERANCE, "{name}, ubatches of {n_ubatch}: logits differ by {error:.1e} of their spread");
        }

        let mut session = family.session(run, CacheType::F32, 16, 16, 2);
        let (prompt, rest) = run.ids.split_at(run.ids.len() / 2);
        let mut rows = vec![Vec::new(); prompt.len() - 1];
        rows.push(session.prefill(prompt, &mut |_| {}).expect("prefill").to_vec());
        rows.extend(rest.iter().map(|&id| session.decode(id).expect("decode").to_vec()));
        for (&p, reference) in run.positions.iter().zip(&run.logits) {
            if p + 1 >= prompt.len() {
                let error = difference(&rows[p], reference) / run.spread();
                assert!(
                    error <= TOLERANCE,
                    "{name}, decoding position {p}: logits differ by {error:.1e} of their spread"
                );
            }
        }
    }
}

/// Threads divide the work; they do not change a bit of the result.
fn any_thread_count_is_identical(name: &'static str) {
    let family = Family::load(name);
    let run = &family.reference.runs[0];
    let one = family.logits(run, CacheType::F16, 16, 1);
    for n_threads in [2, 3] {
        assert!(one == family.logits(run, CacheType::F16, 16, n_threads), "{name}: {n_threads} threads");
    }
}

/// A truncated session goes on as if what was cut had never been there.
fn truncation_forgets(name: &'static str) {
    let family = Family::load(name);
    let run = &family.reference.runs[0];
    let n_keep = run.ids.len() / 3;
    let mut session = family.session(run, CacheType::F32, 512, 512, 2);
    let mut rows = collect(&mut session, &run.ids[..n_keep]);
    let astray: Vec<u32> = run.ids.iter().rev().copied().take(run.ids.len() - n_keep).collect();
    collect(&mut session, &astray);
    session.truncate(n_keep);
    assert_eq!(session.n_past(), n_keep);
    rows.extend(collect(&mut session, &run.ids[n_keep..]));
    let error = run.error(&rows);
    assert!(error <= TOLERANCE, "{name}: logits differ by {error:.1e} of their spread");
}

macro_rules! families {
    ($($name:ident)*) => { $(
        mod $name {
            const NAME: &str = stringify!($name);
            #[test]
            fn matches_the_reference() { super::matches_the_reference(NAME) }
            #[test]
            fn default_mode_keeps_float_weights_exact() { super::default_mode_keeps_float_weights_exact(NAME) }
            #[test]
            fn compressed_caches_stay_close() { super::compressed_caches_stay_close(NAME) }
            #[test]
            fn any_batching_is_the_same() { super::any_batching_is_the_same(NAME) }
            #[test]
            fn any_thread_count_is_identical() { super::any_thread_count_is_identical(NAME) }
            #[test]
            fn truncation_forgets() { super::truncation_forgets(NAME) }
        }
    )*

        /// A model added to the folder is tested, or this says so.
        #[test]
        fn every_model_of_the_folder_is_listed() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families");
            let files = std::fs::read_dir(folder).expect("the folder").map(|f| f.expect("entry").file_name());
            let mut there: Vec<String> =
                files.filter_map(|f| Some(f.to_str()?.strip_suffix(".gguf.gz")?.to_owned())).collect();
            there.sort();
            let mut listed = vec![$(stringify!($name)),*];
            listed.sort_unstable();
            assert_eq!(there, listed);
        }
    };
}

families! {
    llama llama_mha_tied llama_mqa llama_linear llama_linear_old_key llama_rope_freqs llama_yarn llama_head_dim
    llama_bias llama_window_key
    qwen2 qwen2_tied_yarn qwen3 qwen3_tied
    gemma3 gemma3_pattern gemma3_linear gemma3_softcap_untied
    phi3 phi3_longrope phi3_partial_tied phi3_window_key
}
