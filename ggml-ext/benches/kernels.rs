//! Matrix products of every type at the shapes of decode and prefill, on every tier of this CPU, one thread.
//!
//! Decode (one token) is bound by the speed at which memory delivers the weights, prefill (many tokens) by
//! multiply-accumulates. Criterion's throughput is bytes of weights per second for the former, and
//! multiply-accumulates ("elements") per second for the latter. `read` is what decode can reach at best: the same bytes
//! summed up and nothing else. Prefill is in bf16 on tiers that have it, as in an engine. To end with, a table relates each
//! type's decode to what is read.
//!
//! `cargo bench -p ggml-ext --bench kernels -- avx512/Q4` runs what contains the word; with `TABLE_ONLY=1` in the
//! environment it prints the table without criterion's measurements before it, which take much longer.

use std::hint::black_box;
use std::ops::Range;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use ggml_ext::GgmlType;
use ggml_ext::blocks::quantize_row;
use ggml_ext::kernels::{Bf16Rows, Digits, FINE_STEP, Kernels, MatmulScratch, Q8Rows, takes_bf16};
use ggml_ext::pack::{ALIGN, MatrixRef, ROWS, pack_rows, packed_bytes};

/// Columns of all matrices: the width of a model of a few billion parameters.
const COLS: usize = 4096;
/// Rows for prefill.
const ROWS_PREFILL: usize = 512;
/// Tokens of prefill.
const TOKENS: usize = 64;
/// Bytes of weights for decode: more than the caches of a server core hold.
const DECODE_BYTES: usize = 256 << 20;

/// Weights as they are best held: packed where the type has a layout.
struct Weights {
    ty: GgmlType,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    start: usize,
    packed: bool,
}

impl Weights {
    /// `rows` rows, or as many as fill [`DECODE_BYTES`].
    fn new(ty: GgmlType, rows: Option<usize>, packed: bool) -> Self {
        let bytes = if packed { packed_bytes(ty, ROWS, COLS) } else { ty.row_bytes(COLS).map(|n| ROWS * n) };
        Self::of_shape(ty, rows.unwrap_or(DECODE_BYTES / bytes.unwrap() * ROWS), COLS, packed)
    }

    /// A few different rows over and over.
    fn of_shape(ty: GgmlType, rows: usize, cols: usize, packed: bool) -> Self {
        let x: Vec<f32> = (0..ROWS * cols).map(|i| (i * 7919 % 1021) as f32 / 510.0 - 1.0).collect();
        let mut file = vec![0; ROWS * ty.row_bytes(cols).unwrap()];
        quantize_row(ty, &x, &mut file);
        let group = if packed {
            let mut group = vec![0; packed_bytes(ty, ROWS, cols).unwrap()];
            pack_rows(ty, cols, 0..ROWS, &file, &mut group);
            group
        } else {
            file
        };
        let groups = rows / ROWS;
        let mut bytes = Vec::<u8>::with_capacity(groups * group.len() + ALIGN);
        let start = bytes.as_ptr().align_offset(ALIGN);
        bytes.resize(start, 0);
        (0..groups).for_each(|_| bytes.extend_from_slice(&group));
        Weights { ty, rows: groups * ROWS, cols, bytes, start, packed }
    }

    fn view(&self) -> MatrixRef<'_> {
        MatrixRef {
            ty: self.ty,
            rows: self.rows,
            cols: self.cols,
            data: &self.bytes[self.start..],
            packed: self.packed,
        }
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }
}

/// The types as they are held by an engine, and the packed ones as the file has them.
fn forms() -> Vec<(String, GgmlType, bool)> {
    let types = GgmlType::ALL.iter().filter(|ty| !matches!(ty, GgmlType::Q8_K));
    let packed = |ty| packed_bytes(ty, ROWS, COLS).is_some();
    let best = types.clone().map(|&ty| (ty.to_string(), ty, packed(ty)));
    let files = types.filter(|&&ty| packed(ty)).map(|&ty| (format!("{ty}-unpacked"), ty, false));
    best.chain(files).collect()
}

