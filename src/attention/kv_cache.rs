//! The cache of keys and values. Each layer stores what its kind of attention needs: `full` layers keys and values,
//! `shared` layers values alone, `lisa` layers values and low-rank keys, `kv` layers nothing. For each key/value head there
//! is one row of values per position, laid out as [`CacheMemory`] says; keys lie as [`Keys`] does. The cache's memory is
//! reserved whole but becomes resident only as positions fill, or heads where it has huge pages. Layers with a sliding window
//! keep the last positions alone ([`Ring`]). Layers that know the sequence as a whole have a state in place of all this ([`States`]).

use std::collections::BTreeMap;
use std::ops::Range;

use ggml_ext::GgmlType;
use ggml_ext::kernels::float::{BlockQ8_0, KEY_GROUP, Rows};
use ggml_ext::kernels::{Bf16Factor, Kernels};

use super::cache_memory::{CacheMemory, HeadRows};
use super::keys::Keys;
use super::ring::Ring;
use super::states::{COPIES, States};
use super::{LayerCacheSpec, RopeTable};
use crate::compute::SharedBuf;
use crate::{Error, Result};

/// Element type of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheType {
    /// 4 bytes a value: for studies and tests.
    F32,
    /// 2 bytes a value, the default.
    #[default]
    F16,
    /// 34 bytes per 32 values.
    Q8_0,
}

impl CacheType {
    /// The tensor type of the same name.
    pub fn ggml(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::Q8_0 => GgmlType::Q8_0,
        }
    }

    /// Bytes of a key or value of `dim` elements.
    ///
    /// # Errors
    /// [`Error::Impossible`] when these do not divide into the type's blocks.
    pub(super) fn row_bytes(self, dim: usize) -> Result<usize> {
        self.ggml().row_bytes(dim).ok_or_else(|| {
            Error::Impossible(format!("a q8_0 cache needs a head size that is a multiple of 32, this model's is {dim}"))
        })
    }

    /// What low-rank keys have where others have this: their few values do not fill a block.
    pub fn of_low_rank(self) -> Self {
        if self == Self::Q8_0 { Self::F16 } else { self }
    }
}

impl std::fmt::Display for CacheType {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        })
    }
}

impl std::str::FromStr for CacheType {
    type Err = String;
    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "q8_0" => Ok(Self::Q8_0),
            _ => Err(format!("unknown cache type '{s}', expected f32, f16 or q8_0")),
        }
    }
}

/// The values of all key/value heads of one layer.
struct Values {
    ty: CacheType,
    /// Values per row.
    dim: usize,
    rows: HeadRows,
}

/// What a pass over the cache reads: rows as they are stored, or floats.
pub enum Block<'a> {
    /// Rows of f16, contiguous.
    F16(&'a [half::f16]),
    /// Rows of Q8_0 blocks, contiguous.
    Q8_0(&'a [BlockQ8_0]),
    /// Rows of f32, contiguous.
    F32(&'a [f32]),
}

impl Values {
    fn new(ty: CacheType, n_head: usize, dim: usize, memory: &mut CacheMemory) -> Result<Self> {
        Ok(Self { ty, dim, rows: memory.rows(n_head, ty.row_bytes(dim)?) })
    }

    /// # Safety
    /// No other member touches this row before the next barrier.
    unsafe fn store(&self, k: &Kernels, head: usize, pos: usize, x: &[f32]) {
        // SAFETY: passed on to the caller.
        let dst = unsafe { self.rows.get_mut(head, pos..pos + 1) };
        match self.ty {
            CacheType::F32 => as_f32_mut(dst).copy_from_slice(x),
            CacheType::F16 => k.float.f32_to_f16(x, as_f16_mut(dst)),
            CacheType::Q8_0 => k.float.quantize_q8_0_row(x, dst),
        }
    }

    /// Rows `pos` of `head`; they are widened to floats in `wide` when `widen` (worth it when many queries read them).
    ///
    /// # Safety
    /// Nobody writes these rows before the next barrier.
    unsafe fn block<'a>(
        &'a self,
        k: &Kernels,
        head: usize,
        pos: Range<usize>,
        widen: bool,
        wide: &'a mut [f32],
    ) -> Block<'a> {
        let n = pos.len() * self.dim;
        // SAFETY: passed on to the caller.
        let src = unsafe { self.rows.get(head, pos) };
        match self.ty {
            CacheType::F32 => Block::F32(as_f32(src)),
            CacheType::F16 if !widen => Block::F16(as_f16(src)),
            CacheType::F16 => {
                k.float.f16_to_f32(as_f16(src), &mut wide[..n]);
                Block::F32(&wide[..n])
            }
            CacheType::Q8_0 if !widen => Block::Q8_0(as_q8_0(src)),
            CacheType::Q8_0 => {
                k.float.q8_0_to_f32(src, &mut wide[..n]);
                Block::F32(&wide[..n])
            }
        }
    }

    /// Moves the rows of `moved` down by `n`.
    fn shift(&mut self, moved: Range<usize>, n: usize) {
        let mut rows = Vec::new();
        for head in 0..self.rows.n_head() {
            rows.clear();
            // SAFETY: `&mut self`: no team is at work.
            unsafe {
                // All before any is written: in a ring a row may go where one lies that has not moved yet.
                for pos in moved.clone() {
                    rows.extend_from_slice(self.rows.get(head, pos..pos + 1));
                }
                for (pos, row) in moved.clone().zip(rows.chunks_exact(self.rows.row_bytes())) {
                    self.rows.get_mut(head, pos - n..pos - n + 1).copy_from_slice(row);
                }
            }
        }
    }

    fn n_bytes(&self) -> usize {
        self.rows.n_bytes()
    }
}

