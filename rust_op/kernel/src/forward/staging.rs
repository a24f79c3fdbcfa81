//! Rows of X staged for the product: the memory for their codes or values, and how it is filled.

use super::dac::{CodeSink, convert_row};
use super::product::StagedRows;
use crate::microkernel::amx::{TILE_ROWS, tile_stride};
use crate::microkernel::buffer::Buffer;
use crate::microkernel::isa::{Isa, LANES, Vectorized};
use crate::microkernel::row_ops;
use crate::microkernel::tile::float::FloatRows;
use crate::microkernel::tile::int::CodeRows;
use crate::params::Params;
use crate::saved::{CodesMut, Saved, code_stride, mask_row, take_first};
use crate::weights::Weights;

/// Maximum rows of codes.
pub(super) const CODE_ROWS: usize = 128;

/// Memory for rows as the product reads them; for at most [`CODE_ROWS`] rows if they are codes.
pub(super) struct Staging {
    values: Values,
    sums: [i32; CODE_ROWS],
}

enum Values {
    /// The codes of all rows, followed by their magnitudes where the product needs them. With magnitudes and
    /// [`Isa::SIGNS`], signs take the place of the codes.
    Int {
        codes: Buffer<i8>,
        magnitudes: bool,
        stride: usize,
    },
    Float {
        values: Buffer<f32>,
        stride: usize,
    },
}

/// Floats from one row to the next: an odd number of cache lines, so that rows do not all fall into the same sets.
const fn float_stride(k: usize) -> usize {
    (k.div_ceil(LANES) | 1) * LANES
}

impl Staging {
    pub(super) fn new(weights: &Weights, rows: usize) -> Self {
        let k = weights.k();
        let values = if weights.params().is_integer() {
            let magnitudes = weights.needs_magnitudes();
            // Matrix tiles read whole tiles of rows.
            let (rows, stride) = match weights.tier().tiles_for(rows) {
                Some(_) => (rows.next_multiple_of(TILE_ROWS), tile_stride(k)),
                None => (rows, code_stride(k)),
            };
            Values::Int { codes: Buffer::new((rows * stride) << usize::from(magnitudes)), magnitudes, stride }
        } else {
            let stride = float_stride(k);
            Values::Float { values: Buffer::new(rows * stride), stride }
        };
        Staging { values, sums: [0; CODE_ROWS] }
    }

    /// All of the memory, to be filled.
    pub(super) fn all(&mut self) -> StagingMut<'_> {
        match &mut self.values {
            Values::Int { codes, magnitudes, stride } => {
                let codes = codes.as_mut_slice();
                let (codes, behind) = codes.split_at_mut(codes.len() >> usize::from(*magnitudes));
                let magnitudes = magnitudes.then_some(behind);
                StagingMut::Int { codes, magnitudes, stride: *stride, sums: &mut self.sums }
            }
            Values::Float { values, stride } => StagingMut::Float { values: values.as_mut_slice(), stride: *stride },
        }
    }

    /// The first `rows` rows, to be multiplied.
    pub(super) fn rows(&self, rows: usize) -> StagedRows<'_> {
        match &self.values {
            Values::Int { codes, magnitudes, stride } => {
                let (codes, sums) = (codes.as_slice(), &self.sums[..rows]);
                let (codes, magnitudes) = codes.split_at(codes.len() >> usize::from(*magnitudes));
                StagedRows::Int(CodeRows { codes, magnitudes, stride: *stride, sums })
            }
            Values::Float { values, stride } => {
                StagedRows::Float(FloatRows { values: values.as_slice(), stride: *stride })
            }
        }
    }
}

/// Rows of a [`Staging`] to be filled.
pub(super) enum StagingMut<'a> {
    Int { codes: &'a mut [i8], magnitudes: Option<&'a mut [i8]>, stride: usize, sums: &'a mut [i32] },
    Float { values: &'a mut [f32], stride: usize },
}

impl StagingMut<'_> {
    /// Splits off the first `count` rows, or all if there are fewer.
    pub(super) fn take_rows(&mut self, count: usize) -> Self {
        match self {
            StagingMut::Int { codes, magnitudes, stride, sums } => StagingMut::Int {
                codes: take_first(codes, count * *stride),
                magnitudes: magnitudes.as_mut().map(|magnitudes| take_first(magnitudes, count * *stride)),
                stride: *stride,
                sums: take_first(sums, count),
            },
            StagingMut::Float { values, stride } => {
                StagingMut::Float { values: take_first(values, count * *stride), stride: *stride }
            }
        }
    }
}

/// Converts rows of X into `staged`, and into what `saved` asks for.
pub(super) struct ConvertRows<'a> {
    pub(super) params: &'a Params,
    pub(super) k: usize,
    pub(super) x: &'a [f32],
    pub(super) saved: Saved<'a>,
    pub(super) staged: StagingMut<'a>,
    pub(super) x_step: &'a mut [f32],
}

impl Vectorized for ConvertRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let ConvertRows { params, k, x, mut saved, mut staged, x_step } = self;
        for (row, x) in x.chunks_exact(k).enumerate() {
            let mask = saved.dac_mask.as_mut().map(|mask| mask_row(mask, row, k));
            match &mut staged {
                StagingMut::Int { codes, magnitudes, stride, sums } => {
                    let stride = *stride;
                    let codes = &mut codes[row * stride..(row + 1) * stride];
                    x_step[row] = convert_row(isa, params, x, CodeSink::Int(codes, &mut sums[row]), mask);
                    if let Some(CodesMut::I8(saved)) = &mut saved.x_codes {
                        let saved_stride = code_stride(k);
                        saved[row * saved_stride..(row + 1) * saved_stride].copy_from_slice(&codes[..saved_stride]);
                    }
                    if let Some(magnitudes) = magnitudes {
                        let magnitudes = &mut magnitudes[row * stride..(row + 1) * stride];
                        row_ops::magnitudes(codes, magnitudes);
                        if S::SIGNS {
                            sums[row] = row_ops::signs(codes, magnitudes);
                        }
                    }
                }
                StagingMut::Float { values, stride } => {
                    let values = &mut values[row * *stride..(row + 1) * *stride];
                    x_step[row] = convert_row(isa, params, x, CodeSink::Float(values), mask);
                    if let Some(saved) = &mut saved.x_codes {
                        row_ops::narrow(isa, &values[..k], saved.row(row, k));
                    }
                }
            }
        }
        if let Some(saved) = &mut saved.x_step {
            saved.copy_from_slice(x_step);
        }
    }
}
