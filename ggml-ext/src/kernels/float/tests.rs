//! Every kernel of every tier this CPU has, against naive loops in f64.

use super::super::Kernels;
use super::*;

fn tiers() -> Vec<(Tier, FloatKernels)> {
    Kernels::available().into_iter().map(|k| (k.tier, k.float)).collect()
}

/// Lengths around every vector width and unrolling, and some that models use.
const LENGTHS: [usize; 25] =
    [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 96, 127, 128, 255, 576, 1000];

/// Deterministic numbers in -1..1, different for every seed.
fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Equal within `rel` of the value or of `size`, whichever is larger; NaN and infinities must agree exactly.
#[track_caller]
fn close(got: f32, want: f64, size: f64, rel: f64, what: &str) {
    let same = if want.is_nan() {
        got.is_nan()
    } else if got.is_infinite() || want.abs() > f64::from(f32::MAX) {
        f64::from(got) == want || got == want as f32
    } else {
        (f64::from(got) - want).abs() <= rel * want.abs().max(size)
    };
    assert!(same, "{what}: got {got:e}, want {want:e}");
}

#[track_caller]
fn all_close(got: &[f32], want: impl Iterator<Item = f64>, size: f64, rel: f64, what: &str) {
    let want: Vec<f64> = want.collect();
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&g, &w)) in got.iter().zip(&want).enumerate() {
        close(g, w, size, rel, &format!("{what}[{i}]"));
    }
}

fn wide(x: &[f32]) -> impl Iterator<Item = f64> + '_ {
    x.iter().map(|&v| f64::from(v))
}

/// Runs `op` on `x` with guard elements behind it, and checks that those are left alone.
fn guarded(x: &[f32], op: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut all = x.to_vec();
    all.extend([7.25; 16]);
    op(&mut all[..x.len()]);
    assert!(all[x.len()..].iter().all(|&v| v == 7.25), "wrote beyond its slice");
    all.truncate(x.len());
    all
}

#[test]
fn sums_and_maxima() {
    for (tier, k) in tiers() {
        for n in LENGTHS {
            let what = format!("{tier:?} {n}");
            let (a, b) = (noise(1, n), noise(2, n));
            let dot: f64 = wide(&a).zip(wide(&b)).map(|(a, b)| a * b).sum();
            close(k.dot(&a, &b), dot, n as f64, 1e-7, &what);
            assert_eq!(k.max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max), "{what}");
            // The maximum is found wherever it stands, and below zero too.
            for i in 0..n {
                let mut x = vec![-3.0; n];
                x[i] = -2.0;
                assert_eq!(k.max(&x), -2.0, "{what} at {i}");
            }
        }
        assert_eq!(k.max(&[f32::NEG_INFINITY; 40]), f32::NEG_INFINITY, "{tier:?}");
        assert_eq!(k.dot(&[f32::INFINITY, 1.0], &[1.0, 1.0]), f32::INFINITY, "{tier:?}");
    }
}

#[test]
fn elementwise() {
    for (tier, k) in tiers() {
        for n in LENGTHS {
            let what = format!("{tier:?} {n}");
            let (x, y) = (noise(3, n), noise(4, n));
            let pairs = || wide(&x).zip(wide(&y));
            all_close(&guarded(&y, |y| k.add_assign(y, &x)), pairs().map(|(x, y)| x + y), 1.0, 1e-7, &what);
            all_close(&guarded(&y, |y| k.mul_assign(y, &x)), pairs().map(|(x, y)| x * y), 0.0, 1e-7, &what);
            all_close(&guarded(&y, |y| k.axpy(-2.5, &x, y)), pairs().map(|(x, y)| -2.5 * x + y), 1.0, 3e-7, &what);
            all_close(&guarded(&x, |x| k.scale(x, 0.3)), wide(&x).map(|x| x * f64::from(0.3f32)), 0.0, 1e-7, &what);
        }
    }
}

#[test]
fn rms_norm() {
    for (tier, k) in tiers() {
        for n in LENGTHS.into_iter().skip(1) {
            for magnitude in [1.0, 1e-6, 1e12] {
                let what = format!("{tier:?} {n} {magnitude:e}");
                let x: Vec<f32> = noise(5, n).iter().map(|v| v * magnitude).collect();
                let weight = noise(6, n);
                let eps = 1e-5f32;
                let mean = wide(&x).map(|v| v * v).sum::<f64>() / n as f64;
                let s = 1.0 / (mean + f64::from(eps)).sqrt();
                let want = || wide(&x).zip(wide(&weight)).map(|(x, w)| x * s * w);
                all_close(&guarded(&x, |o| k.rms_norm(&x, &weight, eps, o)), want(), 1e-30, 1e-6, &what);
                all_close(&guarded(&x, |x| k.rms_norm_in_place(x, &weight, eps)), want(), 1e-30, 1e-6, &what);
            }
        }
        k.rms_norm(&[], &[], 1e-5, &mut []);
        assert_eq!(guarded(&[0.0; 5], |x| k.rms_norm_in_place(x, &[1.0; 5], 1e-6)), [0.0; 5], "{tier:?}");
    }
}

/// Floats from every binade, both signs, each with several mantissas, then the special values.
fn everywhere() -> Vec<f32> {
    let mut x = Vec::new();
    for exponent in 0..255u32 {
        for mantissa in [0, 1, 0x12_3456, 0x40_0000, 0x5a_5a5a, 0x7f_ffff] {
            let v = f32::from_bits(exponent << 23 | mantissa);
            x.extend([v, -v]);
        }
    }
    x.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    x
}

