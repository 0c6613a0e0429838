//! Every product on every tier this CPU has, against sums in f64 over the blocks' own reading of their codes.

use super::*;
use crate::GgmlType;
use crate::blocks::{codes_row, dequantize_row, quantize_row};
use crate::kernels::Kernels;
use crate::pack::{Packed, pack_rows, packed_bytes, unpack_row, with_packed};

/// A small linear congruential generator: the tests are the same on every run.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 32) as u32
    }
    /// In -1..1.
    fn float(&mut self) -> f32 {
        self.next() as i32 as f32 / 2147483648.0
    }
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// How the codes and scales of weights are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fill {
    Random,
    /// Every bit of codes and 8-bit scales set, or none, or only the sign.
    Byte(u8),
}

const FILLS: [Fill; 4] = [Fill::Random, Fill::Byte(0xff), Fill::Byte(0x00), Fill::Byte(0x80)];

/// A matrix in the bytes of a file.
fn weights(ty: GgmlType, rows: usize, cols: usize, fill: Fill, random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; rows * ty.row_bytes(cols).unwrap()];
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        with_packed!(ty, P => fill_block::<P>(block, fill, random),
            else => quantize_row(ty, &random.floats(ty.block_len()), block));
    }
    bytes
}

fn fill_block<P: Packed>(block: &mut [u8], fill: Fill, random: &mut Random) {
    let mut byte = |_: &u8| if let Fill::Byte(byte) = fill { byte } else { random.next() as u8 };
    let noise: Vec<u8> = block.iter().map(&mut byte).collect();
    let (mut codes, mut words, mut bytes) = (vec![0; P::LEN], vec![0; P::WORDS], vec![0; P::BYTES]);
    P::split(&noise, &mut codes, &mut words, &mut bytes);
    // Random bits make poor half-precision scales: they may be infinite.
    for word in &mut words {
        *word = half::f16::from_f32(random.float()).to_bits();
    }
    if P::TYPE == GgmlType::MXFP4 {
        bytes[0] = 120 + bytes[0] % 8;
    }
    P::join(&codes, &words, &bytes, block);
}

fn quantised_types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| !ty.is_float())
}

/// An element of the product, and the sum of the magnitudes it is made of.
fn naive(codes: &Codes, digits: [&[Q8Block]; 2]) -> (f64, f64) {
    let (mut sum, mut magnitude) = (0.0, 0.0);
    for (i, &q) in codes.q.iter().enumerate() {
        let x = digits.map(|x| f64::from(x[i / 32].scale) * f64::from(x[i / 32].codes[i % 32]));
        let x = x[0] + x[1];
        let (product, offset) =
            (f64::from(codes.scale[i / 16]) * f64::from(q) * x, f64::from(codes.offset[i / 16]) * x);
        sum += product + offset;
        magnitude += product.abs() + offset.abs();
    }
    (sum, magnitude)
}

struct Codes {
    q: Vec<i8>,
    scale: Vec<f32>,
    offset: Vec<f32>,
}

impl Codes {
    fn of(ty: GgmlType, row: &[u8], cols: usize) -> Self {
        let mut codes = Codes { q: vec![0; cols], scale: vec![0.0; cols / 16], offset: vec![0.0; cols / 16] };
        codes_row(ty, row, &mut codes.q, &mut codes.scale, &mut codes.offset);
        codes
    }
}

/// What no product is.
const UNTOUCHED: f32 = 12345.678;

fn matmul(kernels: &Kernels, w: &MatrixRef, rows: Range<usize>, x: &Q8Rows, tokens: Range<usize>) -> Vec<f32> {
    let mut out = vec![UNTOUCHED; tokens.len() * w.rows];
    // SAFETY: `out` has room for every row of every token, and nobody else has it or writes `x`.
    unsafe {
        let x = x.view(tokens);
        kernels.int.matmul(w, rows, x, &mut MatmulScratch::default(), out.as_mut_ptr(), w.rows);
    }
    out
}

fn matmul_f32(kernels: &Kernels, w: &MatrixRef, rows: Range<usize>, x: &[f32]) -> Vec<f32> {
    let mut out = vec![UNTOUCHED; x.len() / w.cols * w.rows];
    // SAFETY: `out` has room for every row of every token, and nobody else has it.
    unsafe { kernels.int.matmul_f32(w, rows, x, &mut MatmulScratch::default(), out.as_mut_ptr(), w.rows) }
    out
}

