//! The right operand of the backward products: codes or values, widened into panels.
#![allow(clippy::needless_range_loop, reason = "halves index several arrays at once")]

use std::ops::Range;

use super::Operand;
use super::left::ROWS_AHEAD;
use crate::microkernel::form::Form;
use crate::microkernel::isa::{Isa, LANES};
use crate::microkernel::panels::{PANEL, panel_lane};
use crate::microkernel::row_ops::{Coder, VectorQuantizer, load_vector};
use crate::quantize::Quantizer;
use crate::saved::code_stride;

/// What g is multiplied by.
#[derive(Clone, Copy, Debug)]
pub(super) enum Right<'a> {
    /// Rows as they are: those of X, or of analog weights.
    Rows(Operand<'a>),
    /// Weights of one bit, `[N, K]`.
    Signs(&'a [f32]),
    /// Weights `[N, K]` of more bits, and the quantiser of each row.
    Quantized { values: &'a [f32], bits: u32, quantizers: &'a [Quantizer] },
}

impl Right<'_> {
    /// Whether its elements are exact in bf16.
    pub(super) fn fits_bf16(&self) -> bool {
        match self {
            Right::Rows(values) => matches!(values, Operand::I8(_)),
            Right::Signs(_) => true,
            Right::Quantized { bits, .. } => *bits <= 8,
        }
    }

    /// Writes columns `column..column + PANEL` of rows `terms`, as far as there are such columns, as a panel. The rest
    /// of the panel has no meaning.
    #[inline(always)]
    pub(super) fn widen<S: Isa, F: Form<S>>(
        &self,
        isa: S,
        form: F,
        terms: Range<usize>,
        column: usize,
        k: usize,
        panel: &mut [f32],
    ) {
        let (panel, _) = panel.as_chunks_mut::<LANES>();
        let depth = panel.len() / (PANEL / LANES);
        for lane in 0..depth {
            let row = terms.start + lane * F::TERMS;
            let first = self.row(isa, row, column, k);
            let second = if F::TERMS == 2 && row + 1 < terms.end {
                self.row(isa, row + 1, column, k)
            } else {
                [isa.splat(0.0); 2]
            };
            for half in 0..PANEL / LANES {
                let lanes = &mut panel[panel_lane::<S>(depth, lane, half) / LANES];
                isa.store(lanes, form.zip(isa, first[half], second[half]));
            }
        }
    }

    /// A panel's columns of one row, as floats.
    #[inline(always)]
    fn row<S: Isa>(&self, isa: S, row: usize, column: usize, k: usize) -> [S::F; 2] {
        let count = PANEL.min(k - column);
        match self {
            Right::Rows(Operand::F32(values)) => halves(isa, &values[row * k + column..][..count]),
            Right::Signs(values) => quantized(isa, &values[row * k + column..], count, k, &Coder::Sign),
            Right::Quantized { values, quantizers, .. } => {
                let coder = Coder::Quantizer(VectorQuantizer::new(isa, &quantizers[row]));
                quantized(isa, &values[row * k + column..], count, k, &coder)
            }
            Right::Rows(Operand::I8(codes)) => {
                let [low, high] = fetched(isa, &codes[row * code_stride(k) + column..], code_stride(k), count);
                [isa.to_float(isa.load_i8_first(low)), isa.to_float(isa.load_i8_first(high))]
            }
            Right::Rows(Operand::I16(codes)) => {
                let [low, high] = fetched(isa, &codes[row * code_stride(k) + column..], code_stride(k), count);
                [isa.to_float(isa.load_i16_first(low)), isa.to_float(isa.load_i16_first(high))]
            }
        }
    }
}

/// A panel's columns of values, padded with zeros.
#[inline(always)]
fn halves<S: Isa>(isa: S, values: &[f32]) -> [S::F; 2] {
    [load_vector(isa, values, 0), if values.len() > LANES { load_vector(isa, values, 1) } else { isa.splat(0.0) }]
}

/// The codes of the first `count` of `values`, which are a panel's columns in a row of `k`; NaN where a value is not
/// finite. Also prefetches a row further down, which lies on another page.
#[inline(always)]
fn quantized<S: Isa>(isa: S, values: &[f32], count: usize, k: usize, coder: &Coder<S>) -> [S::F; 2] {
    for line in (0..PANEL).step_by(LANES) {
        isa.prefetch(values.as_ptr().wrapping_add(ROWS_AHEAD * k + line));
    }
    let values = halves(isa, &values[..count]);
    let mut codes = values;
    for (code, value) in codes.iter_mut().zip(values) {
        // 0 * value is NaN where value is not finite, and adds nothing elsewhere.
        *code = isa.fma(isa.splat(0.0), value, isa.to_float(coder.code(isa, value)));
    }
    codes
}

/// The two halves of the first `count` of `codes`, which are a panel's columns in a row of `stride`. Also prefetches a
/// row further down.
#[inline(always)]
fn fetched<S: Isa, T>(isa: S, codes: &[T], stride: usize, count: usize) -> [&[T]; 2] {
    isa.prefetch(codes.as_ptr().wrapping_add(ROWS_AHEAD * stride));
    let (low, high) = codes[..count].split_at(count.min(LANES));
    [low, high]
}
