//! Sums of 16 bits, which have room for some products of small codes.

use super::blocks::{dot_group, load_block, slots_of};
use crate::microkernel::isa::{Isa, TileOrigin};
use crate::microkernel::panels::BLOCK_BYTES;

/// Adds sums of 16 bits to those of 32.
#[inline(always)]
pub(super) fn widen_all<S: Isa, const MR: usize, const NV: usize>(
    isa: S,
    sums: &mut [[S::I; NV]; MR],
    small: &[[S::I; NV]; MR],
) {
    for row in 0..MR {
        for v in 0..NV {
            sums[row][v] = isa.widen(sums[row][v], small[row][v]);
        }
    }
}

/// The largest magnitude of a DAC code.
const LARGEST_CODE: i32 = 127;

/// How many groups of stored codes of up to `largest` a sum of 16 bits has room for: it takes two products of each.
pub(super) const fn small_groups(largest: i32) -> usize {
    (i16::MAX as i32 / (2 * largest * LARGEST_CODE)) as usize
}

/// Adds the products of a block whose groups are all there.
///
/// # Safety
/// As [`TileOrigin`] says, for MR rows and NV vectors.
#[inline(always)]
unsafe fn add_block<S: Isa, const BITS: u32, const SIZE: u32, const MR: usize, const NV: usize>(
    isa: S,
    small: &mut [[S::I; NV]; MR],
    origin: TileOrigin,
    index: usize,
) {
    let slots = 8 / SIZE as usize;
    origin.prefetch::<S, BITS, SIZE, NV>(isa, index);
    // SAFETY: the block is there by this function's contract, and so are its groups of codes.
    unsafe {
        let vectors = load_block::<S, NV>(isa, origin.panel.add(index * BLOCK_BYTES));
        for s in 0..slots {
            let stored = slots_of::<S, SIZE, NV>(isa, &vectors, s);
            dot_group::<S, true, MR, NV>(isa, small, &stored, origin, 4 * (index * slots + s));
        }
    }
}

/// [`super::wide::wide_tile`] for codes of fewer than 8 bits, in sums of 16 bits, which are added to sums of 32 bits
/// before they can overflow.
///
/// # Safety
/// As [`TileOrigin`] says, for MR rows and NV vectors.
#[inline(always)]
pub(super) unsafe fn small_tile<S: Isa, const BITS: u32, const SIZE: u32, const MR: usize, const NV: usize>(
    isa: S,
    origin: TileOrigin,
    start: [i32; MR],
) -> [[S::I; NV]; MR] {
    let groups = origin.groups;
    let slots = 8 / SIZE as usize;
    let largest = if BITS == 1 { 2 } else { (1 << BITS) - 1 };
    let blocks_at_once = small_groups(largest) / slots;
    let mut sums = [[isa.splat_i(0); NV]; MR];
    for row in 0..MR {
        sums[row] = [isa.splat_i(start[row]); NV];
    }
    let whole = groups / slots;
    let mut first = 0;
    // SAFETY: every access below is to a block that holds one of `groups` groups, and to a group of `codes`.
    unsafe {
        while first < whole {
            let mut small = [[isa.splat_i(0); NV]; MR];
            let end = whole.min(first + blocks_at_once);
            // The first block on its own: there is nothing yet to add its products to.
            add_block::<S, BITS, SIZE, MR, NV>(isa, &mut small, origin, first);
            for index in first + 1..end {
                add_block::<S, BITS, SIZE, MR, NV>(isa, &mut small, origin, index);
            }
            widen_all(isa, &mut sums, &small);
            first = end;
        }
        if whole * slots < groups {
            let mut small = [[isa.splat_i(0); NV]; MR];
            let vectors = load_block::<S, NV>(isa, origin.panel.add(whole * BLOCK_BYTES));
            for s in 0..groups - whole * slots {
                let stored = slots_of::<S, SIZE, NV>(isa, &vectors, s);
                dot_group::<S, true, MR, NV>(isa, &mut small, &stored, origin, 4 * (whole * slots + s));
            }
            widen_all(isa, &mut sums, &small);
        }
    }
    sums
}
