//! Buffers that the members of a team read and write together.
//!
//! A forward pass is a sequence of phases with a barrier after each. Within a phase a buffer is either read by all or
//! written in disjoint parts; which part belongs to whom is decided by row or by chunk number. The borrow checker
//! cannot see phases, hence [`SharedBuf`]: its accessors are `unsafe` and every caller states whose part it takes.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

use ggml_ext::kernels::float::StateRates;
use ggml_ext::kernels::{Bf16Rows, Digits, Kernels, Q8Rows};

/// Types for which a zeroed allocation is a valid value.
///
/// # Safety
/// All-zero bytes are a value of the type, and it needs no drop.
pub unsafe trait Zeroed: Copy {}
// SAFETY: plain numbers.
unsafe impl Zeroed for f32 {}
// SAFETY: plain numbers.
unsafe impl Zeroed for u32 {}
// SAFETY: plain numbers.
unsafe impl Zeroed for u8 {}
// SAFETY: two plain numbers.
unsafe impl Zeroed for StateRates {}

/// A fixed-size buffer shared by a team, zeroed and aligned to a cache line, a long one to a huge page; see the module documentation for
/// the discipline. Pages the team never touches cost no memory.
pub struct SharedBuf<T> {
    /// The first element, aligned.
    ptr: NonNull<T>,
    len: usize,
    /// What was allocated: with room to move the first element up to where it is aligned.
    block: NonNull<u8>,
}

// SAFETY: the buffer owns its memory, and T is a plain number.
unsafe impl<T: Zeroed> Send for SharedBuf<T> {}
// SAFETY: access goes through the unsafe methods below, whose callers promise that parts written in a phase are
// touched by one member only.
unsafe impl<T: Zeroed> Sync for SharedBuf<T> {}

const CACHE_LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

impl<T> SharedBuf<T> {
    fn align(len: usize) -> usize {
        if len >= HUGE_PAGE / size_of::<T>() { HUGE_PAGE } else { CACHE_LINE }
    }

    /// Zeroed pages are free of cost only where no more than the usual alignment is asked for: hence the extra bytes.
    fn layout(len: usize) -> Layout {
        let bytes = Layout::array::<T>(len).ok().and_then(|l| l.size().checked_add(Self::align(len)));
        let layout = bytes.and_then(|n| Layout::from_size_align(n, align_of::<T>()).ok());
        layout.expect("a buffer larger than the address space")
    }
}

impl<T: Zeroed> SharedBuf<T> {
    /// A buffer of `len` zeros.
    ///
    /// # Panics
    /// If the length in bytes exceeds the address space.
    pub fn new(len: usize) -> Self {
        Self::try_new(len).unwrap_or_else(|| handle_alloc_error(Self::layout(len)))
    }

    /// A buffer of `len` zeros, or nothing when the system refuses that much.
    ///
    /// # Panics
    /// If the length in bytes exceeds the address space.
    pub fn try_new(len: usize) -> Option<Self> {
        // SAFETY: the layout's size is not zero.
        let block = NonNull::new(unsafe { alloc_zeroed(Self::layout(len)) })?;
        // SAFETY: the layout has so many bytes more than the elements need.
        let ptr = unsafe { block.add(block.align_offset(Self::align(len))) }.cast();
        Some(Self { ptr, len, block })
    }

    /// Asks the system to back the buffer with huge pages where it can. For buffers that are used as a whole: a page of 2 MiB
    /// becomes resident when its first byte is written.
    pub fn advise_huge_pages(&self) {
        #[cfg(target_os = "linux")]
        {
            const PAGE: usize = 4096;
            let start = self.ptr.as_ptr().addr().next_multiple_of(PAGE);
            let end = (self.ptr.as_ptr().addr() + self.len * size_of::<T>()) / PAGE * PAGE;
            if start < end {
                // SAFETY: whole pages inside the allocation; the advice changes no contents. Refusal costs speed alone.
                unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
            }
        }
    }

    /// Elements in the buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a buffer without elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements `range`.
    ///
    /// # Safety
    /// Nobody writes them before the next barrier.
    pub unsafe fn get(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds by the assertion; the caller promises that there is no writer.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().add(range.start), range.len()) }
    }

    /// The elements `range`, to write.
    ///
    /// # Safety
    /// No other member touches them before the next barrier, and the caller holds no other reference to them.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn get_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds by the assertion; the caller promises that the part is this member's alone.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr().add(range.start), range.len()) }
    }

    /// The first element's address, for kernels that write a strided part.
    pub fn as_ptr(&self) -> *mut T {
        self.ptr.as_ptr()
    }

    /// All elements, when no team is at work.
    pub fn as_slice(&mut self) -> &[T] {
        self.as_mut_slice()
    }

    /// All elements, when no team is at work.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `&mut self` excludes every other access.
        unsafe { self.get_mut(0..self.len) }
    }
}

