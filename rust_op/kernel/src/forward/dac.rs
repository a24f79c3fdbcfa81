//! The DAC: one row of X becomes codes.

use crate::microkernel::isa::Isa;
use crate::microkernel::row_ops::{self, Coder, INFINITY_BITS, VectorQuantizer};
use crate::params::Params;
use crate::quantize::Quantizer;
use crate::reference::NAN;

/// Where a row's codes go.
pub(super) enum CodeSink<'a> {
    /// Codes of an exact product, and their sum.
    Int(&'a mut [i8], &'a mut i32),
    /// Codes or values.
    Float(&'a mut [f32]),
}

/// Converts one row and returns s_x: NaN where the row is NaN throughout.
#[inline(always)]
pub(super) fn convert_row<S: Isa>(
    isa: S,
    params: &Params,
    x: &[f32],
    sink: CodeSink<'_>,
    mask: Option<&mut [u8]>,
) -> f32 {
    let largest = row_ops::largest_magnitude(isa, x);
    let is_nan = largest > INFINITY_BITS || (largest == INFINITY_BITS && params.input_range.is_none());
    if is_nan {
        match sink {
            CodeSink::Int(codes, sum) => {
                codes.fill(0);
                *sum = 0;
            }
            CodeSink::Float(values) => values.fill(0.0),
        }
        if let Some(mask) = mask {
            mask.fill(0);
        }
        return NAN;
    }
    let Some(levels) = params.input_levels() else {
        match sink {
            CodeSink::Float(values) => {
                let (values, padding) = values.split_at_mut(x.len());
                values.copy_from_slice(x);
                padding.fill(0.0);
            }
            CodeSink::Int(..) => unreachable!("an analog input has no codes"),
        }
        return 1.0;
    };
    if let (Some(mask), Some(range)) = (mask, params.input_range) {
        row_ops::saturation_mask(isa, x, range, mask);
    }
    let scalar = Quantizer::new(levels, params.input_range.unwrap_or(f32::from_bits(largest as u32)));
    let coder = Coder::Quantizer(VectorQuantizer::new(isa, &scalar));
    match sink {
        CodeSink::Int(codes, sum) => *sum = row_ops::codes_i8(isa, x, codes, &coder),
        CodeSink::Float(values) => row_ops::codes_f32(isa, x, values, &coder),
    }
    scalar.step
}
