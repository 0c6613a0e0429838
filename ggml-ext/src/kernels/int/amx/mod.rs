//! AVX-512 with AMX-BF16: products of several tokens with weights and activations rounded to bf16.
//!
//! Scales that belong to 32 columns keep int8 tiles from adding up more than 32 columns before they are floats again, and moving
//! sums from tiles to vectors costs more than the tile's arithmetic. A bf16 product adds up all columns within the
//! tile registers, and what it rounds off of an element is at most 1/512 of that element, whatever its neighbours are: activations with
//! outliers need no second digits in most places.
//!
//! Weights become tiles once for all tokens of a call ([`unpack`]). Arithmetic on tiles and the unpacking of the next weights, which
//! vector units do, go on side by side ([`product`]).

mod block;
mod output;
mod product;
mod registers;
mod rows;
mod unpack;

pub(super) use block::{PEAK_MACS, peak};
pub(super) use product::Tiles;

use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::bf16::{Bf16View, Digits, GatedProduct, Kernels, Product};
use super::{MatmulScratch, with_half};
use crate::pack::{COLS, MatrixRef, ROWS};
use output::Output;
use product::Factors;
use unpack::Group;

/// True if the CPU has AMX-BF16 and the operating system lets this process use it, which is asked for here.
pub(in crate::kernels) fn is_supported() -> bool {
    has_instructions() && is_permitted()
}

fn has_instructions() -> bool {
    // Of leaf 7: AMX-BF16 and AMX-TILE.
    const EDX: u32 = 1 << 22 | 1 << 24;
    // Of the state that the system saves: tile configurations and tiles.
    const XCR0: u64 = 1 << 17 | 1 << 18;
    if !is_x86_feature_detected!("xsave") || !is_x86_feature_detected!("avx512bf16") {
        return false;
    }
    #[target_feature(enable = "xsave")]
    unsafe fn saved() -> u64 {
        // SAFETY: the CPU has the instruction.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: just found to be there. A CPU with AVX-512 has leaf 7.
    unsafe { __cpuid_count(7, 0).edx & EDX == EDX && saved() & XCR0 == XCR0 }
}

/// Linux reserves room for a process's tiles when it is asked to, for all threads, once.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: a system call without pointers; systems that do not know it say so.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// The tier's bf16 kernels, which run where [`is_supported`] says so.
pub(super) const KERNELS: Kernels = Kernels {
    round_row,
    matmul,
    matmul_gated,
    set_f32: rows::set::<f32>,
    set_f16: rows::set::<f16>,
    product_of_rows: rows::product,
    exp_row: rows::exp_row,
};

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn round_row(x: &[f32], [first, second]: [&mut [u16]; 2]) {
    let digits = first.chunks_exact_mut(COLS).zip(second.chunks_exact_mut(COLS));
    for (x, (first, second)) in x.chunks_exact(COLS).zip(digits) {
        // SAFETY: all have 32 elements.
        unsafe {
            let x = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x[16..].as_ptr())];
            let [high, low] = unpack::round(x);
            _mm512_storeu_si512(first.as_mut_ptr().cast(), high);
            _mm512_storeu_si512(second.as_mut_ptr().cast(), low);
        }
    }
}

unsafe fn matmul(p: &Product, scratch: &mut MatmulScratch) {
    let groups = p.rows.start / ROWS..p.rows.end.div_ceil(ROWS);
    // SAFETY: the caller's promise; the types are those of the matrices, and these groups exist.
    unsafe { multiply(&[p.w], groups, p.x, p.digits, p, scratch) }
}

unsafe fn matmul_gated(p: &GatedProduct, scratch: &mut MatmulScratch) {
    let groups = 2 * p.rows.start / ROWS..2 * p.rows.end / ROWS;
    // SAFETY: as above.
    unsafe { multiply(&[p.gate, p.up], groups, p.x, p.digits, p, scratch) }
}

/// The product with row groups of matrices of one type, whose groups take turns.
///
/// # Safety
/// As [`product::matmul`], and the matrices are of one form.
unsafe fn multiply<const N: usize>(
    w: &[&MatrixRef; N],
    groups: Range<usize>,
    x: Bf16View,
    digits: Digits,
    output: &impl Output,
    scratch: &mut MatmulScratch,
) {
    /// The same in `D` digits of weights that are held as `W`.
    unsafe fn of<W: Group, const D: usize, const N: usize>(
        w: &[&MatrixRef; N],
        groups: Range<usize>,
        x: Bf16View,
        output: &impl Output,
        scratch: &mut MatmulScratch,
    ) {
        // SAFETY: the caller's promise.
        let group = |i: usize| unsafe { W::new(w[i % N], i / N) };
        let factors = Factors { groups, group, cols: w[0].cols, x };
        // SAFETY: the caller's promise.
        unsafe { product::matmul::<W, D>(&factors, output, &mut scratch.tiles) }
    }
    // SAFETY: the caller's promise; the type is the matrices'.
    unsafe {
        if w[0].packed {
            match digits {
                Digits::One => of::<unpack::PackedGroup, 1, N>(w, groups, x, output, scratch),
                Digits::Two => of::<unpack::PackedGroup, 2, N>(w, groups, x, output, scratch),
            }
        } else {
            with_half!(w[0].ty, W => of::<unpack::FloatGroup<W>, 2, N>(w, groups, x, output, scratch))
        }
    }
}