/// Fewest tokens that are multiplied in bf16.
const FEWEST_BF16_TOKENS: usize = 32;

/// One product, with the int8, bf16 or f32 operand that the type calls for.
struct Operand {
    x: Vec<f32>,
    q8: Q8Rows,
    bf16: Option<Bf16Rows>,
    scratch: MatmulScratch,
    out: Vec<f32>,
}

impl Operand {
    fn new(kernels: &Kernels, n: usize, cols: usize) -> Self {
        let x: Vec<f32> = (0..n * cols).map(|i| (i * 31 % 1009) as f32 / 500.0 - 1.0).collect();
        let mut q8 = Q8Rows::new(n, cols);
        q8.quantize(kernels, &x, FINE_STEP);
        let bf16 = (kernels.int.has_bf16() && n >= FEWEST_BF16_TOKENS).then(|| {
            let rows = Bf16Rows::new(n, cols);
            for (i, x) in x.chunks_exact(cols).enumerate() {
                // SAFETY: nobody else has the rows yet.
                unsafe { rows.round_row(kernels, i, x) };
            }
            rows
        });
        Operand { x, q8, bf16, scratch: MatmulScratch::default(), out: Vec::new() }
    }

    fn multiply(&mut self, kernels: &Kernels, w: &MatrixRef, rows: Range<usize>) {
        let n = self.q8.n_rows();
        self.out.resize(n * w.rows, 0.0);
        let out = self.out.as_mut_ptr();
        // SAFETY: `out` has room for every row of every token, and this thread alone has it and the operand.
        unsafe {
            match &self.bf16 {
                Some(x) if takes_bf16(w) => {
                    let (x, scratch) = (x.view(0..n), &mut self.scratch);
                    kernels.int.matmul_bf16(w, rows, x, Digits::One, scratch, out, w.rows);
                }
                _ if w.ty.is_float() => kernels.int.matmul_f32(w, rows, &self.x, &mut self.scratch, out, w.rows),
                _ => kernels.int.matmul(w, rows, self.q8.view(0..n), &mut self.scratch, out, w.rows),
            }
        }
        black_box(&mut self.out);
    }
}

/// Reads all of `bytes`, as fast as a simple loop can.
fn read(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<64>();
    let mut sums = [0_u64; 8];
    for line in words {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum ^= u64::from_ne_bytes(*word);
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}

fn products(c: &mut Criterion) {
    let large = vec![1; DECODE_BYTES];
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Bytes(large.len() as u64));
    group.bench_function("read", |b| b.iter(|| read(black_box(&large))));
    group.finish();
    drop(large);

    for kernels in Kernels::available() {
        let mut group = c.benchmark_group(format!("decode/{}", kernels.tier));
        let mut x = Operand::new(kernels, 1, COLS);
        for (name, ty, packed) in forms() {
            group.bench_function(BenchmarkId::from_parameter(&name), |b| {
                let w = Weights::new(ty, None, packed);
                b.iter(|| x.multiply(kernels, &w.view(), 0..w.rows));
            });
        }
        group.finish();
        let mut group = c.benchmark_group(format!("prefill/{}", kernels.tier));
        group.throughput(Throughput::Elements((ROWS_PREFILL * COLS * TOKENS) as u64));
        let mut x = Operand::new(kernels, TOKENS, COLS);
        for (name, ty, packed) in forms() {
            group.bench_function(BenchmarkId::from_parameter(&name), |b| {
                let w = Weights::new(ty, Some(ROWS_PREFILL), packed);
                b.iter(|| x.multiply(kernels, &w.view(), 0..w.rows));
            });
        }
        group.finish();
    }
}

/// Matrices of real models, rows x columns: SmolLM2-135M's query/key/value, output, gate/up and down products, and two of a
/// model of seven billion parameters.
const SHAPES: [(usize, usize); 6] = [(960, 576), (576, 576), (3072, 576), (576, 1536), (4096, 4096), (22016, 4096)];

