//! Packed codes are multiplied where they are in their bytes, which multiplies each by a power of two; the sums are
//! divided by it at the end. For a few rows, the shifts of unpacking would be as much work as the products.

use super::blocks::{dot_group, load_block};
use super::small::{small_groups, widen_all};
use crate::microkernel::isa::{Isa, TileOrigin};
use crate::microkernel::panels::BLOCK_BYTES;

/// [`super::small::small_tile`] for a single row and codes of 1 or 2 bits: each place in a half byte has its own sums
/// of 16 bits.
///
/// # Safety
/// As [`TileOrigin`] says, for MR rows and NV vectors.
#[inline(always)]
pub(super) unsafe fn nibble_tile<S: Isa, const BITS: u32, const MR: usize, const NV: usize>(
    isa: S,
    origin: TileOrigin,
    start: [i32; MR],
) -> [[S::I; NV]; MR] {
    let groups = origin.groups;
    let (slots, places) = (8 / BITS as usize, 4 / BITS as usize);
    // A place holds two groups of each block.
    let blocks_at_once = small_groups(((1 << BITS) - 1) << (4 - BITS)) / 2;
    let mut sums = [[[isa.splat_i(0); NV]; MR]; 4];
    let blocks = groups.div_ceil(slots);
    let mut first = 0;
    // SAFETY: every access below is to a block that holds one of `groups` groups, and to a group of `codes`.
    unsafe {
        while first < blocks {
            let mut small = [[[isa.splat_i(0); NV]; MR]; 4];
            let end = blocks.min(first + blocks_at_once);
            for index in first..end {
                let block = origin.panel.add(index * BLOCK_BYTES);
                origin.prefetch::<S, BITS, BITS, NV>(isa, index);
                let low = load_block::<S, NV>(isa, block);
                let mut high = low;
                for v in 0..NV {
                    high[v] = isa.shr::<4>(low[v]);
                }
                let at = 4 * index * slots;
                let remaining = groups - index * slots;
                for s in 0..slots {
                    // The last block may have fewer slots. A variable end of the loop would keep the sums in memory.
                    if s < remaining {
                        let stored = masked::<S, BITS, NV>(isa, if s < places { &low } else { &high }, s % places);
                        dot_group::<S, true, MR, NV>(isa, &mut small[s % places], &stored, origin, at + 4 * s);
                    }
                }
            }
            for place in 0..places {
                widen_all(isa, &mut sums[place], &small[place]);
            }
            first = end;
        }
    }
    joined::<S, BITS, MR, NV>(isa, &sums[..places], places, start)
}

/// Groups up to which [`slot_tile`]'s sums fit: 255 * 127 * 4 * 2^14 < 2^31.
pub(super) const SLOT_CHAIN_GROUPS: usize = 1 << 14;

/// [`super::wide::wide_tile`] for few rows: each place in a byte has its own chain.
///
/// # Safety
/// As [`TileOrigin`] says, for MR rows and NV vectors.
#[inline(always)]
pub(super) unsafe fn slot_tile<S: Isa, const BITS: u32, const MR: usize, const NV: usize>(
    isa: S,
    origin: TileOrigin,
    start: [i32; MR],
) -> [[S::I; NV]; MR] {
    let groups = origin.groups;
    let slots = 8 / BITS as usize;
    // Enough chains to hide the latency of a product.
    let phases = if slots * MR < 4 { 2 } else { 1 };
    let mut chains = [[[isa.splat_i(0); NV]; MR]; 8];

    let whole = groups / (slots * phases);
    // SAFETY: every access below is to a block that holds one of `groups` groups, and to a group of `codes`.
    unsafe {
        for step in 0..whole {
            for phase in 0..phases {
                let index = step * phases + phase;
                let block = origin.panel.add(index * BLOCK_BYTES);
                origin.prefetch::<S, BITS, BITS, NV>(isa, index);
                let vectors = load_block::<S, NV>(isa, block);
                for s in 0..slots {
                    let stored = masked::<S, BITS, NV>(isa, &vectors, s);
                    let chain = &mut chains[phase * slots + s];
                    dot_group::<S, false, MR, NV>(isa, chain, &stored, origin, 4 * (index * slots + s));
                }
            }
        }
        for index in whole * phases..groups.div_ceil(slots) {
            let vectors = load_block::<S, NV>(isa, origin.panel.add(index * BLOCK_BYTES));
            for s in 0..slots.min(groups - index * slots) {
                let stored = masked::<S, BITS, NV>(isa, &vectors, s);
                dot_group::<S, false, MR, NV>(isa, &mut chains[s], &stored, origin, 4 * (index * slots + s));
            }
        }
    }
    joined::<S, BITS, MR, NV>(isa, &chains[..phases * slots], slots, start)
}

/// The sums of chains whose codes are multiplied by 2^(BITS * place); a chain's place is its index modulo `places`.
#[inline(always)]
pub(super) fn joined<S: Isa, const BITS: u32, const MR: usize, const NV: usize>(
    isa: S,
    chains: &[[[S::I; NV]; MR]],
    places: usize,
    start: [i32; MR],
) -> [[S::I; NV]; MR] {
    let mut total = [[isa.splat_i(0); NV]; MR];
    for row in 0..MR {
        for v in 0..NV {
            let mut sum = isa.splat_i(0);
            for (index, chain) in chains.iter().enumerate() {
                sum = isa.add_i(sum, shifted::<S, BITS>(isa, chain[row][v], index % places));
            }
            // A single bit stands for 0 or 2.
            let sum = if BITS == 1 { isa.shl::<1>(sum) } else { sum };
            total[row][v] = isa.add_i(sum, isa.splat_i(start[row]));
        }
    }
    total
}

/// The stored codes of group `slot` of a block, times 2^(BITS * slot).
#[inline(always)]
pub(super) fn masked<S: Isa, const BITS: u32, const NV: usize>(isa: S, block: &[S::I; NV], slot: usize) -> [S::I; NV] {
    let mask = ((1u32 << BITS) - 1) << (BITS as usize * slot);
    let mut masked = *block;
    for vector in &mut masked {
        *vector = isa.and(*vector, isa.splat_byte(mask as u8));
    }
    masked
}

/// `sum` / 2^(BITS * slot).
#[inline(always)]
fn shifted<S: Isa, const BITS: u32>(isa: S, sum: S::I, slot: usize) -> S::I {
    match BITS as usize * slot {
        0 => sum,
        1 => isa.sar::<1>(sum),
        2 => isa.sar::<2>(sum),
        3 => isa.sar::<3>(sum),
        4 => isa.sar::<4>(sum),
        5 => isa.sar::<5>(sum),
        6 => isa.sar::<6>(sum),
        _ => isa.sar::<7>(sum),
    }
}
