//! Whether a node's work is shared with the other threads of its session: for small work, by trying.
//!
//! Sharing takes about a microsecond where the pool's idle threads spin, as they do for a while after each parallel
//! operator, and several where they sleep. A node can know neither that nor what else its processor is doing. So it runs
//! some calls alone and some shared, keeps what was faster for some thousand calls, and tries again.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Calls that are tried alone, then shared. The fastest of the last [`TIMED`] of each counts: others were delayed by
/// something else. Threads of the pool that sleep take many calls to wake.
const ALONE: u32 = 8;
const SHARED: u32 = 40;
const TRIES: u32 = ALONE + SHARED;
const TIMED: u32 = 8;
/// Calls from one trial to the next; the first ones follow sooner.
const PERIOD: u32 = 4096;
const FIRST_PERIOD: u32 = 512;
/// How much faster sharing has to be, as a fraction: it takes another core's time.
const FASTER: (u64, u64) = (97, 100);
/// Work from this fraction of the time to wake a thread on is tried; below, sharing it cannot be worthwhile.
const LEAST_WAKES: (u64, u64) = (1, 4);
/// Classes of work that are tried apart, each up to twice the work of the one before it. A model may run with inputs of
/// several sizes.
const CLASSES: usize = 5;

/// What the trials of a node found.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    classes: [Class; CLASSES],
}

#[derive(Debug)]
struct Class {
    calls: AtomicU32,
    /// The least times of the trial in progress, per estimated time.
    alone: AtomicU32,
    shared: AtomicU32,
    share: AtomicBool,
}

impl Default for Class {
    fn default() -> Self {
        Class {
            calls: AtomicU32::new(0),
            alone: AtomicU32::new(u32::MAX),
            shared: AtomicU32::new(u32::MAX),
            share: AtomicBool::new(false),
        }
    }
}

/// How one call runs.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    /// Whether all of its work is shared, or none; `None` is left to an estimate.
    pub(crate) share: Option<bool>,
    timed: Option<Timed<'a>>,
}

#[derive(Debug)]
struct Timed<'a> {
    least: &'a AtomicU32,
    estimate_ns: u64,
    start: Instant,
}

impl Sharing {
    /// How a call runs whose work takes about `estimate_ns` on one thread, where waking another takes `wake_ns`.
    pub(crate) fn attempt(&self, estimate_ns: u64, wake_ns: u64) -> Attempt<'_> {
        let Some(class) = self.class(estimate_ns, wake_ns) else { return Attempt { share: None, timed: None } };
        let call = class.calls.fetch_add(1, Ordering::Relaxed);
        let place = call % if call < PERIOD { FIRST_PERIOD } else { PERIOD };
        if place == 0 {
            // Late calls of the last trial may have left something.
            class.forget();
        }
        if place < TRIES {
            let share = place >= ALONE;
            let (least, first) = if share { (&class.shared, TRIES - TIMED) } else { (&class.alone, ALONE - TIMED) };
            let timed = (place >= first).then(|| Timed { least, estimate_ns, start: Instant::now() });
            return Attempt { share: Some(share), timed };
        }
        if place == TRIES {
            class.decide();
        }
        Attempt { share: Some(class.share.load(Ordering::Relaxed)), timed: None }
    }

    fn class(&self, estimate_ns: u64, wake_ns: u64) -> Option<&Class> {
        let least = (wake_ns * LEAST_WAKES.0 / LEAST_WAKES.1).max(1);
        let index = (estimate_ns / least).checked_ilog2()?;
        self.classes.get(index as usize)
    }
}

impl Class {
    fn forget(&self) {
        self.alone.store(u32::MAX, Ordering::Relaxed);
        self.shared.store(u32::MAX, Ordering::Relaxed);
    }

    fn decide(&self) {
        let [alone, shared] = [&self.alone, &self.shared].map(|least| least.load(Ordering::Relaxed));
        self.share.store(u64::from(shared) * FASTER.1 < u64::from(alone) * FASTER.0, Ordering::Relaxed);
    }
}

impl Attempt<'_> {
    /// To be called when the work is done.
    pub(crate) fn done(self) {
        if let Some(timed) = &self.timed {
            timed.took(timed.start.elapsed());
        }
    }
}

impl Timed<'_> {
    fn took(&self, time: Duration) {
        let relative = time.as_nanos().saturating_mul(1 << 10) / u128::from(self.estimate_ns.max(1));
        self.least.fetch_min(u32::try_from(relative).unwrap_or(u32::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAKE: u64 = 6_000;

    /// One call that is said to take `alone_us` or `shared_us`; returns whether it was shared.
    fn call(sharing: &Sharing, estimate_ns: u64, alone_us: u64, shared_us: u64) -> Option<bool> {
        let attempt = sharing.attempt(estimate_ns, WAKE);
        if let Some(timed) = &attempt.timed {
            timed.took(Duration::from_micros(if attempt.share == Some(true) { shared_us } else { alone_us }));
        }
        attempt.share
    }

    fn trial(sharing: &Sharing, estimate_ns: u64, alone_us: u64, shared_us: u64) {
        for index in 0..TRIES {
            assert_eq!(call(sharing, estimate_ns, alone_us, shared_us), Some(index >= ALONE));
        }
    }

    #[test]
    fn what_was_faster_is_kept_until_the_next_trial() {
        for (alone, shared, kept) in [(100, 96, true), (50, 100, false)] {
            let sharing = Sharing::default();
            trial(&sharing, 8_000, alone, shared);
            for _ in TRIES..FIRST_PERIOD {
                let attempt = sharing.attempt(8_000, WAKE);
                assert_eq!(attempt.share, Some(kept));
                assert!(attempt.timed.is_none());
            }
            // The second trial, with the opposite result.
            trial(&sharing, 8_000, shared, alone);
            assert_eq!(call(&sharing, 8_000, 0, 0), Some(!kept));
        }
    }

    #[test]
    fn as_fast_alone_is_not_shared() {
        for shared in [97, 100] {
            let sharing = Sharing::default();
            trial(&sharing, 8_000, 100, shared);
            assert_eq!(call(&sharing, 8_000, 0, 0), Some(false));
        }
    }

    #[test]
    fn a_call_is_timed_to_its_end() {
        let sharing = Sharing::default();
        sharing.attempt(8_000, WAKE).done();
        let class = sharing.class(8_000, WAKE).expect("tried");
        assert!(class.alone.load(Ordering::Relaxed) < u32::MAX);
        assert_eq!(class.shared.load(Ordering::Relaxed), u32::MAX);
    }

    #[test]
    fn sizes_are_tried_apart() {
        let sharing = Sharing::default();
        trial(&sharing, 5_000, 3000, 500);
        trial(&sharing, 20_000, 500, 3000);
        assert_eq!(call(&sharing, 4_000, 0, 0), Some(true));
        assert_eq!(call(&sharing, 20_000, 0, 0), Some(false));
    }

    #[test]
    fn very_small_and_large_work_is_left_to_the_estimate() {
        let sharing = Sharing::default();
        for (estimate_ns, tried) in
            [(0, false), (1, false), (1_499, false), (1_500, true), (47_999, true), (48_000, false), (u64::MAX, false)]
        {
            assert_eq!(sharing.attempt(estimate_ns, WAKE).share.is_some(), tried, "{estimate_ns} ns");
        }
        assert_eq!(sharing.attempt(5_000, 0).share, None);
    }
}
