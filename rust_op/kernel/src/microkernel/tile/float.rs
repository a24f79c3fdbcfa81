//! Float tiles: one chain of fused multiply-adds per output.

use super::Scaling;
use crate::microkernel::isa::{Isa, LANES};
use crate::microkernel::output::{OutputBlock, OutputTile};
use crate::microkernel::panels::{PANEL, panel_lane};

/// Rows of floats, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct FloatRows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
}

/// z of `scaling.x_step.len()` rows of floats with one float panel of `depth` rows, into the first rows of `output`.
#[inline(always)]
pub(crate) fn float_panel<S: Isa>(
    isa: S,
    rows: &FloatRows<'_>,
    panel: &[f32],
    depth: usize,
    scaling: &Scaling<'_>,
    mut output: OutputBlock<'_>,
) {
    let count = scaling.x_step.len();
    assert!(count <= output.rows());
    assert!(panel.len() >= depth * PANEL);
    assert!(count == 0 || rows.values.len() >= (count - 1) * rows.stride + depth);
    let mut row = 0;
    // SAFETY: the slices hold `count` rows and the panel, and the output has as many rows, as asserted above;
    // `row + MR <= count` at each call.
    unsafe {
        let output = output.tile();
        while row < count {
            let remaining = count - row;
            row += if const { S::FLOAT_TILE.0 >= 12 } && remaining >= 12 {
                float_rows::<S, 12>(isa, rows, panel, depth, scaling, output, row)
            } else if const { S::FLOAT_TILE.0 >= 8 } && remaining >= 8 {
                float_rows::<S, 8>(isa, rows, panel, depth, scaling, output, row)
            } else if const { S::FLOAT_TILE.0 == 6 } && remaining >= 6 {
                float_rows::<S, 6>(isa, rows, panel, depth, scaling, output, row)
            } else if remaining >= 4 {
                float_rows::<S, 4>(isa, rows, panel, depth, scaling, output, row)
            } else if remaining >= 2 {
                float_rows::<S, 2>(isa, rows, panel, depth, scaling, output, row)
            } else {
                float_rows::<S, 1>(isa, rows, panel, depth, scaling, output, row)
            };
        }
    }
}

/// # Safety
/// `rows` and `output` hold rows `row..row + MR`, `panel` `depth` rows of a panel.
#[inline(always)]
unsafe fn float_rows<S: Isa, const MR: usize>(
    isa: S,
    rows: &FloatRows<'_>,
    panel: &[f32],
    depth: usize,
    scaling: &Scaling<'_>,
    output: OutputTile,
    row: usize,
) -> usize {
    // SAFETY: this function's contract is that of the calls.
    unsafe {
        if const { S::FLOAT_TILE.1 == 2 } {
            float_vectors::<S, MR, 2>(isa, rows, panel, depth, scaling, output, row, 0);
        } else {
            float_vectors::<S, MR, 1>(isa, rows, panel, depth, scaling, output, row, 0);
            float_vectors::<S, MR, 1>(isa, rows, panel, depth, scaling, output, row, 1);
        }
    }
    MR
}

/// # Safety
/// `rows` and `output` hold rows `row..row + MR`, `panel` `depth` rows of a panel.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "an inlined part of one function")]
unsafe fn float_vectors<S: Isa, const MR: usize, const NV: usize>(
    isa: S,
    rows: &FloatRows<'_>,
    panel: &[f32],
    depth: usize,
    scaling: &Scaling<'_>,
    output: OutputTile,
    row: usize,
    vector: usize,
) {
    // SAFETY: by this function's contract.
    unsafe {
        let values = rows.values.as_ptr().add(row * rows.stride);
        let panel = panel.as_ptr().add(panel_lane::<S>(depth, 0, vector));
        let sums = float_tile::<S, MR, NV>(isa, values, rows.stride, panel, depth);
        for i in 0..MR {
            for v in 0..NV {
                output.store(isa, row + i, vector + v, scaling.z(isa, row + i, vector + v, sums[i][v]));
            }
        }
    }
}

/// Sums of MR rows of floats with NV vectors of columns, each one chain of fused multiply-adds from 0.
///
/// # Safety
/// `rows` is valid for `depth` elements of MR rows, `stride` apart; `panel` for NV vectors of each of `depth` rows,
/// where [`panel_lane`] places them.
#[inline(always)]
unsafe fn float_tile<S: Isa, const MR: usize, const NV: usize>(
    isa: S,
    rows: *const f32,
    stride: usize,
    panel: *const f32,
    depth: usize,
) -> [[S::F; NV]; MR] {
    let mut sums = [[isa.splat(0.0); NV]; MR];
    for k in 0..depth {
        // SAFETY: row k of the panel, and element k of each row.
        unsafe {
            let mut w = [isa.splat(0.0); NV];
            for (v, w) in w.iter_mut().enumerate() {
                *w = isa.load_ptr(panel.add(panel_lane::<S>(depth, k, 0) + v * LANES));
            }
            for row in 0..MR {
                for v in 0..NV {
                    sums[row][v] = isa.fma_at(rows.add(row * stride + k), w[v], sums[row][v]);
                }
            }
        }
    }
    sums
}