#[test]
fn exponential() {
    // A fine grid over the arguments with finite, nonzero results, both ends included.
    let grid: Vec<f32> = (0..400_000).map(|i| -104.0 + i as f32 * (193.0 / 400_000.0)).collect();
    for (tier, k) in tiers() {
        for x in [&grid, &everywhere()] {
            let y = guarded(x, |x| k.exp(x));
            for (&x, &y) in x.iter().zip(&y) {
                let want = f64::from(x).exp();
                // Two units in the last place, which is 2^-149 for subnormal results, and 1.3 of the argument.
                let rel = 2.4e-7 + 7.75e-8 * f64::from(x).abs().min(200.0) + 2.0f64.powi(-149) / want.max(1e-300);
                close(y, want, 0.0, rel, &format!("{tier:?} exp {x:e}"));
            }
        }
    }
}

#[test]
fn softplus() {
    let grid: Vec<f32> = (0..400_000).map(|i| -80.0 + i as f32 * (160.0 / 400_000.0)).collect();
    for (tier, k) in tiers() {
        for x in [&grid, &everywhere()] {
            for (&x, &y) in x.iter().zip(&guarded(x, |x| k.softplus(x))) {
                let wide = f64::from(x);
                let want = wide.max(0.0) + (-wide.abs()).exp().ln_1p();
                // Subnormal results are halved and doubled on the way.
                let rel = 5e-7 + 7.75e-8 * wide.abs().min(200.0) + 3.0 * 2.0f64.powi(-149) / want.max(1e-300);
                close(y, if x.is_nan() { f64::NAN } else { want }, 0.0, rel, &format!("{tier:?} softplus {x:e}"));
            }
        }
    }
}

#[test]
fn streaming_softmax() {
    for (tier, k) in tiers() {
        for n in LENGTHS {
            let what = format!("{tier:?} {n}");
            let mut x: Vec<f32> = noise(7, n).iter().map(|v| v * 30.0).collect();
            for i in (0..n).step_by(3) {
                x[i] = f32::NEG_INFINITY;
            }
            let max = k.max(&x);
            let all = if max == f32::NEG_INFINITY { 0.0 } else { 1.0 };
            let terms = || wide(&x).map(|v| all * (v - f64::from(max)).max(-80.0).exp());
            let mut sum = f32::NAN;
            let e = guarded(&x, |x| sum = k.exp_sub_sum(x, max));
            // The subtraction rounds by up to half a unit of 60, and that times log2 e by half of one of 87: 4.6e-6.
            all_close(&e, terms(), 0.0, 6e-6, &what);
            close(sum, terms().sum(), 0.0, 3e-6, &what);
            let total: f64 = terms().sum();
            if total > 0.0 {
                all_close(&guarded(&x, |x| k.softmax(x)), terms().map(|e| e / total), 0.0, 6e-6, &what);
            }
        }
        let masked = [f32::NEG_INFINITY; 21];
        assert_eq!(guarded(&masked, |x| assert_eq!(k.exp_sub_sum(x, f32::NEG_INFINITY), 0.0)), [0.0; 21], "{tier:?}");
        // All masked but for what another tile has seen.
        assert!(guarded(&masked, |x| assert!(k.exp_sub_sum(x, -3.0) < 1e-33)).iter().all(|&e| e < 2e-35), "{tier:?}");
        assert_eq!(guarded(&masked, |x| k.softmax(x)), [0.0; 21], "{tier:?}");
        // Scores far beyond the range of e^x.
        let p = guarded(&[-3e38, 3e38, 0.0, 3e38], |x| k.softmax(x));
        assert!(p[0] < 2e-35 && p[1] == 0.5 && p[2] < 2e-35 && p[3] == 0.5, "{tier:?}: {p:?}");
        // No weight is a number that is not normal: these cost a hundred times as much.
        let x: Vec<f32> = (0..400).map(|i| -0.5 * i as f32).collect();
        assert!(
            guarded(&x, |x| {
                k.exp_sub_sum(x, 0.0);
            })
            .iter()
            .all(|e| e.is_normal()),
            "{tier:?}"
        );
        assert!(guarded(&x, |x| k.softmax(x)).iter().all(|e| e.is_normal()), "{tier:?}");
    }
}

