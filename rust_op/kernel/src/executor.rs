//! Who runs the tasks of a call. The kernel itself never starts a thread.

/// Runs independent tasks, in any order, on any threads.
///
/// How a call is cut into tasks depends on its shape alone, never on the executor, and every task sets
/// the floating-point environment it needs: results are the same under any executor.
pub trait Executor: Sync {
    /// Calls `task(0)` .. `task(count - 1)`, each once, and returns when all have returned.
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync));
}

/// Runs tasks one after another on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Executor for Serial {
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..count).for_each(task);
    }
}
