//! Borrowed matrices whose rows lie a stride apart.

use std::marker::PhantomData;

/// `n_rows` rows of `len` elements, `stride` elements from the start of one to the start of the next.
#[derive(Clone, Copy)]
pub struct Rows<'a, T> {
    data: *const T,
    n_rows: usize,
    len: usize,
    stride: usize,
    borrow: PhantomData<&'a [T]>,
}

/// As [`Rows`], to be written. Only the rows' own elements are touched, never those between two rows.
pub struct RowsMut<'a, T> {
    data: *mut T,
    n_rows: usize,
    len: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a shared borrow of `T`s that other threads may read too.
unsafe impl<T: Sync> Send for Rows<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Rows<'_, T> {}
// SAFETY: an exclusive borrow of its rows.
unsafe impl<T: Send> Send for RowsMut<'_, T> {}

/// Panics unless a slice of `available` elements holds the rows.
fn check(available: usize, n_rows: usize, len: usize, stride: usize) {
    assert!(n_rows <= 1 || stride >= len, "rows of {len} elements overlap at a stride of {stride}");
    let needed = match n_rows {
        0 => Some(0),
        _ => (n_rows - 1).checked_mul(stride).and_then(|start| start.checked_add(len)),
    };
    assert!(
        needed.is_some_and(|needed| needed <= available),
        "{n_rows} rows of {len} elements at a stride of {stride} do not fit in {available}"
    );
}

impl<'a, T> Rows<'a, T> {
    /// The first `n_rows` rows of `data`.
    ///
    /// # Panics
    /// When `data` is too short or the rows overlap.
    pub fn new(data: &'a [T], n_rows: usize, len: usize, stride: usize) -> Self {
        check(data.len(), n_rows, len, stride);
        Rows { data: data.as_ptr(), n_rows, len, stride, borrow: PhantomData }
    }

    /// Rows of a buffer other parts of which may be written meanwhile.
    ///
    /// # Safety
    /// For `'a`, each row is valid for reads and nobody writes to it.
    pub unsafe fn from_raw(data: *const T, n_rows: usize, len: usize, stride: usize) -> Self {
        Rows { data, n_rows, len, stride, borrow: PhantomData }
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }
    /// Elements in a row.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }
    pub(in crate::kernels) fn stride(&self) -> usize {
        self.stride
    }
    /// Row `i`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, i: usize) -> &'a [T] {
        assert!(i < self.n_rows, "row {i} of {}", self.n_rows);
        // SAFETY: rows that exist are valid for reads during `'a`.
        unsafe { std::slice::from_raw_parts(self.row_ptr(i), self.len) }
    }
    /// Start of the first row, if there is one.
    #[inline(always)]
    pub(in crate::kernels) fn as_ptr(&self) -> *const T {
        self.data
    }
    /// Start of row `i`, which must exist.
    #[inline(always)]
    pub(in crate::kernels) fn row_ptr(&self, i: usize) -> *const T {
        debug_assert!(i < self.n_rows);
        self.data.wrapping_add(i * self.stride)
    }
}

impl<'a> Rows<'a, f32> {
    /// The bytes of the rows.
    pub fn bytes(&self) -> Rows<'a, u8> {
        const SIZE: usize = size_of::<f32>();
        Rows {
            data: self.data.cast(),
            n_rows: self.n_rows,
            len: self.len * SIZE,
            stride: self.stride * SIZE,
            borrow: PhantomData,
        }
    }
}

impl<'a, T> RowsMut<'a, T> {
    /// The first `n_rows` rows of `data`.
    ///
    /// # Panics
    /// When `data` is too short or the rows overlap.
    pub fn new(data: &'a mut [T], n_rows: usize, len: usize, stride: usize) -> Self {
        check(data.len(), n_rows, len, stride);
        RowsMut { data: data.as_mut_ptr(), n_rows, len, stride, borrow: PhantomData }
    }

    /// Rows of a buffer whose other parts are in use elsewhere: the heads of one output matrix, written by several threads.
    ///
    /// # Safety
    /// For `'a`, each row is valid for reads and writes, nobody else touches it, and rows do not overlap.
    pub unsafe fn from_raw(data: *mut T, n_rows: usize, len: usize, stride: usize) -> Self {
        RowsMut { data, n_rows, len, stride, borrow: PhantomData }
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }
    /// Elements in a row.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }
    pub(in crate::kernels) fn stride(&self) -> usize {
        self.stride
    }
    /// Start of the first row, if there is one.
    #[inline(always)]
    pub(in crate::kernels) fn as_ptr(&self) -> *mut T {
        self.data
    }
    /// Start of row `i`, which must exist.
    #[inline(always)]
    pub(in crate::kernels) fn row_ptr(&self, i: usize) -> *mut T {
        debug_assert!(i < self.n_rows);
        self.data.wrapping_add(i * self.stride)
    }
}
