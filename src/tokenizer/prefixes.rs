//! Tokens by what a text begins with: found byte by byte, among tokens in the order of their bytes.

/// Tokens in the order of their bytes.
#[derive(Debug)]
pub(super) struct Prefixes {
    sorted: Vec<u32>,
}

impl Prefixes {
    /// Those of `ids`, whose bytes `bytes_of` tells. Of equal ones the last counts.
    pub fn new<'v>(ids: impl Iterator<Item = u32>, bytes_of: impl Fn(u32) -> &'v [u8]) -> Self {
        let mut sorted: Vec<u32> = ids.collect();
        sorted.sort_by_key(|&id| (bytes_of(id), std::cmp::Reverse(id)));
        sorted.dedup_by_key(|id| bytes_of(*id));
        Self { sorted }
    }

    /// Calls `found` with every token that `text` begins with and its length, the shortest first. `bytes_of`: as it was when these were sorted.
    pub fn of<'v>(&self, text: &[u8], bytes_of: impl Fn(u32) -> &'v [u8], mut found: impl FnMut(u32, usize)) {
        // Those that have the bytes before `at`: the one that has no more, if there is one, comes first.
        let mut range = &self.sorted[..];
        for (at, byte) in text.iter().enumerate() {
            let of = |id: &u32| bytes_of(*id).get(at);
            let first = range.partition_point(|id| of(id) < Some(byte));
            let n = range[first..].partition_point(|id| of(id) == Some(byte));
            range = &range[first..first + n];
            match range.first() {
                None => return,
                Some(&id) if bytes_of(id).len() == at + 1 => found(id, at + 1),
                Some(_) => {}
            }
        }
    }
}
