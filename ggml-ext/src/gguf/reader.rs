//! The reader: header, metadata, tensor descriptions, and where each tensor's bytes are.

use std::collections::HashMap;

use super::cursor::Cursor;
use super::error::{GgufError, Place};
use super::value::{Array, StringArray, Value};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_ENTRIES, MAX_KEY_LEN, MAX_NAME_LEN, VERSION};
use crate::GgmlType;

/// The smallest metadata pair: key length, one byte of key, value type, one byte of value.
const MIN_PAIR_BYTES: u64 = 8 + 1 + 4 + 1;
/// The smallest tensor description: name length, one byte of name, dimension count, one dimension, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// A tensor as the file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, unique in the file.
    pub name: String,
    /// 1 to 4 dimensions, fastest first: a matrix of `[n_in, n_out]` has `n_out` rows of `n_in` elements.
    pub shape: Vec<u64>,
    /// Element type.
    pub ty: GgmlType,
    /// Where the data starts, in bytes from the start of the file.
    pub offset: u64,
    /// Bytes of data.
    pub n_bytes: u64,
}

impl TensorInfo {
    /// Elements per row: the first dimension.
    pub fn row_len(&self) -> u64 {
        self.shape[0]
    }

    /// Number of rows: the product of the other dimensions.
    pub fn n_rows(&self) -> u64 {
        self.shape[1..].iter().product()
    }

    /// Number of elements.
    pub fn n_elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// A parsed GGUF file (or one part of a split one), borrowing from its bytes.
#[derive(Debug, Clone)]
pub struct Gguf<'a> {
    bytes: &'a [u8],
    version: u32,
    alignment: u64,
    metadata: Vec<(&'a str, Value<'a>)>,
    by_key: HashMap<&'a str, usize>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<&'a str, usize>,
}

impl<'a> Gguf<'a> {
    /// Parses and checks a whole file: metadata, tensor descriptions, and that each tensor's data lies in the file,
    /// aligned and apart from all others.
    ///
    /// # Errors
    /// [`GgufError`] names the key or tensor, the offset, and what was expected.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(bytes);
        let version = read_version(bytes, &mut cursor)?;
        let header = |fault: super::error::Fault| fault.at(Place::Header);
        let n_tensors = cursor.limited_count("tensors", MIN_TENSOR_BYTES, MAX_ENTRIES).map_err(header)?;
        let n_pairs = cursor.limited_count("metadata pairs", MIN_PAIR_BYTES, MAX_ENTRIES).map_err(header)?;

        let (metadata, by_key) = read_metadata(&mut cursor, n_pairs)?;
        let alignment = match by_key.get(ALIGNMENT_KEY).map(|&i| metadata[i].1) {
            None => DEFAULT_ALIGNMENT,
            Some(Value::U32(a)) if a.is_power_of_two() => a.into(),
            Some(v) => {
                return Err(GgufError::Alignment { found: format!("{v} ({})", v.type_name()) });
            }
        };
        let (mut tensors, by_name, stated_at) = read_tensors(&mut cursor, n_tensors)?;
        locate_data(&mut tensors, &stated_at, cursor.offset(), alignment, bytes.len() as u64)?;
        Ok(Gguf { bytes, version, alignment, metadata, by_key, tensors, by_name })
    }

    /// The format version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The alignment of tensor data in bytes: a power of two.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// All metadata in file order.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&'a str, &Value<'a>)> {
        self.metadata.iter().map(|(key, value)| (*key, value))
    }

    /// Gives a key another value, or the file a key it does not have. What parsing has already relied on, such as the alignment of the
    /// data, stays as it is.
    pub fn set(&mut self, key: &'a str, value: Value<'a>) {
        match self.by_key.get(key) {
            Some(&i) => self.metadata[i].1 = value,
            None => {
                self.by_key.insert(key, self.metadata.len());
                self.metadata.push((key, value));
            }
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.by_key.get(key).map(|&i| &self.metadata[i].1)
    }

    /// An integer of any type whose value fits in a `u32`. This and the getters below return `Ok(None)` when the key is
    /// absent.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] or [`GgufError::OutOfRange`], as in the getters below.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.int(key, "u32")
    }

    /// An integer of any type whose value fits in an `i32`.
    pub fn i32(&self, key: &str) -> Result<Option<i32>, GgufError> {
        self.int(key, "i32")
    }

    /// An integer of any type whose value fits in a `u64`.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.int(key, "u64")
    }

    /// A value of type f32, or f64 (rounded).
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "f32", Value::as_f32)
    }

    /// A value of type bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "bool", Value::as_bool)
    }

    /// A value of type string.
    pub fn str(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        self.typed(key, "string", Value::as_str)
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<StringArray<'a>>, GgufError> {
        self.typed(key, "array of string", |v| v.as_array()?.strings())
    }

    /// An array of f32, or of f64 (rounded).
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        self.typed(key, "array of f32", |v| v.as_array()?.f32s())
    }

    /// An array of integers whose values fit in `i32`.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, GgufError> {
        self.ints(key, "array of i32")
    }

    /// An array of integers whose values fit in `u32`.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, GgufError> {
        self.ints(key, "array of u32")
    }

    /// An array of bools.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, GgufError> {
        self.typed(key, "array of bool", |v| v.as_array()?.iter().map(|e| e.as_bool()).collect())
    }

    /// All tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The bytes of a tensor.
    ///
    /// # Panics
    /// When `t` is not one of this file's [`tensors`](Self::tensors) and does not lie in it.
    pub fn tensor_data(&self, t: &TensorInfo) -> &'a [u8] {
        &self.bytes[t.offset as usize..][..t.n_bytes as usize]
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        get: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match get(value) {
            Some(v) => Ok(Some(v)),
            None => Err(GgufError::WrongType { key: key.into(), found: value.type_name(), expected }),
        }
    }

    fn int<T: TryFrom<i128>>(&self, key: &str, expected: &'static str) -> Result<Option<T>, GgufError> {
        self.typed(key, expected, Value::as_int)?.map(|v| fit(v, key, expected)).transpose()
    }

    fn ints<T: TryFrom<i128>>(&self, key: &str, expected: &'static str) -> Result<Option<Vec<T>>, GgufError> {
        let is_int = |a: &Array| a.elem_type().is_int();
        let Some(array) = self.typed(key, expected, |v| v.as_array().filter(is_int))? else {
            return Ok(None);
        };
        array.iter().filter_map(|v| v.as_int()).map(|v| fit(v, key, expected)).collect::<Result<_, _>>().map(Some)
    }
}

