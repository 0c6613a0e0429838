//! What rows of keys and values are made of: floats, halves, or blocks of codes, all of which become f32 in registers.

use super::simd::Simd;
use half::f16;

/// Lanes of the widest tier.
const MAX_LANES: usize = 16;

/// 32 elements of a Q8_0 row as files and caches hold them: `x[i] = scale * codes[i]`.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed)]
pub struct BlockQ8_0 {
    /// The step.
    pub scale: f16,
    /// The elements in steps.
    pub codes: [i8; 32],
}

/// Keys that lie together, transposed: the same element of all of them is one run, so that products are vectorised over keys and need
/// no sums over lanes.
pub const KEY_GROUP: usize = 64;

/// 32 elements of the keys of a group, in Q8_0: `x[i][key] = scales[key] * codes[i][key]`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct KeysQ8_0 {
    /// Each key's step.
    pub scales: [f16; KEY_GROUP],
    /// The elements in steps.
    pub codes: [[i8; KEY_GROUP]; 32],
}

impl KeysQ8_0 {
    /// Elements of a key.
    pub const LEN: usize = BlockQ8_0::LEN;
}

const _: () = assert!(size_of::<KeysQ8_0>() == KEY_GROUP * size_of::<BlockQ8_0>());

/// An item of a row.
pub(super) trait Elem: Copy {
    /// Elements in an item.
    const LEN: usize;

    /// A vector of the row from element `at` on.
    ///
    /// # Safety
    /// As [`Simd::load`]. If items are blocks, `at` is a multiple of the vector.
    unsafe fn vector<V: Simd>(row: *const Self, at: usize) -> V;
    /// `NV` of them.
    ///
    /// # Safety
    /// As [`Self::vector`]. If items are blocks, `at` is a multiple of one, or of all the vectors if these are within one.
    #[inline(always)]
    unsafe fn vectors<V: Simd, const NV: usize>(row: *const Self, at: usize) -> [V; NV] {
        // SAFETY: the caller's contract.
        unsafe {
            let mut all = [V::splat(0.0); NV];
            for (j, v) in all.iter_mut().enumerate() {
                *v = Self::vector(row, at + j * V::LANES);
            }
            all
        }
    }
    /// `n < LANES` elements from `at` on. There are no parts of blocks.
    ///
    /// # Safety
    /// As [`Simd::load_partial`].
    unsafe fn partial<V: Simd>(row: *const Self, at: usize, n: usize) -> V;
}

impl Elem for f32 {
    const LEN: usize = 1;

    #[inline(always)]
    unsafe fn vector<V: Simd>(row: *const f32, at: usize) -> V {
        // SAFETY: the caller's contract is the same.
        unsafe { V::load(row.add(at)) }
    }
    #[inline(always)]
    unsafe fn partial<V: Simd>(row: *const f32, at: usize, n: usize) -> V {
        // SAFETY: the caller's contract is the same.
        unsafe { V::load_partial(row.add(at), n) }
    }
}

impl Elem for f16 {
    const LEN: usize = 1;

    #[inline(always)]
    unsafe fn vector<V: Simd>(row: *const f16, at: usize) -> V {
        // SAFETY: the caller's contract is the same.
        unsafe { V::load_f16(row.add(at)) }
    }
    #[inline(always)]
    unsafe fn partial<V: Simd>(row: *const f16, at: usize, n: usize) -> V {
        // SAFETY: the caller's contract is the same.
        unsafe { V::load_f16_partial(row.add(at), n) }
    }
}

impl Elem for i8 {
    const LEN: usize = 1;

    #[inline(always)]
    unsafe fn vector<V: Simd>(row: *const i8, at: usize) -> V {
        // SAFETY: the caller's contract is the same.
        unsafe { V::load_i8(row.add(at)) }
    }
    #[inline(always)]
    unsafe fn partial<V: Simd>(row: *const i8, at: usize, n: usize) -> V {
        let mut all = [0; MAX_LANES];
        // SAFETY: `n` elements are read, into an array that holds a vector.
        unsafe {
            std::ptr::copy_nonoverlapping(row.add(at), all.as_mut_ptr(), n);
            V::load_i8(all.as_ptr())
        }
    }
}

impl Elem for BlockQ8_0 {
    const LEN: usize = 32;

    #[inline(always)]
    unsafe fn vector<V: Simd>(row: *const BlockQ8_0, at: usize) -> V {
        // SAFETY: the caller's contract.
        let [v] = unsafe { Self::vectors(row, at) };
        v
    }
    /// Vectors of one block share its scale.
    #[inline(always)]
    unsafe fn vectors<V: Simd, const NV: usize>(row: *const BlockQ8_0, at: usize) -> [V; NV] {
        debug_assert!(at.is_multiple_of(Self::LEN.min(NV * V::LANES)));
        // SAFETY: the caller's contract; a block holds whole vectors in every tier.
        unsafe {
            let mut all = [V::splat(0.0); NV];
            let mut scale = V::splat(0.0);
            for (j, v) in all.iter_mut().enumerate() {
                let i = at + j * V::LANES;
                let block = row.add(i / Self::LEN);
                if (j * V::LANES).is_multiple_of(Self::LEN) {
                    scale = V::splat_f16((*block).scale);
                }
                *v = V::load_i8((&raw const (*block).codes).cast::<i8>().add(i % Self::LEN)).mul(scale);
            }
            all
        }
    }
    #[inline(always)]
    unsafe fn partial<V: Simd>(_row: *const BlockQ8_0, _at: usize, _n: usize) -> V {
        unreachable!("rows of blocks are whole vectors")
    }
}