/// Positions there is memory for in a context of `n_ctx`.
fn room(n_ctx: usize) -> usize {
    n_ctx.checked_next_multiple_of(KEY_GROUP).unwrap_or(n_ctx)
}

/// What one layer keeps.
pub struct LayerCache {
    n_positions: usize,
    k: Option<Keys>,
    low_rank: Option<Keys>,
    v: Option<Values>,
    state: SharedBuf<f32>,
}

impl LayerCache {
    fn new(spec: LayerCacheSpec, ty_k: CacheType, ty_v: CacheType, memory: &mut CacheMemory) -> Result<Self> {
        let (n_head, n_positions) = (spec.n_head_kv, memory.n_positions());
        let mut keys = |ty, dim: Option<usize>| dim.map(|d| Keys::new(ty, n_head, d, memory)).transpose();
        Ok(Self {
            n_positions,
            k: keys(ty_k, spec.key_dim)?,
            low_rank: keys(ty_k.of_low_rank(), spec.rank)?,
            v: spec.value_dim.map(|d| Values::new(ty_v, n_head, d, memory)).transpose()?,
            state: SharedBuf::try_new(spec.n_state).ok_or_else(|| {
                Error::Impossible("the states of the model's layers need more memory than there is".into())
            })?,
        })
    }

    /// The layer's keys.
    ///
    /// # Panics
    /// For layers without keys of their own.
    pub fn keys(&self) -> &Keys {
        self.k.as_ref().expect("a layer without keys of its own is not asked for them")
    }

    /// What the layer knows of the sequence as a whole.
    pub fn state(&self) -> &SharedBuf<f32> {
        &self.state
    }

    fn values(&self) -> &Values {
        self.v.as_ref().expect("a layer without values of its own is not asked for them")
    }

    /// The layer's low-rank keys.
    ///
    /// # Panics
    /// For layers of other kinds than `lisa`.
    pub fn low_rank(&self) -> &Keys {
        self.low_rank.as_ref().expect("only lisa layers are asked for low-rank keys")
    }

    /// Stores the value of `head` at `pos`.
    ///
    /// # Safety
    /// No other member touches this row before the next barrier.
    pub unsafe fn store_v(&self, kernels: &Kernels, head: usize, pos: usize, x: &[f32]) {
        // SAFETY: passed on to the caller.
        unsafe { self.values().store(kernels, head, pos, x) }
    }

