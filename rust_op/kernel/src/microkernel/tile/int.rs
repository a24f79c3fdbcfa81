//! Integer tiles: exact products of codes.

use super::target::Target;
use super::{BLOCK_BYTES, Scaling, Storage};
use crate::microkernel::isa::{Isa, LANES};

/// Rows of DAC codes.
#[derive(Clone, Copy)]
pub(crate) struct IntRows<'a> {
    pub(crate) codes: &'a [i8],
    pub(crate) stride: usize,
    /// Sum of the codes of each row.
    pub(crate) sums: &'a [i32],
    /// z of the weights that they meet.
    pub(crate) zero: i32,
    /// Whether these weights are too many for a core's own caches, so that panels are fetched ahead.
    pub(crate) fetch: bool,
}

/// z of `scaling.x_step.len()` rows of codes with one integer panel of `groups` groups.
///
/// # Safety
/// `target` holds that many rows.
#[inline(always)]
pub(crate) unsafe fn int_panel<S: Isa>(
    isa: S,
    storage: Storage,
    rows: &IntRows<'_>,
    panel: &[u8],
    groups: usize,
    scaling: &Scaling<'_>,
    target: Target,
) {
    // SAFETY: passed on.
    unsafe {
        match storage.bits {
            8 => int_panel_of::<S, 8>(isa, rows, panel, groups, scaling, target),
            4 => int_panel_of::<S, 4>(isa, rows, panel, groups, scaling, target),
            2 => int_panel_of::<S, 2>(isa, rows, panel, groups, scaling, target),
            _ => int_panel_of::<S, 1>(isa, rows, panel, groups, scaling, target),
        }
    }
}

/// # Safety
/// As [`int_panel`].
#[inline(always)]
unsafe fn int_panel_of<S: Isa, const BITS: u32>(
    isa: S,
    rows: &IntRows<'_>,
    panel: &[u8],
    groups: usize,
    scaling: &Scaling<'_>,
    target: Target,
) {
    let count = scaling.x_step.len();
    let (most, _) = S::INT_TILE;
    let mut row = 0;
    // SAFETY: passed on; `row + MR <= count` at each call.
    unsafe {
        while row < count {
            let left = count - row;
            // Unpacking takes registers that 12 rows do not leave.
            row += if BITS == 8 && most >= 12 && left >= 12 {
                int_rows::<S, BITS, 12, 1>(isa, rows, panel, groups, scaling, target, row)
            } else if most >= 8 && left >= 8 {
                int_rows::<S, BITS, 8, 1>(isa, rows, panel, groups, scaling, target, row)
            } else if left >= 4 {
                int_rows::<S, BITS, 4, 1>(isa, rows, panel, groups, scaling, target, row)
            } else if left >= 2 {
                int_rows::<S, BITS, 2, 2>(isa, rows, panel, groups, scaling, target, row)
            } else {
                int_rows::<S, BITS, 1, 4>(isa, rows, panel, groups, scaling, target, row)
            };
        }
    }
}

/// # Safety
/// As [`int_panel`]; rows `row..row + MR` exist.
#[inline(always)]
unsafe fn int_rows<S: Isa, const BITS: u32, const MR: usize, const U: usize>(
    isa: S,
    rows: &IntRows<'_>,
    panel: &[u8],
    groups: usize,
    scaling: &Scaling<'_>,
    target: Target,
    row: usize,
) -> usize {
    // SAFETY: passed on.
    unsafe {
        match S::INT_TILE.1 {
            2 => int_vectors::<S, BITS, MR, 2, U>(isa, rows, panel, groups, scaling, target, row, 0),
            _ => {
                int_vectors::<S, BITS, MR, 1, U>(isa, rows, panel, groups, scaling, target, row, 0);
                int_vectors::<S, BITS, MR, 1, U>(isa, rows, panel, groups, scaling, target, row, 1);
            }
        }
    }
    MR
}

/// # Safety
/// As [`int_panel`]; rows `row..row + MR` exist.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "an inlined part of one function")]
unsafe fn int_vectors<S: Isa, const BITS: u32, const MR: usize, const NV: usize, const U: usize>(
    isa: S,
    rows: &IntRows<'_>,
    panel: &[u8],
    groups: usize,
    scaling: &Scaling<'_>,
    target: Target,
    row: usize,
    vector: usize,
) {
    let storage = Storage { bits: BITS };
    debug_assert!(panel.len() >= groups.div_ceil(storage.groups()) * BLOCK_BYTES);
    debug_assert!(rows.codes.len() >= (row + MR - 1) * rows.stride + 4 * groups);
    let mut start = [0; MR];
    if S::OFFSET_CODES {
        for (start, sum) in start.iter_mut().zip(&rows.sums[row..row + MR]) {
            *start = -rows.zero * sum;
        }
    }
    // SAFETY: the slices hold what the assertions above say, which their makers keep; the target by contract.
    unsafe {
        let codes = rows.codes.as_ptr().add(row * rows.stride);
        let panel = panel.as_ptr().add(vector * 4 * LANES);
        let sums = if S::OFFSET_CODES && slot_chains::<BITS, MR>() && groups <= SLOT_CHAIN_GROUPS {
            slot_tile::<S, BITS, MR, NV>(isa, codes, rows.stride, panel, groups, start)
        } else {
            int_tile::<S, BITS, MR, NV, U>(isa, codes, rows.stride, panel, groups, rows.fetch, rows.zero, start)
        };
        for i in 0..MR {
            for v in 0..NV {
                let z = scaling.z(isa, row + i, vector + v, isa.to_float(sums[i][v]));
                target.store(isa, row + i, vector + v, z);
            }
        }
    }
}

