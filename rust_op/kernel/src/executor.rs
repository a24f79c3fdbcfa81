//! Who runs the tasks of a call. The kernel itself never starts a thread.

use std::sync::Mutex;

use crate::microkernel::float_env::FloatEnv;

/// Runs independent tasks, in any order, on any threads.
///
/// Every task sets the floating-point environment it needs, and no result depends on how a call is cut into tasks: results
/// are the same under any executor.
pub trait Executor: Sync {
    /// Calls `task(0)` .. `task(count - 1)`, each once, and returns when all have returned.
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync));

    /// The threads that tasks may run on, about: a call is cut so that all of them have something to do.
    fn threads(&self) -> usize;

    /// How much work, in nanoseconds of one thread, is worth handing to other threads.
    fn worthwhile_ns(&self) -> u64 {
        0
    }
}

/// Runs tasks one after another on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Executor for Serial {
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..count).for_each(task);
    }

    fn threads(&self) -> usize {
        1
    }
}

/// The threads that work of about `work_ns` nanoseconds is handed to.
pub(crate) fn threads_for(executor: &dyn Executor, work_ns: u64) -> usize {
    if work_ns < executor.worthwhile_ns() { 1 } else { executor.threads().max(1) }
}

/// Runs tasks of about `work_ns` nanoseconds together, each in the canonical floating-point environment.
fn run(executor: &dyn Executor, work_ns: u64, count: usize, task: &(dyn Fn(usize) + Sync)) {
    let task = |index| {
        let _environment = FloatEnv::canonical();
        task(index);
    };
    if count <= 1 || threads_for(executor, work_ns) == 1 {
        Serial.run(count, &task);
    } else {
        executor.run(count, &task);
    }
}

/// Runs `task` on each of `items`, as [`run`] does. Whichever thread is free takes the next one, so that nothing is
/// allocated for them.
pub(crate) fn run_each<I>(executor: &dyn Executor, work_ns: u64, items: I, task: impl Fn(I::Item) + Sync)
where
    I: IntoIterator<IntoIter: ExactSizeIterator + Send>,
{
    let items = items.into_iter();
    let count = items.len();
    let items = Mutex::new(items);
    run(executor, work_ns, count, &|_| {
        let item = items.lock().expect("no task runs with the lock").next();
        task(item.expect("each task runs once"));
    });
}
