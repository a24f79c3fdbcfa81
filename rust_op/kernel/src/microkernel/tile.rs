//! Products of a few rows with a panel of columns: [`int`], [`matrix`] and [`float`] for the forward pass, [`gradient`]
//! for the backward pass.

pub(crate) mod float;
pub(crate) mod gradient;
pub(crate) mod int;
pub(crate) mod matrix;

use super::isa::{Isa, LANES};
use super::output::OutputTile;
use super::panels::PANEL;

/// What becomes of the sums of products of codes.
pub(crate) trait Results {
    /// The rows there are.
    fn rows(&self) -> usize;
    /// Writes what becomes of the sums of a tile: of MR rows and NV vectors of columns, from row and vector `origin` on.
    ///
    /// # Safety
    /// `output` has the rows.
    unsafe fn put<S: Isa, const MR: usize, const NV: usize>(
        &self,
        isa: S,
        output: OutputTile,
        origin: (usize, usize),
        sums: [[S::I; NV]; MR],
    );
}

/// What turns a panel's sums into z.
#[derive(Clone, Copy)]
pub(crate) struct Scaling<'a> {
    /// s_x of each row.
    pub(crate) x_step: &'a [f32],
    /// Weight scales of the panel.
    pub(crate) weight_scale: &'a [f32; PANEL],
    /// Bias of the panel.
    pub(crate) bias: &'a [f32; PANEL],
}

impl Scaling<'_> {
    /// z of one vector of sums.
    #[inline(always)]
    fn z<S: Isa>(&self, isa: S, row: usize, vector: usize, sum: S::F) -> S::F {
        let (scales, _) = self.weight_scale.as_chunks::<LANES>();
        let (biases, _) = self.bias.as_chunks::<LANES>();
        let scale = isa.mul(isa.splat(self.x_step[row]), isa.load(&scales[vector]));
        isa.fma(sum, scale, isa.load(&biases[vector]))
    }
}

impl Results for Scaling<'_> {
    #[inline(always)]
    fn rows(&self) -> usize {
        self.x_step.len()
    }
    #[inline(always)]
    unsafe fn put<S: Isa, const MR: usize, const NV: usize>(
        &self,
        isa: S,
        output: OutputTile,
        (row, vector): (usize, usize),
        sums: [[S::I; NV]; MR],
    ) {
        for i in 0..MR {
            for v in 0..NV {
                let z = self.z(isa, row + i, vector + v, isa.to_float(sums[i][v]));
                // SAFETY: one of the rows that are there by this method's contract.
                unsafe { output.store(isa, row + i, vector + v, z) };
            }
        }
    }
}