fn fit<T: TryFrom<i128>>(v: i128, key: &str, expected: &'static str) -> Result<T, GgufError> {
    T::try_from(v).map_err(|_| GgufError::OutOfRange { key: key.into(), found: v.to_string(), expected })
}

fn read_version(bytes: &[u8], cursor: &mut Cursor) -> Result<u32, GgufError> {
    let magic = bytes.get(..4).unwrap_or(bytes);
    if magic != MAGIC {
        return Err(GgufError::Magic { found: magic.into() });
    }
    let header = |fault: super::error::Fault| fault.at(Place::Header);
    cursor.u32("the magic").map_err(header)?;
    match cursor.u32("the version").map_err(header)? {
        version @ 2..=VERSION => Ok(version),
        // No version is anywhere near 65536: a number with only high bits is a small one in the other byte order.
        swapped if swapped != 0 && swapped & 0xffff == 0 => Err(GgufError::BigEndian { version: swapped.swap_bytes() }),
        version => Err(GgufError::Version { version }),
    }
}

type Metadata<'a> = (Vec<(&'a str, Value<'a>)>, HashMap<&'a str, usize>);

fn read_metadata<'a>(cursor: &mut Cursor<'a>, n_pairs: u64) -> Result<Metadata<'a>, GgufError> {
    // Grown by need: the count is not to be believed before as many pairs were read.
    let (mut metadata, mut by_key) = (Vec::new(), HashMap::new());
    for i in 0..n_pairs {
        let offset = cursor.offset();
        let key = read_name(cursor, "the key", MAX_KEY_LEN, || Place::Key(i))?;
        if by_key.insert(key, metadata.len()).is_some() {
            return Err(GgufError::DuplicateKey { key: key.into(), offset });
        }
        let value = cursor.value_type().and_then(|ty| cursor.value(ty, 0));
        metadata.push((key, value.map_err(|fault| fault.at(Place::Value(key.into())))?));
    }
    Ok((metadata, by_key))
}

/// A key or tensor name: not empty and at most `max` bytes.
fn read_name<'a>(
    cursor: &mut Cursor<'a>,
    what: &'static str,
    max: usize,
    place: impl Fn() -> Place,
) -> Result<&'a str, GgufError> {
    let offset = cursor.offset();
    let mut peek = *cursor;
    let len = peek.u64(what).map_err(|fault| fault.at(place()))?;
    if len == 0 || len > max as u64 {
        return Err(GgufError::NameLength { place: place(), offset, len, max: max as u64 });
    }
    cursor.string(what).map_err(|fault| fault.at(place()))
}

