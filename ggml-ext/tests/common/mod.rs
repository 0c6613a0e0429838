//! What the GGUF tests share: a builder of bytes that checks nothing, so that tests can state files no writer would
//! make; the models; and a second, independent reader.
#![allow(dead_code)] // each test binary uses its part

pub mod oracle;

use ggml_ext::GgmlType;
use ggml_ext::gguf::{Gguf, ValueType};

/// A file under construction. Every method appends to a section; [`Raw::build`] joins header, pairs, tensors and data.
#[derive(Clone)]
pub struct Raw {
    pub magic: [u8; 4],
    pub version: u32,
    /// Counts written instead of the true ones.
    pub n_tensors: Option<u64>,
    pub n_pairs: Option<u64>,
    pub alignment: usize,
    pub pairs: (u64, Vec<u8>),
    pub tensors: (u64, Vec<u8>),
    pub data: Vec<u8>,
}

impl Default for Raw {
    fn default() -> Self {
        Raw {
            magic: *b"GGUF",
            version: 3,
            n_tensors: None,
            n_pairs: None,
            alignment: 32,
            pairs: (0, Vec::new()),
            tensors: (0, Vec::new()),
            data: Vec::new(),
        }
    }
}

/// A length-prefixed string.
pub fn string(s: impl AsRef<[u8]>) -> Vec<u8> {
    let s = s.as_ref();
    [&(s.len() as u64).to_le_bytes(), s].concat()
}

/// The value bytes of an array: element type id, stated count, element bytes.
pub fn array(elem: u32, count: u64, elems: &[u8]) -> Vec<u8> {
    [&elem.to_le_bytes()[..], &count.to_le_bytes(), elems].concat()
}

impl Raw {
    pub fn new() -> Self {
        Self::default()
    }

    /// Any bytes as a metadata pair.
    pub fn raw_pair(mut self, bytes: &[u8]) -> Self {
        self.pairs.0 += 1;
        self.pairs.1.extend_from_slice(bytes);
        self
    }

    pub fn pair(self, key: impl AsRef<[u8]>, ty: u32, value: &[u8]) -> Self {
        self.raw_pair(&[&string(key)[..], &ty.to_le_bytes(), value].concat())
    }

    pub fn u32(self, key: &str, v: u32) -> Self {
        self.pair(key, ValueType::U32.id(), &v.to_le_bytes())
    }

    pub fn string(self, key: &str, v: impl AsRef<[u8]>) -> Self {
        self.pair(key, ValueType::String.id(), &string(v))
    }

    /// A tensor description of which every field is given.
    pub fn raw_tensor(mut self, name: impl AsRef<[u8]>, n_dims: u32, dims: &[u64], ty: u32, offset: u64) -> Self {
        self.tensors.0 += 1;
        let out = &mut self.tensors.1;
        out.extend(string(name));
        out.extend(n_dims.to_le_bytes());
        dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(ty.to_le_bytes());
        out.extend(offset.to_le_bytes());
        self
    }

    /// A tensor with its data, placed after all earlier ones.
    pub fn tensor(mut self, name: &str, dims: &[u64], ty: GgmlType) -> Self {
        let n_elements: u64 = dims.iter().product();
        let n_bytes = n_elements as usize / ty.block_len() * ty.block_bytes();
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        let offset = self.data.len();
        self.data.extend((0..n_bytes).map(|i| i as u8));
        self.raw_tensor(name, dims.len() as u32, dims, ty.id(), offset as u64)
    }

    /// Data bytes that no tensor description announces.
    pub fn data(mut self, n: usize) -> Self {
        self.data.resize(self.data.len() + n, 0xda);
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.0).to_le_bytes());
        out.extend(self.n_pairs.unwrap_or(self.pairs.0).to_le_bytes());
        out.extend(&self.pairs.1);
        out.extend(&self.tensors.1);
        if self.tensors.0 > 0 && self.alignment > 0 {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&self.data);
        }
        out
    }

    /// Asserts that the file is refused with an error that mentions each of `mentions`.
    #[track_caller]
    pub fn assert_rejects(&self, mentions: &[&str]) {
        assert_rejects(&self.build(), mentions);
    }
}

/// Asserts that `bytes` are refused with an error that mentions each of `mentions`.
#[track_caller]
pub fn assert_rejects(bytes: &[u8], mentions: &[&str]) {
    let error = match Gguf::parse(bytes) {
        Ok(_) => panic!("accepted, expected an error that mentions {mentions:?}"),
        Err(e) => e.to_string(),
    };
    for m in mentions {
        assert!(error.contains(m), "{error:?} does not mention {m:?}");
    }
}

/// Reads everything a parsed file can show, so that a fault hidden behind a lazy accessor shows itself too.
pub fn walk(g: &Gguf) -> u64 {
    let mut seen = 0u64;
    for (key, value) in g.metadata() {
        seen += key.len() as u64 + value.to_string().len() as u64;
        assert!(std::ptr::eq(g.get(key).unwrap(), value));
        if let Some(a) = value.as_array() {
            let mut elements = 0;
            for v in a.iter() {
                elements += 1;
                seen += v.as_str().map_or(1, str::len) as u64;
            }
            assert_eq!(elements, a.len());
            if let Some(strings) = a.strings() {
                assert_eq!(strings.iter().count(), strings.len());
            }
        }
        let _ = (g.u32(key), g.i32(key), g.u64(key), g.f32(key), g.bool(key), g.str(key));
        let _ = (g.strings(key), g.f32s(key), g.i32s(key), g.u32s(key), g.bools(key));
    }
    for t in g.tensors() {
        assert_eq!(g.tensor(&t.name), Some(t));
        let data = g.tensor_data(t);
        assert_eq!(data.len() as u64, t.n_bytes);
        seen += u64::from(data[0]) + u64::from(data[data.len() - 1]);
    }
    seen
}

/// The bytes of a file under `models/`. `None`, with a note, when it was not fetched (`models/get.sh`).
pub fn model(file: &str) -> Option<Vec<u8>> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(file);
    match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: models/{file} is not here, models/get.sh fetches it");
            None
        }
        Err(e) => panic!("{}: {e}", path.display()),
    }
}
