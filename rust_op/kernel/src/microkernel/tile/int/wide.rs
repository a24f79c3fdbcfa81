//! Sums of 32 bits from the first product on.

use super::blocks::{dot_group, load_block, slots_of};
use crate::microkernel::isa::{Isa, TileOrigin};
use crate::microkernel::panels::BLOCK_BYTES;

/// Sums of MR rows of codes with NV vectors of columns, in `U` chains each.
///
/// # Safety
/// As [`TileOrigin`] says, for MR rows and NV vectors.
#[inline(always)]
pub(super) unsafe fn wide_tile<S: Isa, const SIZE: u32, const MR: usize, const NV: usize, const U: usize>(
    isa: S,
    origin: TileOrigin,
    start: [i32; MR],
) -> [[S::I; NV]; MR] {
    let groups = origin.groups;
    let slots = 8 / SIZE as usize;
    let mut sums = [[[isa.splat_i(0); NV]; MR]; U];
    for row in 0..MR {
        sums[0][row] = [isa.splat_i(start[row]); NV];
    }

    let blocks_at_once = if SIZE == 8 { U } else { 1 };
    let mut group = 0;
    let mut block = origin.panel;
    // SAFETY: every access below is to a block that holds one of `groups` groups, and to a group of `codes`.
    unsafe {
        while group + blocks_at_once * slots <= groups {
            for index in 0..blocks_at_once {
                let block = block.add(index * BLOCK_BYTES);
                origin.prefetch::<S, SIZE, SIZE, NV>(isa, group / slots + index);
                let vectors = load_block::<S, NV>(isa, block);
                for s in 0..slots {
                    let chain = &mut sums[(index * slots + s) % U];
                    let stored = slots_of::<S, SIZE, NV>(isa, &vectors, s);
                    dot_group::<S, false, MR, NV>(isa, chain, &stored, origin, 4 * (group + index * slots + s));
                }
            }
            group += blocks_at_once * slots;
            block = block.add(blocks_at_once * BLOCK_BYTES);
        }
        while group < groups {
            let vectors = load_block::<S, NV>(isa, block);
            for s in 0..slots.min(groups - group) {
                let stored = slots_of::<S, SIZE, NV>(isa, &vectors, s);
                dot_group::<S, false, MR, NV>(isa, &mut sums[0], &stored, origin, 4 * (group + s));
            }
            group += slots;
            block = block.add(BLOCK_BYTES);
        }
    }

    let mut total = sums[0];
    for chain in &sums[1..] {
        for row in 0..MR {
            for v in 0..NV {
                total[row][v] = isa.add_i(total[row][v], chain[row][v]);
            }
        }
    }
    total
}