fn silu64(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn gelu64(x: f64) -> f64 {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    // 1 + tanh u = 2 / (1 + e^-2u), which keeps its digits where tanh u is near -1.
    x / (1.0 + (-2.0 * u).exp())
}

#[test]
fn activations() {
    let grid: Vec<f32> = (0..100_001).map(|i| -100.0 + i as f32 * 0.002).collect();
    let wild: Vec<f32> = everywhere().into_iter().filter(|x| x.is_finite()).collect();
    for (tier, k) in tiers() {
        for x in [&grid, &wild] {
            let up = noise(8, x.len());
            for (name, f64_of, plain, gated) in [
                (
                    "silu",
                    silu64 as fn(f64) -> f64,
                    guarded(x, |x| k.silu(x)),
                    guarded(x, |out| k.silu_mul(x, &up, out)),
                ),
                ("gelu", gelu64, guarded(x, |x| k.gelu(x)), guarded(x, |out| k.gelu_mul(x, &up, out))),
            ] {
                let what = format!("{tier:?} {name}");
                // The rounding of the exponent costs a relative error that grows with it, where results vanish: hence
                // an absolute part.
                all_close(&plain, wide(x).map(f64_of), 1e-2, 1e-6, &what);
                all_close(&gated, wide(x).zip(wide(&up)).map(|(x, u)| f64_of(x) * u), 1e-2, 1e-6, &what);
            }
            for cap in [30.0f32, 50.0] {
                let cap64 = f64::from(cap);
                let want = wide(x).map(|x| cap64 * (x / cap64).tanh());
                all_close(&guarded(x, |x| k.soft_cap(x, cap)), want, 1e-36, 5e-7, &format!("{tier:?} cap {cap}"));
            }
        }
        for n in LENGTHS {
            let (x, up) = (noise(9, n), noise(10, n));
            let want = || wide(&x).zip(wide(&up));
            let what = format!("{tier:?} {n}");
            let got = guarded(&x, |out| k.silu_mul(&x, &up, out));
            all_close(&got, want().map(|(x, u)| silu64(x) * u), 0.0, 1e-6, &what);
            let (wild, wild_up): (Vec<_>, Vec<_>) = x.iter().zip(&up).map(|(x, u)| (12.0 * x, 12.0 * u)).unzip();
            let got = guarded(&wild, |out| k.clamped_swiglu(&wild, &wild_up, out));
            let want_clamped = wide(&wild).zip(wide(&wild_up)).map(|(g, u)| {
                let (g, u) = (g.min(7.0), u.clamp(-7.0, 7.0));
                g / (1.0 + (-1.702 * g).exp()) * (u + 1.0)
            });
            all_close(&got, want_clamped, 1e-5, 1e-6, &what);
            let got = guarded(&up, |x| k.sigmoid_mul(&wild, x));
            all_close(&got, wide(&up).zip(wide(&wild)).map(|(x, g)| x / (1.0 + (-g).exp())), 0.0, 1e-6, &what);
            let got = guarded(&wild, |x| k.sigmoid(x));
            all_close(&got, wide(&wild).map(|x| 1.0 / (1.0 + (-x).exp())), 0.0, 1e-6, &what);
            let got = guarded(&x, |out| k.gelu_mul(&x, &up, out));
            all_close(&got, want().map(|(x, u)| gelu64(x) * u), 0.0, 1e-6, &what);
            all_close(&guarded(&x, |x| k.soft_cap(x, 0.5)), wide(&x).map(|x| 0.5 * (2.0 * x).tanh()), 0.0, 5e-7, &what);
        }
        assert_eq!(guarded(&[f32::INFINITY, f32::NEG_INFINITY], |x| k.soft_cap(x, 30.0)), [30.0, -30.0], "{tier:?}");
        assert!(guarded(&[f32::NAN; 3], |x| k.silu(x)).iter().all(|v| v.is_nan()), "{tier:?}");
        assert!(
            guarded(&[-1.5, -0.0, 0.0, 2.5, -f32::INFINITY], |x| k.relu(x)) == [0.0, 0.0, 0.0, 2.5, 0.0],
            "{tier:?}"
        );
    }
}

fn some_rows(x: &[f32], len: usize, stride: usize, rows: std::ops::Range<usize>) -> Rows<'_, f32> {
    Rows::new(&x[rows.start * stride..], rows.len(), len, stride)
}

/// A rule, given decays for each element of a key.
type Rule = fn(&FloatKernels, StateUpdate, Rows<f32>);

#[test]
fn the_delta_rule() {
    recurrence(|k, update, _| k.delta_rule(update), |value, known, step| step * (value - known), false);
}

#[test]
fn the_delta_rule_by_key() {
    recurrence(FloatKernels::keyed_delta_rule, |value, known, step| step * (value - known), true);
}

#[test]
fn the_selective_scan() {
    recurrence(|k, update, _| k.selective_scan(update), |value, _, step| step * value, false);
}

/// Against the recurrence as it is written down, and bit for bit however many tokens a call has. `change`: what is added of a value, given what
/// the state has for the token's key, and the step. `keyed`: whether elements of keys have decays of their own.
fn recurrence(rule: Rule, change: fn(f64, f64, f64) -> f64, keyed: bool) {
    for (tier, kernels) in tiers() {
        for (dim, width, n_tokens) in [(8, 8, 5), (16, 16, 7), (5, 3, 4), (64, 33, 9), (128, 128, 40), (3, 80, 1)] {
            let what = format!("{tier:?} {dim} x {width}, {n_tokens} tokens");
            let [q, k] = [1, 2].map(|seed| noise(seed, n_tokens * (dim + 3)));
            let (v, start) = (noise(3, n_tokens * (width + 1)), noise(4, dim * width));
            let rates: Vec<_> =
                (0..n_tokens).map(|t| StateRates { decay: 0.3 + 0.7 / (t + 1) as f32, step: 0.2 }).collect();
            let decays: Vec<f32> = noise(5, n_tokens * (dim + 1)).iter().map(|x| 1.0 / (1.0 + x.abs())).collect();
            let mut state: Vec<f64> = wide(&start).collect();
            let mut want = Vec::new();
            for (t, r) in rates.iter().enumerate() {
                let [q, k] = [&q, &k].map(|x| wide(&x[t * (dim + 3)..][..dim]).collect::<Vec<_>>());
                let decay = |j: usize| if keyed { decays[t * (dim + 1) + j] } else { r.decay };
                state.iter_mut().enumerate().for_each(|(i, s)| *s *= f64::from(decay(i / width)));
                for i in 0..width {
                    let known: f64 = (0..dim).map(|j| state[j * width + i] * k[j]).sum();
                    let change = change(f64::from(v[t * (width + 1) + i]), known, f64::from(r.step));
                    (0..dim).for_each(|j| state[j * width + i] += change * k[j]);
                    want.push((0..dim).map(|j| state[j * width + i] * q[j]).sum());
                }
            }
            let run = |parts: &[std::ops::Range<usize>]| {
                let (mut state, mut all) = (start.clone(), Vec::new());
                for t in parts {
                    let mut out = vec![7.25; t.len() * (width + 2)];
                    let (q, k) = (some_rows(&q, dim, dim + 3, t.clone()), some_rows(&k, dim, dim + 3, t.clone()));
                    let v = some_rows(&v, width, width + 1, t.clone());
                    let (rates, decays) = (&rates[t.clone()], some_rows(&decays, dim, dim + 1, t.clone()));
                    let results = RowsMut::new(&mut out, t.len(), width, width + 2);
                    rule(&kernels, StateUpdate { state: &mut state, q, k, v, rates, out: results }, decays);
                    for row in out.chunks_exact(width + 2) {
                        all.extend_from_slice(&row[..width]);
                        assert_eq!(row[width..], [7.25; 2], "{what}");
                    }
                }
                (state, all)
            };
            let together = run(&[0..0, 0..n_tokens]);
            all_close(&together.0, state.into_iter(), 1.0, 1e-5, &what);
            all_close(&together.1, want.into_iter(), dim as f64, 1e-6, &what);
            assert!(together == run(&[0..n_tokens / 2, n_tokens / 2..n_tokens]), "{what}");
            let mut last = vec![0.0; width];
            let (q, k) = (some_rows(&q, dim, dim + 3, 0..n_tokens), some_rows(&k, dim, dim + 3, 0..n_tokens));
            let v = some_rows(&v, width, width + 1, 0..n_tokens);
            let out = RowsMut::new(&mut last, 1, width, width);
            let decays = some_rows(&decays, dim, dim + 1, 0..n_tokens);
            rule(&kernels, StateUpdate { state: &mut start.clone(), q, k, v, rates: &rates, out }, decays);
            assert_eq!(last, together.1[(n_tokens - 1) * width..], "{what}");
        }
    }
}

