//! The thread team. A forward pass is ONE `broadcast` on a rayon pool: every worker runs the same layer loop and the
//! workers meet at a barrier between dependent operations. A fork-join per matrix product would cost a small model
//! dearly: a 30-layer model has some 200 products in a token that takes a few milliseconds.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A team of `n` threads that run one closure together.
pub struct Pool {
    /// `None` for a team of one, which runs on the calling thread.
    threads: Option<rayon::ThreadPool>,
    barrier: Barrier,
}

/// One member of the team, handed to the closure of [`Pool::run`].
pub struct Worker<'a> {
    /// This member's number, from 0.
    pub id: usize,
    /// Members in the team.
    pub n: usize,
    barrier: &'a Barrier,
}

impl Pool {
    /// A team of `n_threads` (at least 1).
    pub fn new(n_threads: usize) -> std::io::Result<Self> {
        let n = n_threads.max(1);
        let threads = match n {
            1 => None,
            _ => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(n)
                    .thread_name(|i| format!("lisa-{i}"))
                    .build()
                    .map_err(std::io::Error::other)?,
            ),
        };
        Ok(Self { threads, barrier: Barrier::new(n) })
    }

    /// Members in the team.
    pub fn n_threads(&self) -> usize {
        self.barrier.n
    }

    /// Runs `program` on every member and returns when all are done. Members must reach the same barriers.
    ///
    /// `&mut self` because the barrier serves one program at a time.
    ///
    /// # Panics
    /// If a member panics, the others are released from their barriers and the panic continues in the caller.
    pub fn run(&mut self, program: impl Fn(&Worker) + Sync) {
        self.barrier.reset();
        let barrier = &self.barrier;
        let member = |id: usize| {
            let guard = PoisonOnPanic(barrier);
            program(&Worker { id, n: barrier.n, barrier });
            std::mem::forget(guard);
        };
        match &self.threads {
            None => member(0),
            Some(pool) => {
                pool.broadcast(|ctx| member(ctx.index()));
            }
        }
    }
}

impl Worker<'_> {
    /// Waits until every member has arrived. What members wrote before is visible to all after.
    pub fn barrier(&self) {
        self.barrier.wait();
    }

    /// This member's share of `0..n`, in contiguous runs of near-equal length.
    pub fn share(&self, n: usize) -> std::ops::Range<usize> {
        n * self.id / self.n..n * (self.id + 1) / self.n
    }

    /// Hands out `0..n_chunks` among the members, first come first served, so that a member slowed down by other work
    /// on the machine takes fewer. At most one such loop may run between two barriers.
    pub fn for_each_chunk(&self, n_chunks: usize, mut f: impl FnMut(usize)) {
        if self.n == 1 {
            return (0..n_chunks).for_each(f);
        }
        loop {
            let i = self.barrier.next_chunk.fetch_add(1, Ordering::Relaxed);
            if i >= n_chunks {
                return;
            }
            f(i);
        }
    }
}

/// Spins a while, then yields to the scheduler: on a busy machine the member waited for may need this very core.
const SPINS_BEFORE_YIELD: u32 = 2_000;

struct Barrier {
    n: usize,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    /// The shared counter of [`Worker::for_each_chunk`], zeroed by the last to arrive at each barrier.
    next_chunk: AtomicUsize,
    poisoned: AtomicBool,
}

impl Barrier {
    fn new(n: usize) -> Self {
        Self {
            n,
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            next_chunk: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
        }
    }

    fn reset(&self) {
        self.arrived.store(0, Ordering::Relaxed);
        self.next_chunk.store(0, Ordering::Relaxed);
        self.poisoned.store(false, Ordering::Relaxed);
    }

    fn wait(&self) {
        if self.n == 1 {
            return;
        }
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.n {
            self.arrived.store(0, Ordering::Relaxed);
            self.next_chunk.store(0, Ordering::Relaxed);
            self.generation.store(generation.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut spins = 0;
        while self.generation.load(Ordering::Acquire) == generation {
            assert!(!self.poisoned.load(Ordering::Relaxed), "another worker panicked");
            if spins < SPINS_BEFORE_YIELD {
                spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// Dropped only by unwinding: releases the members that wait for the one that panicked.
struct PoisonOnPanic<'a>(&'a Barrier);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        self.0.poisoned.store(true, Ordering::Relaxed);
    }
}

/// Threads to use unless told otherwise: the CPUs this process may run on, cgroup quotas and affinity respected.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once_in_every_phase() {
        for n in [1, 2, 5] {
            let mut pool = Pool::new(n).unwrap();
            let counts: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
            pool.run(|w| {
                for phase in 1..=50 {
                    w.for_each_chunk(100, |i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                    w.barrier();
                    assert!(w.share(100).all(|i| counts[i].load(Ordering::Relaxed) == phase));
                    w.barrier();
                }
            });
        }
    }

    #[test]
    fn shares_cover_everything_once() {
        let barrier = Barrier::new(3);
        let shares: Vec<_> = (0..3).flat_map(|id| Worker { id, n: 3, barrier: &barrier }.share(10)).collect();
        assert_eq!(shares, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_in_one_member_reaches_the_caller() {
        let mut pool = Pool::new(3).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(|w| {
                assert!(w.id != 1, "member 1 fails");
                w.barrier();
            })
        }));
        assert!(result.is_err());
        pool.run(|w| w.barrier()); // and the team is still usable
    }
}