/// The stored codes of group `slot` of a block, one a byte.
#[inline(always)]
fn slot<S: Isa, const BITS: u32>(isa: S, block: S::I, slot: usize) -> S::I {
    match BITS {
        8 => block,
        4 => {
            let nibbles = if slot == 0 { block } else { isa.shr::<4>(block) };
            isa.and(nibbles, isa.splat_byte(0x0F))
        }
        2 => {
            let pairs = match slot {
                0 => block,
                1 => isa.shr::<2>(block),
                2 => isa.shr::<4>(block),
                _ => isa.shr::<6>(block),
            };
            isa.and(pairs, isa.splat_byte(0x03))
        }
        _ => {
            let bits = match slot {
                0 => isa.shl::<1>(block),
                1 => block,
                2 => isa.shr::<1>(block),
                3 => isa.shr::<2>(block),
                4 => isa.shr::<3>(block),
                5 => isa.shr::<4>(block),
                6 => isa.shr::<5>(block),
                _ => isa.shr::<6>(block),
            };
            isa.and(bits, isa.splat_byte(0x02))
        }
    }
}

/// # Safety
/// `block` is valid for NV vectors.
#[inline(always)]
unsafe fn load_block<S: Isa, const NV: usize>(isa: S, block: *const u8) -> [S::I; NV] {
    let mut vectors = [isa.splat_i(0); NV];
    for (v, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: one of the NV vectors.
        *vector = unsafe { isa.load_i_ptr(block.add(v * 4 * LANES)) };
    }
    vectors
}

/// How far ahead of its use a panel is fetched. Panels follow one another.
const PREFETCH_BYTES: usize = 2048;

/// Fetches the block that is [`PREFETCH_BYTES`] after `block`.
#[inline(always)]
fn prefetch_ahead<S: Isa>(isa: S, block: *const u8) {
    for line in 0..BLOCK_BYTES / 64 {
        isa.prefetch(block.wrapping_add(PREFETCH_BYTES + 64 * line));
    }
}

/// Adds the products of one group.
///
/// # Safety
/// `codes` is valid for 4 codes of MR rows, `stride` apart.
#[inline(always)]
unsafe fn dot_group<S: Isa, const BITS: u32, const MR: usize, const NV: usize>(
    isa: S,
    sums: &mut [[S::I; NV]; MR],
    block: &[S::I; NV],
    slot_index: usize,
    codes: *const i8,
    stride: usize,
    zero: S::I,
) {
    let mut weights = [isa.weights(block[0], zero); NV];
    for v in 0..NV {
        weights[v] = isa.weights(slot::<S, BITS>(isa, block[v], slot_index), zero);
    }
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: 4 codes of one of the rows.
        let a = isa.splat_i(unsafe { codes.add(row * stride).cast::<i32>().read_unaligned() });
        for v in 0..NV {
            sums[v] = isa.dot(sums[v], weights[v], a);
        }
    }
}

