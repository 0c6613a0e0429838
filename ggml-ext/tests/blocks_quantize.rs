//! What the quantisers promise: an error budget per type, bounds for any input, and no panic on any bytes.

use ggml_ext::{GgmlType, blocks};
use proptest::prelude::*;

fn round_trip(ty: GgmlType, x: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0; ty.row_bytes(x.len()).unwrap()];
    blocks::quantize_row(ty, x, &mut bytes);
    let mut y = vec![0.0; x.len()];
    blocks::dequantize_row(ty, &bytes, &mut y);
    y
}

fn rms_error(ty: GgmlType, x: &[f32]) -> f64 {
    let y = round_trip(ty, x);
    let squares = y.iter().zip(x).map(|(y, x)| (f64::from(*y) - f64::from(*x)).powi(2));
    (squares.sum::<f64>() / x.len() as f64).sqrt()
}

/// Standard normal numbers, the same at every run (splitmix64 and the Box-Muller transform).
fn gaussian(n: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 11) as f64 / (1_u64 << 53) as f64
    };
    let mut normal = move || (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    (0..n).map(|_| normal() as f32).collect()
}

/// The largest root-mean-square error allowed on standard normal data (about 3 % above what is measured), and on any data
/// relative to its largest element (half a step between levels where the type spreads them evenly around zero, a whole
/// one where it has one level more below zero than above, and a quarter more for scales that are themselves quantised).
fn budget(ty: GgmlType) -> (f64, f64) {
    match ty {
        GgmlType::F32 => (0.0, 0.0),
        GgmlType::F16 => (0.00022, 0.0005),
        GgmlType::BF16 => (0.0017, 0.004),
        GgmlType::Q8_0 => (0.0055, 0.0042),
        GgmlType::Q8_K => (0.0072, 0.004),
        GgmlType::Q6_K => (0.0174, 0.035),
        GgmlType::Q5_K => (0.0354, 0.04),
        GgmlType::Q5_1 => (0.0389, 0.033),
        GgmlType::Q5_0 => (0.0440, 0.063),
        GgmlType::Q4_K => (0.0721, 0.08),
        GgmlType::IQ4_NL => (0.0754, 0.12),
        GgmlType::IQ4_XS => (0.0762, 0.13),
        GgmlType::Q4_1 => (0.0807, 0.067),
        GgmlType::Q4_0 => (0.0885, 0.126),
        GgmlType::MXFP4 => (0.1186, 0.26),
        GgmlType::NVFP4 => (0.0980, 0.2),
        GgmlType::Q3_K => (0.1479, 0.26),
        GgmlType::Q2_K => (0.2706, 0.36),
        GgmlType::IQ3_S => (0.1340, 0.2),
        GgmlType::IQ3_XXS => (0.1840, 0.2),
        GgmlType::IQ2_S => (0.2476, 0.3),
        GgmlType::IQ2_XS => (0.2952, 0.3),
        GgmlType::IQ2_XXS => (0.3396, 0.3),
        GgmlType::IQ1_M => (0.4325, 0.3),
        GgmlType::IQ1_S => (0.4664, 0.3),
        GgmlType::Q2_0 => (0.7380, 0.5),
        GgmlType::TQ1_0 | GgmlType::TQ2_0 => (0.8279, 0.5),
        GgmlType::Q1_0 => (0.6, 0.6),
        _ => panic!("{ty} has no budget yet"),
    }
}

#[test]
fn rms_error_on_gaussian_data_is_within_budget() {
    let x = gaussian(256 * 256);
    let mut failed = String::new();
    for &ty in GgmlType::ALL {
        let rms = rms_error(ty, &x);
        let within = rms <= budget(ty).0;
        if !within {
            failed += &format!("{ty}: RMS error {rms:.6}, budget {}\n", budget(ty).0);
        }
    }
    assert!(failed.is_empty(), "{failed}");
}

/// The error that counts where column `i` of rows of 512 matters `w[i]`, quantised with and without being told so.
fn weighted_errors(ty: GgmlType, x: &[f32], w: &[f32]) -> [f64; 2] {
    [Some(w), None].map(|importance| {
        let mut bytes = vec![0; ty.row_bytes(x.len()).unwrap()];
        blocks::quantize_rows(ty, x, importance, &mut bytes);
        let mut y = vec![0.0; x.len()];
        blocks::dequantize_row(ty, &bytes, &mut y);
        let all = x.iter().zip(&y).zip(w.iter().cycle());
        all.map(|((x, y), w)| f64::from(*w) * f64::from(x - y).powi(2)).sum()
    })
}