/// The matrix as the file has it and, if there is a layout, packed.
fn with_both_forms(ty: GgmlType, rows: usize, cols: usize, bytes: &[u8], mut f: impl FnMut(&MatrixRef)) {
    f(&MatrixRef { ty, rows, cols, data: bytes, packed: false });
    if let Some(len) = packed_bytes(ty, rows, cols) {
        let mut data = vec![0; len];
        pack_rows(ty, cols, 0..rows, bytes, &mut data);
        f(&MatrixRef { ty, rows, cols, data: &data, packed: true });
    }
}

/// Activations of all sizes, with a block of zeros and one of extremes.
fn activations(n: usize, cols: usize, random: &mut Random) -> Vec<f32> {
    let mut x = random.floats(n * cols);
    for (i, block) in x.chunks_exact_mut(32).enumerate() {
        let size = 10.0_f32.powi(i as i32 % 5 - 2);
        block.iter_mut().for_each(|x| *x *= size);
        match i % 7 {
            3 => block.fill(0.0),
            5 => block.fill(size),
            6 => block.iter_mut().enumerate().for_each(|(j, x)| *x = if j % 2 == 0 { size } else { -size }),
            _ => {}
        }
    }
    x
}

const SHAPES: [(usize, usize); 8] = [(1, 1), (3, 1), (15, 3), (16, 1), (17, 2), (33, 6), (40, 3), (16, 48)];

#[test]
fn int8_products_of_every_type_and_tier_are_what_the_codes_say() {
    let mut random = Random(1);
    for ty in quantised_types() {
        for (i, (rows, blocks)) in SHAPES.into_iter().enumerate() {
            let cols = (32 * blocks).next_multiple_of(ty.block_len());
            let bytes = weights(ty, rows, cols, FILLS[i % FILLS.len()], &mut random);
            let codes: Vec<Codes> =
                bytes.chunks_exact(bytes.len() / rows).map(|row| Codes::of(ty, row, cols)).collect();
            let n = 1 + (i * 5 + blocks) % 17;
            let x = activations(n, cols, &mut random);
            for kernels in Kernels::available() {
                let mut q8 = Q8Rows::new(n, cols);
                q8.quantize(kernels, &x, FINE_STEP);
                with_both_forms(ty, rows, cols, &bytes, |w| {
                    let out = matmul(kernels, w, 0..rows, &q8, 0..n);
                    for (i, &got) in out.iter().enumerate() {
                        let (t, r) = (i / rows, i % rows);
                        // SAFETY: nobody writes `q8`.
                        let (want, magnitude) = naive(&codes[r], unsafe { q8.view(t..t + 1) }.blocks(0));
                        assert!(
                            (f64::from(got) - want).abs() <= 3e-6 * magnitude,
                            "{}, {ty}, packed {}, {rows} x {cols}, row {r}, token {t} of {n}: {got}, not {want}",
                            kernels.tier,
                            w.packed
                        );
                    }
                });
            }
        }
    }
}

#[test]
fn int8_products_do_not_depend_on_the_batch_or_the_share_of_rows() {
    let mut random = Random(2);
    for ty in quantised_types() {
        let (rows, cols, n) = (37, 96_usize.next_multiple_of(ty.block_len()), 15);
        let bytes = weights(ty, rows, cols, Fill::Random, &mut random);
        let x = activations(n, cols, &mut random);
        for kernels in Kernels::available() {
            let mut q8 = Q8Rows::new(n + 3, cols);
            q8.quantize(kernels, &x, FINE_STEP);
            with_both_forms(ty, rows, cols, &bytes, |w| {
                let all = matmul(kernels, w, 0..rows, &q8, 0..n);
                for n_tokens in 1..=n {
                    let some = matmul(kernels, w, 0..rows, &q8, n - n_tokens..n);
                    assert!(some == all[(n - n_tokens) * rows..], "{}, {ty}: last {n_tokens} tokens", kernels.tier);
                }
                let part = matmul(kernels, w, 16..32, &q8, 0..n);
                for (i, (part, all)) in part.iter().zip(&all).enumerate() {
                    let want = if (16..32).contains(&(i % rows)) { *all } else { UNTOUCHED };
                    assert_eq!(part.to_bits(), want.to_bits(), "{}, {ty}: element {i} of rows 16..32", kernels.tier);
                }
            });
        }
    }
}