    /// Values of `head` at `pos`.
    ///
    /// # Safety
    /// Nobody writes them before the next barrier.
    pub unsafe fn v<'a>(
        &'a self,
        kernels: &Kernels,
        head: usize,
        pos: Range<usize>,
        widen: bool,
        wide: &'a mut [f32],
    ) -> Block<'a> {
        // SAFETY: passed on to the caller.
        unsafe { self.values().block(kernels, head, pos, widen, wide) }
    }

    /// Rounds the values of `head` at `pos` as the right factor of weighted sums: a row per position, and zeros up to a whole tile. `wide`
    /// is work space for them in f32.
    ///
    /// # Safety
    /// Nobody writes them before the next barrier.
    pub(super) unsafe fn round_v(
        &self,
        kernels: &Kernels,
        head: usize,
        pos: Range<usize>,
        into: &mut Bf16Factor,
        wide: &mut [f32],
    ) {
        let (v, n) = (self.values(), pos.len());
        // SAFETY: passed on to the caller.
        match unsafe { v.block(kernels, head, pos, v.ty == CacheType::Q8_0, wide) } {
            Block::F16(x) => into.set_f16(kernels, 0, Rows::new(x, n, v.dim, v.dim)),
            Block::F32(x) => into.set_f32(kernels, 0, Rows::new(x, n, v.dim, v.dim)),
            Block::Q8_0(_) => unreachable!("was asked for floats"),
        }
    }

    /// The bytes of all heads' values at positions `pos`, a row per head, for a kernel to fetch ahead.
    ///
    /// # Safety
    /// Nobody writes them before the next barrier.
    pub unsafe fn v_bytes(&self, pos: Range<usize>) -> Rows<'_, u8> {
        // SAFETY: passed on to the caller.
        unsafe { self.values().rows.heads(pos) }
    }

    /// Bytes of all positions.
    fn n_bytes(&self) -> usize {
        let keys = self.k.iter().chain(&self.low_rank).map(Keys::n_bytes).sum::<usize>();
        keys + self.v.as_ref().map_or(0, Values::n_bytes)
    }

    /// See [`KvCache::shift`].
    fn shift(&mut self, kernels: &Kernels, from: usize, n: usize, end: usize, turn: &Turn) {
        // Of a ring, what stays in it.
        let moved = (from + n).max(end.saturating_sub(self.n_positions))..end;
        if let Some(values) = &mut self.v {
            values.shift(moved.clone(), n);
        }
        if let (Some(keys), Turn::Rope(back)) = (&mut self.k, turn) {
            keys.shift(kernels, moved.clone(), n, |_, key| back.rotate(kernels, 0, key));
        }
        if let (Some(keys), Turn::LowRank(freq)) = (&mut self.low_rank, turn) {
            let (sin, cos): (Vec<f32>, Vec<f32>) = freq
                .iter()
                .map(|&f| (-(n as f64) * f64::from(f)).sin_cos())
                .map(|(sin, cos)| (sin as f32, cos as f32))
                .unzip();
            keys.shift(kernels, moved, n, |head, key| {
                let pairs = head * key.len() / 2..(head + 1) * key.len() / 2;
                kernels.float.rope_norm(key, &cos[pairs.clone()], &sin[pairs]);
            });
        }
    }
}

/// How the keys of a layer turn back when positions move down.
pub enum Turn<'a> {
    /// By this table, which rotates by minus the distance.
    Rope(RopeTable),
    /// Low-rank keys, at these frequencies: `[n_head_kv][rank / 2]`.
    LowRank(&'a [f32]),
    /// There are no keys.
    None,
}

/// How large caches are.
#[derive(Debug, Clone, Copy)]
pub struct CacheParams {
    /// Element type of keys.
    pub ty_k: CacheType,
    /// Element type of values.
    pub ty_v: CacheType,
    /// Positions of the context.
    pub n_ctx: usize,
    /// Positions that layers with a sliding window keep beyond it, at least a step's tokens; `None`: all there are.
    pub spare: Option<usize>,
}

impl CacheParams {
    /// What a layer with such a window keeps, if not the whole context.
    fn ring(&self, window: Option<usize>) -> Option<Ring> {
        Ring::new(window?, self.spare?, self.n_ctx)
    }

    /// Positions that a layer with such a window has room for.
    pub fn n_positions(&self, window: Option<usize>) -> usize {
        self.ring(window).map_or(room(self.n_ctx), |r| r.n_positions)
    }