/// What rows of a result hold besides, for a kernel to leave alone.
const BESIDE: [f32; 2] = [7.25; 2];

/// `n_rows` rows of `width` results, which `run` fills.
fn results(n_rows: usize, width: usize, run: impl FnOnce(RowsMut<f32>), what: &str) -> Vec<f32> {
    let mut out = vec![BESIDE[0]; n_rows * (width + BESIDE.len())];
    run(RowsMut::new(&mut out, n_rows, width, width + BESIDE.len()));
    assert!(out.chunks_exact(width + BESIDE.len()).all(|row| row[width..] == BESIDE), "{what}");
    out.chunks_exact(width + BESIDE.len()).flat_map(|row| row[..width].to_vec()).collect()
}

/// Runs a scan on a state for some tokens, and returns what the last `n_read` of them read.
type Scan<'a> = &'a dyn Fn(&mut [f32], std::ops::Range<usize>, usize) -> Vec<f32>;

/// That a scan from `start` through `n_tokens` leaves the state and the results that are `wanted`, and the same bits
/// however many tokens a call has and how few of them are read.
fn scan_is(run: Scan, start: &[f32], n_tokens: usize, wanted: (Vec<f64>, Vec<f64>), dim: usize, what: &str) {
    let (mut together, (state, results)) = (start.to_vec(), wanted);
    let width = start.len() / dim;
    let all = run(&mut together, 0..n_tokens, n_tokens);
    all_close(&together, state.into_iter(), 1.0, 1e-5, what);
    all_close(&all, results.into_iter(), dim as f64, 1e-6, what);
    let (mut apart, half) = (start.to_vec(), n_tokens / 2);
    let mut read = run(&mut apart, 0..half, half);
    read.extend(run(&mut apart, half..n_tokens, n_tokens - half));
    assert!((&apart, &read) == (&together, &all), "{what}");
    assert_eq!(run(&mut start.to_vec(), 0..n_tokens, 1), all[(n_tokens - 1) * width..], "{what}");
}

/// Against the recurrence as it is written down, and bit for bit however many tokens a call has.
#[test]
fn the_scan_of_channels() {
    for (tier, kernels) in tiers() {
        for (dim, width, n_tokens) in [(16, 8, 5), (16, 64, 7), (5, 3, 4), (10, 33, 9), (64, 17, 40), (3, 80, 1)] {
            let what = format!("{tier:?} {dim} x {width}, {n_tokens} tokens");
            let [q, k] = [1, 2].map(|seed| noise(seed, n_tokens * (dim + 3)));
            let (v, start) = (noise(3, n_tokens * (width + 1)), noise(4, dim * width));
            let steps: Vec<f32> = noise(5, n_tokens * (width + 4)).iter().map(|x| x.abs()).collect();
            let rates: Vec<f32> = noise(6, dim * (width + 5)).iter().map(|x| -3.0 * x.abs()).collect();
            let mut state: Vec<f64> = wide(&start).collect();
            let mut want = Vec::new();
            for t in 0..n_tokens {
                let [q, k] = [&q, &k].map(|x| wide(&x[t * (dim + 3)..][..dim]).collect::<Vec<_>>());
                for i in 0..width {
                    let (step, value) = (f64::from(steps[t * (width + 4) + i]), f64::from(v[t * (width + 1) + i]));
                    for j in 0..dim {
                        let s = &mut state[j * width + i];
                        *s = *s * (step * f64::from(rates[j * (width + 5) + i])).exp() + step * value * k[j];
                    }
                    want.push((0..dim).map(|j| state[j * width + i] * q[j]).sum());
                }
            }
            let run = |state: &mut [f32], tokens: std::ops::Range<usize>, n_read: usize| {
                let rows = |x, len, more| some_rows(x, len, len + more, tokens.clone());
                let scan = |out: RowsMut<f32>| {
                    kernels.channel_scan(ChannelUpdate {
                        state,
                        q: rows(&q, dim, 3),
                        k: rows(&k, dim, 3),
                        v: rows(&v, width, 1),
                        steps: rows(&steps, width, 4),
                        rates: some_rows(&rates, width, width + 5, 0..dim),
                        out,
                    })
                };
                results(n_read, width, scan, &what)
            };
            scan_is(&run, &start, n_tokens, (state, want), dim, &what);
        }
    }
}

