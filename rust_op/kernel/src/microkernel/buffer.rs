//! Memory for panels and scratch: aligned to cache lines, never handed out uninitialised; scratch is reused.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// Whether the memory is the pool's.
    pooled: bool,
    _element: PhantomData<T>,
}

/// Memory for scratch: what is in use, and what was given back and is kept.
struct Pool {
    /// What was given back, oldest first.
    kept: VecDeque<Vec<Line>>,
    /// Lines that are kept.
    unused: usize,
    /// Lines in use.
    used: usize,
    /// The most lines that were in use at once. No more are ever held: what the phases of a call, and the calls of a
    /// network, take one after another does not add up.
    most: usize,
}

/// What the pool keeps no longer: to be freed once the lock is free.
type Excess = Vec<Vec<Line>>;

static POOL: Mutex<Pool> = Mutex::new(Pool::new());
/// Lines that the pool counts as in use, but that were freed because its lock was not free.
static LOST: AtomicUsize = AtomicUsize::new(0);
/// At most so many buffers are kept, with at most so many bytes in total.
const KEPT_BUFFERS: usize = 64;
const KEPT_BYTES: usize = 64 << 20;

/// Attempts to lock the pool, some cycles apart: far longer in total than a holder keeps the lock.
const ATTEMPTS: usize = 1000;

/// The pool; `None` if the lock is not free soon. In the child of a fork it is never free if another thread of the
/// parent held it at the fork: that thread does not exist in the child.
fn pool() -> Option<MutexGuard<'static, Pool>> {
    for _ in 0..ATTEMPTS {
        let mut pool = match POOL.try_lock() {
            Ok(pool) => pool,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                std::hint::spin_loop();
                continue;
            }
        };
        pool.used -= LOST.swap(0, Ordering::Relaxed);
        return Some(pool);
    }
    None
}

impl Pool {
    const fn new() -> Self {
        Pool { kept: VecDeque::new(), unused: 0, used: 0, most: 0 }
    }

    /// Takes the smallest kept buffer of at least `count` lines, the newest of these; `None` if the caller has to make
    /// one. None is taken that has more lines only to have more in use than ever before. Also what is kept no longer.
    fn take(&mut self, count: usize) -> (Option<Vec<Line>>, Excess) {
        let most = count.max(self.most.saturating_sub(self.used));
        let fitting = self.kept.iter().enumerate().rev().filter(|(_, lines)| (count..=most).contains(&lines.len()));
        let smallest = fitting.min_by_key(|(_, lines)| lines.len()).map(|(index, _)| index);
        let found = smallest.and_then(|index| self.kept.remove(index));
        self.unused -= found.as_ref().map_or(0, Vec::len);
        self.used += found.as_ref().map_or(count, Vec::len);
        self.most = self.most.max(self.used);
        (found, self.trim())
    }

    fn give_back(&mut self, lines: Vec<Line>) -> Excess {
        self.used -= lines.len();
        self.unused += lines.len();
        self.kept.push_back(lines);
        self.trim()
    }

    fn trim(&mut self) -> Excess {
        let limit = (KEPT_BYTES / size_of::<Line>()).min(self.most.saturating_sub(self.used));
        let mut excess = Excess::new();
        while self.kept.len() > KEPT_BUFFERS || self.unused > limit {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.unused -= oldest.len();
            excess.push(oldest);
        }
        excess
    }
}

/// Bytes of a huge page, and the least memory that is worth two of them at its ends.
const HUGE_PAGE: usize = 2 << 20;

