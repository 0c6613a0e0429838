//! Random data, fast: a large matrix is drawn block by block from a small pool of blocks that were quantised once.

use super::shape::{Content, Tensor};
use ggml_ext::GgmlType;
use ggml_ext::blocks::quantize_row;
use rayon::prelude::*;
use std::collections::HashMap;

/// Values in a pool: its bytes stay in a core's cache.
const POOL_LEN: usize = 1 << 19;
/// Values of a unit of float types, which have no blocks.
const FLOAT_UNIT: usize = 64;
/// Bytes made by one task, about.
const CHUNK: usize = 4 << 20;

/// Quantised units of normal values, by type and deviation.
#[derive(Default)]
pub struct Pools(HashMap<(GgmlType, u32), Vec<u8>>);

/// A tensor's data, made piece by piece.
pub enum Data<'p> {
    /// All of it.
    Whole(Vec<u8>),
    /// Drawn from a pool.
    Drawn {
        /// The pool.
        pool: &'p [u8],
        /// Bytes of a unit.
        unit: usize,
        /// Bytes in all.
        n_bytes: u64,
        /// Of this tensor.
        seed: u64,
    },
}

impl Pools {
    /// The data of a tensor in a model of this seed. The same whatever the number of threads.
    pub fn data(&mut self, t: &Tensor, seed: u64) -> Data<'_> {
        let seed = mixed(seed, t.name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| mixed(h, b.into())));
        let n: u64 = t.shape.iter().product();
        match &t.content {
            Content::Pooled(deviation) if n as usize > POOL_LEN => {
                let (unit_len, unit) = unit(t.ty);
                // A row is a whole number of blocks, and so is the tensor; only float tensors may end within a unit.
                let n_bytes = n / t.ty.block_len() as u64 * t.ty.block_bytes() as u64;
                let key = (t.ty, deviation.to_bits());
                let pool = self.0.entry(key).or_insert_with(|| {
                    let part = |i: usize| {
                        let mut rng = fastrand::Rng::with_seed(mixed(u64::from(deviation.to_bits()), i as u64));
                        quantized(t.ty, &normal(&mut rng, unit_len * 64, 0.0, *deviation))
                    };
                    (0..POOL_LEN / (unit_len * 64)).into_par_iter().flat_map_iter(part).collect()
                });
                Data::Drawn { pool, unit, n_bytes, seed }
            }
            content => {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut values = match content {
                    Content::Normal(mean, deviation) => normal(&mut rng, n as usize, *mean, *deviation),
                    Content::Pooled(deviation) => normal(&mut rng, n as usize, 0.0, *deviation),
                    Content::Diagonal(_, deviation) => normal(&mut rng, n as usize, 0.0, *deviation),
                    Content::Rows(row) => row.iter().copied().cycle().take(n as usize).collect(),
                };
                if let Content::Diagonal(value, _) = content {
                    values.iter_mut().step_by(t.shape[0] as usize + 1).for_each(|v| *v += value);
                }
                Data::Whole(quantized(t.ty, &values))
            }
        }
    }
}

impl Data<'_> {
    /// Hands the bytes to `write`, in order, some megabytes at a time.
    pub fn pieces<E>(self, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let (pool, unit, n_bytes, seed) = match self {
            Self::Whole(bytes) => return write(&bytes),
            Self::Drawn { pool, unit, n_bytes, seed } => (pool, unit, n_bytes, seed),
        };
        let chunk = CHUNK / unit * unit;
        let n_chunks = n_bytes.div_ceil(chunk as u64);
        let n_tasks = rayon::current_num_threads() as u64;
        let mut buffer = vec![0; chunk * n_tasks.min(n_chunks) as usize];
        for first in (0..n_chunks).step_by(n_tasks as usize) {
            let start = first * chunk as u64;
            let len = (n_bytes - start).min(buffer.len() as u64) as usize;
            buffer[..len].par_chunks_mut(chunk).enumerate().for_each(|(i, out)| {
                let mut rng = fastrand::Rng::with_seed(mixed(seed, first + i as u64));
                for out in out.chunks_mut(unit) {
                    let at = rng.usize(..pool.len() / unit) * unit;
                    out.copy_from_slice(&pool[at..at + out.len()]);
                }
            });
            write(&buffer[..len])?;
        }
        Ok(())
    }
}

/// Values and bytes of a unit of a type.
fn unit(ty: GgmlType) -> (usize, usize) {
    let blocks = if ty.is_float() { FLOAT_UNIT } else { 1 };
    (blocks * ty.block_len(), blocks * ty.block_bytes())
}

