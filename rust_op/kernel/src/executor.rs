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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    /// Two threads, worth 1000 ns; runs each call's tasks on a thread of their own and counts the calls.
    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Executor for Counting {
        fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
            self.0.fetch_add(1, Ordering::Relaxed);
            thread::scope(|scope| {
                scope.spawn(|| (0..count).for_each(task));
            });
        }

        fn threads(&self) -> usize {
            2
        }

        fn worthwhile_ns(&self) -> u64 {
            1000
        }
    }

    #[test]
    fn work_below_the_threshold_stays_on_the_calling_thread() {
        for (work_ns, count, handed) in
            [(0, 8, false), (999, 8, false), (1000, 8, true), (u64::MAX, 8, true), (u64::MAX, 1, false)]
        {
            let executor = Counting::default();
            assert_eq!(threads_for(&executor, work_ns), if work_ns < 1000 { 1 } else { 2 });
            let ran = Mutex::new(Vec::new());
            run_each(&executor, work_ns, 0..count, |item| {
                ran.lock().expect("no task panics").push((item, thread::current().id()));
            });
            let ran = ran.into_inner().expect("no task panics");
            assert_eq!(ran.iter().map(|(item, _)| *item).collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
            let here = thread::current().id();
            assert!(ran.iter().all(|(_, id)| (*id != here) == handed), "{work_ns} ns, {count} tasks");
            assert_eq!(executor.0.into_inner(), usize::from(handed), "{work_ns} ns, {count} tasks");
        }
    }

    #[test]
    fn one_thread_is_never_handed_anything() {
        struct Alone;
        impl Executor for Alone {
            fn run(&self, _: usize, _: &(dyn Fn(usize) + Sync)) {
                panic!("handed over");
            }

            fn threads(&self) -> usize {
                1
            }
        }
        run_each(&Alone, u64::MAX, 0..8, |_| ());
    }
}
