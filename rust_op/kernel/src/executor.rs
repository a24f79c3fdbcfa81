//! Who runs the tasks of a call. The kernel itself never starts a thread.

use std::sync::{Mutex, PoisonError};

use crate::float_env::FloatEnv;

/// Threads for the tasks of a call.
///
/// A call hands over one function, `work`, that takes tasks until none is left. Each thread that calls it sets the
/// floating-point environment that tasks need, and no result depends on how a call is cut into tasks or on the order in
/// which they are taken: results are the same under any executor.
pub trait Executor: Sync {
    /// Calls `work` on up to `at_most` threads at the same time, at least once, and returns when all calls have
    /// returned.
    fn run(&self, at_most: usize, work: &(dyn Fn() + Sync));

    /// The approximate number of threads: a call is cut so that all of them have something to do.
    fn threads(&self) -> usize;

    /// How much work, in nanoseconds of one thread, is worth handing to other threads, if waking one takes about
    /// `wake_ns` on this processor.
    fn worthwhile_ns(&self, _wake_ns: u64) -> u64 {
        0
    }

    /// The order in which `count` tasks are taken; `None` is first to last. Tests use it to show that results do not
    /// depend on the order.
    #[doc(hidden)]
    fn order(&self, _count: usize) -> Option<Vec<usize>> {
        None
    }
}

/// Runs tasks one after another on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Executor for Serial {
    fn run(&self, _at_most: usize, work: &(dyn Fn() + Sync)) {
        work();
    }

    fn threads(&self) -> usize {
        1
    }
}

/// Estimates, in nanoseconds, by which it is decided whether work is handed to other threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// The work, on one thread.
    pub(crate) ns: u64,
    /// Waking another thread.
    pub(crate) wake_ns: u64,
}

/// The number of threads for `work`.
pub(crate) fn threads_for(executor: &dyn Executor, work: Work) -> usize {
    if work.ns < executor.worthwhile_ns(work.wake_ns) { 1 } else { executor.threads().max(1) }
}

/// Runs `task` once on each of `items`, `work` in total. Whichever thread is free takes the next item, so no list of
/// items is allocated.
pub(crate) fn run_each<I>(executor: &dyn Executor, work: Work, items: I, task: impl Fn(I::Item) + Sync)
where
    I: IntoIterator<Item: Send, IntoIter: ExactSizeIterator + Send>,
{
    let items = items.into_iter();
    let count = items.len();
    match executor.order(count) {
        None => share(executor, work, count, items, Iterator::next, task),
        Some(order) => {
            let mut items: Vec<_> = items.map(Some).collect();
            let reordered: Vec<_> = order.iter().map(|&index| items[index].take().expect("an order")).collect();
            share(executor, work, count, reordered.into_iter(), Iterator::next, task);
        }
    }
}

/// [`run_each`] of `count` items: in their order on one thread, else as each thread takes `next`.
fn share<I: Iterator<Item: Send> + Send>(
    executor: &dyn Executor,
    work: Work,
    count: usize,
    items: I,
    next: impl Fn(&mut I) -> Option<I::Item> + Sync,
    task: impl Fn(I::Item) + Sync,
) {
    if count <= 1 || threads_for(executor, work) == 1 {
        let _environment = FloatEnv::canonical();
        items.for_each(task);
        return;
    }
    let items = Mutex::new(items);
    executor.run(count, &|| {
        let _environment = FloatEnv::canonical();
        // The block releases the lock before the task runs.
        while let Some(item) = { next(&mut items.lock().unwrap_or_else(PoisonError::into_inner)) } {
            task(item);
        }
    });
}

