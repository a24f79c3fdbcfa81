//! Integer tiles: exact products of codes.

use super::target::Target;
use super::{BLOCK_BYTES, Scaling, Storage};
use crate::microkernel::isa::{Isa, LANES};

/// Rows of DAC codes.
#[derive(Clone, Copy)]
pub(crate) struct IntRows<'a> {
    /// Them, or beside weights of 8 bits their signs where the tier's dot reads those ([`Isa::SIGNS`]).
    pub(crate) codes: &'a [i8],
    /// Their magnitudes, in rows as theirs, where the tier's dot reads them ([`Isa::SIGNED_CODES`]).
    pub(crate) magnitudes: &'a [i8],
    pub(crate) stride: usize,
    /// Sum of the codes of each row; beside signs, of the magnitudes of the negative codes.
    pub(crate) sums: &'a [i32],
}

/// An integer panel of `groups` groups.
#[derive(Clone, Copy)]
pub(crate) struct IntPanel<'a> {
    pub(crate) storage: Storage,
    /// Whether codes of fewer than 8 bits have a byte each ([`unpack_panel`]).
    pub(crate) unpacked: bool,
    pub(crate) bytes: &'a [u8],
    pub(crate) groups: usize,
    /// Whether these weights are too many for a core's own caches, so that panels are fetched ahead.
    pub(crate) fetch: bool,
    /// Where the next panel begins as it is stored. It is never read, only fetched.
    pub(crate) next: *const u8,
}

/// z of `scaling.x_step.len()` rows of codes with one integer panel.
///
/// # Safety
/// `target` holds that many rows.
#[inline(always)]
pub(crate) unsafe fn int_panel<S: Isa>(
    isa: S,
    rows: &IntRows<'_>,
    panel: &IntPanel<'_>,
    scaling: &Scaling<'_>,
    target: Target,
) {
    // SAFETY: passed on.
    unsafe {
        match (panel.storage.bits, panel.unpacked) {
            (8, _) => int_panel_of::<S, 8, 8>(isa, rows, panel, scaling, target),
            (_, true) if !S::SMALL_SUMS => int_panel_of::<S, 8, 8>(isa, rows, panel, scaling, target),
            (4, false) => int_panel_of::<S, 4, 4>(isa, rows, panel, scaling, target),
            (2, false) => int_panel_of::<S, 2, 2>(isa, rows, panel, scaling, target),
            (_, false) => int_panel_of::<S, 1, 1>(isa, rows, panel, scaling, target),
            (4, true) => int_panel_of::<S, 4, 8>(isa, rows, panel, scaling, target),
            (2, true) => int_panel_of::<S, 2, 8>(isa, rows, panel, scaling, target),
            (_, true) => int_panel_of::<S, 1, 8>(isa, rows, panel, scaling, target),
        }
    }
}

/// [`int_panel`] of codes of `BITS` bits that take `SIZE` bits each.
///
/// # Safety
/// As [`int_panel`].
#[inline(always)]
unsafe fn int_panel_of<S: Isa, const BITS: u32, const SIZE: u32>(
    isa: S,
    rows: &IntRows<'_>,
    panel: &IntPanel<'_>,
    scaling: &Scaling<'_>,
    target: Target,
) {
    let count = scaling.x_step.len();
    let (most, _) = S::INT_TILE;
    let small = S::SMALL_SUMS && BITS < 8;
    let mut row = 0;
    // SAFETY: passed on; `row + MR <= count` at each call.
    unsafe {
        while row < count {
            let left = count - row;
            // Unpacking takes registers that 12 rows, or 6 of sums of 16 bits, do not leave. 8 of those are twice 4 where
            // tiles are small, and of single bits everywhere: that was measured.
            row += if SIZE == 8 && most >= 12 && left >= 12 {
                int_rows::<S, BITS, SIZE, 12, 1>(isa, rows, panel, scaling, target, row)
            } else if small && SIZE == 8 && left >= 6 && left != 8 {
                int_rows::<S, BITS, SIZE, 6, 1>(isa, rows, panel, scaling, target, row)
            } else if most >= 8 && left >= 8 && !(small && BITS == 1) {
                int_rows::<S, BITS, SIZE, 8, 1>(isa, rows, panel, scaling, target, row)
            } else if left >= 4 {
                int_rows::<S, BITS, SIZE, 4, 1>(isa, rows, panel, scaling, target, row)
            } else if left >= 2 {
                int_rows::<S, BITS, SIZE, 2, 2>(isa, rows, panel, scaling, target, row)
            } else {
                int_rows::<S, BITS, SIZE, 1, 4>(isa, rows, panel, scaling, target, row)
            };
        }
    }
}

