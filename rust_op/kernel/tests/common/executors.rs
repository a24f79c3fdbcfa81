//! Executors unlike any in the product.

use lumina_kernel::Executor;
use rayon::prelude::*;

/// Runs tasks last to first.
pub struct Reversed;

impl Executor for Reversed {
    fn run(&self, _at_most: usize, work: &(dyn Fn() + Sync)) {
        work();
    }

    /// Many, so that tasks are small.
    fn threads(&self) -> usize {
        64
    }

    fn order(&self, count: usize) -> Option<Vec<usize>> {
        Some((0..count).rev().collect())
    }
}

/// Runs tasks on a single thread, in an order that depends on the seed and the number of tasks.
pub struct Shuffled(pub u64);

impl Executor for Shuffled {
    fn run(&self, _at_most: usize, work: &(dyn Fn() + Sync)) {
        work();
    }

    fn threads(&self) -> usize {
        64
    }

    fn order(&self, count: usize) -> Option<Vec<usize>> {
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|index| lumina_kernel::rng::mix(self.0 ^ *index as u64));
        Some(order)
    }
}

/// Runs tasks on a pool of its own.
pub struct Threads(rayon::ThreadPool);

impl Threads {
    pub fn new(count: usize) -> Self {
        Threads(rayon::ThreadPoolBuilder::new().num_threads(count).build().expect("a pool"))
    }
}

impl Executor for Threads {
    fn run(&self, at_most: usize, work: &(dyn Fn() + Sync)) {
        self.0.install(|| (0..at_most.min(self.threads())).into_par_iter().with_max_len(1).for_each(|_| work()));
    }

    fn threads(&self) -> usize {
        self.0.current_num_threads()
    }
}