/// Sums of MR rows of i8 codes with NV vectors of columns, in `U` chains each.
///
/// # Safety
/// `codes` is valid for `MR` rows, `stride` apart, of `4 * groups` bytes; `panel` for the blocks of `groups`
/// groups, of which the NV vectors from `panel` on are read.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "an inlined part of one function")]
unsafe fn int_tile<S: Isa, const BITS: u32, const MR: usize, const NV: usize, const U: usize>(
    isa: S,
    codes: *const i8,
    stride: usize,
    panel: *const u8,
    groups: usize,
    fetch: bool,
    zero: i32,
    start: [i32; MR],
) -> [[S::I; NV]; MR] {
    let slots = 8 / BITS as usize;
    let zero = isa.splat_byte(zero as u8);
    let mut sums = [[[isa.splat_i(0); NV]; MR]; U];
    for row in 0..MR {
        sums[0][row] = [isa.splat_i(start[row]); NV];
    }

    let blocks_at_once = if BITS == 8 { U } else { 1 };
    let mut group = 0;
    let mut block = panel;
    // SAFETY: every access below is to a block that holds one of `groups` groups, and to a group of `codes`.
    unsafe {
        while group + blocks_at_once * slots <= groups {
            for index in 0..blocks_at_once {
                let block = block.add(index * BLOCK_BYTES);
                if MR <= 8 && fetch {
                    prefetch_ahead(isa, block);
                }
                let vectors = load_block::<S, NV>(isa, block);
                for s in 0..slots {
                    let at = codes.add(4 * (group + index * slots + s));
                    let chain = &mut sums[(index * slots + s) % U];
                    dot_group::<S, BITS, MR, NV>(isa, chain, &vectors, s, at, stride, zero);
                }
            }
            group += blocks_at_once * slots;
            block = block.add(blocks_at_once * BLOCK_BYTES);
        }
        while group < groups {
            let vectors = load_block::<S, NV>(isa, block);
            for s in 0..slots.min(groups - group) {
                dot_group::<S, BITS, MR, NV>(isa, &mut sums[0], &vectors, s, codes.add(4 * (group + s)), stride, zero);
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

/// Groups up to which [`slot_tile`]'s sums fit: 255 * 127 * 4 * 2^14 < 2^31.
const SLOT_CHAIN_GROUPS: usize = 1 << 14;

/// Whether a tile of packed codes has few enough rows that its slots can have chains of their own.
const fn slot_chains<const BITS: u32, const MR: usize>() -> bool {
    BITS < 8 && MR * 8 / BITS as usize <= 8
}

/// [`int_tile`] for few rows of packed codes: a slot's codes are masked but left where they are in their bytes, times a
/// power of two, and summed in a chain of the slot's own that is shifted at the end. With few rows the shifts
/// would be as much work as the products.
///
/// # Safety
/// As [`int_tile`].
#[inline(always)]
unsafe fn slot_tile<S: Isa, const BITS: u32, const MR: usize, const NV: usize>(
    isa: S,
    codes: *const i8,
    stride: usize,
    panel: *const u8,
    groups: usize,
    start: [i32; MR],
) -> [[S::I; NV]; MR] {
    let slots = 8 / BITS as usize;
    // Chains enough to hide the latency of a product.
    let phases = if slots * MR < 4 { 2 } else { 1 };
    let mut chains = [[[isa.splat_i(0); NV]; MR]; 8];
    let unused = isa.splat_i(0);

    let whole = groups / (slots * phases);
    // SAFETY: every access below is to a block that holds one of `groups` groups, and to a group of `codes`.
    unsafe {
        for step in 0..whole {
            for phase in 0..phases {
                let index = step * phases + phase;
                let block = panel.add(index * BLOCK_BYTES);
                prefetch_ahead(isa, block);
                let vectors = load_block::<S, NV>(isa, block);
                for s in 0..slots {
                    let vectors = masked::<S, BITS, NV>(isa, &vectors, s);
                    let at = codes.add(4 * (index * slots + s));
                    dot_group::<S, 8, MR, NV>(isa, &mut chains[phase * slots + s], &vectors, 0, at, stride, unused);
                }
            }
        }
        for index in whole * phases..groups.div_ceil(slots) {
            let vectors = load_block::<S, NV>(isa, panel.add(index * BLOCK_BYTES));
            for s in 0..slots.min(groups - index * slots) {
                let vectors = masked::<S, BITS, NV>(isa, &vectors, s);
                let at = codes.add(4 * (index * slots + s));
                dot_group::<S, 8, MR, NV>(isa, &mut chains[s], &vectors, 0, at, stride, unused);
            }
        }
    }

    let mut total = [[isa.splat_i(0); NV]; MR];
    for row in 0..MR {
        for v in 0..NV {
            let mut sum = isa.splat_i(0);
            for (index, chain) in chains[..phases * slots].iter().enumerate() {
                sum = isa.add_i(sum, shifted::<S, BITS>(isa, chain[row][v], index % slots));
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
fn masked<S: Isa, const BITS: u32, const NV: usize>(isa: S, block: &[S::I; NV], slot: usize) -> [S::I; NV] {
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

/// Unpacks a panel of fewer bits into one of 8 bits, whose codes keep their z.
#[inline(always)]
pub(crate) fn unpack_panel<S: Isa>(isa: S, storage: Storage, packed: &[u8], groups: usize, unpacked: &mut [u8]) {
    match storage.bits {
        4 => unpack_panel_of::<S, 4>(isa, packed, groups, unpacked),
        2 => unpack_panel_of::<S, 2>(isa, packed, groups, unpacked),
        _ => unpack_panel_of::<S, 1>(isa, packed, groups, unpacked),
    }
}

#[inline(always)]
fn unpack_panel_of<S: Isa, const BITS: u32>(isa: S, packed: &[u8], groups: usize, unpacked: &mut [u8]) {
    let slots = 8 / BITS as usize;
    let (blocks, _) = packed.as_chunks::<BLOCK_BYTES>();
    let (targets, _) = unpacked.as_chunks_mut::<BLOCK_BYTES>();
    for (block, targets) in blocks.iter().zip(targets[..groups].chunks_mut(slots)) {
        for half in 0..2 {
            // SAFETY: each block has two halves of 64 bytes.
            let bytes = unsafe { isa.load_i_ptr(block.as_ptr().add(half * 4 * LANES)) };
            for (index, target) in targets.iter_mut().enumerate() {
                // SAFETY: as above.
                unsafe {
                    isa.store_i_ptr(target.as_mut_ptr().add(half * 4 * LANES), slot::<S, BITS>(isa, bytes, index))
                };
            }
        }
    }
}