/// Zeroed floats of one owner, from a cache line on: vectors of 64 bytes that lie across two lines cost twice.
pub struct Floats(SharedBuf<f32>);

impl Floats {
    /// `len` zeros.
    ///
    /// # Panics
    /// If the length in bytes exceeds the address space.
    pub fn new(len: usize) -> Self {
        Self(SharedBuf::new(len))
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: nobody writes while the owner is borrowed.
        unsafe { self.0.get(0..self.0.len()) }
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.0.as_mut_slice()
    }
}

impl<T> Drop for SharedBuf<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `try_new` with this layout.
        unsafe { dealloc(self.block.as_ptr(), Self::layout(self.len)) }
    }
}

/// The form in which activations meet quantised weights. F32 weights always meet floats; so do F16 and BF16, but where many tokens are
/// multiplied in bf16, with 16 bits of either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ActivationType {
    /// Floats: slower, for studies and tests.
    F32,
    /// int8, with second digits for the blocks that need them: within a mean KL divergence of some 2e-4 of floats. In the products of
    /// bf16, two digits in the places that matter most: some 1e-4.
    #[default]
    Int8Fine,
    /// One int8 digit, as in llama.cpp, some 3e-3 from floats: about a third faster on prompts. In products in bf16, one
    /// digit of that: some 2e-4.
    Int8,
}

impl ActivationType {
    /// Digits of the products of activations with each other that matter most, in passes of up to `n_tokens`; `None` if there are none in
    /// bf16.
    pub fn bf16_digits(self, kernels: &Kernels, n_tokens: usize) -> Option<Digits> {
        match (Form::of(kernels, n_tokens), self) {
            (Form::Int8, _) | (_, Self::F32) => None,
            (Form::Bf16, Self::Int8Fine) => Some(Digits::Two),
            (Form::Bf16, Self::Int8) => Some(Digits::One),
        }
    }

    /// A short name, for records.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int8Fine => "int8-fine",
            Self::Int8 => "int8",
        }
    }
}

/// Products in bf16 take both digits where int8 would from this step on or a smaller one: for attention's inputs, and for what comes last.
/// On SmolLM2 that leaves a mean KL divergence of 7e-5 from floats; in the last places alone, 1.3e-4; nowhere, 1.8e-4.
const TWO_DIGITS_STEP: f32 = 0.016;

/// Fewest tokens that are multiplied in bf16, which takes as long for one as for 32: weights are unpacked and tiles filled all the same.
/// SmolLM2 Q4_0 on an Emerald Rapids, tokens per second with AMX and in int8 with AVX-512: 85 and 300 for 2, 600 and 850 for 16, 1020 and
/// 910 for 32.
const FEWEST_BF16_TOKENS: usize = 32;

/// What the activations of a pass are rounded to where they meet quantised weights, unless they are to stay floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// int8, with or without second digits.
    Int8,
    /// bf16, and the weights with them: nearer to floats than int8 in one digit, and faster where a CPU has matrix instructions for it and
    /// there are many tokens.
    Bf16,
}

impl Form {
    /// That of a pass of `n_tokens`.
    pub fn of(kernels: &Kernels, n_tokens: usize) -> Self {
        if n_tokens >= FEWEST_BF16_TOKENS && kernels.int.has_bf16() { Self::Bf16 } else { Self::Int8 }
    }
}

/// The left operand of matrix products: rows of `k` floats, and beside them the same rows as quantised weights meet them.
pub struct Activations {
    /// Row length.
    pub k: usize,
    f32: SharedBuf<f32>,
    q8: Option<Q8Rows>,
    bf16: Option<Bf16Rows>,
    ty: ActivationType,
}

impl Activations {
    /// Room for `n_rows` rows of `k`; `quantized` tells whether any matrix they meet has quantised weights.
    pub fn new(kernels: &Kernels, n_rows: usize, k: usize, quantized: bool, ty: ActivationType) -> Self {
        let rounded = ty != ActivationType::F32 && k.is_multiple_of(32);
        let bf16 = rounded && Form::of(kernels, n_rows) == Form::Bf16;
        let n_q8 = if bf16 { FEWEST_BF16_TOKENS - 1 } else { n_rows };
        let q8 = (rounded && quantized).then(|| Q8Rows::new(n_q8, k));
        let bf16 = bf16.then(|| Bf16Rows::new(n_rows, k));
        Self { k, f32: SharedBuf::new(n_rows * k), q8, bf16, ty }
    }

