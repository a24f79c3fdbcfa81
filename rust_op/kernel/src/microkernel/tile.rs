//! Products of a few rows with a panel of columns: [`int`], [`matrix`] and [`float`] for the forward pass, [`gradient`]
//! for the backward pass.

pub(crate) mod float;
pub(crate) mod gradient;
pub(crate) mod int;
pub(crate) mod matrix;

use super::isa::{Isa, LANES};
use super::panels::PANEL;

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
