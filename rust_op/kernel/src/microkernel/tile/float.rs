//! Float tiles: one chain of fused multiply-adds an output.

use super::target::Target;
use super::{PANEL, Scaling, panel_lane};
use crate::microkernel::isa::{Isa, LANES};

/// Rows of floats, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct FloatRows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
}

/// z of `count` rows of floats and one float panel of `depth` k.
///
/// # Safety
/// `target` holds that many rows.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "each is a fact of its own")]
pub(crate) unsafe fn float_panel<S: Isa>(
    isa: S,
    rows: &FloatRows<'_>,
    count: usize,
    panel: &[f32],
    depth: usize,
    scaling: &Scaling<'_>,
    target: Target,
) {
    let (most, _) = S::FLOAT_TILE;
    let mut row = 0;
    // SAFETY: passed on; `row + MR <= count` at each call.
    unsafe {
        while row < count {
            let left = count - row;
            row += if most >= 12 && left >= 12 {
                float_rows::<S, 12>(isa, rows, panel, depth, scaling, target, row)
            } else if most >= 8 && left >= 8 {
                float_rows::<S, 8>(isa, rows, panel, depth, scaling, target, row)
            } else if most == 6 && left >= 6 {
                float_rows::<S, 6>(isa, rows, panel, depth, scaling, target, row)
            } else if left >= 4 {
                float_rows::<S, 4>(isa, rows, panel, depth, scaling, target, row)
            } else if left >= 2 {
                float_rows::<S, 2>(isa, rows, panel, depth, scaling, target, row)
            } else {
                float_rows::<S, 1>(isa, rows, panel, depth, scaling, target, row)
            };
        }
    }
}

/// # Safety
/// As [`float_panel`]; rows `row..row + MR` exist.
#[inline(always)]
unsafe fn float_rows<S: Isa, const MR: usize>(
    isa: S,
    rows: &FloatRows<'_>,
    panel: &[f32],
    depth: usize,
    scaling: &Scaling<'_>,
    target: Target,
    row: usize,
) -> usize {
    // SAFETY: passed on.
    unsafe {
        match S::FLOAT_TILE.1 {
            2 => float_vectors::<S, MR, 2>(isa, rows, panel, depth, scaling, target, row, 0),
            _ => {
                float_vectors::<S, MR, 1>(isa, rows, panel, depth, scaling, target, row, 0);
                float_vectors::<S, MR, 1>(isa, rows, panel, depth, scaling, target, row, 1);
            }
        }
    }
    MR
}

/// # Safety
/// As [`float_panel`]; rows `row..row + MR` exist.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "an inlined part of one function")]
unsafe fn float_vectors<S: Isa, const MR: usize, const NV: usize>(
    isa: S,
    rows: &FloatRows<'_>,
    panel: &[f32],
    depth: usize,
    scaling: &Scaling<'_>,
    target: Target,
    row: usize,
    vector: usize,
) {
    debug_assert!(panel.len() >= depth * PANEL);
    debug_assert!(rows.values.len() >= (row + MR - 1) * rows.stride + depth);
    // SAFETY: the slices hold what the assertions above say, which their makers keep; the target by contract.
    unsafe {
        let values = rows.values.as_ptr().add(row * rows.stride);
        let panel = panel.as_ptr().add(panel_lane::<S>(depth, 0, vector));
        let sums = float_tile::<S, MR, NV>(isa, values, rows.stride, panel, depth);
        for i in 0..MR {
            for v in 0..NV {
                target.store(isa, row + i, vector + v, scaling.z(isa, row + i, vector + v, sums[i][v]));
            }
        }
    }
}

/// Sums of MR rows of floats with NV vectors of columns, each one chain of fused multiply-adds from 0.
///
/// # Safety
/// `rows` is valid for `depth` elements of MR rows, `stride` apart; `panel` for NV vectors of each of `depth` rows, where
/// [`panel_lane`] has them.
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
                let a = isa.splat(*rows.add(row * stride + k));
                for v in 0..NV {
                    sums[row][v] = isa.fma(a, w[v], sums[row][v]);
                }
            }
        }
    }
    sums
}
