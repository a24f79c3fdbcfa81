//! The DAC: one row of X becomes codes.

use super::isa::Isa;
use super::rows::{self, Coder, INFINITY_BITS, VectorQuantizer};
use crate::params::Params;
use crate::quantize::Quantizer;
use crate::reference::NAN;

/// Where a row's codes go.
pub(crate) enum Target<'a> {
    /// Codes of an exact product, and their sum.
    Int(&'a mut [i8], &'a mut i32),
    /// Codes or values.
    Float(&'a mut [f32]),
}

/// Converts one row and returns s_x: NaN where the row is NaN throughout.
#[inline(always)]
pub(crate) fn row<S: Isa>(isa: S, params: &Params, x: &[f32], target: Target<'_>, mask: Option<&mut [u8]>) -> f32 {
    let largest = rows::largest_magnitude(isa, x);
    let is_nan = largest > INFINITY_BITS || (largest == INFINITY_BITS && params.input_range.is_none());
    if is_nan {
        match target {
            Target::Int(codes, sum) => {
                codes.fill(0);
                *sum = 0;
            }
            Target::Float(values) => values.fill(0.0),
        }
        if let Some(mask) = mask {
            mask.fill(0);
        }
        return NAN;
    }
    let Some(levels) = params.input_levels() else {
        match target {
            Target::Float(values) => {
                let (values, padding) = values.split_at_mut(x.len());
                values.copy_from_slice(x);
                padding.fill(0.0);
            }
            Target::Int(..) => unreachable!("an analog input has no codes"),
        }
        return 1.0;
    };
    if let (Some(mask), Some(range)) = (mask, params.input_range) {
        rows::saturation_mask(isa, x, range, mask);
    }
    let scalar = Quantizer::new(levels, params.input_range.unwrap_or(f32::from_bits(largest as u32)));
    let coder = Coder::Quantizer(VectorQuantizer::new(isa, &scalar));
    match target {
        Target::Int(codes, sum) => *sum = rows::codes_i8(isa, x, codes, &coder),
        Target::Float(values) => rows::codes_f32(isa, x, values, &coder),
    }
    scalar.step
}
