//! Memory for results, which tasks and tiles write side by side.

use std::marker::PhantomData;
use std::ops::Range;

use super::isa::{Isa, LANES};
use super::panels::PANEL;

/// A rectangle of a row-major matrix, which belongs to the holder of the value. What is split off is a rectangle of its
/// own, so that tasks share a matrix but no element.
#[derive(Debug)]
pub(crate) struct OutputBlock<'a> {
    pointer: *mut f32,
    /// Elements from one row to the next.
    stride: usize,
    rows: usize,
    columns: usize,
    _borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: a block acts as a `&mut` to its elements, which are in no other block.
unsafe impl Send for OutputBlock<'_> {}
// SAFETY: a shared reference only gives the numbers of rows and columns.
unsafe impl Sync for OutputBlock<'_> {}

impl<'a> OutputBlock<'a> {
    /// A whole matrix.
    pub(crate) fn new(memory: &'a mut [f32], (rows, columns): (usize, usize)) -> Self {
        assert!(rows.checked_mul(columns) == Some(memory.len()), "as many elements");
        OutputBlock { pointer: memory.as_mut_ptr(), stride: columns, rows, columns, _borrowed: PhantomData }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// The rectangle of these rows and columns, for as long as this one is borrowed.
    #[inline(always)]
    pub(crate) fn part(&mut self, rows: Range<usize>, columns: Range<usize>) -> OutputBlock<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows that there are");
        assert!(columns.start <= columns.end && columns.end <= self.columns, "columns that there are");
        // The pointer is only formed: it may be that of an empty rectangle past the last element.
        let pointer = self.pointer.wrapping_add(rows.start * self.stride + columns.start);
        OutputBlock { pointer, stride: self.stride, rows: rows.len(), columns: columns.len(), _borrowed: PhantomData }
    }

    /// Splits off the first `count` rows.
    pub(crate) fn take_rows(&mut self, count: usize) -> OutputBlock<'a> {
        let OutputBlock { pointer, .. } = self.part(0..count, 0..self.columns);
        let taken = OutputBlock { pointer, rows: count, ..*self };
        self.pointer = pointer.wrapping_add(count * self.stride);
        self.rows -= count;
        taken
    }

    /// Splits off the first `count` columns.
    pub(crate) fn take_columns(&mut self, count: usize) -> OutputBlock<'a> {
        let OutputBlock { pointer, .. } = self.part(0..self.rows, 0..count);
        let taken = OutputBlock { pointer, columns: count, ..*self };
        self.pointer = pointer.wrapping_add(count);
        self.columns -= count;
        taken
    }

    /// Splits off the columns from `first` on.
    pub(crate) fn take_columns_from(&mut self, first: usize) -> OutputBlock<'a> {
        let mut before = self.take_columns(first);
        std::mem::swap(self, &mut before);
        before
    }

    /// The first columns: a panel of them, or as many as there are.
    ///
    /// # Safety
    /// The block stays borrowed, and is used for nothing else, while the tile is in use.
    #[inline(always)]
    pub(super) unsafe fn tile(&mut self) -> OutputTile {
        OutputTile { pointer: self.pointer, stride: self.stride, columns: self.columns.min(PANEL) }
    }
}

/// Where the results of a panel go: up to [`PANEL`] columns of an [`OutputBlock`].
#[derive(Clone, Copy)]
pub(crate) struct OutputTile {
    pointer: *mut f32,
    stride: usize,
    columns: usize,
}

impl OutputTile {
    /// Where the elements of row `row` in vector `vector` start, and their number.
    #[inline(always)]
    fn at(&self, row: usize, vector: usize) -> (*mut f32, usize) {
        let pointer = self.pointer.wrapping_add(row * self.stride).wrapping_add(vector * LANES);
        (pointer, self.columns.saturating_sub(vector * LANES).min(LANES))
    }

    /// Whether the tile has all columns of its first `vectors` vectors.
    #[inline(always)]
    pub(super) fn is_whole(&self, vectors: usize) -> bool {
        self.columns >= vectors * LANES
    }

