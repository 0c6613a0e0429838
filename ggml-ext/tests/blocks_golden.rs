//! Every type reads, and the types the `gguf` Python package can quantise are written, bit for bit as that package does
//! (`data/blocks/make.py` made the fixtures).

use std::{fs::File, io::Read, path::PathBuf};

use flate2::read::GzDecoder;
use ggml_ext::{GgmlType, blocks};

fn try_read(name: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/blocks").join(name);
    let mut bytes = Vec::new();
    GzDecoder::new(File::open(path).ok()?).read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

fn read(name: &str) -> Vec<u8> {
    try_read(name).unwrap_or_else(|| panic!("no fixture {name}: see make.py"))
}

fn read_f32(name: &str) -> Vec<f32> {
    read(name).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// Equal bits, or both NaN: the sign and payload of a NaN depend on the processor.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[test]
fn dequantises_bit_exactly() {
    for &ty in GgmlType::ALL {
        let (bytes, want) = (read(&format!("{ty}.bin.gz")), read_f32(&format!("{ty}.f32.gz")));
        assert!(want.len() >= 1024 && want.iter().any(|v| v.is_finite() && *v != 0.0), "{ty}");
        let mut got = vec![0.0; want.len()];
        blocks::dequantize_row(ty, &bytes, &mut got);
        for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
            assert!(same(got, want), "{ty} element {i}: {got:e}, not {want:e}");
        }
    }
}

#[test]
fn codes_scales_and_offsets_make_up_the_values() {
    for &ty in GgmlType::ALL.iter().filter(|ty| !ty.is_float()) {
        let (bytes, want) = (read(&format!("{ty}.bin.gz")), read_f32(&format!("{ty}.f32.gz")));
        let n = want.len();
        let (mut q, mut scale, mut offset) = (vec![0; n], vec![f32::NAN; n / 16], vec![f32::NAN; n / 16]);
        blocks::codes_row(ty, &bytes, &mut q, &mut scale, &mut offset);
        for (i, &want) in want.iter().enumerate() {
            let got = scale[i / 16] * f32::from(q[i]) + offset[i / 16];
            assert!(got == want || got.is_nan() && want.is_nan(), "{ty} element {i}: {got:e}, not {want:e}");
        }
    }
}

#[test]
fn quantises_bit_exactly() {
    let x = read_f32("input.f32.gz");
    let mut tested = Vec::new();
    for &ty in GgmlType::ALL {
        let Some(want) = try_read(&format!("{ty}.quantized.gz")) else { continue };
        let mut got = vec![0; ty.row_bytes(x.len()).unwrap()];
        blocks::quantize_row(ty, &x, &mut got);
        for (i, (got, want)) in got.chunks(ty.block_bytes()).zip(want.chunks(ty.block_bytes())).enumerate() {
            assert_eq!(got, want, "{ty} block {i} of {:?}", &x[i * ty.block_len()..][..ty.block_len()]);
        }
        tested.push(ty.name());
    }
    let all = "F32 F16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 BF16 TQ1_0 TQ2_0 MXFP4 NVFP4 Q1_0 Q2_0";
    assert_eq!(tested.join(" "), all);
}

#[test]
fn blocks_are_read_at_any_byte_position() {
    for &ty in GgmlType::ALL {
        let bytes = read(&format!("{ty}.bin.gz"));
        let n = bytes.len() / ty.block_bytes() * ty.block_len();
        let (mut aligned, mut shifted) = (vec![0.0; n], vec![0.0; n]);
        blocks::dequantize_row(ty, &bytes, &mut aligned);
        let moved: Vec<u8> = std::iter::once(0).chain(bytes).collect();
        blocks::dequantize_row(ty, &moved[1..], &mut shifted);
        assert!(aligned.iter().zip(&shifted).all(|(&a, &b)| same(a, b)), "{ty}");
    }
}

#[test]
fn the_reference_dot_product_pairs_weights_with_their_scales() {
    // Two Q8_0 blocks, d = 0.5 and -2 with codes 1..=32, and activations 2 * 0.25 and -3 * 8.
    let block = |d: [u8; 2]| d.into_iter().chain(1..=32);
    let row: Vec<u8> = block([0x00, 0x38]).chain(block([0x00, 0xc0])).collect();
    let x: Vec<i8> = [[2; 32], [-3; 32]].concat();
    let got = blocks::vec_dot(GgmlType::Q8_0, &row, &x, &[0.25, 8.0]);
    assert_eq!(got, 528.0 * (0.5 * 2.0 * 0.25 + -2.0 * -3.0 * 8.0));

    // In F32, each weight meets its own activation.
    for i in 0..64 {
        let mut weights = [0.0_f32; 64];
        weights[i] = 1.0;
        let x: Vec<i8> = (0..64).map(|i| i - 30).collect();
        let got = blocks::vec_dot(GgmlType::F32, &weights.map(f32::to_le_bytes).concat(), &x, &[0.5, 4.0]);
        assert_eq!(got, f64::from(x[i]) * if i < 32 { 0.5 } else { 4.0 });
    }
}
