//! The kernel's tasks on the threads of the session.

use std::sync::Mutex;

use lumina_kernel::{Executor, Params};

use crate::guard::{Failure, guard};
use crate::sys::KernelContext;

/// Work, in nanoseconds on one core, below which waking the pool costs more than it gains.
const WORTH_THREADS: f64 = 16_000.0;

/// Whether M rows of a layer are worth more than one thread; rates are those of a fast tier, rounded.
pub(crate) fn worth_threads(params: &Params, (m, n, k): (usize, usize, usize)) -> bool {
    let product = if params.is_integer() { 0.006 } else { 0.025 };
    let output = if params.noise.any() { 0.8 } else { 0.2 };
    let input = if params.input_bits > 0 { 0.2 } else { 0.0 };
    let (m, n, k) = (m as f64, n as f64, k as f64);
    m * n * k * product + m * n * output + m * k * input >= WORTH_THREADS
}

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
        if count <= 1 {
            (0..count).for_each(guarded);
        } else {
            self.note(self.context.parallel_for(count, &guarded));
        }
    }
}