/// Against the recurrence as it is written down, and bit for bit however many tokens a call has.
#[test]
fn the_scan_with_rates_for_elements_of_keys() {
    for (tier, kernels) in tiers() {
        for (dim, width, n_tokens) in [(8, 8, 5), (64, 64, 7), (5, 3, 4), (32, 33, 9), (64, 17, 40), (3, 80, 1)] {
            for (moves, reads_before) in [(false, false), (false, true), (true, false), (true, true)] {
                let what = format!("{tier:?} {dim} x {width}, {n_tokens} tokens, {moves}, {reads_before}");
                // Some numbers of a token that are as long as a key, and how much longer its row is.
                let [q, k, from, to] = [1, 2, 3, 4].map(|seed| noise(seed, n_tokens * (dim + 3)));
                let rates: Vec<f32> = noise(5, n_tokens * (dim + 3)).iter().map(|x| 1.0 / (1.0 + x.abs())).collect();
                let to: Vec<f32> = to.iter().map(|x| 0.1 * x).collect();
                let (v, start) = (noise(6, n_tokens * (width + 1)), noise(7, dim * width));
                let mut state: Vec<f64> = wide(&start).collect();
                let mut want = Vec::new();
                for t in 0..n_tokens {
                    let key = |x: &[f32]| wide(&x[t * (dim + 3)..][..dim]).collect::<Vec<_>>();
                    let [q, k, rates, from, to] = [&q, &k, &rates, &from, &to].map(|x| key(x));
                    for i in 0..width {
                        let read =
                            |state: &[f64], by: &[f64]| (0..dim).map(|j| state[j * width + i] * by[j]).sum::<f64>();
                        let (before, found) = (read(&state, &q), if moves { read(&state, &from) } else { 0.0 });
                        for j in 0..dim {
                            let s = &mut state[j * width + i];
                            *s = *s * rates[j] + k[j] * f64::from(v[t * (width + 1) + i]) + to[j] * found;
                        }
                        want.push(if reads_before { before } else { read(&state, &q) });
                    }
                }
                let run = |state: &mut [f32], tokens: std::ops::Range<usize>, n_read: usize| {
                    let rows = |x| some_rows(x, dim, dim + 3, tokens.clone());
                    let scan = |out: RowsMut<f32>| {
                        kernels.keyed_scan(KeyedUpdate {
                            state,
                            q: rows(&q),
                            k: rows(&k),
                            v: some_rows(&v, width, width + 1, tokens.clone()),
                            rates: rows(&rates),
                            moves: moves.then(|| [rows(&from), rows(&to)]),
                            reads_before,
                            out,
                        })
                    };
                    results(n_read, width, scan, &what)
                };
                scan_is(&run, &start, n_tokens, (state, want), dim, &what);
            }
        }
    }
}

#[test]
fn half_precision() {
    let every: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    // All f16, their upper neighbours in f32, and the midpoints between neighbours, where ties are decided.
    let mut near: Vec<f32> = everywhere();
    for h in &every {
        let bits = h.to_f32().to_bits();
        near.extend([bits, bits + 1, bits + 0xfff, bits + 0x1000, bits + 0x1001].map(f32::from_bits));
    }
    for (tier, k) in tiers() {
        let mut wide = vec![0.0; every.len()];
        k.f16_to_f32(&every, &mut wide);
        for (h, &x) in every.iter().zip(&wide) {
            let want = h.to_f32();
            assert!(x.to_bits() == want.to_bits() || x.is_nan() && want.is_nan(), "{tier:?} {:#x}", h.to_bits());
        }
        let mut narrow = vec![f16::ZERO; near.len()];
        k.f32_to_f16(&near, &mut narrow);
        for (&x, h) in near.iter().zip(&narrow) {
            let want = f16::from_f32(x);
            assert!(
                h.to_bits() == want.to_bits() || h.is_nan() && want.is_nan(),
                "{tier:?} {x:e}: {h:e}, want {want:e}"
            );
        }
        let mut narrow = vec![bf16::ZERO; near.len()];
        k.f32_to_bf16(&near, &mut narrow);
        let mut wide = vec![0.0; near.len()];
        k.bf16_to_f32(&narrow, &mut wide);
        for ((&x, b), &w) in near.iter().zip(&narrow).zip(&wide) {
            let want = bf16::from_f32(x);
            assert!(
                b.to_bits() == want.to_bits() || b.is_nan() && want.is_nan(),
                "{tier:?} {x:e}: {b:e}, want {want:e}"
            );
            assert!(w.to_bits() == b.to_f32().to_bits() || w.is_nan() && b.is_nan(), "{tier:?} {b:e}");
        }
        for n in LENGTHS {
            let x = noise(11, n);
            let mut h = vec![f16::from_f32(9.0); n + 16];
            k.f32_to_f16(&x, &mut h[..n]);
            assert!(h[n..].iter().all(|h| h.to_f32() == 9.0), "{tier:?} {n}: wrote beyond its slice");
            let back = guarded(&x, |back| k.f16_to_f32(&h[..n], back));
            assert!(x.iter().zip(&back).all(|(x, &b)| f16::from_f32(*x).to_f32() == b), "{tier:?} {n}");
        }
    }
}