fn quantized(ty: GgmlType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() / ty.block_len() * ty.block_bytes()];
    quantize_row(ty, values, &mut bytes);
    bytes
}

/// Normal values, by Box and Muller's transform.
fn normal(rng: &mut fastrand::Rng, n: usize, mean: f32, deviation: f32) -> Vec<f32> {
    let mut pair = || {
        let radius = (-2.0 * (1.0 - rng.f32()).ln()).sqrt() * deviation;
        let (sin, cos) = (std::f32::consts::TAU * rng.f32()).sin_cos();
        [mean + radius * cos, mean + radius * sin]
    };
    let mut values: Vec<f32> = (0..n.div_ceil(2)).flat_map(|_| pair()).collect();
    values.truncate(n);
    values
}

/// Two numbers as one seed (the finaliser of SplitMix64).
fn mixed(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_add(b.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ggml_ext::blocks::dequantize_row;

    fn tensor(name: &str, shape: &[u64], ty: GgmlType, content: Content) -> Tensor {
        Tensor { name: name.into(), shape: shape.to_vec(), ty, content }
    }

    fn values(pools: &mut Pools, t: &Tensor, seed: u64) -> Vec<f32> {
        let mut bytes = Vec::new();
        let collected = pools.data(t, seed).pieces(|piece| {
            bytes.extend_from_slice(piece);
            Ok::<_, ()>(())
        });
        collected.unwrap();
        assert_eq!(bytes.len() as u64, t.n_bytes().unwrap());
        let mut x = vec![0.0; t.shape.iter().product::<u64>() as usize];
        dequantize_row(t.ty, &bytes, &mut x);
        x
    }

    fn moments(x: &[f32]) -> (f64, f64) {
        let n = x.len() as f64;
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        (mean, (x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt())
    }

    /// Small tensors and pooled ones, over several chunks and with an end within a unit.
    #[test]
    fn values_have_their_deviation_whatever_the_type() {
        let mut pools = Pools::default();
        for &ty in GgmlType::ALL {
            for shape in [[768, 4], [768, 1 << 12]] {
                let (mean, deviation) =
                    moments(&values(&mut pools, &tensor("w", &shape, ty, Content::Pooled(0.05)), 1));
                // Two or three levels are all that these have.
                let coarse = [GgmlType::TQ1_0, GgmlType::TQ2_0, GgmlType::Q2_0, GgmlType::Q1_0].contains(&ty);
                let off = if coarse { 0.25 } else { 0.08 };
                assert!(mean.abs() < 0.003 && (deviation / 0.05 - 1.0).abs() < off, "{ty}: {mean}, {deviation}");
            }
        }
        let odd = tensor("w", &[1001, 1003], GgmlType::F16, Content::Pooled(1.0));
        let (mean, deviation) = moments(&values(&mut pools, &odd, 1));
        assert!(mean.abs() < 0.01 && (deviation - 1.0).abs() < 0.01, "{mean}, {deviation}");
    }

    #[test]
    fn seeds_and_names_differ_and_threads_do_not() {
        let big = |name: &str| tensor(name, &[1024, 8192], GgmlType::Q8_0, Content::Pooled(1.0));
        let with = |threads: usize, name: &str, seed: u64| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| values(&mut Pools::default(), &big(name), seed))
        };
        let first = with(1, "a", 1);
        assert!(first == with(3, "a", 1));
        assert!(first != with(1, "b", 1) && first != with(1, "a", 2));
    }

    #[test]
    fn small_contents() {
        let mut pools = Pools::default();
        let skip = tensor("skip", &[16, 16], GgmlType::F32, Content::Diagonal(0.5, 0.02));
        for (i, x) in values(&mut pools, &skip, 1).into_iter().enumerate() {
            let expected = if i % 17 == 0 { 0.5 } else { 0.0 };
            assert!((x - expected).abs() < 0.12, "{i}: {x}");
        }
        let freq = tensor("freq", &[2, 3], GgmlType::F32, Content::Rows(vec![1.0, 0.5]));
        assert_eq!(values(&mut pools, &freq, 1), [1.0, 0.5, 1.0, 0.5, 1.0, 0.5]);
        let norm = tensor("norm", &[4096], GgmlType::F32, Content::Normal(1.0, 0.1));
        let (mean, deviation) = moments(&values(&mut pools, &norm, 1));
        assert!((mean - 1.0).abs() < 0.01 && (deviation - 0.1).abs() < 0.01, "{mean}, {deviation}");
    }
}