/// Tensors, their index by name, and where in the file each states its data offset.
type Tensors<'a> = (Vec<TensorInfo>, HashMap<&'a str, usize>, Vec<u64>);

/// Reads the descriptions; `offset` of each is still relative to the data section.
fn read_tensors<'a>(cursor: &mut Cursor<'a>, n_tensors: u64) -> Result<Tensors<'a>, GgufError> {
    let (mut tensors, mut by_name, mut stated_at) = (Vec::new(), HashMap::new(), Vec::new());
    for i in 0..n_tensors {
        let offset = cursor.offset();
        let name = read_name(cursor, "the name", MAX_NAME_LEN, || Place::TensorInfo(i))?;
        if by_name.insert(name, tensors.len()).is_some() {
            return Err(GgufError::DuplicateTensor { tensor: name.into(), offset });
        }
        let (tensor, stated) = read_tensor(cursor, name)?;
        tensors.push(tensor);
        stated_at.push(stated);
    }
    Ok((tensors, by_name, stated_at))
}

fn read_tensor(cursor: &mut Cursor, name: &str) -> Result<(TensorInfo, u64), GgufError> {
    let tensor = || name.to_string();
    let truncated = |fault: super::error::Fault| fault.at(Place::Tensor(tensor()));

    let offset = cursor.offset();
    let n_dims = cursor.u32("the dimension count").map_err(truncated)?;
    if n_dims == 0 || n_dims as usize > MAX_DIMS {
        return Err(GgufError::DimCount { tensor: tensor(), offset, found: n_dims });
    }
    let shape_at = cursor.offset();
    let mut shape = Vec::with_capacity(n_dims as usize);
    for dim in 0..n_dims as usize {
        let offset = cursor.offset();
        let n = cursor.u64("a dimension").map_err(truncated)?;
        if n == 0 {
            return Err(GgufError::ZeroDim { tensor: tensor(), offset, dim });
        }
        shape.push(n);
    }
    let type_at = cursor.offset();
    let id = cursor.u32("the type").map_err(truncated)?;
    let ty =
        GgmlType::from_id(id).ok_or_else(|| GgufError::UnsupportedType { tensor: tensor(), offset: type_at, id })?;

    let row = shape[0];
    if !row.is_multiple_of(ty.block_len() as u64) {
        return Err(GgufError::RowLength { tensor: tensor(), offset: shape_at, shape, row, ty });
    }
    let n_bytes = checked_bytes(&shape, ty).ok_or_else(|| GgufError::TooLarge {
        tensor: tensor(),
        offset: shape_at,
        shape: shape.clone(),
    })?;
    let stated_at = cursor.offset();
    let offset = cursor.u64("the data offset").map_err(truncated)?;
    Ok((TensorInfo { name: tensor(), shape, ty, offset, n_bytes }, stated_at))
}

/// Bytes of a tensor whose rows divide into blocks; `None` when elements or bytes do not fit in an `i64`, the type that
/// other readers count them in.
pub(super) fn checked_bytes(shape: &[u64], ty: GgmlType) -> Option<u64> {
    let n_elements = shape.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim))?;
    let n_bytes = (n_elements / ty.block_len() as u64).checked_mul(ty.block_bytes() as u64)?;
    (n_elements.max(n_bytes) <= i64::MAX as u64).then_some(n_bytes)
}

/// Turns relative offsets into absolute ones and checks that every tensor's bytes are in the file and its own.
fn locate_data(
    tensors: &mut [TensorInfo],
    stated_at: &[u64],
    header_end: u64,
    alignment: u64,
    file_len: u64,
) -> Result<(), GgufError> {
    // The header ends in memory and an alignment fits in 32 bits, so this cannot overflow.
    let data_start = header_end.next_multiple_of(alignment);
    for (t, &offset) in tensors.iter_mut().zip(stated_at) {
        if !t.offset.is_multiple_of(alignment) {
            let tensor = t.name.clone();
            return Err(GgufError::Misaligned { tensor, offset, found: t.offset, alignment });
        }
        let start = data_start.saturating_add(t.offset);
        if start.checked_add(t.n_bytes).is_none_or(|end| end > file_len) {
            return Err(GgufError::OutOfBounds { tensor: t.name.clone(), start, n_bytes: t.n_bytes, file_len });
        }
        t.offset = start;
    }

    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|t| t.offset);
    for pair in order.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        let end = a.offset + a.n_bytes;
        if b.offset < end {
            return Err(GgufError::Overlap { tensor: b.name.clone(), start: b.offset, other: a.name.clone(), end });
        }
    }
    Ok(())
}
