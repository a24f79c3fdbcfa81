//! Integer products on a processor's matrix tiles ([`crate::microkernel::amx`]), for 16 rows or more.

use super::Results;
use super::int::{CodeRows, IntPanel};
use crate::microkernel::amx::{ConfiguredTiles, SUM_ROWS, Sums, TILE_CODES, TILE_ROWS, bytes_behind};
use crate::microkernel::isa::{Isa, LANES};
use crate::microkernel::output::OutputBlock;
use crate::microkernel::panels::{BLOCK_BYTES, PANEL};

/// Sums of the rows of codes that `results` has, with one integer panel whose codes take a byte each: `results` writes
/// them into `output`.
///
/// Whole tiles are read: codes of rows up to the next multiple of 16, and [`bytes_behind`] past the end of a panel.
#[inline(always)]
pub(crate) fn matrix_panel<S: Isa, R: Results>(
    isa: S,
    tiles: &ConfiguredTiles,
    rows: &CodeRows<'_>,
    panel: &IntPanel<'_>,
    results: &R,
    mut output: OutputBlock<'_>,
) {
    let count = results.rows();
    let steps = (4 * panel.groups).div_ceil(TILE_CODES);
    assert!(count <= output.rows() && count <= rows.sums.len());
    assert!(panel.groups > 0 && (panel.unpacked || panel.storage.bits == 8));
    assert!(panel.bytes.len() >= panel.groups * BLOCK_BYTES + bytes_behind(panel.groups));
    assert!(rows.stride >= steps * TILE_CODES && rows.codes.len() >= count.next_multiple_of(TILE_ROWS) * rows.stride);
    let mut sums = Sums::zeros();
    for first in (0..count).step_by(SUM_ROWS) {
        let height = (count - first).min(SUM_ROWS);
        let codes = rows.codes[first * rows.stride..].as_ptr();
        // SAFETY: there are rows of codes up to a multiple of 16, and they and the panel are as long as asserted above.
        unsafe { tiles.sums(codes, rows.stride, height > TILE_ROWS, panel.bytes.as_ptr(), steps, &mut sums) };
        // SAFETY: the output is used for nothing else meanwhile.
        let tile = unsafe { output.tile() };
        for (row, sums) in (first..first + height).zip(&sums.0) {
            let start = isa.splat_i(-panel.storage.zero * rows.sums[row]);
            for vector in 0..PANEL / LANES {
                // SAFETY: a row of sums has `PANEL / LANES` vectors; the output has the row, as asserted above.
                unsafe {
                    let sum = isa.add_i(isa.load_i_ptr(sums[vector * LANES..].as_ptr().cast()), start);
                    results.put(isa, tile, (row, vector), [[sum]]);
                }
            }
        }
    }
}