#[test]
fn a_batch_larger_than_a_pass_is_the_same_batch() {
    let mut random = Random(3);
    let (ty, rows, cols, n) = (GgmlType::Q4_0, 16, 8192, 70);
    let bytes = weights(ty, rows, cols, Fill::Random, &mut random);
    let x = activations(n, cols, &mut random);
    for kernels in Kernels::available() {
        let mut q8 = Q8Rows::new(n, cols);
        q8.quantize(kernels, &x, FINE_STEP);
        with_both_forms(ty, rows, cols, &bytes, |w| {
            let all = matmul(kernels, w, 0..rows, &q8, 0..n);
            for t in 0..n {
                assert!(matmul(kernels, w, 0..rows, &q8, t..t + 1) == all[t * rows..][..rows], "token {t}");
            }
        });
    }
}

#[test]
fn f32_products_of_every_type_and_tier_are_those_of_the_dequantised_weights() {
    let mut random = Random(4);
    for &ty in GgmlType::ALL {
        for (i, (rows, blocks)) in SHAPES.into_iter().enumerate() {
            let mut cols = (32 * blocks).next_multiple_of(ty.block_len());
            if ty.is_float() {
                cols += [0, 1, 15, 17][i % 4];
            }
            let bytes = if ty.is_float() {
                let mut bytes = vec![0; rows * ty.row_bytes(cols).unwrap()];
                quantize_row(ty, &random.floats(rows * cols), &mut bytes);
                bytes
            } else {
                weights(ty, rows, cols, FILLS[i % FILLS.len()], &mut random)
            };
            let mut floats = vec![0.0; rows * cols];
            dequantize_row(ty, &bytes, &mut floats);
            let n = [1, 2, 5, 9, 16][i % 5];
            let x = random.floats(n * cols);
            for kernels in Kernels::available() {
                with_both_forms(ty, rows, cols, &bytes, |w| {
                    let out = matmul_f32(kernels, w, 0..rows, &x);
                    for (i, &got) in out.iter().enumerate() {
                        let (t, r) = (i / rows, i % rows);
                        let terms = floats[r * cols..][..cols].iter().zip(&x[t * cols..]);
                        let products = terms.map(|(&w, &x)| f64::from(w) * f64::from(x));
                        let (want, magnitude) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
                        assert!(
                            (f64::from(got) - want).abs() <= 3e-6 * magnitude,
                            "{}, {ty}, packed {}, {rows} x {cols}, row {r}, token {t} of {n}: {got}, not {want}",
                            kernels.tier,
                            w.packed
                        );
                    }
                    // Alone, a token's product has the same bits.
                    let last = matmul_f32(kernels, w, 0..rows, &x[(n - 1) * cols..]);
                    assert!(last == out[(n - 1) * rows..], "{}, {ty}: last of {n} tokens", kernels.tier);
                    // Nor does a row depend on those beside it.
                    for r in (0..rows).filter(|_| !w.packed) {
                        let alone = matmul_f32(kernels, w, r..r + 1, &x);
                        let same = (0..n).all(|t| alone[t * rows + r].to_bits() == out[t * rows + r].to_bits());
                        assert!(same, "{}, {ty}: row {r} of {rows}", kernels.tier);
                    }
                });
            }
        }
    }
}

#[test]
fn packed_and_file_rows_dequantise_to_the_same_bits() {
    let mut random = Random(5);
    for ty in quantised_types() {
        let (rows, cols) = (19, 2 * ty.block_len());
        let bytes = weights(ty, rows, cols, Fill::Random, &mut random);
        let row_bytes = bytes.len() / rows;
        with_both_forms(ty, rows, cols, &bytes, |w| {
            for r in 0..rows {
                let (mut got, mut want) = (vec![0.0; cols], vec![0.0; cols]);
                unpack_row(w, r, &mut got);
                dequantize_row(ty, &bytes[r * row_bytes..][..row_bytes], &mut want);
                assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{ty}, row {r}");
            }
        });
    }
}