/// Asks the system to back `memory`, which nobody has written yet, with huge pages, if it is large: a processor fetches
/// ahead no further than to the end of a page, and remembers few of them. Where the system refuses, nothing changes.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(memory: &mut [MaybeUninit<Line>]) {
    let (first, bytes) = (memory.as_mut_ptr().cast::<u8>(), size_of_val(memory));
    let skipped = first.align_offset(HUGE_PAGE);
    let whole = bytes.saturating_sub(skipped) / HUGE_PAGE * HUGE_PAGE;
    if whole >= 2 * HUGE_PAGE {
        // SAFETY: whole pages within `memory`; the advice changes how they are backed, not what they hold.
        unsafe { libc::madvise(first.add(skipped).cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_memory: &mut [MaybeUninit<Line>]) {}

/// Lines for `len` elements of `T`.
fn lines_for<T>(len: usize) -> usize {
    let bytes = len.checked_mul(size_of::<T>()).expect("a buffer's bytes can be counted");
    bytes.div_ceil(size_of::<Line>())
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
    /// Scratch, from the pool.
    pub(crate) fn new(len: usize) -> Self {
        let count = lines_for::<T>(len);
        let taken = pool().map(|mut pool| pool.take(count));
        let pooled = taken.is_some();
        // Its memory is freed here, where nobody waits for the lock.
        let found = taken.and_then(|(found, _excess)| found);
        let lines = found.unwrap_or_else(|| vec![Line([0; 64]); count]);
        Buffer { lines, len, pooled, _element: PhantomData }
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
        if self.pooled && !lines.is_empty() {
            let count = lines.len();
            let excess = pool().map(|mut pool| pool.give_back(lines));
            if excess.is_none() {
                LOST.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}

impl<T: Plain> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Buffer { lines: self.lines.clone(), len: self.len, pooled: false, _element: PhantomData }
    }
}

impl<T: Plain + std::fmt::Debug> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish()
    }
}

/// A buffer that is not the pool's, and is freed when it is dropped, before its parts are filled.
pub(crate) struct Unfilled<T> {
    /// Empty, with capacity for all lines.
    lines: Vec<Line>,
    len: usize,
    /// Elements in parts, and those of them that are initialised.
    parts: usize,
    filled: AtomicUsize,
    _element: PhantomData<T>,
}

impl<T: Plain> Unfilled<T> {
    pub(crate) fn new(len: usize) -> Self {
        let mut lines = Vec::with_capacity(lines_for::<T>(len));
        ask_for_huge_pages(lines.spare_capacity_mut());
        Unfilled { lines, len, parts: 0, filled: AtomicUsize::new(0), _element: PhantomData }
    }

    /// The first `count` elements, in parts of `size`. Each part is to be filled before [`Unfilled::finish`].
    pub(crate) fn parts(&mut self, count: usize, size: usize) -> impl ExactSizeIterator<Item = Part<'_, T>> {
        assert!(count <= self.len && self.parts == 0);
        self.parts = count;
        // SAFETY: the capacity holds at least `len` elements, aligned; whether they are initialised does not matter.
        let elements = unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), count) };
        elements.chunks_mut(size).map(|elements| Part { elements, filled: &self.filled })
    }

    /// The buffer; what is in no part becomes 0.
    pub(crate) fn finish(mut self) -> Buffer<T> {
        assert_eq!(self.filled.into_inner(), self.parts, "every part is filled");
        let lines = lines_for::<T>(self.len);
        let rest = lines * size_of::<Line>() - self.parts * size_of::<T>();
        // SAFETY: the capacity holds `lines` lines, of which the elements of all parts and then the rest are initialised.
        unsafe {
            self.lines.as_mut_ptr().cast::<T>().add(self.parts).cast::<u8>().write_bytes(0, rest);
            self.lines.set_len(lines);
        }
        Buffer { lines: self.lines, len: self.len, pooled: false, _element: PhantomData }
    }
}

/// Some elements of an [`Unfilled`].
pub(crate) struct Part<'a, T> {
    elements: &'a mut [MaybeUninit<T>],
    filled: &'a AtomicUsize,
}

