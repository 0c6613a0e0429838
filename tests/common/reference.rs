//! Models judged by the logits of a program we did not write: what is compared, and how.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::GzDecoder;
use ggml_ext::kernels::takes_bf16;
use lisa_cpp::attention::CacheType;
use lisa_cpp::{ActivationType, Model, Session, SessionParams};
use serde::Deserialize;

/// The folder `tests/data/NAME`.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The names of the files of a folder that end in `suffix`, without it.
pub fn names(folder: &Path, suffix: &str) -> Vec<String> {
    let files = std::fs::read_dir(folder).expect("the folder").map(|f| f.expect("entry").file_name());
    let mut names: Vec<String> = files.filter_map(|f| Some(f.to_str()?.strip_suffix(suffix)?.to_owned())).collect();
    names.sort();
    names
}

/// Largest difference to the reference where nothing is rounded below F32, in units of the logits' spread: what the
/// order of F32 sums and the digits of rope angles at position 300 account for.
pub const TOLERANCE: f64 = 1e-4;

/// What one model answered, as packed by a `make.py`.
#[derive(Deserialize)]
pub struct Reference {
    /// The model of `data/families` or `data/sharing` it belongs to, where it is not of the same name.
    #[allow(dead_code)]
    pub base: Option<String>,
    /// The sequences.
    pub runs: Vec<Run>,
}

/// One sequence through the model: `logits[i]` belongs to position `positions[i]` of `ids`.
#[derive(Deserialize)]
pub struct Run {
    pub n_ctx: usize,
    pub ids: Vec<u32>,
    pub shift: Option<Shift>,
    pub positions: Vec<usize>,
    pub logits: Vec<Vec<f32>>,
}

/// A context shift on the way: after `at` tokens, the `n_discard` that follow the first `n_keep` are forgotten.
#[derive(Deserialize, Clone, Copy)]
pub struct Shift {
    pub at: usize,
    pub n_keep: usize,
    pub n_discard: usize,
}

