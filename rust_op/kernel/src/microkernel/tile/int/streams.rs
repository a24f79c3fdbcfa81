//! One row of codes with several panels side by side.
//!
//! Weights that lie in memory arrive sooner in several streams than in one: a core's prefetchers follow each of them
//! separately. Chains of sums are then needed for the panels alone.

use super::blocks::{dot_group, load_block};
use super::in_place::{SLOT_CHAIN_GROUPS, joined, masked};
use crate::microkernel::isa::{Isa, TileOrigin};
use crate::microkernel::panels::BLOCK_BYTES;

/// Panels that are read side by side.
pub(crate) const STREAMS: usize = 4;
/// Blocks of a panel that are read at once: four lines of the cache.
const BLOCKS: usize = 2;

/// Whether a row of `groups` groups is multiplied in this way with codes of `bits` bits, by a tier that can do so with
/// `streamed_bits`.
pub(crate) fn has_streams(streamed_bits: &[u32], bits: u32, groups: usize) -> bool {
    streamed_bits.contains(&bits) && (bits == 8 || groups <= SLOT_CHAIN_GROUPS)
}

/// Sums of one row with both vectors of each panel. `origin.panel` is not read.
///
/// # Safety
/// As [`TileOrigin`] says, for one row and two vectors, of each of the panels.
#[inline(always)]
pub(super) unsafe fn streams_tile<S: Isa, const BITS: u32, const SLOTS: usize>(
    isa: S,
    origin: TileOrigin,
    panels: [*const u8; STREAMS],
    start: i32,
) -> [[[S::I; 2]; 1]; STREAMS] {
    const { assert!(SLOTS == 8 / BITS as usize) };
    let groups = origin.groups;
    // Each place in a byte has its own chain.
    let mut chains = [[[[isa.splat_i(0); 2]; 1]; SLOTS]; STREAMS];
    let whole = groups / SLOTS;
    // SAFETY: every access below is to a block that holds one of `groups` groups, and to a group of `codes`.
    unsafe {
        let mut index = 0;
        while index + BLOCKS <= whole {
            for (panel, chains) in panels.iter().zip(&mut chains) {
                for index in index..index + BLOCKS {
                    let vectors = load_block::<S, 2>(isa, panel.add(index * BLOCK_BYTES));
                    for (s, chain) in chains.iter_mut().enumerate() {
                        let stored = if BITS == 8 { vectors } else { masked::<S, BITS, 2>(isa, &vectors, s) };
                        dot_group::<S, false, 1, 2>(isa, chain, &stored, origin, 4 * (index * SLOTS + s));
                    }
                }
            }
            index += BLOCKS;
        }
        for index in index..groups.div_ceil(SLOTS) {
            for (panel, chains) in panels.iter().zip(&mut chains) {
                let vectors = load_block::<S, 2>(isa, panel.add(index * BLOCK_BYTES));
                for (s, chain) in chains.iter_mut().enumerate().take(groups - index * SLOTS) {
                    let stored = if BITS == 8 { vectors } else { masked::<S, BITS, 2>(isa, &vectors, s) };
                    dot_group::<S, false, 1, 2>(isa, chain, &stored, origin, 4 * (index * SLOTS + s));
                }
            }
        }
    }
    let mut sums = [[[isa.splat_i(0); 2]; 1]; STREAMS];
    for (sums, chains) in sums.iter_mut().zip(&chains) {
        *sums = joined::<S, BITS, 1, 2>(isa, chains, SLOTS, [start]);
    }
    sums
}
