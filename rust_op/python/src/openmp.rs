//! torch's own threads.
//!
//! torch runs its operators on the OpenMP runtime that comes with its libraries. After each operator, the threads of
//! that runtime stay awake for some milliseconds, waiting for the next one, and other threads would compete with them
//! for the cores. So where torch is loaded, its runtime also runs the kernel's tasks.
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

/// The library that holds torch's operators, on Linux. The runtime is found through it, since the runtime's own library
/// may have any name.
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
    /// How many threads the next team of this thread will have.
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
        // SAFETY: a string that ends in a NUL; with NOLOAD no initialiser runs.
        let torch = unsafe { libc::dlopen(TORCH.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        if torch.is_null() {
            return None;
        }
        // In the order in which torch's own calls are bound: a global runtime (`LD_PRELOAD`) before the one that torch
        // depends on. torch is never unloaded, so the handle is kept. SAFETY: `scope` is a pseudo-handle of dlsym or a
        // handle from dlopen.
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
    // SAFETY: by this function's contract.
    let shared = unsafe { &*data.cast::<Shared<'_>>() };
    // A panic must not unwind through the runtime's frames.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(shared.work)) {
        shared.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
    }
}

impl Executor for OpenMp {
    fn run(&self, _at_most: usize, work: &(dyn Fn() + Sync)) {
        let mut shared = Shared { work, panic: Mutex::new(None) };
        // 0 threads: as many as the runtime takes by default. A team of another size would be created anew each time.
        // SAFETY: `region` gets a `Shared`, which lives until all threads of the team have returned from it.
        unsafe { (self.parallel)(region, (&raw mut shared).cast(), 0, 0) };
        if let Some(panic) = shared.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }

    /// The number of threads in a team that this thread starts.
    fn threads(&self) -> usize {
        // SAFETY: the function has no precondition.
        usize::try_from(unsafe { (self.max_threads)() }).unwrap_or(1)
    }
}
