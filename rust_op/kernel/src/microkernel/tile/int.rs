//! Integer tiles: exact products of codes. (Where a processor has matrix tiles, [`super::matrix`] multiplies 16 rows or
//! more.)
//!
//! | codes of a panel | tier | rows of a tile | algorithm | why |
//! |---|---|---|---|---|
//! | all | own tiles | any | [`Isa::code_tile`] | the algorithms below take instructions that it lacks |
//! | 4, 8 bits, stored | [`Isa::STREAMED_BITS`] | 1, four panels at once | [`streams`] | memory is read in four streams |
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
mod streams;
mod wide;

pub(crate) use blocks::unpack_panel;
use choice::{Algorithm, Choice};
pub(crate) use streams::{STREAMS, has_streams};

use super::Results;
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

/// Sums of the rows of codes that `results` has, with one integer panel: `results` writes them into `output`.
#[inline(always)]
pub(crate) fn int_panel<S: Isa, R: Results>(
    isa: S,
    rows: &CodeRows<'_>,
    panel: &IntPanel<'_>,
    results: &R,
    output: OutputBlock<'_>,
) {
    if panel.unpacked || panel.storage.bits == 8 {
        return byte_panel(isa, rows, panel, results, output);
    }
    check::<S, R>(rows, panel, results, &output);
    // SAFETY: as checked above.
    unsafe {
        match panel.storage.bits {
            4 => panel_of::<S, R, 4, 4>(isa, rows, panel, results, output),
            2 => panel_of::<S, R, 2, 2>(isa, rows, panel, results, output),
            _ => panel_of::<S, R, 1, 1>(isa, rows, panel, results, output),
        }
    }
}

/// The same where each code of the panel takes a byte.
#[inline(always)]
pub(crate) fn byte_panel<S: Isa, R: Results>(
    isa: S,
    rows: &CodeRows<'_>,
    panel: &IntPanel<'_>,
    results: &R,
    output: OutputBlock<'_>,
) {
    assert!(panel.unpacked || panel.storage.bits == 8);
    check::<S, R>(rows, panel, results, &output);
    // SAFETY: as checked above.
    unsafe {
        match panel.storage.bits {
            4 if const { S::SMALL_SUMS } => panel_of::<S, R, 4, 8>(isa, rows, panel, results, output),
            2 if const { S::SMALL_SUMS } => panel_of::<S, R, 2, 8>(isa, rows, panel, results, output),
            1 if const { S::SMALL_SUMS } => panel_of::<S, R, 1, 8>(isa, rows, panel, results, output),
            _ => panel_of::<S, R, 8, 8>(isa, rows, panel, results, output),
        }
    }
}

/// Sums of the only row of `rows` with several stored panels, each of `groups` groups, where [`has_streams`].
#[inline(always)]
pub(crate) fn row_with_streams<S: Isa>(
    isa: S,
    rows: &CodeRows<'_>,
    storage: Storage,
    panels: [&[u8]; STREAMS],
    groups: usize,
) -> [[[S::I; 2]; 1]; STREAMS] {
    assert!(
        has_streams(S::STREAMED_BITS, storage.bits, groups) && rows.sums.len() == 1 && rows.codes.len() >= 4 * groups
    );
    assert!(panels.iter().all(|panel| panel.len() >= groups.div_ceil(storage.groups()) * BLOCK_BYTES));
    let with_magnitudes = S::MAGNITUDES && storage.bits == 8;
    assert!(!with_magnitudes || rows.magnitudes.len() == rows.codes.len());
    let (codes, panels) = (rows.codes.as_ptr(), panels.map(<[u8]>::as_ptr));
    let magnitudes = if with_magnitudes { rows.magnitudes.as_ptr() } else { codes };
    let (panel, ahead) = (panels[0], panels[0]);
    let origin = TileOrigin { codes, magnitudes, stride: rows.stride, panel, groups, fetch: false, ahead };
    let start = start_of::<S>(storage, rows.sums[0]);
    // SAFETY: the row and each panel hold `groups` groups, as checked above.
    unsafe {
        match storage.bits {
            8 => streams::streams_tile::<S, 8, 1>(isa, origin, panels, start),
            _ => streams::streams_tile::<S, 4, 2>(isa, origin, panels, start),
        }
    }
}

/// Writes the sums of one row with a panel.
#[inline(always)]
pub(crate) fn put_row<S: Isa, R: Results>(isa: S, results: &R, mut output: OutputBlock<'_>, sums: [[S::I; 2]; 1]) {
    assert!(results.rows() == 1 && output.rows() == 1);
    // SAFETY: the block has one row, and is used for nothing else.
    unsafe { results.put(isa, output.tile(), (0, 0), sums) };
}

/// What the sums of a row begin with, whose `sum` is that of [`CodeRows`].
#[inline(always)]
fn start_of<S: Isa>(storage: Storage, sum: i32) -> i32 {
    if S::SIGNS && storage.bits == 8 { sum } else { -storage.zero * sum }
}