#[test]
fn q8_0_rows() {
    for (tier, k) in tiers() {
        for n in [0, 32, 64, 576] {
            for magnitude in [1.0f32, 1e-9, 100.0] {
                let mut x: Vec<f32> = noise(12, n).iter().map(|v| v * magnitude).collect();
                if n > 32 {
                    x[32..64].fill(0.0);
                }
                let mut bytes = vec![0; n / 32 * 34];
                k.quantize_q8_0_row(&x, &mut bytes);
                let back = guarded(&x, |back| k.q8_0_to_f32(&bytes, back));
                for (block, (x, (back, bytes))) in x.chunks(32).zip(back.chunks(32).zip(bytes.chunks(34))).enumerate() {
                    let amax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    let (d, stored) = (amax / 127.0, f16::from_le_bytes([bytes[0], bytes[1]]));
                    assert_eq!(stored, f16::from_f32(d), "{tier:?} {n} block {block}");
                    for ((x, back), &q) in x.iter().zip(back).zip(&bytes[2..]) {
                        let want = if d == 0.0 { 0.0 } else { (x * (1.0 / d)).round() };
                        assert_eq!(f32::from(q as i8), want, "{tier:?} {n} block {block}");
                        assert_eq!(*back, stored.to_f32() * want, "{tier:?} {n} block {block}");
                    }
                }
            }
        }
        // Values no cache should hold are still no reason to panic.
        k.quantize_q8_0_row(&[f32::NAN; 32], &mut [0; 34]);
        k.quantize_q8_0_row(&[f32::INFINITY; 32], &mut [0; 34]);
    }
}

#[test]
fn rotary() {
    for (tier, k) in tiers() {
        for (head_dim, pairs) in [(0, 0), (2, 1), (6, 3), (10, 5), (64, 32), (80, 40), (96, 33), (128, 64), (256, 128)]
        {
            let x = noise(13, head_dim);
            let angles: Vec<f64> = (0..pairs).map(|p| 100.0 * 0.9f64.powi(p as i32)).collect();
            let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
            let rotated = |first: &dyn Fn(usize) -> usize, second: &dyn Fn(usize) -> usize| {
                let mut out: Vec<f64> = wide(&x).collect();
                for p in 0..pairs {
                    let (i, j) = (first(p), second(p));
                    let (a, b, c, s) = (out[i], out[j], f64::from(cos[p]), f64::from(sin[p]));
                    (out[i], out[j]) = (a * c - b * s, a * s + b * c);
                }
                out.into_iter()
            };
            let what = format!("{tier:?} {head_dim} {pairs}");
            let got = guarded(&x, |x| k.rope_norm(x, &cos, &sin));
            all_close(&got, rotated(&|p| 2 * p, &|p| 2 * p + 1), 1.0, 2e-7, &what);
            let got = guarded(&x, |x| k.rope_neox(x, &cos, &sin));
            all_close(&got, rotated(&|p| p, &|p| p + pairs), 1.0, 2e-7, &what);
        }
    }
}

/// A matrix whose rows lie `stride` apart, with NaN between them: reading a gap shows in every result.
fn strided(seed: u64, rows: usize, len: usize, stride: usize) -> Vec<f32> {
    let mut all = vec![f32::NAN; rows * stride];
    for (r, row) in noise(seed, rows * len).chunks(len.max(1)).enumerate() {
        all[r * stride..r * stride + row.len()].copy_from_slice(row);
    }
    all
}

/// The results of rows `0..m` and then of each row alone, which must be the same bits.
fn by_rows(m: usize, len: usize, stride: usize, init: &[f32], run: impl Fn(usize, usize, RowsMut<f32>)) -> Vec<f32> {
    let mut whole = init.to_vec();
    run(0, m, RowsMut::new(&mut whole, m, len, stride));
    let mut single = init.to_vec();
    for i in 0..m {
        run(i, 1, RowsMut::new(&mut single[i * stride..], 1, len, stride));
    }
    let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&whole), bits(&single), "results depend on how many rows are computed together");
    for row in whole.chunks(stride) {
        assert!(row[len.min(row.len())..].iter().all(|v| v.is_nan()), "wrote between rows");
    }
    whole
}

/// m, n, d and what is added to each stride.
fn shapes() -> Vec<(usize, usize, usize, usize)> {
    let mut all = vec![(0, 3, 8, 0), (2, 0, 8, 1), (2, 3, 0, 1), (32, 128, 64, 0), (9, 33, 256, 5), (16, 20, 512, 0)];
    for m in [1, 2, 3, 4, 5, 6, 7, 9, 13] {
        for (n, d) in [(1, 1), (2, 64), (3, 10), (5, 65), (17, 80), (64, 96), (7, 128), (4, 33), (6, 20)] {
            all.push((m, n, d, (m + n) % 3));
        }
    }
    all
}

#[test]
fn products_of_rows() {
    for (tier, k) in tiers() {
        for (m, n, d, gap) in shapes() {
            let what = format!("{tier:?} m {m} n {n} d {d}");
            let (ds, ns) = (d + gap, n + gap);
            let (a, b) = (strided(14, m, d, ds), strided(15, n, d, ds));
            let alpha = 0.125f32;
            let got = by_rows(m, n, ns, &vec![f32::NAN; m * ns], |i, rows, out| {
                k.sgemm_nt(alpha, Rows::new(&a[i * ds..], rows, d, ds), Rows::new(&b, n, d, ds), out)
            });
            for i in 0..m {
                for j in 0..n {
                    let want: f64 = (0..d).map(|x| f64::from(a[i * ds + x]) * f64::from(b[j * ds + x])).sum();
                    close(got[i * ns + j], want * f64::from(alpha), (d as f64).sqrt() / 8.0, 1e-6, &what);
                }
            }
        }
    }
}

