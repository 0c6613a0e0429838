//! The products of attention at shapes of prefill and decode, on every tier of this CPU.
//!
//! Criterion's elements per second are floating-point operations per second; a multiply-add counts as two.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ggml_ext::kernels::Kernels;
use ggml_ext::kernels::float::{BlockQ8_0, HeadNet, KEY_GROUP, KeysQ8_0, Rows, RowsMut, UNIT_FLOATS, UnitAct};
use half::f16;
use std::hint::black_box;

/// Query rows, keys, head dimension.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 256, 64), (3, 256, 64), (4, 256, 128), (32, 128, 64), (96, 128, 64), (32, 128, 128), (32, 128, 256)];

fn products(c: &mut Criterion) {
    for kernels in Kernels::available() {
        let k = kernels.float;
        let mut group = c.benchmark_group(format!("float/{}", kernels.tier));
        for (m, n, d) in SHAPES {
            group.throughput(Throughput::Elements(2 * (m * n * d) as u64));
            let ramp = |len: usize| (0..len).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect::<Vec<_>>();
            let (q, p, keys) = (ramp(m * d), ramp(m * n), ramp(n * d));
            let halves: Vec<f16> = keys.iter().map(|&x| f16::from_f32(x)).collect();
            let mut bytes = vec![0; n * d / 32 * 34];
            k.quantize_q8_0_row(&keys, &mut bytes);
            // SAFETY: any bytes are blocks, at any address.
            let (_, blocks, _) = unsafe { bytes.align_to::<BlockQ8_0>() };
            let block = KeysQ8_0 { scales: [f16::ONE; KEY_GROUP], codes: [[3; KEY_GROUP]; KeysQ8_0::LEN] };
            let groups = vec![block; d / KeysQ8_0::LEN];
            let (mut scores, mut out) = (vec![0.0; m * n], vec![0.0; m * d]);
            let shape = format!("{m}x{n}x{d}");
            group.bench_function(BenchmarkId::new("sgemm_nt", &shape), |b| {
                b.iter(|| {
                    let c = RowsMut::new(black_box(&mut scores), m, n, n);
                    k.sgemm_nt(0.125, Rows::new(black_box(&q), m, d, d), Rows::new(black_box(&keys), n, d, d), c);
                })
            });
            // Group by group of transposed keys, as they lie in the cache.
            group.bench_function(BenchmarkId::new("scores_f16", &shape), |b| {
                b.iter(|| {
                    for j in (0..n).step_by(KEY_GROUP) {
                        let c = RowsMut::new(&mut black_box(&mut scores)[j..], m, KEY_GROUP, n);
                        let keys = &black_box(&halves)[j * d..];
                        k.scores_f16(
                            0.125,
                            Rows::new(black_box(&q), m, d, d),
                            Rows::new(keys, d, KEY_GROUP, KEY_GROUP),
                            c,
                        );
                    }
                })
            });
            group.bench_function(BenchmarkId::new("scores_q8_0", &shape), |b| {
                b.iter(|| {
                    for j in (0..n).step_by(KEY_GROUP) {
                        let c = RowsMut::new(&mut black_box(&mut scores)[j..], m, KEY_GROUP, n);
                        k.scores_q8_0(0.125, Rows::new(black_box(&q), m, d, d), black_box(&groups), 0, c);
                    }
                })
            });
            group.bench_function(BenchmarkId::new("sgemm_nn_acc", &shape), |b| {
                b.iter(|| {
                    let c = RowsMut::new(black_box(&mut out), m, d, d);
                    k.sgemm_nn_acc(Rows::new(black_box(&p), m, n, n), Rows::new(black_box(&keys), n, d, d), c);
                })
            });
            group.bench_function(BenchmarkId::new("values_f16", &shape), |b| {
                b.iter(|| {
                    let c = RowsMut::new(black_box(&mut out), m, d, d);
                    k.values_f16(Rows::new(black_box(&p), m, n, n), Rows::new(black_box(&halves), n, d, d), c);
                })
            });
            group.bench_function(BenchmarkId::new("values_q8_0", &shape), |b| {
                b.iter(|| {
                    let c = RowsMut::new(black_box(&mut out), m, d, d);
                    k.values_q8_0(
                        Rows::new(black_box(&p), m, n, n),
                        Rows::new(black_box(blocks), n, d / 32, d / 32),
                        c,
                    );
                })
            });
        }
        group.finish();
    }
}

