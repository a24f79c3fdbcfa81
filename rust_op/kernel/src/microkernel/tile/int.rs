//! Integer tiles: exact products of codes. (Where a processor has matrix tiles, [`super::matrix`] multiplies 16 rows or
//! more.)
//!
//! | codes of a panel | tier | rows of a tile | algorithm | why |
//! |---|---|---|---|---|
//! | all | own tiles | any | [`Isa::code_tile`] | the algorithms below take instructions that it lacks |
//! | 8 bits | all | any | [`wide`] | each code is a byte, each product goes into a sum of 32 bits |
//! | 1, 2, 4 bits | small sums | any, except for the next line | [`small`] | two instructions per product, not four |
//! | 1, 2 bits, packed | small sums | 1 | [`in_place::nibble_tile`] | no shifts, and two places fit 16 bits |
//! | 1, 2, 4 bits, packed | others | up to 1, 2, 4 | [`in_place::slot_tile`] | no shifts |
//! | 1, 2, 4 bits, packed | others | more | [`wide`] | too few registers for a chain per place |
//! | 1, 2, 4 bits, unpacked | others | any | [`wide`] | as with 8 bits |
//!
//! "Small sums" are tiers with [`Isa::SMALL_SUMS`], which sum the products of codes of up to 4 bits in 16 bits for a
//! while. [`mod@choice`] decides. Where there are more than [`Isa::STAY_PACKED`] rows, a panel is unpacked once for all
//! of them.

mod blocks;
mod choice;
mod in_place;
mod small;
mod wide;

pub(crate) use blocks::unpack_panel;
use choice::{Algorithm, Choice};

use super::Scaling;
use crate::microkernel::isa::{Isa, LANES, TileOrigin};
use crate::microkernel::output::{OutputBlock, OutputTile};
use crate::microkernel::panels::{BLOCK_BYTES, Storage};

/// Rows of DAC codes.
#[derive(Clone, Copy)]
pub(crate) struct CodeRows<'a> {
    /// The codes. With weights stored in 8 bits, and where the tier's dot reads signs ([`Isa::SIGNS`]), their signs
    /// instead.
    pub(crate) codes: &'a [i8],
    /// The magnitudes of the codes, in rows like theirs, where the tier's dot reads them ([`Isa::MAGNITUDES`]).
    pub(crate) magnitudes: &'a [i8],
    pub(crate) stride: usize,
    /// The sum of the codes of each row; with signs, the sum of the magnitudes of its negative codes.
    pub(crate) sums: &'a [i32],
}

/// An integer panel of `groups` groups.
#[derive(Clone, Copy)]
pub(crate) struct IntPanel<'a> {
    pub(crate) storage: Storage,
    /// Whether codes of fewer than 8 bits take a byte each ([`unpack_panel`]).
    pub(crate) unpacked: bool,
    pub(crate) bytes: &'a [u8],
    pub(crate) groups: usize,
    /// Whether the weights do not fit a core's own caches, so that panels are prefetched.
    pub(crate) fetch: bool,
    /// Where the next panel begins in its stored form. It is only prefetched, never read.
    pub(crate) next: *const u8,
}

/// z of `scaling.x_step.len()` rows of codes with one integer panel, into the first rows of `output`.
#[inline(always)]
pub(crate) fn int_panel<S: Isa>(
    isa: S,
    rows: &CodeRows<'_>,
    panel: &IntPanel<'_>,
    scaling: &Scaling<'_>,
    mut output: OutputBlock<'_>,
) {
    let count = scaling.x_step.len();
    let codes_per_byte = if panel.unpacked { 1 } else { panel.storage.groups() };
    assert!(count <= output.rows() && count <= rows.sums.len());
    assert!(panel.bytes.len() >= panel.groups.div_ceil(codes_per_byte) * BLOCK_BYTES);
    assert!(count == 0 || rows.codes.len() >= (count - 1) * rows.stride + 4 * panel.groups);
    assert!(!S::MAGNITUDES || panel.storage.bits < 8 || rows.magnitudes.len() == rows.codes.len());
    // SAFETY: the slices hold the panel and `count` rows, with magnitudes where they are read, and the output has as
    // many rows, as asserted above.
    unsafe {
        let output = output.tile();
        match (panel.storage.bits, panel.unpacked) {
            (8, _) => panel_of::<S, 8, 8>(isa, rows, panel, scaling, output),
            (_, true) if const { !S::SMALL_SUMS } => panel_of::<S, 8, 8>(isa, rows, panel, scaling, output),
            (4, false) => panel_of::<S, 4, 4>(isa, rows, panel, scaling, output),
            (2, false) => panel_of::<S, 2, 2>(isa, rows, panel, scaling, output),
            (_, false) => panel_of::<S, 1, 1>(isa, rows, panel, scaling, output),
            (4, true) => panel_of::<S, 4, 8>(isa, rows, panel, scaling, output),
            (2, true) => panel_of::<S, 2, 8>(isa, rows, panel, scaling, output),
            (_, true) => panel_of::<S, 1, 8>(isa, rows, panel, scaling, output),
        }
    }
}

