//! The right operand of the backward products: codes or values, widened into panels.
#![allow(clippy::needless_range_loop, reason = "halves index several arrays at once")]

use std::ops::Range;

use super::Operand;
use super::left::ROWS_AHEAD;
use crate::microkernel::form::{Form, MAX_TERMS};
use crate::microkernel::isa::{Isa, LANES};
use crate::microkernel::panels::PANEL;
use crate::microkernel::row_ops::{Coder, VectorQuantizer, load_vector};
use crate::microkernel::tile::gradient::Panels;
use crate::quantize::Quantizer;
use crate::saved::code_stride;

/// What g is multiplied by.
#[derive(Clone, Copy, Debug)]
pub(super) enum Right<'a> {
    /// Rows as they are, and the bits of their codes: those of X, or of analog weights.
    Rows(Operand<'a>, u32),
    /// Weights of one bit, `[N, K]`.
    Signs(&'a [f32]),
    /// Weights `[N, K]` of more bits, and the quantiser of each row.
    Quantized { values: &'a [f32], bits: u32, quantizers: &'a [Quantizer] },
}

/// The most panels that are widened at a time.
pub(super) const MAX_PANELS: usize = 4;

/// What a row of the right operand is read for: its columns from `column` to `end`, of a row of `k`.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub(super) column: usize,
    pub(super) end: usize,
    pub(super) k: usize,
}

impl Right<'_> {
    /// Bits of its codes; 0 if it is analog.
    pub(super) fn bits(&self) -> u32 {
        match self {
            Right::Rows(Operand::F32(_), _) => 0,
            Right::Signs(_) => 1,
            Right::Rows(_, bits) | Right::Quantized { bits, .. } => *bits,
        }
    }

    /// Writes rows `terms` of `count` panels of columns from `columns` on, as far as there are such columns. The rest of
    /// the panels has no meaning. Panels side by side share the lines and pages of a row.
    #[inline(always)]
    pub(super) fn widen<S: Isa, F: Form<S>>(
        &self,
        isa: S,
        form: F,
        terms: Range<usize>,
        columns: Columns,
        count: usize,
        memory: &mut [f32],
    ) {
        let depth = terms.len().div_ceil(F::TERMS);
        let stride = Panels::stride(depth) / LANES;
        let (memory, _) = memory.as_chunks_mut::<LANES>();
        let mut spoilt = [[isa.splat(0.0); 2]; MAX_PANELS];
        for lane in 0..depth {
            for (panel, spoilt) in spoilt.iter_mut().enumerate().take(count) {
                let columns = Columns { column: columns.column + panel * PANEL, ..columns };
                let mut elements = [[form.zero(isa); 2]; MAX_TERMS];
                for (part, elements) in elements.iter_mut().enumerate().take(F::TERMS) {
                    let row = terms.start + part * depth + lane;
                    if row < terms.end {
                        *elements = self.row(isa, form, row, columns, spoilt);
                    }
                }
                for half in 0..PANEL / LANES {
                    let lanes = &mut memory[panel * stride + F::panel_lane(depth, lane, half) / LANES];
                    isa.store(lanes, form.lanes(isa, elements.map(|halves| halves[half])));
                }
            }
        }
        for (panel, spoilt) in spoilt.iter().enumerate().take(count) {
            for half in 0..PANEL / LANES {
                isa.store(&mut memory[panel * stride + depth * PANEL / LANES + half], spoilt[half]);
            }
        }
    }

    /// A panel's columns of one row.
    #[inline(always)]
    fn row<S: Isa, F: Form<S>>(
        &self,
        isa: S,
        form: F,
        row: usize,
        Columns { column, end, k }: Columns,
        spoilt: &mut [S::F; 2],
    ) -> [F::Element; 2] {
        let count = PANEL.min(end - column);
        match self {
            Right::Rows(Operand::F32(values), _) => {
                let [low, high] = halves(isa, &values[row * k + column..][..count]);
                [form.value(isa, low), form.value(isa, high)]
            }
            Right::Signs(values) => {
                let values = fetched_values(isa, &values[row * k + column..], count, k);
                coded(isa, form, values, &Coder::Sign, spoilt)
            }
            Right::Quantized { values, quantizers, .. } => {
                let values = fetched_values(isa, &values[row * k + column..], count, k);
                let coder = Coder::Quantizer(VectorQuantizer::new(isa, &quantizers[row]));
                coded(isa, form, values, &coder, spoilt)
            }
            Right::Rows(Operand::I8(codes), _) => {
                let [low, high] = fetched(isa, &codes[row * code_stride(k) + column..], code_stride(k), count);
                [form.finite_code(isa, isa.load_i8_first(low)), form.finite_code(isa, isa.load_i8_first(high))]
            }
            Right::Rows(Operand::I16(codes), _) => {
                let [low, high] = fetched(isa, &codes[row * code_stride(k) + column..], code_stride(k), count);
                [form.finite_code(isa, isa.load_i16_first(low)), form.finite_code(isa, isa.load_i16_first(high))]
            }
        }
    }
}

/// A panel's columns of values, padded with zeros.
#[inline(always)]
fn halves<S: Isa>(isa: S, values: &[f32]) -> [S::F; 2] {
    if let Some(whole) = values.first_chunk::<PANEL>() {
        let (vectors, _) = whole.as_chunks::<LANES>();
        return [isa.load(&vectors[0]), isa.load(&vectors[1])];
    }
    [load_vector(isa, values, 0), if values.len() > LANES { load_vector(isa, values, 1) } else { isa.splat(0.0) }]
}

/// The first `count` of `values`, which are a panel's columns in a row of `k`. Also prefetches a row further down, which
/// lies on another page.
#[inline(always)]
fn fetched_values<S: Isa>(isa: S, values: &[f32], count: usize, k: usize) -> [S::F; 2] {
    for line in (0..PANEL).step_by(LANES) {
        isa.prefetch(values.as_ptr().wrapping_add(ROWS_AHEAD * k + line));
    }
    halves(isa, &values[..count])
}

/// The codes of values.
#[inline(always)]
fn coded<S: Isa, F: Form<S>>(
    isa: S,
    form: F,
    [low, high]: [S::F; 2],
    coder: &Coder<S>,
    [spoilt_low, spoilt_high]: &mut [S::F; 2],
) -> [F::Element; 2] {
    [form.code(isa, coder.code(isa, low), low, spoilt_low), form.code(isa, coder.code(isa, high), high, spoilt_high)]
}

/// The two halves of the first `count` of `codes`, which are a panel's columns in a row of `stride`. Also prefetches a
/// row further down.
#[inline(always)]
fn fetched<S: Isa, T>(isa: S, codes: &[T], stride: usize, count: usize) -> [&[T]; 2] {
    isa.prefetch(codes.as_ptr().wrapping_add(ROWS_AHEAD * stride));
    let (low, high) = codes[..count].split_at(count.min(LANES));
    [low, high]
}
