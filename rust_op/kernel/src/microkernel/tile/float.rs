//! Float tiles: one chain of fused multiply-adds an output.

use super::target::Target;
use super::{PANEL, Scaling};
use crate::microkernel::isa::{Isa, LANES};

/// Rows of floats: element k of row r is at `r * row_step + k * k_step`, and that of row r of tile t (of MR rows)
/// at `t * tile_step` further.
#[derive(Clone, Copy)]
pub(crate) struct FloatRows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row_step: usize,
    pub(crate) k_step: usize,
    pub(crate) tile_step: usize,
}

/// What becomes of a float panel's sums.
#[derive(Clone, Copy)]
pub(crate) enum Finish<'a> {
    /// z of a forward pass.
    Scale(Scaling<'a>),
    /// The sums themselves; the first of several blocks of k starts at 0, the others continue what is there.
    Sum {
        /// Whether the target holds the sums of the blocks before.
        continued: bool,
    },
}

/// Products of `count` rows of floats with one float panel of `depth` k.
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
    finish: &Finish<'_>,
    target: Target,
) {
    let (most, _) = S::FLOAT_TILE;
    let mut row = 0;
    // SAFETY: passed on; `row + MR <= count` at each call.
    unsafe {
        while row < count {
            let left = count - row;
            row += if most >= 12 && left >= 12 {
                float_rows::<S, 12>(isa, rows, panel, depth, finish, target, row)
            } else if most >= 8 && left >= 8 {
                float_rows::<S, 8>(isa, rows, panel, depth, finish, target, row)
            } else if most == 6 && left >= 6 {
                float_rows::<S, 6>(isa, rows, panel, depth, finish, target, row)
            } else if left >= 4 {
                float_rows::<S, 4>(isa, rows, panel, depth, finish, target, row)
            } else if left >= 2 {
                float_rows::<S, 2>(isa, rows, panel, depth, finish, target, row)
            } else {
                float_rows::<S, 1>(isa, rows, panel, depth, finish, target, row)
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
    finish: &Finish<'_>,
    target: Target,
    row: usize,
) -> usize {
    // SAFETY: passed on.
    unsafe {
        match S::FLOAT_TILE.1 {
            2 => float_vectors::<S, MR, 2>(isa, rows, panel, depth, finish, target, row, 0),
            _ => {
                float_vectors::<S, MR, 1>(isa, rows, panel, depth, finish, target, row, 0);
                float_vectors::<S, MR, 1>(isa, rows, panel, depth, finish, target, row, 1);
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
    finish: &Finish<'_>,
    target: Target,
    row: usize,
    vector: usize,
) {
    let tile = S::FLOAT_TILE.0;
    let first = row / tile * rows.tile_step + row % tile * rows.row_step;
    debug_assert!(panel.len() >= depth * PANEL);
    debug_assert!(depth == 0 || rows.values.len() > first + (MR - 1) * rows.row_step + (depth - 1) * rows.k_step);
    // SAFETY: the slices hold what the assertions above say, which their makers keep; the target by contract.
    unsafe {
        let mut start = [[isa.splat(0.0); NV]; MR];
        if let Finish::Sum { continued: true } = finish {
            for (i, start) in start.iter_mut().enumerate() {
                for (v, start) in start.iter_mut().enumerate() {
                    *start = target.load(isa, row + i, vector + v);
                }
            }
        }
        // With a depth of 0 there may be no element to point to.
        let values = rows.values.as_ptr().wrapping_add(first);
        let panel = panel.as_ptr().wrapping_add(vector * LANES);
        let sums = float_tile::<S, MR, NV>(isa, values, rows.row_step, rows.k_step, panel, depth, start);
        for i in 0..MR {
            for v in 0..NV {
                let value = match finish {
                    Finish::Scale(scaling) => scaling.z(isa, row + i, vector + v, sums[i][v]),
                    Finish::Sum { .. } => sums[i][v],
                };
                target.store(isa, row + i, vector + v, value);
            }
        }
    }
}

/// Sums of MR rows of floats with NV vectors of columns, each one chain of fused multiply-adds that continues
/// `start`.
///
/// # Safety
/// `rows` is valid for element `row * row_step + k * k_step` of MR rows and `depth` k; `panel` for `depth` rows of
/// [`PANEL`], of which the NV vectors from `panel` on are read.
#[inline(always)]
unsafe fn float_tile<S: Isa, const MR: usize, const NV: usize>(
    isa: S,
    rows: *const f32,
    row_step: usize,
    k_step: usize,
    panel: *const f32,
    depth: usize,
    start: [[S::F; NV]; MR],
) -> [[S::F; NV]; MR] {
    let mut sums = start;
    for k in 0..depth {
        // SAFETY: row k of the panel, and element k of each row.
        unsafe {
            let mut w = [isa.splat(0.0); NV];
            for (v, w) in w.iter_mut().enumerate() {
                *w = isa.load_ptr(panel.add(k * PANEL + v * LANES));
            }
            for row in 0..MR {
                let a = isa.splat(*rows.add(row * row_step + k * k_step));
                for v in 0..NV {
                    sums[row][v] = isa.fma(a, w[v], sums[row][v]);
                }
            }
        }
    }
    sums
}