/// The [`Choice`] for codes of `bits` bits that take `size` bits each.
const fn choice<S: Isa>(bits: u32, size: u32) -> Choice {
    Choice { tile_rows: S::INT_TILE.0, small_sums: S::SMALL_SUMS, own_tiles: S::OWN_TILES, bits, size }
}

/// [`int_panel`] for codes of `BITS` bits that take `SIZE` bits each.
///
/// # Safety
/// `rows` and `output` hold `scaling.x_step.len()` rows of `panel.groups` groups; `rows` also holds their magnitudes if
/// the tier reads those with codes of `BITS` bits; `panel.bytes` holds `panel.groups` groups.
#[inline(always)]
unsafe fn panel_of<S: Isa, const BITS: u32, const SIZE: u32>(
    isa: S,
    rows: &CodeRows<'_>,
    panel: &IntPanel<'_>,
    scaling: &Scaling<'_>,
    output: OutputTile,
) {
    let count = scaling.x_step.len();
    let mut row = 0;
    while row < count {
        let height = const { choice::<S>(BITS, SIZE) }.rows(count - row);
        // SAFETY: by this function's contract, since `row + height <= count`.
        unsafe {
            if const { choice::<S>(BITS, SIZE).has(12) } && height == 12 {
                tile_rows::<S, BITS, SIZE, 12, 1>(isa, rows, panel, scaling, output, row);
            } else if const { choice::<S>(BITS, SIZE).has(8) } && height == 8 {
                tile_rows::<S, BITS, SIZE, 8, 1>(isa, rows, panel, scaling, output, row);
            } else if const { choice::<S>(BITS, SIZE).has(6) } && height == 6 {
                tile_rows::<S, BITS, SIZE, 6, 1>(isa, rows, panel, scaling, output, row);
            } else if const { choice::<S>(BITS, SIZE).has(4) } && height == 4 {
                tile_rows::<S, BITS, SIZE, 4, 1>(isa, rows, panel, scaling, output, row);
            } else if height == 2 {
                tile_rows::<S, BITS, SIZE, 2, 2>(isa, rows, panel, scaling, output, row);
            } else {
                tile_rows::<S, BITS, SIZE, 1, 4>(isa, rows, panel, scaling, output, row);
            }
        }
        row += height;
    }
}

/// Rows `row..row + MR` with a panel, in `CHAINS` sums per output where the tier needs several.
///
/// # Safety
/// As for [`panel_of`], whose rows include these.
#[inline(always)]
unsafe fn tile_rows<S: Isa, const BITS: u32, const SIZE: u32, const MR: usize, const CHAINS: usize>(
    isa: S,
    rows: &CodeRows<'_>,
    panel: &IntPanel<'_>,
    scaling: &Scaling<'_>,
    output: OutputTile,
    row: usize,
) {
    // SAFETY: this function's contract is that of the calls.
    unsafe {
        // A panel is read once from beginning to end if the sums of both its vectors fit the registers.
        if const { S::INT_TILE.1 == 2 || (MR <= S::PANEL_WIDE_ROWS && BITS > 2) } {
            tile_vectors::<S, BITS, SIZE, MR, 2, CHAINS>(isa, rows, panel, scaling, output, row, 0);
        } else {
            tile_vectors::<S, BITS, SIZE, MR, 1, CHAINS>(isa, rows, panel, scaling, output, row, 0);
            tile_vectors::<S, BITS, SIZE, MR, 1, CHAINS>(isa, rows, panel, scaling, output, row, 1);
        }
    }
}