impl<'a, T: Plain> Part<'a, T> {
    /// The elements, zeros at first: written by the thread that goes on to fill them, whose cache then holds them.
    pub(crate) fn zeroed(self) -> &'a mut [T] {
        let (start, count) = (self.elements.as_mut_ptr().cast::<T>(), self.elements.len());
        self.filled.fetch_add(count, Ordering::Relaxed);
        // SAFETY: these are the elements, which nothing else refers to; zero bits are a value.
        unsafe {
            start.write_bytes(0, count);
            std::slice::from_raw_parts_mut(start, count)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_nobody_will_release_stops_nothing() {
        let taken = Buffer::<i32>::new(1000);
        let held = POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let made = std::thread::spawn(|| {
            drop(taken);
            let mut buffer = Buffer::<i32>::new(1000);
            buffer.as_mut_slice().fill(7);
            (buffer.as_slice().len(), buffer.as_slice()[999])
        });
        assert_eq!(made.join().expect("no panic"), (1000, 7));
        // What could not be given back will no longer be counted as in use.
        assert!(LOST.load(Ordering::Relaxed) >= lines_for::<i32>(1000));
        drop(held);
    }

    fn kept(pool: &Pool) -> Vec<usize> {
        pool.kept.iter().map(Vec::len).collect()
    }

    /// Takes buffers of these lines at once and gives them back, first to last; returns how many had to be made.
    fn phase(pool: &mut Pool, counts: &[usize]) -> usize {
        let mut made = 0;
        let mut make = |count| {
            made += 1;
            vec![Line([0; 64]); count]
        };
        let taken: Vec<_> = counts.iter().map(|&count| pool.take(count).0.unwrap_or_else(|| make(count))).collect();
        taken.into_iter().for_each(|lines| drop(pool.give_back(lines)));
        assert_eq!(pool.used, 0);
        made
    }

    #[test]
    fn what_is_kept_is_no_more_than_what_was_in_use_at_once() {
        let mut pool = Pool::new();
        assert_eq!(phase(&mut pool, &[30, 20]), 2);
        assert_eq!(kept(&pool), [30, 20]);
        // Nothing kept is large enough, and 50 lines were the most: all make way.
        assert_eq!(phase(&mut pool, &[40]), 1);
        assert_eq!(kept(&pool), [40]);
        // With the oldest, 60 lines would be held.
        assert_eq!((phase(&mut pool, &[10, 10]), pool.most), (1, 50));
        assert_eq!(phase(&mut pool, &[60]), 1);
        assert_eq!((kept(&pool), pool.most), (vec![60], 60));
    }

    #[test]
    fn the_smallest_that_fits_is_taken_and_the_newest_of_these() {
        let mut pool = Pool::new();
        phase(&mut pool, &[30, 20, 25, 20]);
        let newest = pool.kept[3].as_ptr();
        let taken = pool.take(15).0.expect("there are four");
        assert_eq!((taken.len(), taken.as_ptr()), (20, newest));
        assert_eq!(kept(&pool), [30, 20, 25]);
        assert_eq!(pool.take(21).0.map(|lines| lines.len()), Some(25));
        assert_eq!(pool.take(31).0.map(|lines| lines.len()), None);
    }

    #[test]
    fn a_network_makes_no_memory_after_its_first_steps() {
        let layers: [&[usize]; 6] = [&[100], &[9, 9, 5], &[300, 20], &[48, 48, 48, 33], &[1], &[70, 3, 120, 4]];
        let mut pool = Pool::new();
        let mut step = || layers.iter().map(|layer| phase(&mut pool, layer)).sum::<usize>();
        assert!(step() > 0);
        let made: Vec<usize> = (0..10).map(|_| step()).collect();
        assert!(made[5..].iter().all(|made| *made == 0), "{made:?}");
        assert!(pool.most <= 2 * 320);
    }

    #[test]
    fn no_more_is_kept_than_the_limits_say() {
        let mut pool = Pool::new();
        let mut kept = |counts: &[usize]| {
            phase(&mut pool, counts);
            (pool.kept.len(), pool.kept.iter().map(Vec::len).sum::<usize>() * size_of::<Line>())
        };
        let lines = |bytes: usize| bytes / size_of::<Line>();
        assert_eq!(kept(&[lines(4096); 100]), (64, 64 * 4096));
        assert_eq!(kept(&[lines(2 << 20); 40]), (32, 64 << 20));
        assert_eq!(kept(&[lines(65 << 20)]), (0, 0));
    }

    #[test]
    #[should_panic(expected = "a buffer's bytes can be counted")]
    fn a_length_that_overflows_is_not_wrapped() {
        // 2^62 + 16 floats would wrap to 64 bytes.
        Buffer::<f32>::new((1 << 62) + 16);
    }

    #[test]
    fn what_is_in_no_part_is_zero() {
        let mut unfilled = Unfilled::<f32>::new(37);
        for (index, part) in unfilled.parts(20, 8).enumerate() {
            let part = part.zeroed();
            assert!(part.iter().all(|value| *value == 0.0));
            part.fill(index as f32 + 1.0);
        }
        let buffer = unfilled.finish();
        let expected = [vec![1.0; 8], vec![2.0; 8], vec![3.0; 4], vec![0.0; 17]].concat();
        assert_eq!(buffer.as_slice(), expected);
        assert_eq!(buffer.clone().as_slice(), expected);
        assert!(Unfilled::<u8>::new(0).finish().as_slice().is_empty());
    }

    #[test]
    #[should_panic(expected = "every part is filled")]
    fn a_part_that_is_not_filled_is_not_handed_out() {
        let mut unfilled = Unfilled::<u8>::new(128);
        for part in unfilled.parts(128, 64).take(1) {
            part.zeroed();
        }
        unfilled.finish();
    }
}