#[test]
fn activations_are_rounded_to_the_nearest_of_127_steps() {
    let mut random = Random(6);
    let k = 32 * 14;
    let x = activations(1, k, &mut random);
    for kernels in Kernels::available() {
        let mut q8 = Q8Rows::new(1, k);
        q8.quantize(kernels, &x, FINE_STEP);
        // SAFETY: nobody writes `q8`.
        let view = unsafe { q8.view(0..1) };
        let [first, second] = view.blocks(0);
        for ((x, block), second) in x.chunks_exact(32).zip(first).zip(second) {
            let max = x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            assert_eq!(block.scale, max / 127.0);
            for (&x, &code) in x.iter().zip(&block.codes) {
                let want = if max == 0.0 { 0.0 } else { (x * (127.0 / max)).round_ties_even() };
                // First digits may be the next below where there are second ones.
                let below = want - f32::from(code);
                assert!(below == 0.0 || below == block.fine as f32, "{}: {code} for {x} of {max}", kernels.tier);
            }
            for block in [block, second] {
                let halves = [0, 16].map(|at| block.codes[at..][..16].iter().map(|&c| i32::from(c)).sum::<i32>());
                assert_eq!(block.neg_half, halves.map(|sum| -sum));
                assert_eq!(block.neg_sum, -halves[0] - halves[1]);
            }
            let sum = |at: usize| {
                let digit = |b: &Q8Block| b.codes[at..][..16].iter().map(|&c| b.scale * f32::from(c)).sum::<f32>();
                digit(block) + digit(second)
            };
            let bound = 1e-5 * max * 32.0;
            assert!((block.half[0] - sum(0)).abs() <= bound && (block.half[1] - sum(16)).abs() <= bound);
            assert!((block.sum - sum(0) - sum(16)).abs() <= bound);
        }
    }
}

#[test]
fn a_block_with_an_outlier_gets_second_digits() {
    let mut random = Random(7);
    let mut x = random.floats(32 * 8);
    x[70] = 40.0; // in block 2
    for kernels in Kernels::available() {
        let mut q8 = Q8Rows::new(1, x.len());
        q8.quantize(kernels, &x, FINE_STEP);
        // SAFETY: nobody writes `q8`.
        let [first, second] = unsafe { q8.view(0..1) }.blocks(0);
        for (b, x) in x.chunks_exact(32).enumerate() {
            assert_eq!(first[b].fine, u32::from(b == 2), "block {b}");
            let steps = if kernels.tier == Tier::Avx2 { 127.0 } else { 254.0 };
            let step = if b == 2 { first[b].scale / steps } else { first[b].scale };
            for (i, &x) in x.iter().enumerate() {
                let digit = |block: &Q8Block| block.scale * f32::from(block.codes[i]);
                let error = (digit(&first[b]) + digit(&second[b]) - x).abs();
                assert!(error <= 0.51 * step, "{}: block {b}: {x} is off by {error}", kernels.tier);
            }
        }
    }
}

#[test]
fn activations_beyond_the_range_of_scales_do_no_harm() {
    for kernels in Kernels::available() {
        let mut q8 = Q8Rows::new(1, 32);
        for tiny in [f32::MIN_POSITIVE / 4.0, 1e-39, 1e-37] {
            q8.quantize(kernels, &[tiny; 32], FINE_STEP);
            // SAFETY: nobody writes `q8`.
            let block = unsafe { q8.view(0..1) }.blocks(0)[0][0];
            let value = block.scale * f32::from(block.codes[0]);
            assert!((value - tiny).abs() <= tiny, "{}: {tiny} became {value}", kernels.tier);
        }
        q8.quantize(kernels, &[f32::MAX; 32], FINE_STEP);
        // SAFETY: nobody writes `q8`.
        assert_eq!(unsafe { q8.view(0..1) }.blocks(0)[0][0].codes, [127; 32], "{}", kernels.tier);
        // No panic; the values are without meaning.
        q8.quantize(kernels, &[f32::INFINITY; 32], FINE_STEP);
        q8.quantize(kernels, &[f32::NAN; 32], FINE_STEP);
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let data = vec![0; 16 * 18];
    let good = MatrixRef { ty: GgmlType::Q4_0, rows: 16, cols: 32, data: &data, packed: false };
    let packed = |rows, cols| MatrixRef { packed: true, rows, cols, ..good };
    let cases: [(&str, MatrixRef, Range<usize>); 6] = [
        ("more data than there is", MatrixRef { rows: 17, ..good }, 0..17),
        ("other columns than the activations", MatrixRef { cols: 64, rows: 8, ..good }, 0..8),
        ("rows out of range", good, 0..17),
        ("packed, more data than there is", packed(17, 32), 0..17),
        ("packed, start within a group", packed(16, 32), 8..16),
        ("packed, end within a group", packed(16, 32), 0..8),
    ];
    let x = Q8Rows::new(1, 32);
    for (what, w, rows) in cases {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            matmul(Kernels::detect(), &w, rows, &x, 0..1);
        }));
        assert!(result.is_err(), "accepted: {what}");
    }
}

