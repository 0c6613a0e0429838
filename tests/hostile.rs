//! Damaged models, loaded whole and run: an error or a correct run, never a panic, never more memory than the file
//! justifies. The header's own checks are tested in `ggml-ext`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use flate2::read::GzDecoder;
use lisa_cpp::{Model, ModelFile, ModelParams, Session, SessionParams};

/// Counts live bytes and their peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A small fast generator with a fixed seed (SplitMix64), so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Loads `bytes` as a model and runs a few tokens; says what happened. Panics are caught by the caller.
fn load_and_run(bytes: &[u8]) -> Result<(), String> {
    run(&ModelFile::from_bytes("mutated", bytes.to_vec()), None)
}

/// The same with `bytes` as a sidecar of the embedded model.
fn load_beside_and_run(bytes: &[u8]) -> Result<(), String> {
    run(&ModelFile::embedded(), Some(&ModelFile::from_bytes("mutated", bytes.to_vec())))
}

fn run(file: &ModelFile, lisa: Option<&ModelFile>) -> Result<(), String> {
    let params = ModelParams { n_threads: 1, lisa, ..Default::default() };
    let model = Model::load(file, params).map_err(|e| e.to_string())?;
    let params = SessionParams { n_ctx: 16, n_ubatch: 8, n_threads: 1, ..Default::default() };
    let mut session = Session::new(Arc::new(model), params).map_err(|e| e.to_string())?;
    let ids = session.model().tokenizer().encode("Once", true, true).map_err(|e| e.to_string())?;
    let ids = &ids[..ids.len().min(4)];
    if !ids.is_empty() {
        session.prefill(ids, &mut |_| ()).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Peaks are the whole process's, so the tests take turns, and read their files in these.
static TURN: Mutex<()> = Mutex::new(());

/// Runs every mutation and reports those that panicked or allocated more than twice the file above its own copy.
fn check(
    original: impl FnOnce() -> Vec<u8>,
    n: usize,
    run: impl Fn(&[u8]) -> Result<(), String>,
    mut mutate: impl FnMut(&mut Random, &mut Vec<u8>),
) {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let (original, mut random) = (original(), Random(1));
    let (mut ok, mut refused) = (0, 0);
    for i in 0..n {
        let mut bytes = original.clone();
        mutate(&mut random, &mut bytes);
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        match catch_unwind(AssertUnwindSafe(|| run(&bytes))) {
            Ok(Ok(())) => ok += 1,
            Ok(Err(message)) => {
                assert!(!message.is_empty() && !message.contains('\n'), "mutation {i}: message {message:?}");
                refused += 1;
            }
            Err(_) => panic!("mutation {i} panicked"),
        }
        // The harness's own copy is one file; loading may take twice the file beside it, and a session's work space.
        let used = PEAK.load(Ordering::Relaxed) - before;
        let limit = 3 * bytes.len() + (4 << 20);
        assert!(used <= limit, "mutation {i}: {used} bytes allocated for a file of {}", bytes.len());
    }
    println!("{n} mutations: {ok} ran, {refused} refused");
    assert!(ok > 0 && refused > 0, "the mutations test nothing: {ok} ran, {refused} refused");
}

fn embedded() -> Vec<u8> {
    ModelFile::embedded().parts[0].to_vec()
}

/// Most single bytes of a model are weights, where a change is harmless: half of the mutations go to the header.
fn position(random: &mut Random, len: usize) -> usize {
    const HEADER: usize = 16 << 10;
    if random.below(2) == 0 { random.below(HEADER.min(len)) } else { random.below(len) }
}

#[test]
fn single_byte_mutations() {
    check(embedded, 10_000, load_and_run, |random, bytes| {
        let at = position(random, bytes.len());
        bytes[at] = random.next() as u8;
    });
}

#[test]
fn multi_byte_mutations() {
    check(embedded, 1_000, load_and_run, |random, bytes| {
        for _ in 0..1 + random.below(16) {
            let at = position(random, bytes.len());
            let n = (1 + random.below(8)).min(bytes.len() - at);
            let fill = [0, 0xff, random.next() as u8][random.below(3)];
            bytes[at..at + n].fill(fill);
        }
    });
}

/// Families with parts that the embedded model has not: experts, states, latents, convolutions, inputs beside the residual stream, several rows of
/// it, learned positions, linear biases, clips.
#[test]
fn other_families() {
    for name in [
        "gemma4_experts",
        "gemma3n",
        "qwen3next",
        "qwen35_guessing",
        "deepseek2",
        "lfm2moe",
        "gpt2",
        "mpt",
        "granitehybrid_experts",
        "nemotron_h_moe_latents",
        "nemotron_h_moe_varying",
        "falcon_h1",
        "mamba2",
        "mamba",
        "jamba",
        "plamo2",
        "rwkv7",
        "rwkv6_apart",
        "kimi_linear",
        "bailingmoe3",
        "minimax_01",
        "grovemoe",
        "maple",
        "spark2_5",
        "talkie",
        "chameleon_after",
        "grok_beside",
        "nanbeige",
        "deci",
        "arctic",
        "cohere2moe",
        "mimo2",
        "step35",
        "laguna",
        "granite_swa_experts",
        "hunyuan_vl",
        "openelm",
        "plm",
    ] {
        let path = format!("{}/tests/data/families/{name}.gguf.gz", env!("CARGO_MANIFEST_DIR"));
        let original = || {
            let mut original = Vec::new();
            GzDecoder::new(&*std::fs::read(path).unwrap()).read_to_end(&mut original).unwrap();
            original
        };
        check(original, 400, load_and_run, |random, bytes| {
            let at = position(random, bytes.len());
            bytes[at] = random.next() as u8;
        });
    }
}

#[test]
fn sidecars() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/stories260K.lisa.gguf");
    check(
        || std::fs::read(path).unwrap(),
        2_000,
        load_beside_and_run,
        |random, bytes| {
            let at = position(random, bytes.len().min(4096));
            bytes[at] = random.next() as u8;
        },
    );
}

#[test]
fn truncations() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let original = embedded();
    for len in (0..original.len()).step_by(4096) {
        let result = catch_unwind(|| load_and_run(&original[..len]));
        assert!(matches!(result, Ok(Err(_))), "cut to {len} bytes: {result:?}");
    }
}
