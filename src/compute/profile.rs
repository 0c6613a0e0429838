//! Where the time of forward passes goes, by kind of operation.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

macro_rules! phases {
    ($($(#[$doc:meta])* $name:ident => $label:literal,)*) => {
        /// A kind of operation: what lies between two barriers, waiting for the slowest member included.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Phase { $($(#[$doc])* $name,)* }

        impl Phase {
            /// All, in the order of a pass.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// A short name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

phases! {
    /// Embeddings, angles of positions, the first norm.
    Embed => "embeddings",
    /// Products for queries, keys and values, or what stands for them.
    Project => "q, k, v products",
    /// Norms and positions of heads, storing to the cache.
    Place => "rope and cache",
    /// Scores, softmax, weighted values.
    Attention => "attention",
    /// The product of attention's output.
    AttnOut => "attention output product",
    /// Residual sums, norms, quantised activations.
    Norm => "residual and norm",
    /// Products of gate and up projection.
    GateUp => "gate, up products",
    /// The activation function.
    Gated => "activation function",
    /// The product back to the stream.
    Down => "down product",
    /// Choosing experts, and all of their networks.
    Experts => "experts",
    /// Logits.
    Head => "output head",
}

/// Time spent by phase, summed over passes.
#[derive(Debug, Default)]
pub struct Profile {
    nanoseconds: [AtomicU64; Phase::ALL.len()],
    passes: AtomicU64,
}

impl Profile {
    /// Time spent in a phase.
    pub fn time(&self, phase: Phase) -> Duration {
        Duration::from_nanos(self.nanoseconds[phase as usize].load(Ordering::Relaxed))
    }

    /// Forward passes seen.
    pub fn passes(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }

    /// Forgets what it has seen.
    pub fn reset(&self) {
        self.nanoseconds.iter().for_each(|n| n.store(0, Ordering::Relaxed));
        self.passes.store(0, Ordering::Relaxed);
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let total: Duration = Phase::ALL.iter().map(|&p| self.time(p)).sum();
        let part = |d: Duration| 100.0 * d.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        let passes = self.passes().max(1) as f64;
        writeln!(f, "{:<26} {:>12} {:>7} {:>13}", "operation", "ms", "%", "ms per pass")?;
        // A model has one kind of feed-forward network or another.
        for (phase, t) in Phase::ALL.iter().map(|&p| (p, self.time(p))).filter(|(_, t)| !t.is_zero()) {
            writeln!(f, "{:<26} {:>12.2} {:>7.1} {:>13.4}", phase.name(), ms(t), part(t), ms(t) / passes)?;
        }
        write!(f, "{:<26} {:>12.2} {:>7.1} {:>13.4}", "all", ms(total), 100.0, ms(total) / passes)
    }
}

/// A stopwatch over the phases of one pass; without a profile it does nothing.
pub struct Laps<'p> {
    running: Option<(&'p Profile, Instant)>,
}

impl<'p> Laps<'p> {
    /// Starts the watch of one member. Only one member of a team should have a profile.
    pub fn start(profile: Option<&'p Profile>) -> Self {
        Self { running: profile.map(|p| (p, Instant::now())) }
    }

    /// Counts the time since the last call as `phase`.
    #[inline]
    pub fn end(&mut self, phase: Phase) {
        if let Some((profile, last)) = &mut self.running {
            let now = Instant::now();
            let spent = (now - *last).as_nanos() as u64;
            profile.nanoseconds[phase as usize].fetch_add(spent, Ordering::Relaxed);
            *last = now;
        }
    }

    /// Counts a pass.
    pub fn pass(&self) {
        if let Some((profile, _)) = &self.running {
            profile.passes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_where_it_was_spent() {
        let profile = Profile::default();
        let mut laps = Laps::start(Some(&profile));
        std::thread::sleep(Duration::from_millis(3));
        laps.end(Phase::Down);
        laps.pass();
        assert!(profile.time(Phase::Down) >= Duration::from_millis(3));
        assert_eq!((profile.time(Phase::Head), profile.passes()), (Duration::ZERO, 1));
        assert!(profile.to_string().lines().any(|l| l.starts_with("down product")));
        profile.reset();
        assert_eq!((profile.time(Phase::Down), profile.passes()), (Duration::ZERO, 0));
        Laps::start(None).end(Phase::Down);
    }
}
