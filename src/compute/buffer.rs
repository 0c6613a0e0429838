//! Buffers that the members of a team read and write together.
//!
//! A forward pass is a sequence of phases with a barrier after each. Within a phase a buffer is either read by all or
//! written in disjoint parts; which part belongs to whom is decided by row or by chunk number. The borrow checker
//! cannot see phases, hence [`SharedBuf`]: its accessors are `unsafe` and every caller states whose part it takes.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;

use ggml_ext::kernels::{Kernels, Q8Rows};

/// Types for which a zeroed allocation is a valid value.
///
/// # Safety
/// All-zero bytes are a value of the type, and it needs no drop.
pub unsafe trait Zeroed: Copy {}
// SAFETY: plain numbers.
unsafe impl Zeroed for f32 {}
// SAFETY: plain numbers.
unsafe impl Zeroed for u8 {}

/// A fixed-size buffer shared by a team, zeroed and aligned to a cache line; see the module documentation for the
/// discipline. Pages the team never touches cost no memory.
pub struct SharedBuf<T> {
    /// The first element, on a cache line.
    ptr: NonNull<T>,
    len: usize,
    /// What was allocated: with room to move the first element up to a cache line.
    block: NonNull<u8>,
}

// SAFETY: the buffer owns its memory, and T is a plain number.
unsafe impl<T: Zeroed> Send for SharedBuf<T> {}
// SAFETY: access goes through the unsafe methods below, whose callers promise that parts written in a phase are
// touched by one member only.
unsafe impl<T: Zeroed> Sync for SharedBuf<T> {}

const CACHE_LINE: usize = 64;

impl<T> SharedBuf<T> {
    /// Zeroed pages are free of cost only where no more than the usual alignment is asked for: hence the extra line.
    fn layout(len: usize) -> Layout {
        let bytes = Layout::array::<T>(len).ok().and_then(|l| l.size().checked_add(CACHE_LINE));
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
        // SAFETY: at most one line on, and the layout has a line more than the elements need.
        let ptr = unsafe { block.add(block.align_offset(CACHE_LINE)) }.cast();
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

impl<T> Drop for SharedBuf<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `try_new` with this layout.
        unsafe { dealloc(self.block.as_ptr(), Self::layout(self.len)) }
    }
}

/// The form in which activations meet quantised weights. Weights that are floats always meet floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ActivationType {
    /// Floats: slower, for studies and tests.
    F32,
    /// int8, with second digits for the blocks that need them: within a mean KL divergence of some 2e-4 of floats.
    #[default]
    Int8Fine,
    /// One int8 digit, as in llama.cpp, some 3e-3 from floats: about a third faster on prompts.
    Int8,
}

impl ActivationType {
    /// A short name, for records.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int8Fine => "int8-fine",
            Self::Int8 => "int8",
        }
    }
}

/// The left operand of matrix products: rows of `k` floats, and beside them the same rows in int8 for quantised weights.
pub struct Activations {
    /// Row length.
    pub k: usize,
    f32: SharedBuf<f32>,
    q8: Option<Q8Rows>,
    ty: ActivationType,
}

impl Activations {
    /// Room for `n_rows` rows of `k`; `quantized` tells whether any matrix they meet has quantised weights.
    pub fn new(n_rows: usize, k: usize, quantized: bool, ty: ActivationType) -> Self {
        let int8 = quantized && ty != ActivationType::F32 && k.is_multiple_of(32);
        Self { k, f32: SharedBuf::new(n_rows * k), q8: int8.then(|| Q8Rows::new(n_rows, k)), ty }
    }

    /// To be filled by an operation. Where there are second digits at all, blocks have them whose step exceeds `fine_step` times the
    /// root mean square of their row.
    pub fn with(&self, fine_step: f32) -> Operand<'_> {
        let fine_step = if self.ty == ActivationType::Int8Fine { fine_step } else { f32::INFINITY };
        Operand { rows: self, fine_step }
    }

    /// Rows `rows` as floats.
    ///
    /// # Safety
    /// As [`SharedBuf::get`].
    pub unsafe fn f32(&self, rows: Range<usize>) -> &[f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.f32.get(rows.start * self.k..rows.end * self.k) }
    }

    /// The int8 form, where there is one.
    pub fn q8(&self) -> Option<&Q8Rows> {
        self.q8.as_ref()
    }
}

/// Where an operation leaves rows for the products that follow, and how finely these are quantised.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    rows: &'a Activations,
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

    /// Quantises row `i` after it was filled.
    ///
    /// # Safety
    /// No other member touches row `i` before the next barrier.
    pub unsafe fn finish_row(&self, kernels: &Kernels, i: usize) {
        if let Some(q8) = &self.rows.q8 {
            // SAFETY: the caller owns row `i` of both forms.
            unsafe { q8.quantize_row(kernels, i, self.rows.f32(i..i + 1), self.fine_step) }
        }
    }
}
