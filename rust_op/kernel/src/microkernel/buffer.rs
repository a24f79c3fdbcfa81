//! Memory for panels and scratch: aligned to cache lines, reused, never handed out uninitialised.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, TryLockError};

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

mod sealed {
    /// Types for which every bit pattern is a value.
    pub trait Plain: Copy {}
    impl Plain for u8 {}
    impl Plain for i8 {}
    impl Plain for i16 {}
    impl Plain for i32 {}
    impl Plain for f32 {}
}
pub(crate) use sealed::Plain;

/// `len` elements on a 64-byte boundary, of unspecified (but initialised) contents.
pub(crate) struct Buffer<T> {
    lines: Vec<Line>,
    len: usize,
    _element: PhantomData<T>,
}

/// Buffers that were given back, oldest first: at most [`KEPT_BUFFERS`], with at most [`KEPT_BYTES`] in total.
static KEPT: Mutex<VecDeque<Vec<Line>>> = Mutex::new(VecDeque::new());
const KEPT_BUFFERS: usize = 64;
const KEPT_BYTES: usize = 64 << 20;

/// Attempts to lock the kept buffers, some cycles apart: far longer in total than a holder keeps the lock.
const ATTEMPTS: usize = 1000;

/// The kept buffers; `None` if the lock is not free soon. In the child of a fork it is never free if another thread of
/// the parent held it at the fork: that thread does not exist in the child.
fn kept() -> Option<MutexGuard<'static, VecDeque<Vec<Line>>>> {
    for _ in 0..ATTEMPTS {
        match KEPT.try_lock() {
            Ok(kept) => return Some(kept),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
        }
    }
    None
}

/// The same memory as elements that are no larger.
pub(crate) fn cast<T: Plain, U: Plain>(slice: &[T]) -> &[U] {
    const { assert!(size_of::<U>() <= size_of::<T>() && align_of::<U>() <= align_of::<T>()) };
    // SAFETY: the memory is aligned for `U` and as long; any bits are a value of both types.
    unsafe { std::slice::from_raw_parts(slice.as_ptr().cast(), size_of_val(slice) / size_of::<U>()) }
}

/// [`cast`], to be written.
pub(crate) fn cast_mut<T: Plain, U: Plain>(slice: &mut [T]) -> &mut [U] {
    const { assert!(size_of::<U>() <= size_of::<T>() && align_of::<U>() <= align_of::<T>()) };
    // SAFETY: as in `cast`, and `slice` is borrowed mutably.
    unsafe { std::slice::from_raw_parts_mut(slice.as_mut_ptr().cast(), size_of_val(slice) / size_of::<U>()) }
}

impl<T: Plain> Buffer<T> {
    /// Takes a kept buffer that is large enough but not wasteful, or makes one.
    pub(crate) fn new(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>()).expect("a buffer's bytes can be counted");
        let count = bytes.div_ceil(size_of::<Line>());
        // Panels live as long as their layer, and the excess of an oversized buffer would be wasted that long.
        let fits = |lines: &Vec<Line>| (count..=count + count / 8 + 64).contains(&lines.len());
        let found = kept().and_then(|mut kept| kept.iter().rposition(fits).and_then(|index| kept.remove(index)));
        let lines = found.unwrap_or_else(|| vec![Line([0; 64]); count]);
        Buffer { lines, len, _element: PhantomData }
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: the lines are initialised, aligned to 64 and hold at least `len` elements of a type for which any
        // bits are a value.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines.is_empty() || size_of_val(&lines[..]) > KEPT_BYTES {
            return;
        }
        let Some(mut kept) = kept() else { return };
        kept.push_back(lines);
        while kept.len() > KEPT_BUFFERS || kept.iter().map(|lines| size_of_val(&lines[..])).sum::<usize>() > KEPT_BYTES
        {
            kept.pop_front();
        }
    }
}

impl<T: Plain> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut copy = Buffer::new(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

impl<T: Plain + std::fmt::Debug> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_nobody_will_release_stops_nothing() {
        let held = KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let made = std::thread::spawn(|| {
            let mut buffer = Buffer::<i32>::new(1000);
            buffer.as_mut_slice().fill(7);
            (buffer.as_slice().len(), buffer.as_slice()[999])
        });
        assert_eq!(made.join().expect("no panic"), (1000, 7));
        drop(held);
    }

    #[test]
    fn no_more_is_kept_than_the_limits_say() {
        // Many small buffers, few large ones, and all sizes in between; one of 65 MiB alone is too large to be kept.
        let sizes = [vec![4096; 100], vec![2 << 20; 40], (1..200).map(|i| i * 5000).collect(), vec![65 << 20]].concat();
        let mut alive = Vec::new();
        for (index, &bytes) in sizes.iter().enumerate() {
            alive.push(Buffer::<u8>::new(bytes));
            if index % 100 == 99 || index + 1 == sizes.len() {
                for buffer in alive.drain(..) {
                    drop(buffer);
                    let kept = KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    assert!(kept.len() <= 64, "{} buffers", kept.len());
                    let bytes = kept.iter().map(|lines| size_of_val(&lines[..])).sum::<usize>();
                    assert!(bytes <= 64 << 20, "{bytes} bytes");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a buffer's bytes can be counted")]
    fn a_length_that_overflows_is_not_wrapped() {
        // 2^62 + 16 floats would wrap to 64 bytes.
        Buffer::<f32>::new((1 << 62) + 16);
    }
}
