//! Memory next to pages that must not be touched: an access beyond an array ends the process and reports the case.
#![allow(unsafe_code, reason = "pages come from the operating system")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// Where the arrays of a case are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Anywhere on the heap.
    Heap,
    /// Their last byte is the last one before a page that must not be touched.
    BeforeGuard,
    /// Their first byte is the first one after such a page.
    AfterGuard,
}

/// An array at its [`Place`].
pub enum Array<T> {
    Heap(Vec<T>),
    Guarded { pages: *mut c_void, bytes: usize, first: *mut T, length: usize },
}

impl Place {
    /// A copy of `values` at this place.
    pub fn put<T: Copy>(self, values: &[T]) -> Array<T> {
        if self == Place::Heap {
            return Array::Heap(values.to_vec());
        }
        // SAFETY: the function has no precondition.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let size = size_of_val(values);
        let inside = size.next_multiple_of(page);
        let bytes = inside + 2 * page;
        // SAFETY: these are new pages; the inner ones are made writable, and no more elements are written than they
        // hold.
        unsafe {
            let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let pages = libc::mmap(ptr::null_mut(), bytes, libc::PROT_NONE, anonymous, -1, 0);
            assert_ne!(pages, libc::MAP_FAILED, "pages");
            let start = pages.byte_add(page);
            if inside > 0 {
                assert_eq!(libc::mprotect(start, inside, libc::PROT_READ | libc::PROT_WRITE), 0, "writable pages");
            }
            let first = match self {
                Place::AfterGuard => start,
                _ => start.byte_add(inside - size),
            };
            let first = first.cast::<T>();
            ptr::copy_nonoverlapping(values.as_ptr(), first, values.len());
            Array::Guarded { pages, bytes, first, length: values.len() }
        }
    }

    /// `length` copies of `value` at this place.
    pub fn filled<T: Copy>(self, value: T, length: usize) -> Array<T> {
        self.put(&vec![value; length])
    }
}

impl<T> Deref for Array<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Array::Heap(values) => values,
            // SAFETY: `put` has written that many elements, which stay there until the array is dropped.
            Array::Guarded { first, length, .. } => unsafe { std::slice::from_raw_parts(*first, *length) },
        }
    }
}

impl<T> DerefMut for Array<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Array::Heap(values) => values,
            // SAFETY: as in `deref`, and `self` is borrowed mutably.
            Array::Guarded { first, length, .. } => unsafe { std::slice::from_raw_parts_mut(*first, *length) },
        }
    }
}

impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        if let Array::Guarded { pages, bytes, .. } = self {
            // SAFETY: the pages are from `put`, and nothing refers to them any more.
            unsafe { libc::munmap(*pages, *bytes) };
        }
    }
}

static CASE: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

extern "C" fn say_case(signal: c_int) {
    let case = CASE.load(Ordering::Acquire);
    // SAFETY: these functions may be called in a signal handler; `case` is NULL or a string that is never freed. The
    // faulting instruction runs again and ends the process.
    unsafe {
        if !case.is_null() {
            libc::write(2, case.cast(), libc::strlen(case));
        }
        libc::signal(signal, libc::SIG_DFL);
    }
}

/// Reports `case` if a guard page is touched: the test's own output is lost with the process.
pub fn on_fault_say(case: String) {
    static HANDLERS: Once = Once::new();
    static CASES: Mutex<Vec<CString>> = Mutex::new(Vec::new());
    HANDLERS.call_once(|| {
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            // SAFETY: the handler calls only functions that a signal handler may call.
            unsafe { libc::signal(signal, say_case as *const () as libc::sighandler_t) };
        }
    });
    let case = CString::new(format!("memory beyond an array was touched: {case}\n")).expect("no NUL");
    CASE.store(case.as_ptr().cast_mut(), Ordering::Release);
    // A fault in another thread may read any of the strings, so none is freed.
    CASES.lock().unwrap_or_else(PoisonError::into_inner).push(case);
}

/// The signal that ends a child process in which `touch` runs; `None` if `touch` returns.
pub fn signal_of(touch: impl FnOnce()) -> Option<c_int> {
    // SAFETY: the child only touches memory, and exits without running any code of its parent's.
    unsafe {
        let child = libc::fork();
        assert_ne!(child, -1, "a child process");
        if child == 0 {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            touch();
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
    }
}