/// Checks what [`panel_of`] expects.
#[inline(always)]
fn check<S: Isa, R: Results>(rows: &CodeRows<'_>, panel: &IntPanel<'_>, results: &R, output: &OutputBlock<'_>) {
    let count = results.rows();
    let codes_per_byte = if panel.unpacked { 1 } else { panel.storage.groups() };
    assert!(count <= output.rows() && count <= rows.sums.len());
    assert!(panel.bytes.len() >= panel.groups.div_ceil(codes_per_byte) * BLOCK_BYTES);
    assert!(count == 0 || rows.codes.len() >= (count - 1) * rows.stride + 4 * panel.groups);
    assert!(!S::MAGNITUDES || panel.storage.bits < 8 || rows.magnitudes.len() == rows.codes.len());
}

/// The [`Choice`] for codes of `bits` bits that take `size` bits each.
const fn choice<S: Isa>(bits: u32, size: u32) -> Choice {
    Choice { tile_rows: S::INT_TILE.0, small_sums: S::SMALL_SUMS, own_tiles: S::OWN_TILES, bits, size }
}

/// [`int_panel`] for codes of `BITS` bits that take `SIZE` bits each.
///
/// # Safety
/// `rows` and `output` hold the rows of `results`, of `panel.groups` groups; `rows` also holds their magnitudes if
/// the tier reads those with codes of `BITS` bits; `panel.bytes` holds `panel.groups` groups.
#[inline(always)]
unsafe fn panel_of<S: Isa, R: Results, const BITS: u32, const SIZE: u32>(
    isa: S,
    rows: &CodeRows<'_>,
    panel: &IntPanel<'_>,
    results: &R,
    mut output: OutputBlock<'_>,
) {
    // SAFETY: the block is used for nothing else.
    let output = unsafe { output.tile() };
    let count = results.rows();
    let mut row = 0;
    while row < count {
        let height = const { choice::<S>(BITS, SIZE) }.rows(count - row);
        // SAFETY: by this function's contract, since `row + height <= count`.
        unsafe {
            if const { choice::<S>(BITS, SIZE).has(12) } && height == 12 {
                tile_rows::<S, R, BITS, SIZE, 12, 1>(isa, rows, panel, results, output, row);
            } else if const { choice::<S>(BITS, SIZE).has(8) } && height == 8 {
                tile_rows::<S, R, BITS, SIZE, 8, 1>(isa, rows, panel, results, output, row);
            } else if const { choice::<S>(BITS, SIZE).has(6) } && height == 6 {
                tile_rows::<S, R, BITS, SIZE, 6, 1>(isa, rows, panel, results, output, row);
            } else if const { choice::<S>(BITS, SIZE).has(4) } && height == 4 {
                tile_rows::<S, R, BITS, SIZE, 4, 1>(isa, rows, panel, results, output, row);
            } else if height == 2 {
                tile_rows::<S, R, BITS, SIZE, 2, 2>(isa, rows, panel, results, output, row);
            } else {
                tile_rows::<S, R, BITS, SIZE, 1, 4>(isa, rows, panel, results, output, row);
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
unsafe fn tile_rows<S: Isa, R: Results, const BITS: u32, const SIZE: u32, const MR: usize, const CHAINS: usize>(
    isa: S,
    rows: &CodeRows<'_>,
    panel: &IntPanel<'_>,
    results: &R,
    output: OutputTile,
    row: usize,
) {
    // SAFETY: this function's contract is that of the calls.
    unsafe {
        // A panel is read once from beginning to end if the sums of both its vectors fit the registers.
        if const { S::INT_TILE.1 == 2 || (MR <= S::PANEL_WIDE_ROWS && BITS > 2) } {
            tile_vectors::<S, R, BITS, SIZE, MR, 2, CHAINS>(isa, rows, panel, results, output, row, 0);
        } else if const { S::OWN_TILES } {
            // One copy of the code for both. On x86, two are up to 8 % faster.
            for vector in 0..2 {
                tile_vectors::<S, R, BITS, SIZE, MR, 1, CHAINS>(isa, rows, panel, results, output, row, vector);
            }
        } else {
            tile_vectors::<S, R, BITS, SIZE, MR, 1, CHAINS>(isa, rows, panel, results, output, row, 0);
            tile_vectors::<S, R, BITS, SIZE, MR, 1, CHAINS>(isa, rows, panel, results, output, row, 1);
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
    R: Results,
    const BITS: u32,
    const SIZE: u32,
    const MR: usize,
    const NV: usize,
    const CHAINS: usize,
>(
    isa: S,
    rows: &CodeRows<'_>,
    panel: &IntPanel<'_>,
    results: &R,
    output: OutputTile,
    row: usize,
    vector: usize,
) {
    let groups = panel.groups;
    let mut start = [0; MR];
    for (start, sum) in start.iter_mut().zip(&rows.sums[row..row + MR]) {
        *start = start_of::<S>(panel.storage, *sum);
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
        results.put(isa, output, (row, vector), sums);
    }
}