    /// Bytes that caches for the layers `specs` take; `None` where heads do not divide into the types' blocks.
    pub fn n_bytes(&self, specs: impl IntoIterator<Item = LayerCacheSpec>) -> Option<usize> {
        let layer = |s: LayerCacheSpec| {
            let positions = s.bytes_per_token(self.ty_k, self.ty_v)?.saturating_mul(self.n_positions(s.window));
            Some(positions.saturating_add(state_bytes(s.n_state)))
        };
        specs.into_iter().try_fold(0, |sum: usize, s| Some(sum.saturating_add(layer(s)?)))
    }
}

/// Bytes of states of `n` floats with their copies.
pub fn state_bytes(n: usize) -> usize {
    n.saturating_mul(size_of::<f32>() * (1 + COPIES))
}

/// The caches of all layers.
pub struct KvCache {
    layers: Vec<LayerCache>,
    /// One for each length of window.
    rings: Vec<Ring>,
    /// Where states can go back to, if there are any.
    states: Option<States>,
    n_ctx: usize,
}

impl KvCache {
    /// Empty caches for the layers `specs`.
    ///
    /// # Errors
    /// [`Error::Impossible`] when there is not so much memory, or heads do not divide into the type's blocks.
    pub fn new(specs: impl IntoIterator<Item = LayerCacheSpec>, p: CacheParams) -> Result<Self> {
        let specs: Vec<_> = specs.into_iter().collect();
        // Bytes of a position in the layers with equal room.
        let (mut rings, mut bytes) = (Vec::new(), BTreeMap::new());
        for s in &specs {
            for (ty, dim) in [(p.ty_k, s.key_dim), (p.ty_v, s.value_dim)] {
                dim.map(|d| ty.row_bytes(d)).transpose()?;
            }
            rings.extend(p.ring(s.window).filter(|r| !rings.contains(r)));
            let sum = bytes.entry(p.n_positions(s.window)).or_insert(Some(0usize));
            *sum = sum.zip(s.bytes_per_token(p.ty_k, p.ty_v)).and_then(|(sum, n)| sum.checked_add(n));
        }
        let memory = |(room, bytes)| Ok((room, CacheMemory::new(room, bytes)?));
        let mut memories = bytes.into_iter().map(memory).collect::<Result<BTreeMap<_, _>>>()?;
        let mut layers = Vec::with_capacity(specs.len());
        for spec in specs {
            let memory = memories.get_mut(&p.n_positions(spec.window)).expect("there is memory for every room");
            layers.push(LayerCache::new(spec, p.ty_k, p.ty_v, memory)?);
        }
        let states = layers.iter().any(|l| !l.state.is_empty()).then(States::default);
        Ok(Self { layers, rings, states, n_ctx: p.n_ctx })
    }

    /// Positions the context has.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// The cache of `layer`.
    pub fn layer(&self, layer: usize) -> &LayerCache {
        &self.layers[layer]
    }

    /// Bytes reserved; resident only as far as positions are filled, or heads where there are huge pages.
    pub fn n_bytes(&self) -> usize {
        self.layers.iter().map(|l| l.n_bytes() + state_bytes(l.state.len())).sum()
    }

    /// Bytes one position occupies, as long as it is within all layers' windows.
    pub fn bytes_per_token(&self) -> usize {
        self.positions_at(1)
    }

    /// Bytes occupied when the context has `n` tokens.
    pub fn bytes_at(&self, n: usize) -> usize {
        self.positions_at(n) + self.layers.iter().map(|l| size_of::<f32>() * l.state.len()).sum::<usize>()
    }

    /// Bytes that `n` positions occupy.
    fn positions_at(&self, n: usize) -> usize {
        let layer = |l: &LayerCache| l.n_bytes() / l.n_positions.max(1) * n.min(l.n_positions);
        self.layers.iter().map(layer).sum()
    }

    /// Positions up to `end` have been written.
    pub fn filled(&mut self, end: usize) {
        self.rings.iter_mut().for_each(|r| r.filled(end));
        self.states.iter_mut().for_each(|s| s.filled(end));
    }

    /// Makes it possible to go back to where the sequence ends now.
    pub fn keep_states(&mut self) {
        if let Some(room) = self.states.as_mut().and_then(States::room) {
            self.layers.iter_mut().for_each(|l| room.extend_from_slice(l.state.as_slice()));
        }
    }