    /// # Safety
    /// `row` is one of the block's rows, and the tile has all columns of the vector.
    #[inline(always)]
    pub(super) unsafe fn store_whole<S: Isa>(&self, isa: S, row: usize, vector: usize, value: S::F) {
        // SAFETY: elements of the block, which is borrowed for this tile.
        unsafe { isa.store_ptr(self.at(row, vector).0, value) }
    }

    /// MR rows of NV vectors, from `row` and `vector` on.
    ///
    /// # Safety
    /// The block has the rows, and the tile all columns of the vectors.
    #[inline(always)]
    pub(super) unsafe fn whole<S: Isa, const MR: usize, const NV: usize>(
        &self,
        isa: S,
        row: usize,
        vector: usize,
    ) -> [[S::F; NV]; MR] {
        let mut loaded = [[isa.splat(0.0); NV]; MR];
        for i in 0..MR {
            for v in 0..NV {
                // SAFETY: elements of the block, which is borrowed for this tile.
                loaded[i][v] = unsafe { isa.load_ptr(self.at(row + i, vector + v).0) };
            }
        }
        loaded
    }

    /// Prefetches the memory of a vector: each of the rows below one another lies on another page.
    #[inline(always)]
    pub(super) fn prefetch<S: Isa>(&self, isa: S, row: usize, vector: usize) {
        isa.prefetch(self.at(row, vector).0);
    }

    /// # Safety
    /// `row` is one of the block's rows.
    #[inline(always)]
    pub(super) unsafe fn store<S: Isa>(&self, isa: S, row: usize, vector: usize, value: S::F) {
        let (pointer, count) = self.at(row, vector);
        // SAFETY: these are `count` elements of a row of the block, which is borrowed for this tile.
        unsafe {
            if count == LANES {
                isa.store_ptr(pointer, value);
            } else if count > 0 {
                isa.store_first(std::slice::from_raw_parts_mut(pointer, count), value);
            }
        }
    }

    /// # Safety
    /// `row` is one of the block's rows.
    #[inline(always)]
    pub(super) unsafe fn load<S: Isa>(&self, isa: S, row: usize, vector: usize) -> S::F {
        let (pointer, count) = self.at(row, vector);
        // SAFETY: as in `store`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::microkernel::portable::Portable;

    /// Writes `number` into each element of a block that is up to two vectors wide.
    fn fill(mut block: OutputBlock<'_>, number: f32) {
        // SAFETY: the block is used for nothing else, and the rows are its own.
        unsafe {
            let tile = block.tile();
            for (row, vector) in (0..block.rows()).flat_map(|row| [(row, 0), (row, 1)]) {
                tile.store(Portable, row, vector, Portable.splat(number));
            }
        }
    }

    #[test]
    fn blocks_share_no_element() {
        let mut memory = vec![0.0; 5 * 20];
        let mut rest = OutputBlock::new(&mut memory, (5, 20));
        let mut top = rest.take_rows(2);
        let right = top.take_columns_from(17);
        let left = top.take_columns(3);
        fill(rest.part(1..3, 4..20), 5.0);
        for (number, block) in [(1.0, left), (2.0, top), (3.0, right)] {
            fill(block, number);
        }
        let top = [[1.0; 3].as_slice(), &[2.0; 14], &[3.0; 3]].concat();
        let bottom = [[0.0; 4].as_slice(), &[5.0; 16]].concat();
        assert_eq!(memory, [&top[..], &top, &[0.0; 20], &bottom, &bottom].concat());
    }

    #[test]
    #[should_panic(expected = "columns that there are")]
    fn a_block_ends_where_its_columns_end() {
        OutputBlock::new(&mut [0.0; 6], (2, 3)).part(0..2, 0..4);
    }

    #[test]
    #[should_panic(expected = "rows that there are")]
    fn a_block_ends_where_its_rows_end() {
        OutputBlock::new(&mut [0.0; 6], (2, 3)).take_rows(3);
    }
}
