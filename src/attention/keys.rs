//! Cached keys: those of layers with scores of their own, and the low-rank ones of `lisa` layers. They lie in groups of [`KEY_GROUP`]
//! positions, transposed: each element of a group's keys is one run. Scores are then vectorised over keys, where products with rows
//! would end in a sum over the lanes of a vector for each (query, key), at usual head sizes as much work as the product.

use std::ops::Range;

use ggml_ext::kernels::float::{KEY_GROUP, KeysQ8_0, Rows, RowsMut};
use ggml_ext::kernels::{Bf16Factor, Kernels};
use half::f16;

use super::CacheType;
use super::attend::WIDEN_ROWS;
use super::cache_memory::{CacheMemory, HeadRows};
use super::kv_cache::{as_f16, as_f32};
use crate::Result;

/// What becomes of products of queries and keys.
#[derive(Debug, Clone, Copy)]
pub(super) enum Products {
    /// They are the scores, times this.
    Scaled(f32),
    /// They are added to the scores that are there.
    Added,
}

/// The keys of all key/value heads of one layer.
pub struct Keys {
    ty: CacheType,
    /// Elements per key.
    dim: usize,
    /// A group's keys take the place of its positions' rows.
    rows: HeadRows,
}

impl Keys {
    /// Keys of `n_head` heads.
    ///
    /// # Errors
    /// [`Error::Impossible`](crate::Error::Impossible) when they do not divide into the type's blocks.
    pub(super) fn new(ty: CacheType, n_head: usize, dim: usize, memory: &mut CacheMemory) -> Result<Self> {
        Ok(Self { ty, dim, rows: memory.rows(n_head, ty.row_bytes(dim)?) })
    }

    pub(super) fn n_bytes(&self) -> usize {
        self.rows.n_bytes()
    }

    /// The address of a group, as numbers of `T`.
    fn group<T>(&self, head: usize, pos: usize) -> *mut T {
        self.rows.as_ptr(head, whole_groups(pos..pos + 1)).cast()
    }

    /// Stores the key of `head` at `pos`, rotated.
    ///
    /// # Safety
    /// No other member touches this head and position before the next barrier.
    pub unsafe fn store(&self, kernels: &Kernels, head: usize, pos: usize, x: &[f32]) {
        const CHUNK: usize = 64;
        assert_eq!(x.len(), self.dim);
        let column = pos % KEY_GROUP;
        // SAFETY: element `i < dim` of column `column < KEY_GROUP` lies in the group, and is this member's alone.
        unsafe {
            match self.ty {
                CacheType::F32 => {
                    let group = self.group::<f32>(head, pos);
                    x.iter().enumerate().for_each(|(i, &x)| *group.add(i * KEY_GROUP + column) = x);
                }
                CacheType::F16 => {
                    let group = self.group::<f16>(head, pos);
                    let mut halves = [f16::ZERO; CHUNK];
                    for (c, x) in x.chunks(CHUNK).enumerate() {
                        kernels.float.f32_to_f16(x, &mut halves[..x.len()]);
                        for (i, &half) in halves[..x.len()].iter().enumerate() {
                            *group.add((c * CHUNK + i) * KEY_GROUP + column) = half;
                        }
                    }
                }
                CacheType::Q8_0 => {
                    let group = self.group::<KeysQ8_0>(head, pos);
                    for (b, x) in x.chunks_exact(KeysQ8_0::LEN).enumerate() {
                        let mut block = [0; 2 + KeysQ8_0::LEN];
                        kernels.float.quantize_q8_0_row(x, &mut block);
                        let ([low, high], codes) = ([block[0], block[1]], &block[2..]);
                        let keys = group.add(b);
                        (&raw mut (*keys).scales[column]).write(f16::from_le_bytes([low, high]));
                        for (i, &code) in codes.iter().enumerate() {
                            (&raw mut (*keys).codes[i][column]).write(code as i8);
                        }
                    }
                }
            }
        }
    }

    /// Reads the key of `head` at `pos`.
    ///
    /// # Safety
    /// Nobody writes it before the next barrier.
    unsafe fn load(&self, head: usize, pos: usize, into: &mut [f32]) {
        let column = pos % KEY_GROUP;
        for (i, x) in into.iter_mut().enumerate() {
            // SAFETY: as in `store`.
            *x = unsafe {
                match self.ty {
                    CacheType::F32 => *self.group::<f32>(head, pos).add(i * KEY_GROUP + column),
                    CacheType::F16 => (*self.group::<f16>(head, pos).add(i * KEY_GROUP + column)).to_f32(),
                    CacheType::Q8_0 => {
                        let keys = self.group::<KeysQ8_0>(head, pos).add(i / KeysQ8_0::LEN);
                        let code = (*keys).codes[i % KeysQ8_0::LEN][column];
                        f32::from(code) * (*keys).scales[column].to_f32()
                    }
                }
            };
        }
    }

