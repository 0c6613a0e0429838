//! The cached low-rank keys of a `lisa` layer. They lie transposed, each of a head's `rank` values as a run over positions, because
//! products with so short rows are vectorised over positions, not along the row.

use std::ops::Range;

use ggml_ext::kernels::Kernels;
use ggml_ext::kernels::float::Rows;
use half::f16;

use super::kv_cache::{as_f16, as_f16_mut, as_f32, as_f32_mut, reserve};
use super::{Block, CacheType};
use crate::Result;
use crate::compute::SharedBuf;

/// Low-rank keys of all key/value heads of one layer: F32 in an F32 cache, else F16 (a q8_0 cache too: `rank` values do not fill a
/// block of 32).
pub struct LowRankKeys {
    is_f32: bool,
    rank: usize,
    n_ctx: usize,
    bytes: SharedBuf<u8>,
}

impl LowRankKeys {
    pub(super) fn new(ty: CacheType, n_head: usize, rank: usize, n_ctx: usize) -> Result<Self> {
        let is_f32 = ty == CacheType::F32;
        let bytes = reserve(Some(Self::bytes_per_token(ty, n_head, rank)), n_ctx)?;
        Ok(Self { is_f32, rank, n_ctx, bytes })
    }

    /// Bytes of one position in a cache of type `ty`.
    pub fn bytes_per_token(ty: CacheType, n_head: usize, rank: usize) -> usize {
        n_head * rank * if ty == CacheType::F32 { 4 } else { 2 }
    }

    pub(super) fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    fn elem(&self) -> usize {
        if self.is_f32 { 4 } else { 2 }
    }

    /// Bytes of `positions` of value `i` of `head`.
    fn range(&self, head: usize, i: usize, positions: Range<usize>) -> Range<usize> {
        debug_assert!(positions.end <= self.n_ctx && i < self.rank);
        let run = (head * self.rank + i) * self.n_ctx;
        (run + positions.start) * self.elem()..(run + positions.end) * self.elem()
    }

    /// Stores the key of `head` at `pos`: `rank` values, rotated.
    ///
    /// # Safety
    /// No other member touches this head and position before the next barrier.
    pub unsafe fn store(&self, head: usize, pos: usize, x: &[f32]) {
        for (i, &v) in x.iter().enumerate() {
            // SAFETY: passed on to the caller.
            let dst = unsafe { self.bytes.get_mut(self.range(head, i, pos..pos + 1)) };
            match self.is_f32 {
                true => as_f32_mut(dst)[0] = v,
                false => as_f16_mut(dst)[0] = f16::from_f32(v),
            }
        }
    }

    /// The runs of all `rank` values of `head` over the whole context, `n_ctx` apart, from position `start` on.
    ///
    /// # Safety
    /// Nobody writes positions from `start` to the end of what is read before the next barrier.
    pub(super) unsafe fn runs(&self, head: usize, start: usize) -> Block<'_> {
        let first = self.range(head, 0, start..start).start;
        let last = self.range(head, self.rank - 1, self.n_ctx..self.n_ctx).end;
        // SAFETY: passed on to the caller.
        let bytes = unsafe { self.bytes.get(first..last) };
        match self.is_f32 {
            true => Block::F32(as_f32(bytes)),
            false => Block::F16(as_f16(bytes)),
        }
    }

    /// The bytes of all runs at `positions`, a row per run, for a kernel to fetch ahead.
    ///
    /// # Safety
    /// Nobody writes them before the next barrier.
    pub(super) unsafe fn run_bytes(&self, positions: Range<usize>) -> Rows<'_, u8> {
        let (first, stride) = (self.range(0, 0, positions), self.n_ctx * self.elem());
        let n = self.bytes.len() / stride;
        assert!(first.end + (n - 1) * stride <= self.bytes.len());
        // SAFETY: in bounds by the assertion; the caller promises that there is no writer.
        unsafe { Rows::from_raw(self.bytes.as_ptr().add(first.start), n, first.len(), stride) }
    }

    /// Positions between two values of a head.
    pub(super) fn stride(&self) -> usize {
        self.n_ctx
    }

    /// Moves positions `from + n..end` down by `n` and turns them back by `n` positions at `freq` (`[n_head][rank / 2]`, radians per position).
    pub(super) fn shift(&mut self, kernels: &Kernels, from: usize, n: usize, end: usize, freq: &[f32]) {
        let len = end - n - from;
        let (mut even, mut odd) = (vec![0f32; len], vec![0f32; len]);
        for (pair, &freq) in freq.iter().enumerate() {
            let (head, i) = (pair / (self.rank / 2), 2 * (pair % (self.rank / 2)));
            let (sin, cos) = (-(n as f64) * f64::from(freq)).sin_cos();
            let (sin, cos) = (sin as f32, cos as f32);
            for (row, i) in [(&mut even, i), (&mut odd, i + 1)] {
                let range = self.range(head, i, from + n..end);
                let src = &self.bytes.as_slice()[range];
                match self.is_f32 {
                    true => row.copy_from_slice(as_f32(src)),
                    false => kernels.float.f16_to_f32(as_f16(src), row),
                }
            }
            for (a, b) in even.iter_mut().zip(&mut odd) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
            for (row, i) in [(&even, i), (&odd, i + 1)] {
                let range = self.range(head, i, from..from + len);
                let dst = &mut self.bytes.as_mut_slice()[range];
                match self.is_f32 {
                    true => as_f32_mut(dst).copy_from_slice(row),
                    false => kernels.float.f32_to_f16(row, as_f16_mut(dst)),
                }
            }
        }
    }
}