    /// The same for rows that may be filled in either form however many they are.
    pub fn of_either_form(kernels: &Kernels, n_rows: usize, k: usize, ty: ActivationType) -> Self {
        let rounded = ty != ActivationType::F32 && k.is_multiple_of(32);
        let q8 = rounded.then(|| Q8Rows::new(n_rows, k));
        let bf16 = (rounded && kernels.int.has_bf16()).then(|| Bf16Rows::new(n_rows, k));
        Self { k, f32: SharedBuf::new(n_rows * k), q8, bf16, ty }
    }

    /// To be filled by an operation of a pass in `form`. Where there are second digits at all, blocks have them whose step exceeds
    /// `fine_step` times the root mean square of their row.
    pub fn with(&self, form: Form, fine_step: f32) -> Operand<'_> {
        let fine_step = if self.ty == ActivationType::Int8Fine { fine_step } else { f32::INFINITY };
        Operand { rows: self, form, fine_step }
    }
}

/// Rows as quantised weights meet them.
pub(super) enum Rounded<'a> {
    Int8(&'a Q8Rows),
    Bf16(&'a Bf16Rows, Digits),
    /// Not at all.
    Floats,
}

/// Where an operation leaves rows for the products that follow, and how these are rounded there.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    rows: &'a Activations,
    form: Form,
    fine_step: f32,
}

impl<'a> Operand<'a> {
    /// Row length.
    pub fn k(&self) -> usize {
        self.rows.k
    }

    /// Row `i`, to be filled and then passed to [`Operand::finish_row`].
    ///
    /// # Safety
    /// As [`SharedBuf::get_mut`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row_mut(&self, i: usize) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.rows.f32.get_mut(i * self.rows.k..(i + 1) * self.rows.k) }
    }

    /// Elements `part` of row `i`, for rows that several members fill.
    ///
    /// # Safety
    /// As [`SharedBuf::get_mut`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part_mut(&self, i: usize, part: Range<usize>) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.rows.f32.get_mut(i * self.rows.k + part.start..i * self.rows.k + part.end) }
    }

    /// Rows `rows` as floats.
    ///
    /// # Safety
    /// As [`SharedBuf::get`].
    pub unsafe fn f32(&self, rows: Range<usize>) -> &'a [f32] {
        let k = self.rows.k;
        // SAFETY: passed on to the caller.
        unsafe { self.rows.f32.get(rows.start * k..rows.end * k) }
    }

    /// What products take of the rows.
    pub(super) fn rounded(&self) -> Rounded<'a> {
        match (self.form, &self.rows.q8, &self.rows.bf16) {
            (Form::Int8, Some(q8), _) => Rounded::Int8(q8),
            (Form::Bf16, _, Some(bf16)) if self.fine_step <= TWO_DIGITS_STEP => Rounded::Bf16(bf16, Digits::Two),
            (Form::Bf16, _, Some(bf16)) => Rounded::Bf16(bf16, Digits::One),
            _ => Rounded::Floats,
        }
    }

    /// Rounds row `i` after it was filled.
    ///
    /// # Safety
    /// No other member touches row `i` before the next barrier.
    pub unsafe fn finish_row(&self, kernels: &Kernels, i: usize) {
        // SAFETY: the caller owns row `i` of all forms.
        unsafe {
            match self.rounded() {
                Rounded::Int8(q8) => q8.quantize_row(kernels, i, self.f32(i..i + 1), self.fine_step),
                Rounded::Bf16(bf16, _) => bf16.round_row(kernels, i, self.f32(i..i + 1)),
                Rounded::Floats => {}
            }
        }
    }
}

/// Activations of every width that some layer has.
pub struct Widths(Vec<Activations>);

impl Widths {
    /// Those of these `widths`, some of which may be equal, made by `activations`.
    pub fn new(widths: impl Iterator<Item = usize>, activations: impl Fn(usize) -> Activations) -> Self {
        let mut all: Vec<usize> = widths.collect();
        all.sort_unstable();
        all.dedup();
        Self(all.into_iter().map(activations).collect())
    }

    /// Those of one of the widths.
    ///
    /// # Panics
    /// Where it is none of them.
    pub fn of(&self, width: usize) -> &Activations {
        self.0.iter().find(|a| a.k == width).expect("made for all layers")
    }
}