/// Keys are transposed here, and their rows may be longer than there are scores.
#[test]
fn scores() {
    for (tier, k) in tiers() {
        for (m, n, d, gap) in shapes() {
            for longer in [0, 1, 16] {
                let what = format!("{tier:?} m {m} n {n} d {d}, rows longer by {longer}");
                let (ds, ns, ks) = (d + gap, n + gap, n + longer + gap);
                let q = strided(14, m, d, ds);
                let keys_f16: Vec<f16> = strided(15, d, n + longer, ks).into_iter().map(f16::from_f32).collect();
                let keys: Vec<f32> = keys_f16.iter().map(|h| h.to_f32()).collect();
                let init = vec![f32::NAN; m * ns];
                let alpha = 0.125f32;
                let q_rows = |i: usize, rows| Rows::new(&q[i * ds..], rows, d, ds);
                let got = by_rows(m, n, ns, &init, |i, rows, out| {
                    k.sgemm_nn(alpha, q_rows(i, rows), Rows::new(&keys, d, n + longer, ks), out)
                });
                let half = by_rows(m, n, ns, &init, |i, rows, out| {
                    k.scores_f16(alpha, q_rows(i, rows), Rows::new(&keys_f16, d, n + longer, ks), out)
                });
                for i in 0..m {
                    for j in 0..n {
                        let want: f64 = (0..d).map(|x| f64::from(q[i * ds + x]) * f64::from(keys[x * ks + j])).sum();
                        close(got[i * ns + j], want * f64::from(alpha), (d as f64).sqrt() / 8.0, 1e-6, &what);
                        assert_eq!(
                            got[i * ns + j].to_bits(),
                            half[i * ns + j].to_bits(),
                            "{what}: f16 differs from f32"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn scores_of_q8_0_keys() {
    for (tier, k) in tiers() {
        for (m, first, n, n_blocks) in
            [(1, 0, 64, 2), (3, 0, 1, 1), (4, 5, 17, 2), (7, 63, 1, 4), (9, 16, 48, 2), (48, 0, 33, 8)]
        {
            let what = format!("{tier:?} m {m} keys {first}..{}, {n_blocks} blocks", first + n);
            let d = n_blocks * KeysQ8_0::LEN;
            let (q, x) = (noise(20, m * d), noise(22, n_blocks * 33 * KEY_GROUP));
            let keys: Vec<KeysQ8_0> = x
                .chunks_exact(33 * KEY_GROUP)
                .map(|x| {
                    let (scales, codes) = x.split_at(KEY_GROUP);
                    KeysQ8_0 {
                        scales: std::array::from_fn(|j| f16::from_f32(scales[j])),
                        codes: std::array::from_fn(|i| {
                            std::array::from_fn(|j| (codes[i * KEY_GROUP + j] * 127.0) as i8)
                        }),
                    }
                })
                .collect();
            let got = by_rows(m, n, n, &vec![f32::NAN; m * n], |i, rows, out| {
                k.scores_q8_0(0.125, Rows::new(&q[i * d..], rows, d, d), &keys, first, out)
            });
            for (i, row) in got.chunks_exact(n).enumerate() {
                for (j, &got) in row.iter().enumerate() {
                    let key = |x: usize| {
                        let block = &keys[x / KeysQ8_0::LEN];
                        block.scales[first + j].to_f64() * f64::from(block.codes[x % KeysQ8_0::LEN][first + j])
                    };
                    let want: f64 = (0..d).map(|x| f64::from(q[i * d + x]) * key(x)).sum();
                    close(got, want / 8.0, (d as f64).sqrt() * 8.0, 1e-6, &what);
                }
            }
        }
    }
}

#[test]
fn values() {
    for (tier, k) in tiers() {
        for (m, n, d, gap) in shapes() {
            let what = format!("{tier:?} m {m} n {n} d {d}");
            let (ds, ns) = (d + gap, n + gap);
            let p = strided(16, m, n, ns);
            let v_f16: Vec<f16> = strided(17, n, d, ds).into_iter().map(f16::from_f32).collect();
            let v: Vec<f32> = v_f16.iter().map(|h| h.to_f32()).collect();
            let init = strided(18, m, d, ds);
            let p_rows =
                |i: usize, rows, a: usize, b: usize| Rows::new(&p[(i * ns + a).min(p.len())..], rows, b - a, ns);
            let got = by_rows(m, d, ds, &init, |i, rows, out| {
                k.sgemm_nn_acc(p_rows(i, rows, 0, n), Rows::new(&v, n, d, ds), out)
            });
            let half = by_rows(m, d, ds, &init, |i, rows, out| {
                k.values_f16(p_rows(i, rows, 0, n), Rows::new(&v_f16, n, d, ds), out)
            });
            let mut split = init.clone();
            let cut = n / 3;
            for (a, b) in [(0, cut), (cut, n)] {
                let rows = Rows::new(&v[a * ds..], b - a, d, ds);
                k.sgemm_nn_acc(p_rows(0, m, a, b), rows, RowsMut::new(&mut split, m, d, ds));
            }
            for i in 0..m {
                for x in 0..d {
                    let at = i * ds + x;
                    let sum: f64 = (0..n).map(|j| f64::from(p[i * ns + j]) * f64::from(v[j * ds + x])).sum();
                    close(got[at], f64::from(init[at]) + sum, (n as f64).sqrt() + 1.0, 1e-6, &what);
                    assert_eq!(got[at].to_bits(), half[at].to_bits(), "{what}: f16 differs from f32");
                    assert_eq!(got[at].to_bits(), split[at].to_bits(), "{what}: splitting the sum changes it");
                }
            }
        }
    }
}

/// What the caller got wrong is said, and nothing is read or written outside the slices.
#[test]
fn lengths_that_do_not_fit_panic() {
    fn message(f: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let e = std::panic::catch_unwind(f).expect_err("accepted");
        e.downcast_ref::<String>().cloned().or_else(|| e.downcast_ref::<&str>().map(|s| s.to_string())).unwrap()
    }
    let k = FloatKernels::for_supported_tier(Tier::Portable);
    assert!(message(move || _ = k.dot(&[1.0], &[])).contains("a and b differ in length"));
    assert!(message(move || k.rms_norm(&[1.0], &[1.0], 0.0, &mut [])).contains("x and out differ"));
    assert!(message(move || k.rope_norm(&mut [1.0], &[1.0], &[0.0])).contains("1 pairs to rotate in a head of 1"));
    assert!(message(move || k.quantize_q8_0_row(&[0.0; 33], &mut [0; 34])).contains("not whole Q8_0 blocks"));
    assert!(message(move || k.q8_0_to_f32(&[0; 33], &mut [0.0; 32])).contains("bytes for 32 elements"));
    assert!(
        message(|| _ = Rows::new(&[0.0; 7], 2, 4, 4)).contains("2 rows of 4 elements at a stride of 4 do not fit in 7")
    );
    assert!(message(|| _ = Rows::new(&[0.0; 7], 2, 4, 3)).contains("overlap"));
    assert!(message(|| _ = Rows::new(&[0.0; 7], usize::MAX, 4, 1 << 40)).contains("do not fit"));
    let product = move |n_cols: usize| {
        let (a, b, mut c) = ([0.0; 8], [0.0; 12], [0.0; 6]);
        k.sgemm_nt(1.0, Rows::new(&a, 2, 4, 4), Rows::new(&b, 3, 4, 4), RowsMut::new(&mut c, 2, n_cols, 3));
    };
    product(3);
    assert!(message(move || product(2)).contains("another shape"));
    assert!(
        message(move || {
            let (p, v, mut c) = ([0.0; 8], [0.0; 12], [0.0; 8]);
            k.sgemm_nn_acc(Rows::new(&p, 2, 4, 4), Rows::new(&v, 3, 4, 4), RowsMut::new(&mut c, 2, 4, 4));
        })
        .contains("number of rows of v")
    );
}

#[test]
fn weighted_q8_0_values_are_those_of_their_floats() {
    for (tier, k) in tiers() {
        for (m, n, d) in [(1, 1, 32), (2, 3, 64), (3, 17, 96), (5, 4, 128), (7, 9, 64), (9, 33, 256), (13, 5, 512)] {
            let what = format!("{tier:?} m {m} n {n} d {d}");
            let (init, p, x) = (noise(20, m * d), noise(21, m * n), noise(22, n * d));
            let mut bytes = vec![0; n * d / 32 * 34];
            k.quantize_q8_0_row(&x, &mut bytes);
            let mut floats = vec![0.0; n * d];
            k.q8_0_to_f32(&bytes, &mut floats);
            // SAFETY: any bytes are blocks, at any address.
            let (_, blocks, _) = unsafe { bytes.align_to::<BlockQ8_0>() };
            let (blocks, floats) = (Rows::new(blocks, n, d / 32, d / 32), Rows::new(&floats, n, d, d));
            let [mut want, mut got] = [init.clone(), init.clone()];
            k.sgemm_nn_acc(Rows::new(&p, m, n, n), floats, RowsMut::new(&mut want, m, d, d));
            k.values_q8_0(Rows::new(&p, m, n, n), blocks, RowsMut::new(&mut got, m, d, d));
            assert!(want.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()), "values, {what}");
        }
    }
}

#[test]
fn head_network() {
    let none = Rows::new(&[], 0, 0, 0);
    for (tier, k) in tiers() {
        for (n_in, n_hidden, n_out) in [(1, 0, 1), (3, 1, 2), (9, 18, 9), (7, 13, 8)] {
            let (skip, up) = (noise(1, n_out * n_in), noise(2, n_hidden * n_in));
            let (bias, down) = (noise(3, n_hidden), noise(4, n_out * n_hidden));
            for act in [UnitAct::Relu, UnitAct::Silu2, UnitAct::Gelu] {
                let unit = |z: f64| match act {
                    UnitAct::Relu => z.max(0.0),
                    UnitAct::Silu2 => z / (1.0 + z.exp2()),
                    UnitAct::Gelu => gelu64(z),
                };
                for n in [1, 15, 16, 17, 100, 131] {
                    let (stride, what) = (n + 3, format!("{tier} {act:?} {n_in} {n_hidden} {n_out}, {n} columns"));
                    // From where units are saturated on one side to where they are on the other.
                    let x: Vec<f32> = noise(5, n_in * stride).iter().map(|x| x * 40.0).collect();
                    let net = HeadNet { skip: &skip, up: &up, bias: &bias, down: &down, act, ahead: [none, none] };
                    let (mut got, mut units) = (vec![7.0; n_out * stride], vec![0.0; n_hidden * UNIT_FLOATS]);
                    let out = RowsMut::new(&mut got, n_out, n, stride);
                    k.align_heads(&net, Rows::new(&x, n_in, n, stride), &mut units, out);
                    for (g, row) in got.chunks_exact(stride).enumerate() {
                        for (i, &y) in row.iter().enumerate() {
                            if i >= n {
                                assert_eq!(y, 7.0, "{what}: written beyond its row");
                                continue;
                            }
                            let sum = |w: &[f32], at: usize, n: usize| {
                                let products = (0..n_in).map(|h| (w[h * n + at], x[h * stride + i]));
                                products.map(|(w, x)| f64::from(w) * f64::from(x)).sum::<f64>()
                            };
                            let mut want = sum(&skip, g, n_out);
                            for m in 0..n_hidden {
                                let z = f64::from(bias[m]) + sum(&up, m, n_hidden);
                                want += f64::from(down[m * n_out + g]) * unit(z);
                            }
                            close(y, want, 40.0 * (1 + n_hidden) as f64, 1e-6, &what);
                        }
                    }
                }
            }
        }
    }
}