/// # Safety
/// As [`int_panel`]; rows `row..row + MR` exist.
#[inline(always)]
unsafe fn int_rows<S: Isa, const BITS: u32, const SIZE: u32, const MR: usize, const U: usize>(
    isa: S,
    rows: &IntRows<'_>,
    panel: &IntPanel<'_>,
    scaling: &Scaling<'_>,
    target: Target,
    row: usize,
) -> usize {
    // SAFETY: passed on.
    unsafe {
        // A panel is read from its beginning to its end where its sums fit the registers.
        if S::INT_TILE.1 == 2 || (MR <= 2 && BITS > 2) {
            int_vectors::<S, BITS, SIZE, MR, 2, U>(isa, rows, panel, scaling, target, row, 0);
        } else {
            int_vectors::<S, BITS, SIZE, MR, 1, U>(isa, rows, panel, scaling, target, row, 0);
            int_vectors::<S, BITS, SIZE, MR, 1, U>(isa, rows, panel, scaling, target, row, 1);
        }
    }
    MR
}

/// Where the tile of some rows and vectors of a panel begins.
#[derive(Clone, Copy)]
struct Origin {
    codes: *const i8,
    magnitudes: *const i8,
    stride: usize,
    panel: *const u8,
    groups: usize,
    fetch: bool,
    /// What is fetched at the first block.
    ahead: *const u8,
}

