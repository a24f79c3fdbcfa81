//! The kernel's tasks on the threads of the session.

use std::sync::Mutex;

use lumina_kernel::Executor;

use crate::guard::{Failure, guard};
use crate::sys::KernelContext;

/// Work, in nanoseconds of one thread, below which waking the pool costs more than it gains.
const WORTHWHILE_NS: u64 = 16_000;

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
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        // A panic must not unwind through the pool's C++ frames.
        let guarded = |index| {
            self.note(guard(|| {
                task(index);
                Ok(())
            }));
        };
        self.note(self.context.parallel_for(count, &guarded));
    }

    fn worthwhile_ns(&self) -> u64 {
        WORTHWHILE_NS
    }
}