    /// Multiplies `queries` with the keys of `head` at `positions` into `scores`: a row per query, `stride` apart, a score per position.
    /// `wide` is work space for a group in f32.
    ///
    /// # Safety
    /// Nobody writes the groups of these positions before the next barrier.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn scores(
        &self,
        kernels: &Kernels,
        head: usize,
        positions: Range<usize>,
        queries: Rows<f32>,
        kind: Products,
        scores: &mut [f32],
        stride: usize,
        wide: &mut [f32],
    ) {
        let (float, m) = (&kernels.float, queries.n_rows());
        let mut start = positions.start;
        while start < positions.end {
            let end = positions.end.min((start / KEY_GROUP + 1) * KEY_GROUP);
            let first = start % KEY_GROUP;
            let into = RowsMut::new(&mut scores[start - positions.start..], m, end - start, stride);
            // SAFETY: passed on to the caller.
            let group = unsafe { self.rows.get(head, whole_groups(start..end)) };
            let (rest, some) = (first..KEY_GROUP, first..first + end - start);
            let products = |x, into| match kind {
                Products::Scaled(alpha) => float.sgemm_nn(alpha, queries, transposed(x, self.dim, rest.clone()), into),
                Products::Added => float.sgemm_nn_acc(queries, transposed(x, self.dim, some.clone()), into),
            };
            match (self.ty, kind) {
                (CacheType::F32, _) => products(as_f32(group), into),
                (CacheType::F16, _) if m >= WIDEN_ROWS => {
                    let wide = &mut wide[..self.dim * KEY_GROUP];
                    float.f16_to_f32(as_f16(group), wide);
                    products(wide, into);
                }
                (CacheType::F16, Products::Scaled(alpha)) => {
                    float.scores_f16(alpha, queries, transposed(as_f16(group), self.dim, rest), into)
                }
                (CacheType::F16, Products::Added) => {
                    float.values_f16(queries, transposed(as_f16(group), self.dim, some), into)
                }
                (CacheType::Q8_0, Products::Scaled(alpha)) => {
                    float.scores_q8_0(alpha, queries, as_keys_q8_0(group), first, into)
                }
                (CacheType::Q8_0, Products::Added) => unreachable!("low-rank keys do not fill blocks"),
            }
            start = end;
        }
    }

    /// Rounds the keys of `head` at `positions`, which begin a group, as the right factor of scores: a column per position, and some more
    /// that mean nothing. `wide` is as for [`Keys::scores`].
    ///
    /// # Safety
    /// Nobody writes the groups of these positions before the next barrier.
    pub(super) unsafe fn round(
        &self,
        kernels: &Kernels,
        head: usize,
        positions: Range<usize>,
        into: &mut Bf16Factor,
        wide: &mut [f32],
    ) {
        debug_assert!(positions.start.is_multiple_of(KEY_GROUP));
        for start in positions.clone().step_by(KEY_GROUP) {
            // SAFETY: passed on to the caller.
            let group = unsafe { self.rows.get(head, whole_groups(start..start + 1)) };
            let (column, all) = (start - positions.start, 0..KEY_GROUP);
            match self.ty {
                CacheType::F32 => into.set_f32(kernels, column, transposed(as_f32(group), self.dim, all)),
                CacheType::F16 => into.set_f16(kernels, column, transposed(as_f16(group), self.dim, all)),
                CacheType::Q8_0 => {
                    let wide = &mut wide[..self.dim * KEY_GROUP];
                    for (keys, wide) in as_keys_q8_0(group).iter().zip(wide.chunks_exact_mut(KeysQ8_0::LEN * KEY_GROUP))
                    {
                        let scales = keys.scales.map(f16::to_f32);
                        for (codes, wide) in keys.codes.iter().zip(wide.chunks_exact_mut(KEY_GROUP)) {
                            let products = codes.iter().zip(&scales).map(|(&code, scale)| f32::from(code) * scale);
                            wide.iter_mut().zip(products).for_each(|(x, key)| *x = key);
                        }
                    }
                    into.set_f32(kernels, column, transposed(wide, self.dim, all));
                }
            }
        }
    }

    /// The bytes of the groups that hold `positions`, a row per head, for a kernel to fetch ahead.
    ///
    /// # Safety
    /// Nobody writes them before the next barrier.
    pub(super) unsafe fn group_rows(&self, positions: Range<usize>) -> Rows<'_, u8> {
        // SAFETY: passed on to the caller.
        unsafe { self.rows.heads(whole_groups(positions)) }
    }

    /// Moves positions `moved` down by `n`, turning each key, `turn(head, key)`.
    pub(super) fn shift(&mut self, kernels: &Kernels, moved: Range<usize>, n: usize, turn: impl Fn(usize, &mut [f32])) {
        let mut keys = vec![0f32; moved.len() * self.dim];
        for head in 0..self.rows.n_head() {
            // SAFETY: `&mut self`: no team is at work.
            unsafe {
                for (pos, key) in moved.clone().zip(keys.chunks_exact_mut(self.dim)) {
                    self.load(head, pos, key);
                    turn(head, key);
                }
                for (pos, key) in moved.clone().zip(keys.chunks_exact(self.dim)) {
                    self.store(kernels, head, pos - n, key);
                }
            }
        }
    }
}

/// The positions of all groups that hold some of `positions`.
fn whole_groups(positions: Range<usize>) -> Range<usize> {
    positions.start / KEY_GROUP * KEY_GROUP..positions.end.next_multiple_of(KEY_GROUP)
}

/// Keys of a group as a product's right factor: a row per element.
fn transposed<T>(group: &[T], dim: usize, keys: Range<usize>) -> Rows<'_, T> {
    Rows::new(&group[keys.start..], dim, keys.len(), KEY_GROUP)
}

fn as_keys_q8_0(bytes: &[u8]) -> &[KeysQ8_0] {
    // SAFETY: any bits are codes and scales; groups start at multiples of their size in a 64-byte aligned buffer.
    let (head, x, tail) = unsafe { bytes.align_to() };
    assert!(head.is_empty() && tail.is_empty());
    x
}
