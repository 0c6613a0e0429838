use super::*;

/// Bytes that exercise every bit: any bytes are a valid block.
fn noise(n: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 56) as u8
    };
    (0..n).map(|_| next()).collect()
}

fn packed_types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|&ty| packed_bytes(ty, 16, 256).is_some())
}

#[test]
fn packing_loses_no_bit_of_any_type() {
    assert_eq!(packed_types().count(), 25);
    for ty in packed_types() {
        for (rows, blocks) in [(1, 1), (16, 3), (17, 2), (40, 5)] {
            let cols = blocks * ty.block_len();
            let row_bytes = ty.row_bytes(cols).unwrap();
            let mut src = noise(rows * row_bytes, rows as u64);
            if ty == GgmlType::TQ1_0 {
                // Of 256 bytes 243 are ever written.
                src.iter_mut().for_each(|b| *b = (u16::from(*b) * 243 / 256 * 256).div_ceil(243) as u8);
                for block in src.chunks_exact_mut(54) {
                    // Bytes of four digits end with a zero.
                    block[48..52]
                        .iter_mut()
                        .for_each(|b| *b = (u16::from(*b) * 243 / 256 / 3 * 3 * 256).div_ceil(243) as u8);
                }
            }
            if ty == GgmlType::NVFP4 {
                // The scale that is not a number is read as zero, and packed as that.
                let scales = src.chunks_exact_mut(36).flat_map(|block| &mut block[..4]);
                scales.filter(|d| **d == 0x7f).for_each(|d| *d = 0);
            }
            let mut data = vec![0xaa; packed_bytes(ty, rows, cols).unwrap()];
            pack_rows(ty, cols, 0..rows, &src, &mut data);
            let m = MatrixRef { ty, rows, cols, data: &data, packed: true };
            for row in 0..rows {
                let mut back = Vec::new();
                with_packed!(ty, P => unpack_blocks::<P>(row % ROWS, cols, m.group(row / ROWS),
                    |block| back.extend_from_slice(block)), else => unreachable!());
                assert_eq!(back, src[row * row_bytes..(row + 1) * row_bytes], "{ty} {rows} x {cols}, row {row}");
            }
        }
    }
}

#[test]
fn parts_packed_apart_are_the_whole_packed_at_once() {
    for ty in packed_types() {
        let (rows, cols) = (50, 2 * ty.block_len());
        let src = noise(rows * ty.row_bytes(cols).unwrap(), 7);
        let mut whole = vec![0; packed_bytes(ty, rows, cols).unwrap()];
        pack_rows(ty, cols, 0..rows, &src, &mut whole);
        let mut parts = vec![0; whole.len()];
        let (first, second) = parts.split_at_mut(packed_bytes(ty, 32, cols).unwrap());
        pack_rows(ty, cols, 32..rows, &src, second);
        pack_rows(ty, cols, 0..32, &src, first);
        assert!(whole == parts, "{ty}");
    }
}

#[test]
fn packed_matrices_are_hardly_larger_than_the_file() {
    for ty in packed_types() {
        let (rows, cols) = (576, 1536);
        let (file, packed) = (rows * ty.row_bytes(cols).unwrap(), packed_bytes(ty, rows, cols).unwrap());
        let largest = match ty {
            // Codes instead of the numbers of points.
            GgmlType::IQ1_S | GgmlType::IQ1_M => 2.2,
            GgmlType::IQ2_XXS | GgmlType::IQ2_XS | GgmlType::IQ2_S => 1.65,
            GgmlType::IQ3_XXS | GgmlType::IQ3_S => 1.42,
            // Two bits for what five elements in a byte take.
            GgmlType::TQ1_0 => 1.23,
            _ => 1.04,
        };
        assert!(packed as f64 <= largest * file as f64, "{ty}: {packed} bytes for {file}");
    }
}

#[test]
fn shapes_without_a_layout_are_refused() {
    assert_eq!(packed_bytes(GgmlType::F32, 16, 256), None);
    assert_eq!(packed_bytes(GgmlType::Q8_K, 16, 256), None);
    assert_eq!(packed_bytes(GgmlType::Q4_0, 16, 48), None);
    assert_eq!(packed_bytes(GgmlType::Q4_K, 16, 288), None);
    assert_eq!(packed_bytes(GgmlType::Q4_0, usize::MAX, 1024), None);
    assert_eq!(packed_bytes(GgmlType::Q4_0, 0, 1024), Some(0));
    pack_rows(GgmlType::Q4_0, 1024, 0..0, &[], &mut []);
}
