//! The threads that run a call from Python: torch's own where torch is loaded, else a pool that is created when a call
//! first needs it.
//!
//! The state is locked only by a thread that is attached to the interpreter, and the lock is never held across
//! a release of the interpreter, so no other thread can hold it while Python forks. A child of a fork has none
//! of its parent's threads: it forgets the pool and creates another.

use std::mem;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lumina_kernel::{Executor, Serial};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::numbers::Int;
use crate::openmp::OpenMp;

/// How many times as long as waking a thread takes work must be to be worth handing to a worker, as a fraction.
const WORTHWHILE_WAKES: (u64, u64) = (10, 3);
/// How long a caller that has no work left spins while workers finish their last tasks.
const PATIENCE: Duration = Duration::from_micros(200);
/// A larger number of threads is taken to be a mistake.
const MAX_THREADS: usize = 4096;

struct State {
    /// 0 until first used.
    threads: usize,
    /// `threads - 1` workers: the caller is the last thread.
    pool: Option<Arc<ThreadPool>>,
    /// The process that owns `pool`, and may use `torch`.
    pid: u32,
    /// The OpenMP runtime of torch, once torch is loaded.
    torch: Option<OpenMp>,
    /// Whether this process is a child of a fork: the threads of torch's runtime stayed with the parent, and the
    /// runtime would wait for them for ever.
    forked: bool,
}

static STATE: Mutex<State> = Mutex::new(State { threads: 0, pool: None, pid: 0, torch: None, forked: false });

/// Remembers the process: another process in which the module is called was forked from this one.
pub fn loaded(py: Python<'_>) {
    drop(state(py));
}

fn state(_attached: Python<'_>) -> MutexGuard<'static, State> {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = std::process::id();
    if state.pid != pid {
        // The pool's threads are not in this process: dropping it would wait for locks that they may have held.
        mem::forget(state.pool.take());
        // A module that was loaded by a forked child has not seen the parent, which may have used the torch that the
        // child inherited.
        state.forked = state.pid != 0 || (is_fork() && OpenMp::of_torch().is_some());
        state.pid = pid;
    }
    if state.threads == 0 {
        state.threads = default_threads();
    }
    state
}

/// Whether this process was forked and has not executed a program since.
#[cfg(target_os = "linux")]
fn is_fork() -> bool {
    // proc(5): the program's name in parentheses is followed by state, ppid, pgrp, session, tty_nr, tpgid and flags;
    // PF_FORKNOEXEC (include/linux/sched.h) is one of the flags.
    const FORKNOEXEC: u32 = 0x40;
    let stat = std::fs::read("/proc/self/stat").unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat);
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u32>().ok()).is_some_and(|flags| flags & FORKNOEXEC != 0)
}

/// Whether this process was forked and has not executed a program since; the answer is irrelevant if torch is never
/// found.
#[cfg(not(target_os = "linux"))]
fn is_fork() -> bool {
    false
}

/// `OMP_NUM_THREADS` (its first number, if it is a list), else the number of cores that this process may use.
fn default_threads() -> usize {
    std::env::var("OMP_NUM_THREADS")
        .ok()
        .and_then(|list| list.split(',').next()?.trim().parse().ok())
        .filter(|threads| (1..=MAX_THREADS).contains(threads))
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}

/// The maximum number of threads that a call uses.
#[pyfunction]
pub fn num_threads(py: Python<'_>) -> usize {
    state(py).threads
}

/// Sets the maximum number of threads that a call uses. Results do not depend on it.
///
/// Args:
///     n: 1..4096.
#[pyfunction]
#[pyo3(text_signature = "(n)")]
pub fn set_num_threads(py: Python<'_>, n: Int) -> PyResult<()> {
    let inside = |n| usize::try_from(n).ok().filter(|n| (1..=MAX_THREADS).contains(n));
    let threads = n.checked("n", &format!("an integer 1..{MAX_THREADS}"), inside)?;
    state(py).set_threads(threads);
    Ok(())
}

impl State {
    fn set_threads(&mut self, threads: usize) {
        if self.threads != threads {
            self.threads = threads;
            self.pool = None;
        }
    }
}

/// The threads of one call.
pub enum Threads {
    /// The caller's thread alone.
    One,
    /// torch's threads.
    Torch(OpenMp),
    /// The module's own workers, and the caller.
    Pool(Arc<ThreadPool>),
}

impl Threads {
    /// The executor for one call.
    pub fn current(py: Python<'_>) -> PyResult<Self> {
        Threads::new(&mut state(py))
    }

    /// The executor for one call on torch's tensors. From then on, calls use as many threads as torch: `threads`.
    pub fn of_torch(py: Python<'_>, threads: usize) -> PyResult<Self> {
        let mut state = state(py);
        state.set_threads(threads.clamp(1, MAX_THREADS));
        Threads::new(&mut state)
    }

    fn new(state: &mut State) -> PyResult<Self> {
        if state.threads == 1 {
            return Ok(Threads::One);
        }
        if !state.forked {
            if state.torch.is_none() {
                state.torch = OpenMp::of_torch();
            }
            if let Some(torch) = state.torch.filter(|torch| torch.threads() == state.threads) {
                return Ok(Threads::Torch(torch));
            }
        }
        if let Some(pool) = &state.pool {
            return Ok(Threads::Pool(Arc::clone(pool)));
        }
        let workers = state.threads - 1;
        let pool = ThreadPoolBuilder::new()
            .num_threads(workers)
            .thread_name(|index| format!("lumina-{index}"))
            .build()
            .map_err(|error| PyRuntimeError::new_err(format!("cannot start {workers} threads: {error}")))?;
        Ok(Threads::Pool(Arc::clone(state.pool.insert(Arc::new(pool)))))
    }
}

impl Executor for Threads {
    fn run(&self, at_most: usize, work: &(dyn Fn() + Sync)) {
        let pool = match self {
            Threads::One => return Serial.run(at_most, work),
            Threads::Torch(torch) => return torch.run(at_most, work),
            Threads::Pool(pool) => pool,
        };
        // The number of workers that are running tasks.
        let busy = AtomicUsize::new(0);
        pool.in_place_scope(|scope| {
            for _ in 0..pool.current_num_threads().min(at_most.saturating_sub(1)) {
                scope.spawn(|_| {
                    busy.fetch_add(1, Ordering::Relaxed);
                    work();
                    busy.fetch_sub(1, Ordering::Relaxed);
                });
            }
            work();
            // The scope would put this thread to sleep until the others are done, and waking up takes longer than most
            // of these waits.
            let patience = Instant::now();
            while busy.load(Ordering::Relaxed) > 0 && patience.elapsed() < PATIENCE {
                std::hint::spin_loop();
            }
        });
    }

    fn threads(&self) -> usize {
        match self {
            Threads::One => 1,
            Threads::Torch(torch) => torch.threads(),
            Threads::Pool(pool) => pool.current_num_threads() + 1,
        }
    }

    fn worthwhile_ns(&self, wake_ns: u64) -> u64 {
        wake_ns * WORTHWHILE_WAKES.0 / WORTHWHILE_WAKES.1
    }
}
