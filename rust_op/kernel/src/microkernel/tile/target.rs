//! Memory that tiles and tasks write at places of their own.

use std::marker::PhantomData;

use super::PANEL;
use crate::microkernel::isa::{Isa, LANES};

/// Where a panel's results go: up to [`PANEL`] columns of rows `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pointer: *mut f32,
    stride: usize,
    columns: usize,
}

impl Target {
    /// # Safety
    /// Until the target is dropped, `pointer` is valid for reads and writes of `columns` elements of each row that
    /// a product is asked for, and nothing else reads or writes them.
    pub(crate) unsafe fn new(pointer: *mut f32, stride: usize, columns: usize) -> Self {
        Target { pointer, stride, columns: columns.min(PANEL) }
    }

    /// Elements of row `row` in `vector`, and where they start.
    #[inline(always)]
    fn at(&self, row: usize, vector: usize) -> (*mut f32, usize) {
        // SAFETY: only formed, not read; rows and columns are those of the contract of `new`.
        let pointer = unsafe { self.pointer.add(row * self.stride) }.wrapping_add(vector * LANES);
        (pointer, self.columns.saturating_sub(vector * LANES).min(LANES))
    }

    /// Asks for the memory, which the rows that lie one below the other have each on another page.
    ///
    /// # Safety
    /// `row` is one of the rows of the contract of [`Target::new`].
    #[inline(always)]
    pub(super) unsafe fn fetch<S: Isa>(&self, isa: S, row: usize, vector: usize) {
        isa.prefetch(self.at(row, vector).0);
    }

    /// # Safety
    /// `row` is one of the rows of the contract of [`Target::new`].
    #[inline(always)]
    pub(super) unsafe fn store<S: Isa>(&self, isa: S, row: usize, vector: usize, value: S::F) {
        let (pointer, count) = self.at(row, vector);
        // SAFETY: `count` elements from `pointer` on are ours.
        unsafe {
            if count == LANES {
                isa.store_ptr(pointer, value);
            } else if count > 0 {
                isa.store_first(std::slice::from_raw_parts_mut(pointer, count), value);
            }
        }
    }

    /// # Safety
    /// `row` is one of the rows of the contract of [`Target::new`].
    #[inline(always)]
    pub(super) unsafe fn load<S: Isa>(&self, isa: S, row: usize, vector: usize) -> S::F {
        let (pointer, count) = self.at(row, vector);
        // SAFETY: `count` elements from `pointer` on are ours.
        unsafe {
            if count == LANES {
                isa.load_ptr(pointer)
            } else if count > 0 {
                isa.load_first(std::slice::from_raw_parts(pointer, count))
            } else {
                isa.splat(0.0)
            }
        }
    }
}

/// Rows of memory, `stride` apart, that several tasks write at disjoint places.
pub(crate) struct SharedRows<'a> {
    pointer: *mut f32,
    stride: usize,
    length: usize,
    _borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: reaching the memory is unsafe, and asks for disjoint places.
unsafe impl Send for SharedRows<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    pub(crate) fn new(memory: &'a mut [f32], stride: usize) -> Self {
        SharedRows { pointer: memory.as_mut_ptr(), stride, length: memory.len(), _borrowed: PhantomData }
    }

    /// Element `column` of row `row`.
    ///
    /// # Safety
    /// The element exists; whoever writes through the pointer writes what no other task reads or writes.
    #[inline(always)]
    pub(crate) unsafe fn at(&self, row: usize, column: usize) -> *mut f32 {
        debug_assert!(row * self.stride + column < self.length);
        // SAFETY: the element exists.
        unsafe { self.pointer.add(row * self.stride + column) }
    }
}
