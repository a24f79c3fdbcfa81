//! torch's own threads.
//!
//! torch runs its operators on the OpenMP runtime that its libraries bring along, and after each the threads of that
//! runtime stay awake for some milliseconds, waiting for the next. Threads of ours would fight with them for the cores.
//! So where torch is loaded, its runtime runs our tasks too: the module's one place that calls C functions.
#![allow(unsafe_code, reason = "calls the OpenMP runtime that torch has loaded")]

use std::any::Any;
#[cfg(target_os = "linux")]
use std::ffi::CStr;
use std::ffi::{c_int, c_uint, c_void};
#[cfg(target_os = "linux")]
use std::mem::transmute;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use lumina_kernel::Executor;

/// The library that torch's operators are in, on Linux. The runtime is found through it, since it may have any name.
#[cfg(target_os = "linux")]
const TORCH: &CStr = c"libtorch_cpu.so";

type Region = unsafe extern "C" fn(*mut c_void);
type Parallel = unsafe extern "C" fn(Region, *mut c_void, c_uint, c_uint);
type MaxThreads = unsafe extern "C" fn() -> c_int;

/// The runtime's functions: the GNU ones, which LLVM's runtime has too.
#[derive(Clone, Copy)]
pub struct OpenMp {
    /// Runs a function on every thread of a team, and returns when all have returned.
    parallel: Parallel,
    /// How many threads the next team of this thread has.
    max_threads: MaxThreads,
}

impl OpenMp {
    /// The runtime of a torch that this process has loaded, if there is one.
    #[cfg(not(target_os = "linux"))]
    pub fn of_torch() -> Option<Self> {
        None
    }

    /// The runtime of a torch that this process has loaded, if there is one.
    #[cfg(target_os = "linux")]
    pub fn of_torch() -> Option<Self> {
        // SAFETY: a string with its end; NOLOAD runs no initialiser.
        let torch = unsafe { libc::dlopen(TORCH.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        if torch.is_null() {
            return None;
        }
        // As torch's own calls are bound: a runtime that everything shares (`LD_PRELOAD`) before the one that it depends on.
        // torch is never unloaded, so the handle is kept. SAFETY: a scope that dlsym knows, or a handle of dlopen's.
        let find_in =
            |scope, name: &CStr| Some(unsafe { libc::dlsym(scope, name.as_ptr()) }).filter(|at| !at.is_null());
        let find = |name: &CStr| find_in(libc::RTLD_DEFAULT, name).or_else(|| find_in(torch, name));
        let (parallel, max_threads) = (find(c"GOMP_parallel")?, find(c"omp_get_max_threads")?);
        // SAFETY: the signatures that libgomp's ABI and the OpenMP specification give these names.
        unsafe {
            Some(OpenMp {
                parallel: transmute::<*mut c_void, Parallel>(parallel),
                max_threads: transmute::<*mut c_void, MaxThreads>(max_threads),
            })
        }
    }
}

/// What the threads of a team share.
struct Shared<'a> {
    work: &'a (dyn Fn() + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// # Safety
/// `data` is a [`Shared`] that outlives the call.
unsafe extern "C" fn region(data: *mut c_void) {
    // SAFETY: by contract.
    let shared = unsafe { &*data.cast::<Shared<'_>>() };
    // A panic must not unwind through the runtime's frames.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(shared.work)) {
        shared.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
    }
}

impl Executor for OpenMp {
    fn run(&self, _at_most: usize, work: &(dyn Fn() + Sync)) {
        let mut shared = Shared { work, panic: Mutex::new(None) };
        // As many threads as the runtime would take by itself (0): a team of another size is made anew each time.
        // SAFETY: `region` gets a `Shared`, which lives until all threads of the team have returned from it.
        unsafe { (self.parallel)(region, (&raw mut shared).cast(), 0, 0) };
        if let Some(panic) = shared.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }

    /// Those that a team started by this thread has.
    fn threads(&self) -> usize {
        // SAFETY: has no precondition.
        usize::try_from(unsafe { (self.max_threads)() }).unwrap_or(1)
    }
}
