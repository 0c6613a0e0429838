//! The older binary format: a count of entries; for each its name, a number of chunks, and that many times the mean squares;
//! then the number of chunks in all and the name of the text. Integers have 32 bits, strings their length before them.

use super::{CHUNK_SIZE, Entry, Imatrix};

pub(super) fn parse(bytes: &[u8]) -> Result<Imatrix, String> {
    let mut c = Cursor { bytes, pos: 0 };
    let n_entries = c.count("the number of entries", 1)?;
    let mut matrix = Imatrix::default();
    for i in 0..n_entries {
        let name = c.string("the name of an entry")?;
        let chunks = c.int("a number of chunks")?;
        let n = c.count("a number of values", 4)?;
        if n == 0 {
            return Err(format!("entry {i}, {name}: has no values"));
        }
        // One chunk stands for as many rows as it has tokens; a count of none makes the values means already.
        let chunks =
            u64::try_from(chunks).map_err(|_| format!("entry {i}, {name}: {chunks} is no number of chunks"))?;
        let rows = f64::from(CHUNK_SIZE);
        let values = c.take(4 * n, "the values")?.as_chunks().0;
        let squares = values.iter().map(|&b| f64::from(f32::from_le_bytes(b)) * rows).collect();
        let entry = Entry { squares, counts: vec![chunks.max(1) * u64::from(CHUNK_SIZE)] };
        if matrix.entries.insert(name.clone(), entry).is_some() {
            return Err(format!("entry {i}: {name} appears twice"));
        }
    }
    // The rest is not in the oldest files.
    if c.pos < bytes.len() {
        c.int("the number of chunks")?;
        if c.pos < bytes.len() {
            matrix.datasets.push(c.string("the name of the text")?);
        }
    }
    Ok(matrix)
}

pub(super) fn write(matrix: &Imatrix) -> Result<Vec<u8>, String> {
    // Stacks have one count here: what was never measured counts as if all columns mattered equally.
    let measured: Vec<_> = matrix.entries.iter().filter(|(_, e)| e.counts.iter().any(|&n| n > 0)).collect();
    let int = |n: u64| i32::try_from(n).unwrap_or(i32::MAX).to_le_bytes();
    let mut out = int(measured.len() as u64).to_vec();
    let size = u64::from(matrix.chunk_size.max(1));
    for (name, e) in measured {
        let chunks = e.counts.iter().max().copied().unwrap_or(0).div_ceil(size);
        out.extend(int(name.len() as u64));
        out.extend(name.as_bytes());
        out.extend(int(chunks));
        out.extend(int(e.squares.len() as u64));
        for (squares, &n) in e.squares.chunks(e.n_cols()).zip(&e.counts) {
            let mean = |v: &f64| if n > 0 { v / n as f64 } else { 1.0 };
            out.extend(squares.iter().flat_map(|v| ((mean(v) * chunks as f64) as f32).to_le_bytes()));
        }
    }
    out.extend(int(matrix.n_chunks()));
    let dataset = matrix.datasets.last().map_or("", String::as_str);
    out.extend(int(dataset.len() as u64));
    out.extend(dataset.as_bytes());
    Ok(out)
}

/// A position in the bytes. Nothing is allocated that the file does not hold.
struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.pos..];
        let taken = rest.get(..n).ok_or_else(|| {
            format!("not an importance matrix: {what} at offset {} needs {n} bytes, {} are left", self.pos, rest.len())
        })?;
        self.pos += n;
        Ok(taken)
    }

    fn int(&mut self, what: &str) -> Result<i32, String> {
        let bytes = self.take(4, what)?;
        Ok(i32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    /// A count of things of at least `min_bytes` each.
    fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize, String> {
        let at = self.pos;
        let found = self.int(what)?;
        let most = (self.bytes.len() - self.pos) / min_bytes;
        usize::try_from(found).ok().filter(|&n| n <= most).ok_or_else(|| {
            format!("not an importance matrix: {what} at offset {at} is {found}, the file has room for {most}")
        })
    }

    fn string(&mut self, what: &str) -> Result<String, String> {
        let n = self.count(what, 1)?;
        let at = self.pos;
        let bytes = self.take(n, what)?;
        String::from_utf8(bytes.into()).map_err(|_| format!("{what} at offset {at} is not UTF-8"))
    }
}
