//! The product of a quantised matrix as the file has it with int8 activations: the path of the types without a packed
//! layout. A row's blocks are turned into signed codes once and then meet all tokens.

use super::MatmulScratch;
use super::isa::Isa;
use super::packed::Product;
use super::q8::{BLOCK, Q8Block};
use crate::blocks::{codes_row, has_offset};

/// Lanes that share a 16-element scale; see [`Isa::dot_signed`].
const LANES_PER_SCALE: usize = 4;

/// The whole product.
///
/// # Safety
/// As [`Isa`]; `p` satisfies the contract of [`super::IntKernels::matmul`], and `p.w` is not packed.
#[inline(always)]
pub(super) unsafe fn matmul<I: Isa>(p: &Product, scratch: &mut MatmulScratch) {
    let (k, n_tokens) = (p.w.cols, p.x.n_rows());
    let row = scratch.codes(k);
    for r in p.rows.clone() {
        codes_row(p.w.ty, p.w.row(r), row.codes, row.scale, row.offset);
        for (lanes, &scale) in row.lanes.chunks_exact_mut(LANES_PER_SCALE).zip(&*row.scale) {
            lanes.fill(scale);
        }
        let mut t = 0;
        // SAFETY: tokens t..t + T exist and are k long, as the parts of `row` are; row r of each belongs to this call.
        unsafe {
            let store = |t: usize, sum: f32| p.out.add(t * p.out_stride + r).write(sum);
            let offset = if has_offset(p.w.ty) { row.offset.as_ptr() } else { std::ptr::null() };
            while n_tokens - t >= 4 {
                let x = [p.x.row(t), p.x.second(t)];
                let sums = dot::<I, 4>(k, row.codes.as_ptr(), row.lanes.as_ptr(), offset, x, p.x.stride());
                for (i, sum) in sums.into_iter().enumerate() {
                    store(t + i, sum);
                }
                t += 4;
            }
            while t < n_tokens {
                let x = [p.x.row(t), p.x.second(t)];
                let sums = dot::<I, 1>(k, row.codes.as_ptr(), row.lanes.as_ptr(), offset, x, p.x.stride());
                store(t, sums[0]);
                t += 1;
            }
        }
    }
}

/// The row's product with `T` tokens, first and second digits, `stride` blocks apart.
///
/// # Safety
/// As [`Isa`]; the row and the tokens have `k` elements, `lanes` a scale for every 4, `offset` one for every 16 unless
/// it is null.
#[inline(always)]
unsafe fn dot<I: Isa, const T: usize>(
    k: usize,
    codes: *const i8,
    lanes: *const f32,
    offset: *const f32,
    [first, second]: [*const Q8Block; 2],
    stride: usize,
) -> [f32; T] {
    // SAFETY: as the caller promises; block b covers 32 codes, 8 lanes and 2 offsets.
    unsafe {
        let mut acc = [I::zero8(); T];
        let mut offsets = [0.0; T];
        for b in 0..k / BLOCK {
            let scale = I::load8(lanes.add(b * BLOCK / LANES_PER_SCALE));
            let mut j = 0;
            while j < T {
                let x = first.add(j * stride + b);
                let dot = I::dot_signed(codes.add(b * BLOCK), (&raw const (*x).codes).cast());
                acc[j] = I::fma8(dot, scale, (*x).scale, acc[j]);
                if (*x).fine != 0 {
                    let x = second.add(j * stride + b);
                    let dot = I::dot_signed(codes.add(b * BLOCK), (&raw const (*x).codes).cast());
                    acc[j] = I::fma8(dot, scale, (*x).scale, acc[j]);
                }
                if !offset.is_null() {
                    offsets[j] += *offset.add(2 * b) * (*x).half[0] + *offset.add(2 * b + 1) * (*x).half[1];
                }
                j += 1;
            }
        }
        let mut j = 0;
        while j < T {
            offsets[j] += I::sum8(acc[j]);
            j += 1;
        }
        offsets
    }
}
