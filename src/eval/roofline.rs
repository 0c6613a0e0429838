//! What this machine can do at best: the limits that speeds are fractions of.

use std::hint::black_box;
use std::time::Instant;

use ggml_ext::kernels::Kernels;

use crate::Result;
use crate::compute::{Pool, SharedBuf};

/// The limits of a number of threads together.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Roofline {
    /// Threads measured.
    pub n_threads: usize,
    /// Bytes read from memory per second: the limit of generation, which reads all weights for each token.
    pub read_bytes_per_second: f64,
    /// Multiply-adds per second of the kernels' fastest products (of int8, or of bf16 tiles), operands in registers: the limit of prompts.
    pub macs_per_second: f64,
}

/// Times each limit is measured; the best counts, for it is the one the rest of the machine disturbed least.
const TRIES: usize = 7;

impl Roofline {
    /// Measures the limits of `n_threads` with the kernels that the model would use. Takes about a second.
    ///
    /// # Errors
    /// [`crate::Error::Impossible`] when the threads cannot be started.
    pub fn measure(kernels: &Kernels, n_threads: usize) -> Result<Self> {
        let mut pool = Pool::new(n_threads).map_err(crate::model::thread_error)?;
        let read_bytes_per_second = read(&mut pool);
        let macs_per_second = products(&mut pool, kernels);
        Ok(Self { n_threads: pool.n_threads(), read_bytes_per_second, macs_per_second })
    }

    /// The higher of each limit of two measurements.
    pub fn best(self, other: Self) -> Self {
        Self {
            n_threads: self.n_threads,
            read_bytes_per_second: self.read_bytes_per_second.max(other.read_bytes_per_second),
            macs_per_second: self.macs_per_second.max(other.macs_per_second),
        }
    }
}

/// Bytes per second that the team reads from memory, over more than caches hold.
fn read(pool: &mut Pool) -> f64 {
    const BYTES: usize = 256 << 20;
    let mut buf = SharedBuf::<f32>::new(BYTES / 4);
    buf.as_mut_slice().fill(1.0); // touch every page
    best(|| {
        pool.run(|w| {
            // SAFETY: only read here.
            let part = unsafe { buf.get(w.share(buf.len())) };
            let mut sums = [0_f32; 64];
            for chunk in part.chunks_exact(64) {
                sums.iter_mut().zip(chunk).for_each(|(s, x)| *s += x);
            }
            black_box(sums);
        });
        BYTES as f64
    })
}

fn products(pool: &mut Pool, kernels: &Kernels) -> f64 {
    const ROUNDS: usize = 1 << 18;
    let n = pool.n_threads() as f64;
    best(|| {
        let macs = kernels.int.peak(1);
        pool.run(|_| {
            black_box(kernels.int.peak(ROUNDS));
        });
        macs as f64 * ROUNDS as f64 * n
    })
}

/// The best rate of a job that tells how much it did.
fn best(mut job: impl FnMut() -> f64) -> f64 {
    let rate = |_| {
        let start = Instant::now();
        job() / start.elapsed().as_secs_f64()
    };
    (0..TRIES).map(rate).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_a_computer() {
        let r = Roofline::measure(Kernels::detect(), 1).unwrap();
        assert!((1e8..1e13).contains(&r.read_bytes_per_second), "{r:?}");
        assert!((1e7..1e14).contains(&r.macs_per_second), "{r:?}");
    }
}
