//! Products of a few rows with a panel of [`PANEL`] columns: [`int`], [`float`], [`gradient`], and the memory of their results, [`target`].
//!
//! An integer panel is `[blocks][PANEL][4]` bytes: four consecutive k of a column side by side (a *group*),
//! as a four-way dot product wants them, and in each byte the stored codes c + z of 8/b consecutive groups,
//! low bits first. Stored codes are unsigned, so that one rule serves all widths and `vpdpbusd`:
//! sum a c = sum a (c + z) - z sum a. Where a tier's dot multiplies signed bytes, z is 0 at 8 bits.
//!
//! A float panel is `[K][PANEL]`, or where float tiles are one vector wide two halves of `[K][LANES]`, so that what a tile
//! reads lies side by side ([`panel_lane`]).

pub(crate) mod float;
pub(crate) mod gradient;
pub(crate) mod int;
pub(crate) mod target;

use super::isa::{Isa, LANES};

/// Columns of a panel.
pub(crate) const PANEL: usize = 32;
/// Bytes of one block of an integer panel.
pub(crate) const BLOCK_BYTES: usize = PANEL * 4;

/// How weight codes are stored in panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Storage {
    /// 1, 2, 4 or 8.
    pub(crate) bits: u32,
    /// z. Bits are stored for the codes of a single bit, and unpacked to {0, 2}.
    pub(crate) zero: i32,
}

impl Storage {
    /// The narrowest storage of codes of `bits` bits, at 8 bits as they are where they are `signed`.
    pub(crate) const fn of(bits: u32, signed: bool) -> Self {
        let bits = if bits <= 2 { bits } else { bits.next_power_of_two() };
        let zero = match bits {
            1 => 1,
            8 if signed => 0,
            _ => 1 << (bits - 1),
        };
        Storage { bits, zero }
    }

    /// Groups in a block.
    pub(crate) const fn groups(self) -> usize {
        8 / self.bits as usize
    }

    /// Bytes of a panel of rows of `k`.
    pub(crate) const fn panel_bytes(self, k: usize) -> usize {
        k.div_ceil(4).div_ceil(self.groups()) * BLOCK_BYTES
    }
}

/// Where vector `vector` of row `k` begins in a float panel of `depth` rows.
#[inline(always)]
pub(crate) fn panel_lane<S: Isa>(depth: usize, k: usize, vector: usize) -> usize {
    if S::FLOAT_TILE.1 == 1 { (vector * depth + k) * LANES } else { k * PANEL + vector * LANES }
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