    /// Forgets positions from `end` on. Returns from where the sequence can go on: earlier than `end` where a layer has overwritten what the
    /// next token sees, or where none has kept the state it had.
    pub fn cut(&mut self, end: usize) -> usize {
        let places = self.states.as_ref().map_or(vec![end], |s| s.until(end));
        let end = places.into_iter().find(|&pos| self.serves(pos)).unwrap_or(0);
        self.rings.iter_mut().for_each(|r| r.cut(end));
        if let Some(mut copy) = self.states.as_mut().and_then(|s| s.back_to(end)) {
            for state in self.layers.iter_mut().map(|l| l.state.as_mut_slice()) {
                let own;
                (own, copy) = copy.split_at(state.len());
                state.copy_from_slice(own);
            }
        }
        end
    }

    fn serves(&self, end: usize) -> bool {
        self.rings.iter().all(|r| r.serves(end))
    }

    /// Forgets positions `from..from + n` and moves those up to `end` down by `n`, turning their keys back by `n`
    /// positions as `turn(layer)` says. Whether the sequence can go on: not where a layer has overwritten what the next token sees. States
    /// know what they knew.
    pub fn shift<'t>(
        &mut self,
        kernels: &Kernels,
        from: usize,
        n: usize,
        end: usize,
        turn: &dyn Fn(usize) -> Turn<'t>,
    ) -> bool {
        self.rings.iter_mut().for_each(|r| r.moved(from, n, end));
        if !self.serves(end - n) {
            return false;
        }
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.shift(kernels, from, n, end, &turn(i));
        }
        self.states.iter_mut().for_each(|s| s.moved(from, n));
        true
    }
}

pub(super) fn as_f32(bytes: &[u8]) -> &[f32] {
    // SAFETY: f32 accepts any bits; rows start at multiples of their own size in a 64-byte aligned buffer.
    let (head, x, tail) = unsafe { bytes.align_to() };
    assert!(head.is_empty() && tail.is_empty());
    x
}

pub(super) fn as_f32_mut(bytes: &mut [u8]) -> &mut [f32] {
    // SAFETY: as `as_f32`.
    let (head, x, tail) = unsafe { bytes.align_to_mut() };
    assert!(head.is_empty() && tail.is_empty());
    x
}

pub(super) fn as_f16(bytes: &[u8]) -> &[half::f16] {
    // SAFETY: f16 accepts any bits; rows start at multiples of their own size in a 64-byte aligned buffer.
    let (head, x, tail) = unsafe { bytes.align_to() };
    assert!(head.is_empty() && tail.is_empty());
    x
}

fn as_q8_0(bytes: &[u8]) -> &[BlockQ8_0] {
    // SAFETY: a block accepts any bits and may begin at any address.
    let (head, x, tail) = unsafe { bytes.align_to() };
    assert!(head.is_empty() && tail.is_empty());
    x
}

pub(super) fn as_f16_mut(bytes: &mut [u8]) -> &mut [half::f16] {
    // SAFETY: as `as_f16`.
    let (head, x, tail) = unsafe { bytes.align_to_mut() };
    assert!(head.is_empty() && tail.is_empty());
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a ring, where rows go to places from which others have yet to move.
    #[test]
    fn values_move_down_in_a_ring() {
        let kernels = Kernels::detect();
        let mut memory = CacheMemory::new(128, Some(2 * 16)).unwrap();
        let mut values = Values::new(CacheType::F32, 2, 4, &mut memory).unwrap();
        let row = |head: usize, pos: usize| [head as f32, pos as f32, 0.5, -1.0];
        let heads_and_positions = || (0..2).flat_map(|h| (172..300).map(move |pos| (h, pos)));
        for (head, pos) in heads_and_positions() {
            // SAFETY: there is no team.
            unsafe { values.store(kernels, head, pos, &row(head, pos)) };
        }
        values.shift(172..300, 40);
        for (head, pos) in heads_and_positions() {
            // SAFETY: there is no team.
            let Block::F32(x) = (unsafe { values.block(kernels, head, pos - 40..pos - 39, false, &mut []) }) else {
                panic!("rows of f32")
            };
            assert_eq!(x, row(head, pos), "head {head}, position {pos}");
        }
    }
}
