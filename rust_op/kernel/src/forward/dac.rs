//! The DAC: one row of X becomes codes. Noise behind it rounds them to a finer grid.

use crate::microkernel::buffer::Buffer;
use crate::microkernel::gauss;
use crate::microkernel::isa::{Isa, LANES};
use crate::microkernel::row_ops::{self, Coder, INFINITY_BITS, VectorQuantizer};
use crate::params::Params;
use crate::quantize::{Quantizer, levels};
use crate::reference::NAN;
use crate::rng;

/// Where a row's codes go.
pub(super) enum CodeSink<'a> {
    /// Codes of an exact product, and their sum.
    Int(&'a mut [i8], &'a mut i32),
    /// Codes or values.
    Float(&'a mut [f32]),
}

/// The noise on inputs, with memory for the normals of a row.
pub(super) struct InputNoise {
    law: InputLaw,
    key: u64,
    eps: Buffer<f32>,
}

/// What becomes of a code.
#[derive(Clone, Copy)]
struct InputLaw {
    relative: f32,
    /// sigma of the additive noise, squared.
    additive_square: f32,
    /// The grid is this many times as fine as that of the DAC.
    fine: f32,
    /// The largest code.
    limit: f32,
}

/// The noise on one row.
pub(super) struct RowNoise<'a> {
    law: InputLaw,
    key: u64,
    row: u64,
    eps: &'a mut [f32],
}

impl InputNoise {
    /// For rows of `k`; `None` where there is no such noise.
    pub(super) fn new(params: &Params, call_key: u64, k: usize) -> Option<Self> {
        let noise = params.input_noise;
        if !noise.any() {
            return None;
        }
        let additive = noise.additive * params.input_full_scale() as f32;
        let law = InputLaw {
            relative: noise.relative,
            additive_square: additive * additive,
            fine: (1 << params.input_shift()) as f32,
            limit: levels(params.input_code_bits()) as f32,
        };
        Some(InputNoise { law, key: call_key ^ rng::INPUT_KEY, eps: Buffer::new(k) })
    }

    pub(super) fn of_row(&mut self, row: u64) -> RowNoise<'_> {
        RowNoise { law: self.law, key: self.key, row, eps: self.eps.as_mut_slice() }
    }
}

impl InputLaw {
    /// Codes `a` of the DAC, on the fine grid, with noise.
    #[inline(always)]
    fn noisy<S: Isa>(&self, isa: S, a: S::F, eps: S::F) -> S::I {
        let code = isa.mul(a, isa.splat(self.fine));
        // An absent law adds +0.
        let relative = isa.mul(isa.splat(self.relative), isa.abs(code));
        let square = isa.add(isa.mul(relative, relative), isa.splat(self.additive_square));
        let rounded = isa.sub(square, isa.splat(1.0 / 12.0));
        let sigma = isa.sqrt(isa.select(isa.greater(square, isa.splat(0.25)), rounded, square));
        let limit = isa.splat(self.limit);
        let value = isa.min(isa.fma(sigma, eps, code), limit);
        isa.round(isa.max(value, isa.sub(isa.splat(0.0), limit)))
    }
}

impl RowNoise<'_> {
    /// Adds the noise to codes of 8 bits and returns their sum.
    #[inline(always)]
    fn add_to_codes<S: Isa>(self, isa: S, codes: &mut [i8]) -> i32 {
        gauss::fill_row(isa, self.key, self.row, self.eps);
        let mut sum = isa.splat_i(0);
        for (codes, eps) in codes.chunks_mut(LANES).zip(self.eps.chunks(LANES)) {
            let noisy = self.law.noisy(isa, isa.to_float(isa.load_i8_first(codes)), isa.load_first(eps));
            isa.store_i8_first(codes, noisy);
            // Lanes past the end are zeros without noise, since their normals are zeros.
            sum = isa.add_i(sum, noisy);
        }
        isa.total(sum)
    }

    /// The same for codes in floats.
    #[inline(always)]
    fn add_to_values<S: Isa>(self, isa: S, values: &mut [f32]) {
        gauss::fill_row(isa, self.key, self.row, self.eps);
        for (values, eps) in values.chunks_mut(LANES).zip(self.eps.chunks(LANES)) {
            let noisy = self.law.noisy(isa, isa.load_first(values), isa.load_first(eps));
            isa.store_first(values, isa.to_float(noisy));
        }
    }
}

/// Converts one row and returns s_x: NaN where the row is NaN throughout.
#[inline(always)]
pub(super) fn convert_row<S: Isa>(
    isa: S,
    params: &Params,
    x: &[f32],
    sink: CodeSink<'_>,
    noise: Option<RowNoise<'_>>,
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
    let fine = noise.as_ref().map_or(1.0, |noise| noise.law.fine);
    match sink {
        CodeSink::Int(codes, sum) => {
            *sum = row_ops::codes_i8(isa, x, codes, &coder);
            if let Some(noise) = noise {
                *sum = noise.add_to_codes(isa, &mut codes[..x.len()]);
            }
        }
        CodeSink::Float(values) => {
            row_ops::codes_f32(isa, x, values, &coder);
            if let Some(noise) = noise {
                noise.add_to_values(isa, &mut values[..x.len()]);
            }
        }
    }
    scalar.step / fine
}
