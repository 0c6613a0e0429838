//! Damaged copies of a file, the same ones in every run. Depends on nothing, so that other test binaries can include it.

/// SplitMix64: small, seeded, good enough to pick places and bytes.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Gives `each` `n` copies of `original` with one byte changed. Three in four changes are in the first `header` bytes,
/// where a change can mean most.
pub fn single_byte(original: &[u8], header: usize, n: usize, seed: u64, mut each: impl FnMut(usize, &[u8])) {
    let mut rng = Rng(seed);
    let mut bytes = original.to_vec();
    for case in 0..n {
        let at = place(&mut rng, header, bytes.len());
        bytes[at] = other_byte(&mut rng, original[at]);
        each(case, &bytes);
        bytes[at] = original[at];
    }
}

/// Gives `each` `n` copies of `original` with 2 to 16 changes: bytes, whole 4- and 8-byte numbers at the edges of their
/// ranges, runs copied from elsewhere in the header, and in one of eight the end cut off.
pub fn multi_byte(original: &[u8], header: usize, n: usize, seed: u64, mut each: impl FnMut(usize, &[u8])) {
    let mut rng = Rng(seed);
    let mut bytes = original.to_vec();
    for case in 0..n {
        bytes.clear();
        bytes.extend_from_slice(original);
        for _ in 0..2 + rng.below(15) {
            let at = place(&mut rng, header, bytes.len());
            let run: Vec<u8> = match rng.below(4) {
                0 => vec![other_byte(&mut rng, bytes[at])],
                1 => (edge_number(&mut rng, bytes.len()) as u32).to_le_bytes().to_vec(),
                2 => edge_number(&mut rng, bytes.len()).to_le_bytes().to_vec(),
                _ => {
                    let from = rng.below(header);
                    bytes[from..(from + 1 + rng.below(32)).min(bytes.len())].to_vec()
                }
            };
            let n = run.len().min(bytes.len() - at);
            bytes[at..at + n].copy_from_slice(&run[..n]);
        }
        if rng.below(8) == 0 {
            let len = rng.below(bytes.len());
            bytes.truncate(len);
        }
        each(case, &bytes);
    }
}

fn place(rng: &mut Rng, header: usize, len: usize) -> usize {
    if rng.below(4) > 0 { rng.below(header) } else { rng.below(len) }
}

/// Another byte than `old`: a flipped bit, an edge, or any.
fn other_byte(rng: &mut Rng, old: u8) -> u8 {
    let new = match rng.below(3) {
        0 => old ^ (1 << rng.below(8)),
        1 => [0, 1, 0x7f, 0x80, 0xff][rng.below(5)],
        _ => rng.next() as u8,
    };
    if new == old { !old } else { new }
}

fn edge_number(rng: &mut Rng, file_len: usize) -> u64 {
    let near = file_len as u64 + rng.below(65) as u64 - 32;
    match rng.below(4) {
        0 => 1 << rng.below(64),
        1 => u64::MAX >> rng.below(64),
        2 => near,
        _ => rng.below(300) as u64,
    }
}