/// Tells threads apart while they live. (Asking the library for a thread's name tag allocates on threads that it did not
/// start.)
fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// [`run_each`] where each item is a part of the same memory: the calling thread takes the first items, other threads the
/// last; if `from_last`, the other way round.
pub(crate) fn run_from_both_ends<I>(
    executor: &dyn Executor,
    work: Work,
    items: I,
    from_last: bool,
    task: impl Fn(I::Item) + Sync,
) where
    I: DoubleEndedIterator<Item: Send> + ExactSizeIterator + Send,
{
    let count = items.len();
    if executor.order(count).is_some() {
        return run_each(executor, work, items, task);
    }
    let caller = this_thread();
    let next = |items: &mut I| {
        if (this_thread() == caller) == from_last { items.next_back() } else { items.next() }
    };
    share(executor, work, count, items, next, task);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    const fn work(ns: u64) -> Work {
        Work { ns, wake_ns: 500 }
    }

    /// Two threads, worthwhile from twice the time to wake one on; runs a call's tasks on a new thread and counts the calls.
    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Executor for Counting {
        fn run(&self, _at_most: usize, work: &(dyn Fn() + Sync)) {
            self.0.fetch_add(1, Ordering::Relaxed);
            thread::scope(|scope| {
                scope.spawn(work);
            });
        }

        fn threads(&self) -> usize {
            2
        }

        fn worthwhile_ns(&self, wake_ns: u64) -> u64 {
            2 * wake_ns
        }
    }

    #[test]
    fn work_below_the_threshold_stays_on_the_calling_thread() {
        for (work_ns, count, handed) in
            [(0, 8, false), (999, 8, false), (1000, 8, true), (u64::MAX, 8, true), (u64::MAX, 1, false)]
        {
            let executor = Counting::default();
            assert_eq!(threads_for(&executor, work(work_ns)), if work_ns < 1000 { 1 } else { 2 });
            let ran = Mutex::new(Vec::new());
            run_each(&executor, work(work_ns), 0..count, |item| {
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
            fn run(&self, _at_most: usize, _work: &(dyn Fn() + Sync)) {
                panic!("handed over");
            }

            fn threads(&self) -> usize {
                1
            }
        }
        run_each(&Alone, work(u64::MAX), 0..8, |_| ());
    }

    /// However often an executor calls `work`, concurrently or one call after another, each task runs once.
    #[test]
    fn each_task_runs_once() {
        struct Eager(usize);
        impl Executor for Eager {
            fn run(&self, at_most: usize, work: &(dyn Fn() + Sync)) {
                thread::scope(|scope| {
                    (0..self.0 * at_most).for_each(|_| {
                        scope.spawn(work);
                    });
                });
                work();
            }

            fn threads(&self) -> usize {
                2
            }
        }
        for eagerness in [0, 1, 3] {
            let runs: Vec<AtomicUsize> = (0..20).map(|_| AtomicUsize::new(0)).collect();
            run_each(&Eager(eagerness), work(0), &runs, |runs| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn the_calling_thread_takes_the_first_items_and_others_the_last() {
        let here = thread::current().id();
        let taken = Mutex::new(Vec::new());
        run_from_both_ends(&Counting::default(), work(1000), 0..8, false, |item| {
            taken.lock().expect("no task panics").push((item, thread::current().id()));
        });
        // This executor runs tasks on another thread alone.
        let taken = taken.into_inner().expect("no task panics");
        assert_eq!(taken.iter().map(|(item, _)| *item).collect::<Vec<_>>(), (0..8).rev().collect::<Vec<_>>());
        assert!(taken.iter().all(|(_, id)| *id != here));

        struct Both;
        impl Executor for Both {
            fn run(&self, _at_most: usize, work: &(dyn Fn() + Sync)) {
                thread::scope(|scope| {
                    scope.spawn(work);
                    work();
                });
            }

            fn threads(&self) -> usize {
                2
            }
        }
        for from_last in [false, true] {
            let taken = Mutex::new([const { None }; 100]);
            run_from_both_ends(&Both, work(0), 0..100, from_last, |item| {
                let previous = taken.lock().expect("no task panics")[item].replace(thread::current().id() == here);
                assert_eq!(previous, None, "{item} was taken twice");
                thread::yield_now();
            });
            let first = taken.into_inner().expect("no task panics").map(|here| here.expect("taken") != from_last);
            assert!(first.is_sorted_by(|a, b| a >= b), "{first:?}");
        }
    }

    #[test]
    fn tasks_are_taken_in_the_order_of_the_executor() {
        struct Ordered(fn(usize) -> Vec<usize>);
        impl Executor for Ordered {
            fn run(&self, _at_most: usize, work: &(dyn Fn() + Sync)) {
                work();
            }

            fn threads(&self) -> usize {
                2
            }

            fn order(&self, count: usize) -> Option<Vec<usize>> {
                Some((self.0)(count))
            }
        }
        for (order, expected) in [
            ((|count| (0..count).rev().collect()) as fn(usize) -> Vec<usize>, [4, 3, 2, 1, 0]),
            (|count| (0..count).map(|index| index * 3 % count).collect(), [0, 3, 1, 4, 2]),
        ] {
            let taken = Mutex::new(Vec::new());
            run_each(&Ordered(order), work(0), 0..5, |item| taken.lock().expect("no task panics").push(item));
            assert_eq!(taken.into_inner().expect("no task panics"), expected);
        }
    }
}
