//! The kernel's tasks on the threads of the session, and on threads for the moment where a session is only being made.

use std::num::NonZero;
use std::sync::{Mutex, OnceLock};
use std::thread;

use lumina_kernel::Executor;

use crate::guard::{Failure, guard};
use crate::sys::KernelContext;

/// Work, in nanoseconds of one thread, below which handing it to the pool costs more than it gains. Its idle threads
/// spin, so that is soon: on two cores of an AMD Zen 5 a session with one row of 1,024 inputs to as many outputs took
/// 11.7 us on one thread and 7.5 on two at 8 bits, 5.4 and 6.1 at 4 bits; with the other core taken two threads cost 1
/// us more.
const WORTHWHILE_NS: u64 = 9_000;

/// The pool of the session that a run belongs to: its `intra_op_num_threads`, no threads of our own.
pub(crate) struct SessionPool<'a> {
    context: &'a KernelContext<'a>,
    failure: Mutex<Option<Failure>>,
}

impl<'a> SessionPool<'a> {
    pub(crate) fn new(context: &'a KernelContext<'a>) -> Self {
        SessionPool { context, failure: Mutex::new(None) }
    }

    /// Whether all tasks were run, and returned.
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

    /// ONNX Runtime does not tell how many threads its pool has: unless it is asked for fewer, one for each core.
    fn threads(&self) -> usize {
        cores()
    }

    fn worthwhile_ns(&self) -> u64 {
        WORTHWHILE_NS
    }
}

/// The cores that this process may use; asked once, since the answer takes a look at files.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
}

/// Threads that a node's weights are laid out on, at most: a few are as fast as memory.
const CREATION_THREADS: usize = 8;
/// Work, in nanoseconds of one thread, below which starting threads costs more than it gains.
const WORTH_STARTING_NS: u64 = 500_000;

/// Threads for the making of a node's kernel, which end with it: the pool of the session is there for runs alone.
pub(crate) struct Creation;

impl Executor for Creation {
    fn run(&self, at_most: usize, work: &(dyn Fn() + Sync)) {
        thread::scope(|scope| {
            for _ in 1..self.threads().min(at_most) {
                // Where no more threads can be had, fewer do it.
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

    fn worthwhile_ns(&self) -> u64 {
        WORTH_STARTING_NS
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