/// The network over the heads by which a layer takes over attention: elements are its multiply-adds for all keys.
fn heads(c: &mut Criterion) {
    const KEYS: usize = 4096;
    /// As attention keeps them: an odd number of cache lines.
    const STRIDE: usize = KEYS + 16;
    for kernels in Kernels::available() {
        let mut group = c.benchmark_group(format!("heads/{}", kernels.tier));
        for (n_head, n_hidden) in [(9, 0), (9, 9), (9, 18), (32, 0), (32, 32)] {
            let ramp = |len: usize| (0..len).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect::<Vec<_>>();
            let (skip, up, bias, down) =
                (ramp(n_head * n_head), ramp(n_hidden * n_head), ramp(n_hidden), ramp(n_head * n_hidden));
            let none = Rows::new(&[], 0, 0, 0);
            let net =
                HeadNet { skip: &skip, up: &up, bias: &bias, down: &down, act: UnitAct::Silu2, ahead: [none, none] };
            let (x, mut out) = (ramp(n_head * STRIDE), vec![0.0; n_head * STRIDE]);
            let mut units = vec![0.0; n_hidden * UNIT_FLOATS];
            group.throughput(Throughput::Elements((KEYS * n_head * (n_head + 2 * n_hidden)) as u64));
            group.bench_function(format!("{n_head} heads, {n_hidden} units"), |b| {
                b.iter(|| {
                    let out = RowsMut::new(black_box(&mut out), n_head, KEYS, STRIDE);
                    kernels.float.align_heads(&net, Rows::new(black_box(&x), n_head, KEYS, STRIDE), &mut units, out);
                })
            });
        }
        group.finish();
    }
}

/// Elements per second of what runs once per row.
fn rows(c: &mut Criterion) {
    for kernels in Kernels::available() {
        let k = kernels.float;
        let mut group = c.benchmark_group(format!("float/{}", kernels.tier));
        let n = 1536;
        group.throughput(Throughput::Elements(n as u64));
        let x: Vec<f32> = (0..n).map(|i| (i % 97) as f32 / 9.7 - 5.0).collect();
        let mut y = x.clone();
        let mut halves = vec![f16::ZERO; n];
        group.bench_function("softmax", |b| b.iter(|| k.softmax(black_box(&mut y))));
        group.bench_function("silu_mul", |b| b.iter(|| k.silu_mul(black_box(&x), black_box(&x), &mut y)));
        group.bench_function("gelu_mul", |b| b.iter(|| k.gelu_mul(black_box(&x), black_box(&x), &mut y)));
        group.bench_function("rms_norm", |b| b.iter(|| k.rms_norm(black_box(&x), black_box(&x), 1e-5, &mut y)));
        group.bench_function("f32_to_f16", |b| b.iter(|| k.f32_to_f16(black_box(&x), &mut halves)));
        group.bench_function("f16_to_f32", |b| b.iter(|| k.f16_to_f32(black_box(&halves), &mut y)));
        let mut head = x[..64].to_vec();
        let (cos, sin) = ([0.6; 32], [0.8; 32]);
        group.throughput(Throughput::Elements(64));
        group.bench_function("rope_norm", |b| b.iter(|| k.rope_norm(black_box(&mut head), &cos, &sin)));
        group.bench_function("rope_neox", |b| b.iter(|| k.rope_neox(black_box(&mut head), &cos, &sin)));
        group.finish();
    }
}

criterion_group!(benches, products, heads, rows);
criterion_main!(benches);