impl Run {
    /// Standard deviation of the reference logits, but of tokens that are never predicted: errors are told in units of it.
    pub fn spread(&self) -> f64 {
        let all = || self.logits.iter().flatten().filter(|&&x| x > f32::MIN).map(|&x| f64::from(x));
        let n = all().count() as f64;
        let mean = all().sum::<f64>() / n;
        (all().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt()
    }

    /// The largest difference to the reference over all kept positions, in units of the spread.
    pub fn error(&self, logits: &[Vec<f32>]) -> f64 {
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

pub fn gunzip(path: &Path) -> Vec<u8> {
    let packed = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes).expect("gzip data");
    bytes
}

/// A model under test.
pub struct Subject {
    /// What messages call it.
    pub name: &'static str,
    pub model: Arc<Model>,
    pub reference: Reference,
}

impl Subject {
    pub fn new(name: &'static str, model: Model, reference: Reference) -> Self {
        Self { name, model: Arc::new(model), reference }
    }

    pub fn session(&self, run: &Run, cache: CacheType, n_batch: usize, n_ubatch: usize, n_threads: usize) -> Session {
        let params = SessionParams {
            n_ctx: run.n_ctx,
            n_batch,
            n_ubatch,
            n_threads,
            n_threads_batch: n_threads,
            cache_type_k: cache,
            cache_type_v: cache,
            // So that windows are overwritten as soon as can be.
            window_spare: Some(0),
            activations: ActivationType::F32,
        };
        Session::new(self.model.clone(), params).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// Logits after each of `run`'s tokens.
    pub fn logits(&self, run: &Run, cache: CacheType, n_ubatch: usize, n_threads: usize) -> Vec<Vec<f32>> {
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

/// Logits after each of `ids`, which go on from what `session` holds.
pub fn collect(session: &mut Session, ids: &[u32]) -> Vec<Vec<f32>> {
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
pub fn matches_the_reference(subject: &Subject) {
    let name = subject.name;
    for (r, run) in subject.reference.runs.iter().enumerate() {
        let error = run.error(&subject.logits(run, CacheType::F32, 512, 2));
        println!("{name}, run {r}: {error:.1e}");
        assert!(error <= TOLERANCE, "{name}, run {r}: logits differ by {error:.1e} of their spread");
    }
}

/// Only quantised weights take int8 activations: F32 weights give the same bits in the default mode. F16 and BF16 weights do too, but where
/// several tokens are multiplied in bf16, with 16 bits of both sides.
pub fn default_mode_keeps_float_weights_exact(subject: &Subject) {
    let name = subject.name;
    let run = &subject.reference.runs[0];
    let both = |cache| {
        let params = SessionParams { n_ctx: run.n_ctx, n_threads: 2, ..Default::default() };
        let params = SessionParams { cache_type_k: cache, cache_type_v: cache, ..params };
        let mut session = Session::new(subject.model.clone(), params).expect("session");
        (collect(&mut session, &run.ids), subject.logits(run, cache, 512, 2))
    };
    let model = &subject.model;
    if model.kernels().int.has_bf16() && model.decoder().matrices().any(|l| takes_bf16(&l.weight.view())) {
        // An F16 cache would round what little differs to steps of its own.
        let (default, exact) = both(CacheType::F32);
        let error = default.iter().zip(&exact).map(|(a, b)| difference(a, b)).fold(0.0, f64::max) / run.spread();
        println!("{name}: {error:.1e}");
        assert!(0.0 < error && error <= TOLERANCE, "{name}: logits differ by {error:.1e} of their spread");
    } else {
        let (default, exact) = both(CacheType::F16);
        assert!(default == exact, "{name}");
    }
}

/// Rounded keys and values move the logits, by no less and no more than their precision accounts for.
pub fn compressed_caches_stay_close(subject: &Subject) {
    let name = subject.name;
    if subject.model.decoder().attentions().chain(subject.model.decoder().convolutions()).next().is_none() {
        // There is nothing in the cache to be rounded.
        let run = &subject.reference.runs[0];
        let [exact, rounded] = [CacheType::F32, CacheType::Q8_0].map(|cache| subject.logits(run, cache, 512, 2));
        return assert!(exact == rounded, "{name}");
    }
    for (r, run) in subject.reference.runs.iter().enumerate() {
        for (cache, at_least, at_most) in [(CacheType::F16, 2e-4, 0.03), (CacheType::Q8_0, 5e-3, 0.3)] {
            let mut head_dims = subject.model.decoder().attentions().map(|s| s.head_dim_k);
            let odd = head_dims.find(|n| !n.is_multiple_of(32));
            if let (CacheType::Q8_0, Some(head_dim)) = (cache, odd) {
                let params = SessionParams { cache_type_k: cache, cache_type_v: cache, ..Default::default() };
                let refused = Session::new(subject.model.clone(), params).err().expect("blocks of 32 do not fit");
                assert!(refused.to_string().contains(&head_dim.to_string()), "{name}: {refused}");
                continue;
            }
            let error = run.error(&subject.logits(run, cache, 512, 2));
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
pub fn any_batching_is_the_same(subject: &Subject) {
    let name = subject.name;
    for run in subject.plain_runs() {
        for n_ubatch in [1, 3, 7, 32] {
            let error = run.error(&subject.logits(run, CacheType::F32, n_ubatch, 2));
            assert!(error <= TOLERANCE, "{name}, ubatches of {n_ubatch}: logits differ by {error:.1e} of their spread");
        }

        let mut session = subject.session(run, CacheType::F32, 16, 16, 2);
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
pub fn any_thread_count_is_identical(subject: &Subject) {
    let name = subject.name;
    let run = &subject.reference.runs[0];
    let one = subject.logits(run, CacheType::F16, 16, 1);
    for n_threads in [2, 3] {
        assert!(one == subject.logits(run, CacheType::F16, 16, n_threads), "{name}: {n_threads} threads");
    }
}

/// A truncated session goes on as if what was cut had never been there.
pub fn truncation_forgets(subject: &Subject) {
    let name = subject.name;
    let run = &subject.reference.runs[0];
    let n_keep = run.ids.len() / 3;
    let mut session = subject.session(run, CacheType::F32, 512, 512, 2);
    let mut rows = collect(&mut session, &run.ids[..n_keep]);
    let astray: Vec<u32> = run.ids.iter().rev().copied().take(run.ids.len() - n_keep).collect();
    collect(&mut session, &astray);
    session.truncate(n_keep).expect("truncation");
    assert_eq!(session.n_past(), n_keep);
    rows.extend(collect(&mut session, &run.ids[n_keep..]));
    let error = run.error(&rows);
    assert!(error <= TOLERANCE, "{name}: logits differ by {error:.1e} of their spread");
}

/// Layers with a sliding window that keep little more than it say what those say that keep the whole context: however long the text,
/// after going back, and after a context shift.
#[allow(dead_code)]
pub fn windows_are_all_that_is_seen(subject: &Subject) {
    let name = subject.name;
    let run = &subject.reference.runs[0];
    let session = |window_spare| {
        let params = SessionParams { n_ctx: 1024, n_ubatch: 16, n_threads: 2, window_spare, ..Default::default() };
        Session::new(subject.model.clone(), params).expect("session")
    };
    let (mut whole, mut ring) = (session(None), session(Some(0)));
    let bytes = |s: &Session| s.cache().bytes_at(1000);
    assert!(bytes(&ring) < bytes(&whole), "{name}: {} bytes", bytes(&ring));
    assert_eq!(ring.cache().bytes_per_token(), whole.cache().bytes_per_token());
    let ids =
        |n: usize, step: usize| (0..n).map(move |i| run.ids[(i * step + i / 7) % run.ids.len()]).collect::<Vec<_>>();

    let mut same = |what: &str, change: &dyn Fn(&mut Session), next: &[u32]| {
        let [a, b] = [&mut whole, &mut ring].map(|s| {
            change(s);
            collect(s, next)
        });
        assert!(a == b, "{name}: {what}");
        assert_eq!(whole.ids(), ring.ids());
    };
    same("a long text", &|_| (), &ids(600, 1));
    same("back by a few tokens", &|s| s.truncate(590).expect("truncation"), &ids(20, 5));
    same("back beyond what is held", &|s| s.truncate(100).expect("truncation"), &ids(500, 3));
    same("a context shift", &|s| s.shift(3, 200).expect("shift"), &ids(200, 5));
    same("one token at a time", &|_| (), &ids(1, 1));
    same("from the start", &|s| s.clear(), &ids(400, 2));

    // Of what is kept nothing is left: as if the rest had followed it at once.
    ring.shift(200, 196).expect("shift");
    let expected = [ids(200, 2), ids(400, 2)[396..].to_vec(), ids(5, 1)].concat();
    let rows = collect(&mut ring, &ids(5, 1));
    assert_eq!(ring.ids(), expected);
    whole.clear();
    let (read, next) = expected.split_at(204);
    collect(&mut whole, read);
    assert!(rows == collect(&mut whole, next), "{name}: a shift beyond what is held");
}