fn matmul_bf16(
    kernels: &Kernels,
    w: &MatrixRef,
    rows: Range<usize>,
    x: &Bf16Rows,
    tokens: Range<usize>,
    digits: Digits,
) -> Vec<f32> {
    let mut out = vec![UNTOUCHED; tokens.len() * w.rows];
    // SAFETY: `out` has room for every row of every token, and nobody else has it or writes `x`.
    unsafe {
        let x = x.view(tokens);
        kernels.int.matmul_bf16(w, rows, x, digits, &mut MatmulScratch::default(), out.as_mut_ptr(), w.rows);
    }
    out
}

/// The matrix in the form that has a bf16 product, of each type that has one.
fn with_bf16_types(rows: usize, blocks: usize, fill: Fill, random: &mut Random, mut f: impl FnMut(&MatrixRef)) {
    for &ty in GgmlType::ALL {
        let cols = (32 * blocks).next_multiple_of(ty.block_len());
        let bytes = if ty.is_float() {
            let mut bytes = vec![0; rows * ty.row_bytes(cols).unwrap()];
            quantize_row(ty, &random.floats(rows * cols), &mut bytes);
            bytes
        } else {
            weights(ty, rows, cols, fill, random)
        };
        with_both_forms(ty, rows, cols, &bytes, |w| {
            if takes_bf16(w) {
                f(w)
            }
        });
    }
}

fn bf16_rows(kernels: &Kernels, x: &[f32], cols: usize) -> Bf16Rows {
    let rows = Bf16Rows::new(x.len() / cols, cols);
    for (t, x) in x.chunks_exact(cols).enumerate() {
        // SAFETY: nobody else has `rows`.
        unsafe { rows.round_row(kernels, t, x) }
    }
    rows
}

fn bf16_kernels() -> impl Iterator<Item = &'static Kernels> {
    Kernels::available().into_iter().filter(|kernels| kernels.int.has_bf16())
}

#[test]
fn bf16_products_are_those_of_rounded_weights_and_activations() {
    let mut random = Random(5);
    let rounded = |x: f32| half::bf16::from_f32(x).to_f32();
    for (i, (rows, blocks)) in SHAPES.into_iter().enumerate() {
        for kernels in bf16_kernels() {
            with_bf16_types(rows, blocks, FILLS[i % FILLS.len()], &mut random.clone(), |w| {
                let n = [1, 2, 15, 16, 17, 33, 40, 64][i];
                let x = activations(n, w.cols, &mut random);
                let operand = bf16_rows(kernels, &x, w.cols);
                let mut floats = vec![0.0; rows * w.cols];
                for (r, row) in floats.chunks_exact_mut(w.cols).enumerate() {
                    unpack_row(w, r, row);
                }
                for digits in [Digits::One, Digits::Two] {
                    let one = digits == Digits::One && w.packed;
                    let bound = if one { 1e-6 } else { 3e-5 };
                    let round = |x: f32| f64::from(if one { rounded(x) } else { x });
                    let out = matmul_bf16(kernels, w, 0..rows, &operand, 0..n, digits);
                    for (i, &got) in out.iter().enumerate() {
                        let (t, r) = (i / rows, i % rows);
                        let terms = floats[r * w.cols..][..w.cols].iter().zip(&x[t * w.cols..]);
                        let products = terms.map(|(&w, &x)| round(w) * round(x));
                        let (want, magnitude) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
                        assert!(
                            (f64::from(got) - want).abs() <= bound * magnitude + 1e-30,
                            "{}, {}, {rows} x {}, {digits:?}, row {r}, token {t} of {n}: {got}, not {want}",
                            kernels.tier,
                            w.ty,
                            w.cols
                        );
                    }
                }
            });
        }
    }
}

