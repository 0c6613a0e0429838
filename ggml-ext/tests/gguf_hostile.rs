//! Damaged files: an error or a file, never a panic, and never memory out of proportion.

#[path = "common/alloc.rs"]
mod alloc;
mod common;
#[path = "common/mutate.rs"]
mod mutate;

use alloc::peak;
use common::{Raw, array, model, walk};
use ggml_ext::gguf::Gguf;

fn embedded() -> Vec<u8> {
    model("stories260K.gguf").expect("models/stories260K.gguf is part of the repository")
}

/// Where the tensor data starts.
fn header_len(bytes: &[u8]) -> usize {
    let g = Gguf::parse(bytes).unwrap();
    g.tensors().iter().map(|t| t.offset).min().unwrap() as usize
}

/// Parses `bytes` and reads everything in them; true when they are a file. The memory this takes has a limit.
fn survives(bytes: &[u8], max_memory: usize, case: &str) -> bool {
    let (ok, peak) = peak(|| match Gguf::parse(bytes) {
        Ok(g) => {
            walk(&g);
            true
        }
        Err(e) => {
            assert!(!e.to_string().is_empty());
            false
        }
    });
    assert!(peak <= max_memory, "{case}: {peak} bytes of memory at once, limit {max_memory}");
    ok
}

#[test]
fn ten_thousand_changes_of_one_byte() {
    let bytes = embedded();
    let (mut accepted, mut refused) = (0, 0);
    mutate::single_byte(&bytes, header_len(&bytes), 10_000, 1, |case, bytes| {
        let ok = survives(bytes, 2 * bytes.len(), &format!("case {case}"));
        if ok { accepted += 1 } else { refused += 1 }
    });
    println!("{accepted} accepted, {refused} refused");
    // Weights and texts can be anything; lengths, types and offsets cannot.
    assert!(accepted > 1000 && refused > 1000, "{accepted} accepted, {refused} refused");
}

#[test]
fn a_thousand_changes_of_many_bytes() {
    let bytes = embedded();
    let limit = 2 * bytes.len();
    let (mut accepted, mut refused) = (0, 0);
    mutate::multi_byte(&bytes, header_len(&bytes), 1000, 2, |case, bytes| {
        let ok = survives(bytes, limit, &format!("case {case}"));
        if ok { accepted += 1 } else { refused += 1 }
    });
    println!("{accepted} accepted, {refused} refused");
    assert!(refused > 500, "{accepted} accepted, {refused} refused");
}

#[test]
fn every_truncation_of_the_embedded_header() {
    let bytes = embedded();
    let header = header_len(&bytes);
    for len in (0..header).chain((header..bytes.len()).step_by(64)) {
        assert!(!survives(&bytes[..len], 2 * bytes.len(), "cut"), "accepted when cut to {len} bytes");
    }
}

#[test]
fn truncations_of_a_real_header() {
    let Some(bytes) = model("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    for len in (0..header_len(&bytes)).step_by(1024) {
        assert!(!survives(&bytes[..len], 2 * len + 4096, "cut"), "accepted when cut to {len} bytes");
    }
}

#[test]
fn huge_counts_allocate_nothing() {
    let files = [
        Raw { n_pairs: Some(u64::MAX), ..Raw::new() },
        Raw { n_tensors: Some(u64::MAX), ..Raw::new() },
        Raw::new().pair("list", 9, &array(8, u64::MAX, &[])),
        Raw::new().pair("list", 9, &array(12, 1 << 61, &[])),
        Raw::new().raw_tensor("t", 4, &[1 << 20; 4], 0, 0),
        // Nesting so deep that recursion would overflow the stack.
        Raw::new().pair("deep", 9, &array(9, 1, &[]).repeat(1 << 20)),
    ];
    for (i, file) in files.iter().enumerate() {
        assert!(!survives(&file.build(), 4096, &format!("file {i}")), "file {i} accepted");
    }
}

#[test]
fn the_most_entries_a_file_can_have() {
    let entries = |n: u32| {
        let mut raw = Raw { alignment: 1, ..Raw::new().u32("general.alignment", 1) };
        for i in 0..n {
            if i + 1 < n {
                raw = raw.pair(format!("{i:x}"), 0, &[0]);
            }
            raw = raw.raw_tensor(format!("{i:x}"), 1, &[1], 1, 2 * u64::from(i));
        }
        raw.data(2 * n as usize).build()
    };
    let most = entries(65_536);
    // Some 17 MB, whatever the size of the file.
    assert!(survives(&most, 20 << 20, "limit"));
    let error = Gguf::parse(&entries(65_537)).unwrap_err().to_string();
    assert_eq!(error, "header: 65537 tensors (offset 8), more than the limit of 65536");
    let mut bytes = most;
    bytes[8..16].fill(0);
    bytes[16..24].copy_from_slice(&65_537u64.to_le_bytes());
    let error = Gguf::parse(&bytes).unwrap_err().to_string();
    assert_eq!(error, "header: 65537 metadata pairs (offset 16), more than the limit of 65536");
}