#[test]
fn importances_lower_the_error_where_it_counts() {
    let x = gaussian(512 * 64);
    // Spread over three orders of magnitude, as activations are, and otherwise without order.
    let w: Vec<f32> = (0..512).map(|i| 10.0_f32.powf((i * 37 % 64) as f32 / 21.0)).collect();
    for &ty in GgmlType::ALL {
        let [with, without] = weighted_errors(ty, &x, &w);
        match ty {
            _ if ty.is_float() => assert_eq!(with, without, "{ty}"),
            GgmlType::Q8_0 | GgmlType::Q8_K | GgmlType::MXFP4 | GgmlType::NVFP4 => assert_eq!(with, without, "{ty}"),
            GgmlType::TQ1_0 | GgmlType::TQ2_0 | GgmlType::Q1_0 | GgmlType::Q2_0 => assert_eq!(with, without, "{ty}"),
            // So many levels leave little to choose.
            GgmlType::Q6_K => assert!(with < 0.97 * without, "{ty}: {with}, {without} without"),
            _ => assert!(with < 0.9 * without, "{ty}: {with}, {without} without"),
        }
    }
}

#[test]
fn columns_of_no_importance_do_not_count_and_none_at_all_count_alike() {
    let x = gaussian(512 * 8);
    let half: Vec<f32> = (0..512).map(|i| (i % 2) as f32).collect();
    for &ty in GgmlType::ALL {
        let bytes = |w: &[f32]| {
            let mut bytes = vec![0; ty.row_bytes(x.len()).unwrap()];
            blocks::quantize_rows(ty, &x, Some(w), &mut bytes);
            bytes
        };
        assert_eq!(bytes(&[0.0; 512]), bytes(&[1.0; 512]), "{ty}");
        // Only the ratios matter, however far from one.
        assert_eq!(bytes(&half.iter().map(|w| w * 2.0_f32.powi(90)).collect::<Vec<_>>()), bytes(&half), "{ty}");
        let [with, without] = weighted_errors(ty, &x, &half);
        assert!(with <= without, "{ty}: {with}, {without} without");
    }
}

#[test]
fn zeros_stay_zeros() {
    for &ty in GgmlType::ALL {
        assert!(round_trip(ty, &[0.0; 512]).iter().all(|&y| y == 0.0), "{ty}");
    }
}

proptest! {
    /// Uniform data of any size within reach of half precision, one block with an offset from zero.
    #[test]
    fn the_error_is_bounded_by_the_largest_element(
        unit in prop::collection::vec(-1.0_f32..1.0, 256),
        exponent in -6..12,
        shift in -1.0_f32..1.0,
    ) {
        let x: Vec<f32> = unit.iter().map(|v| (v + shift) * 2.0_f32.powi(exponent)).collect();
        let largest = x.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
        prop_assume!(largest > 0.0);
        for &ty in GgmlType::ALL {
            // NVFP4 leaves the size of a matrix to a factor beside it.
            let size = if ty == GgmlType::NVFP4 { largest / 1000.0 } else { 1.0 };
            let relative = rms_error(ty, &x.iter().map(|x| x / size).collect::<Vec<_>>()) * f64::from(size / largest);
            prop_assert!(relative <= budget(ty).1, "{}: RMS error {} of the largest element", ty, relative);
        }
    }

    #[test]
    fn any_numbers_quantise_without_panic(bits in prop::collection::vec(any::<u32>(), 256)) {
        let x: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        for &ty in GgmlType::ALL {
            round_trip(ty, &x);
        }
    }

    #[test]
    fn any_bytes_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 4 * 292)) {
        for &ty in GgmlType::ALL {
            let n = 256.max(ty.block_len());
            let bytes = &bytes[..ty.row_bytes(n).unwrap()];
            blocks::dequantize_row(ty, bytes, &mut vec![0.0; n]);
            blocks::vec_dot(ty, bytes, &vec![-128; n], &vec![f32::INFINITY; n / 32]);
            if !ty.is_float() {
                blocks::codes_row(ty, bytes, &mut vec![0; n], &mut vec![0.0; n / 16], &mut vec![0.0; n / 16]);
            }
        }
    }
}