#[test]
fn bf16_products_do_not_depend_on_the_batch_or_the_share_of_rows() {
    let mut random = Random(6);
    for kernels in bf16_kernels() {
        // Two bands of rows, of several segments.
        with_bf16_types(213, 45, Fill::Random, &mut random.clone(), |w| {
            let n = 70;
            let operand = bf16_rows(kernels, &activations(n, w.cols, &mut random), w.cols);
            for digits in [Digits::One, Digits::Two] {
                let all = matmul_bf16(kernels, w, 0..w.rows, &operand, 0..n, digits);
                for tokens in [0..1, 69..70, 5..20, 1..17, 0..33, 31..70] {
                    let some = matmul_bf16(kernels, w, 0..w.rows, &operand, tokens.clone(), digits);
                    assert!(some == all[tokens.start * w.rows..tokens.end * w.rows], "{}: tokens {tokens:?}", w.ty);
                }
                for rows in [0..16, 16..144, 128..213, 208..213] {
                    let part = matmul_bf16(kernels, w, rows.clone(), &operand, 0..n, digits);
                    for (i, (part, all)) in part.iter().zip(&all).enumerate() {
                        let want = if rows.contains(&(i % w.rows)) { *all } else { UNTOUCHED };
                        assert_eq!(part.to_bits(), want.to_bits(), "{}: element {i} of rows {rows:?}", w.ty);
                    }
                }
            }
        });
    }
}

#[test]
fn bf16_products_of_many_tokens_are_those_of_few() {
    let mut random = Random(7);
    for kernels in bf16_kernels() {
        let (rows, cols, n) = (147, 704, 1100);
        let bytes = weights(GgmlType::Q4_0, rows, cols, Fill::Random, &mut random);
        with_both_forms(GgmlType::Q4_0, rows, cols, &bytes, |w| {
            if !takes_bf16(w) {
                return;
            }
            let operand = bf16_rows(kernels, &activations(n, cols, &mut random), cols);
            for digits in [Digits::One, Digits::Two] {
                let all = matmul_bf16(kernels, w, 0..rows, &operand, 0..n, digits);
                for tokens in [500..530, 1020..1100, 7..700] {
                    let some = matmul_bf16(kernels, w, 0..rows, &operand, tokens.clone(), digits);
                    assert!(some == all[tokens.start * rows..tokens.end * rows], "{digits:?}, tokens {tokens:?}");
                }
            }
        });
    }
}

#[test]
fn gated_products_are_two_products_and_an_activation() {
    let mut random = Random(8);
    for kernels in bf16_kernels() {
        let (rows, n) = (224, 70);
        with_bf16_types(2 * rows, 33, Fill::Random, &mut random.clone(), |both| {
            let half = both.data.len() / 2;
            let [gate, up] = [&both.data[..half], &both.data[half..]].map(|data| MatrixRef { rows, data, ..*both });
            let operand = bf16_rows(kernels, &activations(n, both.cols, &mut random), both.cols);
            for (digits, part) in
                [(Digits::One, 0..rows), (Digits::Two, 0..rows), (Digits::One, 16..208), (Digits::Two, 48..64)]
            {
                let [g, u] = [&gate, &up].map(|w| matmul_bf16(kernels, w, 0..rows, &operand, 0..n, digits));
                let mut want = vec![0.0; g.len()];
                kernels.float.silu_mul(&g, &u, &mut want);
                let want = bf16_rows(kernels, &want, rows);
                let out = Bf16Rows::new(n, rows);
                let act = |gate: &[f32], up: &[f32], out: &mut [f32]| kernels.float.silu_mul(gate, up, out);
                // SAFETY: nobody else has the operands.
                unsafe {
                    let (x, scratch) = (operand.view(0..n), &mut MatmulScratch::default());
                    let out = (&out, digits);
                    kernels.int.matmul_gated_bf16([&gate, &up], part.clone(), x, digits, &act, scratch, out);
                }
                for t in 0..n {
                    // SAFETY: nobody writes any more.
                    let [got, want] = [&out, &want].map(|rows| unsafe { rows.digits_mut(t) });
                    for (i, (got, want)) in got.into_iter().zip(want).enumerate().take(digits.count()) {
                        let (got, want) = (&got[part.clone()], &want[part.clone()]);
                        assert!(got == want, "{}: digit {i} of token {t}, rows {part:?}, {digits:?}", both.ty);
                    }
                    // SAFETY: as above.
                    let untouched = unsafe { out.digits_mut(t) }
                        .into_iter()
                        .all(|row| row[..part.start].iter().chain(&row[part.end..]).all(|&x| x == 0));
                    assert!(untouched, "{}: beyond rows {part:?}", both.ty);
                }
            }
        });
    }
}