/// Products of these shapes with one token and with a full micro-batch, in multiply-adds per second.
fn shapes(c: &mut Criterion) {
    let kernels = Kernels::detect();
    let mut group = c.benchmark_group(format!("shapes/{}", kernels.tier));
    for (rows, cols) in SHAPES {
        for n_tokens in [1, 512] {
            let w = Weights::of_shape(GgmlType::Q4_0, rows, cols, true);
            let mut x = Operand::new(kernels, n_tokens, cols);
            group.throughput(Throughput::Elements((rows * cols * n_tokens) as u64));
            group.bench_function(format!("Q4_0/{rows}x{cols}/{n_tokens} tokens"), |b| {
                b.iter(|| x.multiply(kernels, &w.view(), 0..w.rows));
            });
        }
    }
    group.finish();
}

/// Seconds that one of `n_parts` equal parts of a job takes: the median over some rounds through all of them. Parts are
/// short, so that other work on the machine disturbs few, and many, so that none finds its data in a cache.
fn seconds_per_part(n_parts: usize, mut run: impl FnMut(usize)) -> f64 {
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < n_parts || start.elapsed() < Duration::from_millis(400) {
        let part = Instant::now();
        run(times.len() % n_parts);
        times.push(part.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Every type and tier in a line.
fn table(filters: &[String]) {
    const PARTS: usize = 512;
    let large = vec![1; DECODE_BYTES];
    let part = large.len() / PARTS;
    let time = seconds_per_part(PARTS, |i| {
        black_box(read(black_box(&large[i * part..(i + 1) * part])));
    });
    let roofline = part as f64 / time / 1e9;
    drop(large);
    println!("{COLS} columns, one thread; memory is read at {roofline:.1} GB/s\n");
    println!("{:9} {:16} {:>12} {:>12} {:>15}", "tier", "type", "decode GB/s", "of the limit", "prefill GMAC/s");
    for kernels in Kernels::available() {
        let (mut one, mut many) = (Operand::new(kernels, 1, COLS), Operand::new(kernels, TOKENS, COLS));
        for (name, ty, packed) in forms() {
            let tier = kernels.tier;
            if !filters.iter().all(|f| format!("{tier}/{name}").contains(f)) {
                continue;
            }
            let w = Weights::new(ty, None, packed);
            let part = w.rows / PARTS / ROWS * ROWS;
            let time = seconds_per_part(PARTS, |i| one.multiply(kernels, &w.view(), i * part..(i + 1) * part));
            let decode = w.len() as f64 / w.rows as f64 * part as f64 / time / 1e9;
            let (w, rows) = (Weights::new(ty, Some(ROWS_PREFILL), packed), ROWS);
            let time = seconds_per_part(ROWS_PREFILL / rows, |i| {
                many.multiply(kernels, &w.view(), i * rows..(i + 1) * rows);
            });
            let prefill = (rows * COLS * TOKENS) as f64 / time / 1e9;
            println!("{tier:9} {name:16} {decode:12.1} {:11.0}% {prefill:15.1}", 100.0 * decode / roofline);
        }
    }
}

/// How fast weights are packed when a model is loaded.
fn packing() {
    println!("\n{:16} {:>12}", "type", "pack GB/s");
    for (name, ty, _) in forms().iter().filter(|(_, _, packed)| *packed) {
        let src = vec![0x5a; 4 * ROWS * ty.row_bytes(COLS).unwrap()];
        let mut dst = vec![0; packed_bytes(*ty, 4 * ROWS, COLS).unwrap()];
        let time = seconds_per_part(1, |_| pack_rows(*ty, COLS, 0..4 * ROWS, black_box(&src), black_box(&mut dst)));
        println!("{name:16} {:12.2}", src.len() as f64 / time / 1e9);
    }
}

fn main() {
    // `cargo bench` passes --bench; options are criterion's, words choose benchmarks.
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if std::env::var_os("TABLE_ONLY").is_none() {
        let mut criterion = Criterion::default().configure_from_args().sample_size(10);
        products(&mut criterion);
        shapes(&mut criterion);
        criterion.final_summary();
    }
    table(&filters);
    packing();
}
