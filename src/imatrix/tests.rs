use super::*;

fn example() -> Imatrix {
    let entry = |n: usize, counts: &[u64]| Entry {
        squares: (0..n * counts.len()).map(|i| (1 + i) as f64 * 0.5).collect(),
        counts: counts.into(),
    };
    let entries = [("blk.0.ffn_up.weight", entry(3, &[1024])), ("blk.0.ffn_up_exps.weight", entry(2, &[1024, 0]))];
    Imatrix {
        entries: entries.map(|(name, e)| (name.to_owned(), e)).into(),
        datasets: vec!["a.txt".into()],
        chunk_size: 512,
    }
}

#[test]
fn gguf_keeps_everything() {
    let m = example();
    assert_eq!(m.n_chunks(), 2);
    assert_eq!(Imatrix::parse(&m.to_bytes(Format::Gguf).unwrap()), Ok(m));
}

#[test]
fn the_older_format_keeps_the_means() {
    let m = example();
    let read = Imatrix::parse(&m.to_bytes(Format::Dat).unwrap()).unwrap();
    assert_eq!((read.datasets.clone(), read.n_chunks()), (m.datasets.clone(), 2));
    let [was, is] = [&m, &read].map(|m| Importance::new(m, |_| true));
    assert_eq!(was.get("blk.0.ffn_up.weight").unwrap(), [0.5 / 1024.0, 1.0 / 1024.0, 1.5 / 1024.0]);
    assert_eq!(was.get("blk.0.ffn_up_exps.weight").unwrap(), [0.5 / 1024.0, 1.0 / 1024.0, 1.0, 1.0]);
    for name in m.entries.keys() {
        for (a, b) in was.get(name).unwrap().iter().zip(is.get(name).unwrap()) {
            assert!((a - b).abs() <= 1e-6 * a, "{name}: {a} {b}");
        }
    }
}

#[test]
fn measurements_add_up() {
    let mut m = example();
    m.add(example()).unwrap();
    assert_eq!(m.entries["blk.0.ffn_up.weight"], Entry { squares: vec![1.0, 2.0, 3.0], counts: vec![2048] });
    assert_eq!((m.n_chunks(), m.datasets.len()), (4, 2));
    let mut other = example();
    other.entries.get_mut("blk.0.ffn_up.weight").unwrap().squares.push(1.0);
    assert!(m.add(other).unwrap_err().contains("blk.0.ffn_up.weight"));
}

#[test]
fn names_are_filtered() {
    let i = Importance::new(&example(), |name| !name.contains("exps"));
    assert_eq!((i.len(), i.is_empty()), (1, false));
    assert!(i.get("blk.0.ffn_up_exps.weight").is_none());
}

#[test]
fn every_truncation_and_every_flipped_byte_is_survived() {
    for format in [Format::Gguf, Format::Dat] {
        let good = example().to_bytes(format).unwrap();
        for n in 0..good.len() {
            let _ = Imatrix::parse(&good[..n]);
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[n] ^= 1 << bit;
                let _ = Imatrix::parse(&bad);
            }
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let refused = |bytes: &[u8], part: &str| {
        let message = Imatrix::parse(bytes).unwrap_err();
        assert!(message.contains(part), "{message}");
    };
    refused(b"", "number of entries");
    refused(&[0; 4], "no importances");
    refused(&(-1_i32).to_le_bytes(), "-1");
    refused(&i32::MAX.to_le_bytes(), "room for 0");
    let mut m = example();
    m.entries.get_mut("blk.0.ffn_up.weight").unwrap().squares[1] = -1.0;
    refused(&m.to_bytes(Format::Gguf).unwrap(), "blk.0.ffn_up.weight: -1");
    m.entries.get_mut("blk.0.ffn_up.weight").unwrap().squares[1] = f64::NAN;
    assert!(m.to_bytes(Format::Gguf).unwrap_err().contains("blk.0.ffn_up.weight"));
    m.entries.clear();
    refused(&m.to_bytes(Format::Gguf).unwrap(), "no importances");
}