/// # Safety
/// As [`int_panel`]; rows `row..row + MR` exist.
#[inline(always)]
unsafe fn int_vectors<S: Isa, const BITS: u32, const SIZE: u32, const MR: usize, const NV: usize, const U: usize>(
    isa: S,
    rows: &IntRows<'_>,
    panel: &IntPanel<'_>,
    scaling: &Scaling<'_>,
    target: Target,
    row: usize,
    vector: usize,
) {
    let groups = panel.groups;
    debug_assert!(panel.bytes.len() >= groups.div_ceil(8 / SIZE as usize) * BLOCK_BYTES);
    debug_assert!(rows.codes.len() >= (row + MR - 1) * rows.stride + 4 * groups);
    debug_assert!(!S::SIGNED_CODES || BITS < 8 || rows.magnitudes.len() == rows.codes.len());
    let mut start = [0; MR];
    for (start, sum) in start.iter_mut().zip(&rows.sums[row..row + MR]) {
        *start = if S::SIGNS && BITS == 8 { *sum } else { -panel.storage.zero * sum };
    }
    // SAFETY: the slices hold what the assertions above say, which their makers keep; the target by contract.
    unsafe {
        let codes = rows.codes.as_ptr().add(row * rows.stride);
        // Sums of small codes do without magnitudes.
        let magnitudes =
            if S::SIGNED_CODES && BITS == 8 { rows.magnitudes.as_ptr().add(row * rows.stride) } else { codes };
        let bytes = panel.bytes.as_ptr();
        // An unpacked panel is at hand. While the first rows take it, each of their two vectors of columns fetches half of
        // what is to be unpacked next, or both together all of it.
        let (fetch, ahead) = if BITS < SIZE {
            let part = groups * fetched_bytes(BITS, SIZE, NV);
            (panel.fetch && row == 0, panel.next.wrapping_add(vector * part))
        } else {
            (panel.fetch, bytes.wrapping_add(PREFETCH_BYTES))
        };
        let panel = bytes.add(vector * 4 * LANES);
        let origin = Origin { codes, magnitudes, stride: rows.stride, panel, groups, fetch, ahead };
        let sums = if S::SMALL_SUMS && BITS < 4 && SIZE < 8 && MR == 1 {
            nibble_tile::<S, BITS, MR, NV>(isa, origin, start)
        } else if S::SMALL_SUMS && BITS < 8 {
            small_tile::<S, BITS, SIZE, MR, NV>(isa, origin, start)
        } else if slot_chains::<SIZE, MR>() && groups <= SLOT_CHAIN_GROUPS {
            slot_tile::<S, BITS, MR, NV>(isa, origin, start)
        } else if S::ONE_CHAIN {
            int_tile::<S, SIZE, MR, NV, 1>(isa, origin, start)
        } else {
            int_tile::<S, SIZE, MR, NV, U>(isa, origin, start)
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

/// [`slot`] of each vector.
#[inline(always)]
fn slots_of<S: Isa, const SIZE: u32, const NV: usize>(isa: S, block: &[S::I; NV], index: usize) -> [S::I; NV] {
    let mut stored = *block;
    for vector in &mut stored {
        *vector = slot::<S, SIZE>(isa, *vector, index);
    }
    stored
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

/// Bytes that `vectors` vectors of a block of codes of `bits` bits that take `size` bits each fetch with it.
const fn fetched_bytes(bits: u32, size: u32, vectors: usize) -> usize {
    if bits < size { BLOCK_BYTES * bits as usize / size as usize * vectors / 2 } else { BLOCK_BYTES }
}

impl Origin {
    /// Fetches what is due at block `index`.
    #[inline(always)]
    fn prefetch<S: Isa, const BITS: u32, const SIZE: u32, const NV: usize>(&self, isa: S, index: usize) {
        let bytes = fetched_bytes(BITS, SIZE, NV);
        for line in 0..bytes.div_ceil(64) {
            isa.prefetch(self.ahead.wrapping_add(index * bytes + 64 * line));
        }
    }
}

/// Adds the products of one group of stored codes to sums of 32 bits, or those of `SMALL` codes to ones of 16.
///
/// # Safety
/// `offset` is that of 4 codes of each of MR rows.
#[inline(always)]
unsafe fn dot_group<S: Isa, const SMALL: bool, const MR: usize, const NV: usize>(
    isa: S,
    sums: &mut [[S::I; NV]; MR],
    stored: &[S::I; NV],
    origin: Origin,
    offset: usize,
) {
    for (row, sums) in sums.iter_mut().enumerate() {
        let at = row * origin.stride + offset;
        // SAFETY: 4 codes of one of the rows.
        let a = unsafe { isa.activations(origin.codes.add(at), origin.magnitudes.add(at)) };
        for v in 0..NV {
            sums[v] = if SMALL { isa.dot_small(sums[v], stored[v], a) } else { isa.dot(sums[v], stored[v], a) };
        }
    }
}

/// Sums of MR rows of codes with NV vectors of columns, in `U` chains each.
///
/// # Safety
/// `origin` is that of MR rows of `4 * groups` codes, and of the blocks of `groups` groups, of which the NV vectors
/// from `panel` on are read.
#[inline(always)]
unsafe fn int_tile<S: Isa, const SIZE: u32, const MR: usize, const NV: usize, const U: usize>(
    isa: S,
    origin: Origin,
    start: [i32; MR],
) -> [[S::I; NV]; MR] {
    let Origin { groups, fetch, .. } = origin;
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
                if MR <= 8 && fetch {
                    origin.prefetch::<S, SIZE, SIZE, NV>(isa, group / slots + index);
                }
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

/// Adds sums of 16 bits to those of 32.
#[inline(always)]
fn widen_all<S: Isa, const MR: usize, const NV: usize>(isa: S, sums: &mut [[S::I; NV]; MR], small: &[[S::I; NV]; MR]) {
    for row in 0..MR {
        for v in 0..NV {
            sums[row][v] = isa.widen(sums[row][v], small[row][v]);
        }
    }
}

/// The largest magnitude of a DAC code.
const LARGEST_CODE: i32 = 127;

/// Groups of stored codes of up to `largest` that a sum of 16 bits, which takes two products of each, has room for.
const fn small_groups(largest: i32) -> usize {
    (i16::MAX as i32 / (2 * largest * LARGEST_CODE)) as usize
}

/// [`int_tile`] of codes of fewer than 8 bits in sums of 16 bits, which become ones of 32 before they could overflow.
///
/// # Safety
/// As [`int_tile`].
#[inline(always)]
unsafe fn small_tile<S: Isa, const BITS: u32, const SIZE: u32, const MR: usize, const NV: usize>(
    isa: S,
    origin: Origin,
    start: [i32; MR],
) -> [[S::I; NV]; MR] {
    let Origin { groups, fetch, .. } = origin;
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
            for index in first..end {
                let block = origin.panel.add(index * BLOCK_BYTES);
                if fetch {
                    origin.prefetch::<S, BITS, SIZE, NV>(isa, index);
                }
                let vectors = load_block::<S, NV>(isa, block);
                for s in 0..slots {
                    let stored = slots_of::<S, SIZE, NV>(isa, &vectors, s);
                    dot_group::<S, true, MR, NV>(isa, &mut small, &stored, origin, 4 * (index * slots + s));
                }
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

/// [`small_tile`] for a single row of packed codes of 1 or 2 bits: the codes of a half byte are masked but left where they
/// are in it, times a power of two, with sums of their own for each place that are shifted at the end. For one
/// row the shifts would be as much work as the products.
///
/// # Safety
/// As [`int_tile`].
#[inline(always)]
unsafe fn nibble_tile<S: Isa, const BITS: u32, const MR: usize, const NV: usize>(
    isa: S,
    origin: Origin,
    start: [i32; MR],
) -> [[S::I; NV]; MR] {
    let groups = origin.groups;
    let (slots, places) = (8 / BITS as usize, 4 / BITS as usize);
    // A place gets two groups of each block.
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
                if origin.fetch {
                    origin.prefetch::<S, BITS, BITS, NV>(isa, index);
                }
                let low = load_block::<S, NV>(isa, block);
                let mut high = low;
                for v in 0..NV {
                    high[v] = isa.shr::<4>(low[v]);
                }
                let at = 4 * index * slots;
                let left = groups - index * slots;
                for s in 0..slots {
                    // The last block may have fewer. An end that varies would keep the sums in memory.
                    if s < left {
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
const SLOT_CHAIN_GROUPS: usize = 1 << 14;

/// Whether a tile of packed codes has few enough rows that its slots can have chains of their own.
const fn slot_chains<const SIZE: u32, const MR: usize>() -> bool {
    SIZE < 8 && MR * 8 / SIZE as usize <= 8
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
    origin: Origin,
    start: [i32; MR],
) -> [[S::I; NV]; MR] {
    let groups = origin.groups;
    let slots = 8 / BITS as usize;
    // Chains enough to hide the latency of a product.
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

/// The sums of chains of codes times 2^(BITS * place), the chain's number modulo `places`.
#[inline(always)]
fn joined<S: Isa, const BITS: u32, const MR: usize, const NV: usize>(
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
    let (whole, last) = targets[..groups].split_at_mut(groups / slots * slots);
    // A number of slots that varied would choose the shift of each anew.
    for (block, targets) in blocks.iter().zip(whole.chunks_exact_mut(slots)) {
        for slot in 0..slots {
            unpack_slot::<S, BITS>(isa, block, slot, &mut targets[slot]);
        }
    }
    for (slot, target) in last.iter_mut().enumerate() {
        unpack_slot::<S, BITS>(isa, &blocks[groups / slots], slot, target);
    }
}

/// Unpacks one group of a block.
#[inline(always)]
fn unpack_slot<S: Isa, const BITS: u32>(
    isa: S,
    block: &[u8; BLOCK_BYTES],
    index: usize,
    target: &mut [u8; BLOCK_BYTES],
) {
    for half in 0..2 {
        let at = half * 4 * LANES;
        // SAFETY: each has two halves of 64 bytes.
        unsafe {
            let bytes = isa.load_i_ptr(block.as_ptr().add(at));
            isa.store_i_ptr(target.as_mut_ptr().add(at), slot::<S, BITS>(isa, bytes, index));
        }
    }
}
