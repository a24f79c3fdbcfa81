//! Runs the kernel's tasks on the session's threads, or on threads of its own while a session is being created.

use std::num::NonZero;
use std::sync::{Mutex, OnceLock};
use std::thread;

use lumina_kernel::Executor;

use crate::guard::{Failure, guard};
use crate::sys::KernelContext;

/// How many times as long as waking a thread takes work must be to be worth handing to the pool, as a fraction, where
/// that is not tried ([`crate::sharing`]). It is little, since the pool's idle threads spin; where they sleep, work that
/// takes as long as waking one breaks even, since the calling thread goes on meanwhile.
const WORTHWHILE_WAKES: (u64, u64) = (3, 2);

/// The pool of the session that a run belongs to: its `intra_op_num_threads`, and no other threads.
pub(crate) struct SessionPool<'a> {
    context: &'a KernelContext<'a>,
    /// Whether this call is shared with the pool's other threads; `None` if estimates decide.
    share: Option<bool>,
    /// The estimated work of the call.
    estimate_ns: u64,
    failure: Mutex<Option<Failure>>,
}

impl<'a> SessionPool<'a> {
    pub(crate) fn new(context: &'a KernelContext<'a>, share: Option<bool>, estimate_ns: u64) -> Self {
        SessionPool { context, share, estimate_ns, failure: Mutex::new(None) }
    }

    /// The first failure, unless all tasks ran and returned.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        self.failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).map_or(Ok(()), Err)
    }

    fn note(&self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(failure);
        }
    }
}

impl Executor for SessionPool<'_> {
    fn run(&self, at_most: usize, work: &(dyn Fn() + Sync)) {
        // A panic must not unwind through the pool's C++ frames.
        let guarded = |_| {
            self.note(guard(|| {
                work();
                Ok(())
            }));
        };
        self.note(self.context.parallel_for(at_most.min(self.threads()), &guarded));
    }

    /// ONNX Runtime does not say how many threads its pool has: one per core, unless it is asked for fewer.
    fn threads(&self) -> usize {
        cores()
    }

    fn worthwhile_ns(&self, wake_ns: u64) -> u64 {
        let by_estimate = wake_ns * WORTHWHILE_WAKES.0 / WORTHWHILE_WAKES.1;
        match self.share {
            // Steps of the call that are smaller than the whole are not worth it for that.
            Some(true) => by_estimate.min(self.estimate_ns),
            Some(false) => u64::MAX,
            None => by_estimate,
        }
    }
}

/// The number of cores that this process may use, determined once, since that reads files.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
}

/// Maximum threads that lay out a node's weights: a few are as fast as memory allows.
const CREATION_THREADS: usize = 8;
/// How many times as long as waking a thread takes work must be to be worth starting some.
const WORTH_STARTING_WAKES: u64 = 80;

/// Threads that create a node's kernel and then end: the session's pool is available to runs only.
pub(crate) struct Creation;

impl Executor for Creation {
    fn run(&self, at_most: usize, work: &(dyn Fn() + Sync)) {
        thread::scope(|scope| {
            for _ in 1..self.threads().min(at_most) {
                // If no more threads can be started, fewer do the work.
                if thread::Builder::new().name("lumina-create".into()).spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
    }

    fn threads(&self) -> usize {
        cores().min(CREATION_THREADS)
    }

    fn worthwhile_ns(&self, wake_ns: u64) -> u64 {
        wake_ns * WORTH_STARTING_WAKES
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Condvar;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_creation_has_no_more_threads_than_asked_for() {
        for at_most in [1, 2, 100] {
            let calls = AtomicUsize::new(0);
            Creation.run(at_most, &|| {
                calls.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(calls.into_inner(), at_most.min(Creation.threads()));
        }
    }

    #[test]
    fn threads_of_a_creation_run_side_by_side() {
        let (arrived, all_here) = (Mutex::new(0), Condvar::new());
        let count = Creation.threads().min(2);
        Creation.run(count, &|| {
            let mut arrived = arrived.lock().unwrap();
            *arrived += 1;
            all_here.notify_all();
            let waited = all_here.wait_timeout_while(arrived, Duration::from_secs(60), |arrived| *arrived < count);
            assert!(!waited.unwrap().1.timed_out(), "a thread waited for another that did not start");
        });
    }
}