/// How far ahead of its use a panel is prefetched. Panels follow one another in memory.
const PREFETCH_BYTES: usize = 2048;

/// Bytes to prefetch per block by a tile of `vectors` vectors, for codes of `bits` bits that take `size` bits each.
const fn fetched_bytes(bits: u32, size: u32, vectors: usize) -> usize {
    if bits < size { BLOCK_BYTES * bits as usize / size as usize * vectors / 2 } else { BLOCK_BYTES }
}

impl TileOrigin {
    /// Prefetches what is due at block `index`, if these weights are prefetched.
    #[inline(always)]
    fn prefetch<S: Isa, const BITS: u32, const SIZE: u32, const NV: usize>(&self, isa: S, index: usize) {
        if !self.fetch {
            return;
        }
        let bytes = fetched_bytes(BITS, SIZE, NV);
        for line in 0..bytes.div_ceil(64) {
            isa.prefetch(self.ahead.wrapping_add(index * bytes + 64 * line));
        }
    }
}

/// NV vectors of columns, from `vector` on, of rows `row..row + MR`.
///
/// # Safety
/// As for [`tile_rows`].
#[inline(always)]
unsafe fn tile_vectors<
    S: Isa,
    const BITS: u32,
    const SIZE: u32,
    const MR: usize,
    const NV: usize,
    const CHAINS: usize,
>(
    isa: S,
    rows: &CodeRows<'_>,
    panel: &IntPanel<'_>,
    scaling: &Scaling<'_>,
    output: OutputTile,
    row: usize,
    vector: usize,
) {
    let groups = panel.groups;
    let mut start = [0; MR];
    for (start, sum) in start.iter_mut().zip(&rows.sums[row..row + MR]) {
        *start = if S::SIGNS && BITS == 8 { *sum } else { -panel.storage.zero * sum };
    }
    // SAFETY: rows, panel and output hold what this function's contract says, so the origin is as the algorithms need.
    unsafe {
        let codes = rows.codes.as_ptr().add(row * rows.stride);
        // Codes of fewer than 8 bits are multiplied without magnitudes.
        let magnitudes =
            if S::MAGNITUDES && BITS == 8 { rows.magnitudes.as_ptr().add(row * rows.stride) } else { codes };
        let bytes = panel.bytes.as_ptr();
        // An unpacked panel is in the cache already. While the first rows use it, what is to be unpacked next is
        // prefetched: half of it with each of the two vectors of columns, or all of it with both at once. Stored panels
        // are prefetched by tiles of up to 8 rows, not by those of 12.
        let (fetch, ahead) = if BITS < SIZE {
            let part = groups * fetched_bytes(BITS, SIZE, NV);
            (panel.fetch && row == 0, panel.next.wrapping_add(vector * part))
        } else {
            (panel.fetch && MR <= 8, bytes.wrapping_add(PREFETCH_BYTES))
        };
        let panel = bytes.add(vector * 4 * LANES);
        let origin = TileOrigin { codes, magnitudes, stride: rows.stride, panel, groups, fetch, ahead };
        let sums = if const { choice::<S>(BITS, SIZE).is(Algorithm::Own, MR) } {
            isa.code_tile::<SIZE, MR, NV>(origin, start)
        } else if const { choice::<S>(BITS, SIZE).is(Algorithm::Nibble, MR) } {
            in_place::nibble_tile::<S, BITS, MR, NV>(isa, origin, start)
        } else if const { choice::<S>(BITS, SIZE).is(Algorithm::Small, MR) } {
            small::small_tile::<S, BITS, SIZE, MR, NV>(isa, origin, start)
        } else if const { choice::<S>(BITS, SIZE).is(Algorithm::Slot, MR) } && groups <= in_place::SLOT_CHAIN_GROUPS {
            in_place::slot_tile::<S, BITS, MR, NV>(isa, origin, start)
        } else if S::ONE_CHAIN {
            wide::wide_tile::<S, SIZE, MR, NV, 1>(isa, origin, start)
        } else {
            wide::wide_tile::<S, SIZE, MR, NV, CHAINS>(isa, origin, start)
        };
        for i in 0..MR {
            for v in 0..NV {
                let z = scaling.z(isa, row + i, vector + v, isa.to_float(sums[i][v]));
                output.store(isa, row + i, vector + v, z);
            }
        }
    }
}
