//! The operands of the backward products, packed: the scaled gradient on the left, codes or values on the right.

use std::ops::Range;

use super::{Inputs, Operand};
use crate::forward::mask_stride;
use crate::microkernel::form::Form;
use crate::microkernel::isa::{Isa, LANES};
use crate::microkernel::rows::{self, Coder, VectorQuantizer};
use crate::microkernel::tile::gradient::{tile_height, tile_stride};
use crate::microkernel::tile::{PANEL, panel_lane};
use crate::quantize::Quantizer;
use crate::reference::NAN;
use crate::weights::code_stride;

/// Rows of dY that are fetched ahead of their use where its columns are read a strip at a time.
const ROWS_AHEAD: usize = 8;

/// Bits `column..column + 16` of a row of mask bits; those behind its end are 0.
#[inline(always)]
fn mask_word(row: &[u8], column: usize) -> u16 {
    let bytes = &row[column / 8..];
    let word = match bytes.first_chunk::<4>() {
        Some(bytes) => u32::from_le_bytes(*bytes),
        None => {
            let mut padded = [0; 4];
            padded[..bytes.len()].copy_from_slice(bytes);
            u32::from_le_bytes(padded)
        }
    };
    (word >> (column % 8)) as u16
}

/// A row of dY, and which of its elements the ADC stops.
#[derive(Clone, Copy)]
struct Row<'a> {
    dy: &'a [f32],
    mask: Option<&'a [u8]>,
}

impl<'a> Row<'a> {
    #[inline(always)]
    fn new(inputs: &Inputs<'a>, row: usize) -> Self {
        let (_, n, _) = inputs.shape;
        let stride = mask_stride(n);
        let mask = inputs.adc_mask.map(|mask| &mask[row * stride..(row + 1) * stride]);
        Row { dy: &inputs.dy[row * n..(row + 1) * n], mask }
    }

    /// g of 16 elements from `column` on; zeros behind the row's end.
    #[inline(always)]
    fn passed<S: Isa>(&self, isa: S, column: usize) -> S::F {
        let dy = match self.dy[column..].first_chunk::<LANES>() {
            Some(dy) => isa.load(dy),
            None => rows::vector(isa, &self.dy[column..], 0),
        };
        match self.mask {
            Some(mask) => isa.select(isa.mask(mask_word(mask, column)), isa.splat(0.0), dy),
            None => dy,
        }
    }
}

/// Packs g * `scale`: rows `rows` of g are rows, columns `terms` the terms of sums.
#[inline(always)]
pub(super) fn pack_for_x<S: Isa, F: Form<S>>(
    isa: S,
    form: F,
    inputs: &Inputs<'_>,
    rows: Range<usize>,
    terms: Range<usize>,
    scale: &[f32],
    packed: &mut [f32],
) {
    let (most, _) = S::FLOAT_TILE;
    let steps = terms.len().div_ceil(F::TERMS);
    for (tile, packed) in packed.chunks_exact_mut(tile_stride(most, steps)).enumerate() {
        let first = rows.start + tile * most;
        let height = tile_height(most, rows.end - first);
        let count = height.min(rows.end - first);
        let mut taken = [Row::new(inputs, first); LANES];
        for (row, taken) in taken.iter_mut().enumerate().take(count) {
            *taken = Row::new(inputs, first + row);
        }
        for start in (0..steps).step_by(LANES) {
            let column = terms.start + start * F::TERMS;
            let mut vectors = [isa.splat_i(0); LANES];
            let mut halves = [[isa.splat(0.0); LANES]; 2];
            for (half, lanes) in halves.iter_mut().enumerate().take(F::TERMS) {
                let column = column + half * LANES;
                if column < terms.end {
                    let scales = rows::vector(isa, &scale[column..], 0);
                    for (row, lanes) in taken[..count].iter().zip(lanes) {
                        isa.prefetch(row.dy.as_ptr().wrapping_add(column + most * row.dy.len()));
                        *lanes = isa.mul(row.passed(isa, column), scales);
                    }
                }
            }
            for (row, vector) in vectors.iter_mut().enumerate().take(count) {
                *vector = isa.bits(form.join(isa, halves[0][row], halves[1][row]));
            }
            for (step, lanes) in (start..steps).zip(isa.transpose(vectors)) {
                set_step(isa, packed, step * height, isa.from_bits(lanes));
            }
        }
    }
}

/// The bias's gradient in some columns.
pub(super) struct Bias<'a> {
    pub(super) sums: &'a mut [f32],
    /// Whether it passes where the ADC saturated.
    pub(super) unmasked: bool,
}

impl Bias<'_> {
    /// Adds the elements of `row` from `column` on.
    #[inline(always)]
    fn add<S: Isa>(&mut self, isa: S, row: Row<'_>, column: usize) {
        let row = if self.unmasked { Row { mask: None, ..row } } else { row };
        let (sums, tail) = self.sums.as_chunks_mut::<LANES>();
        for (v, sum) in sums.iter_mut().enumerate() {
            isa.store(sum, isa.add(isa.load(sum), row.passed(isa, column + v * LANES)));
        }
        if !tail.is_empty() {
            let sum = isa.add(rows::vector(isa, tail, 0), row.passed(isa, column + sums.len() * LANES));
            rows::set_vector(isa, tail, 0, sum);
        }
    }
}

/// Packs g * s_x, where there is memory for it beside s_x: columns `rows` of g are rows, rows `terms` the terms of sums.
/// Adds g to the bias's gradient.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "each is a fact of its own")]
pub(super) fn pack_for_weight<S: Isa, F: Form<S>>(
    isa: S,
    form: F,
    inputs: &Inputs<'_>,
    rows: Range<usize>,
    terms: Range<usize>,
    mut packed: Option<(&mut [f32], &[f32])>,
    mut bias: Option<Bias<'_>>,
) {
    let (most, _) = S::FLOAT_TILE;
    let steps = terms.len().div_ceil(F::TERMS);
    let stride = tile_stride(most, steps);
    for step in 0..steps {
        let row = terms.start + step * F::TERMS;
        let first = Row::new(inputs, row);
        let second = if F::TERMS == 2 && row + 1 < terms.end { Some(Row::new(inputs, row + 1)) } else { None };
        if let Some(bias) = &mut bias {
            bias.add(isa, first, rows.start);
            if let Some(second) = second {
                bias.add(isa, second, rows.start);
            }
        }
        let Some((packed, x_step)) = &mut packed else { continue };
        let steps_of_rows = [isa.splat(x_step[row]), isa.splat(if second.is_some() { x_step[row + 1] } else { 0.0 })];
        let (whole, last) = (rows.len() / most, tile_height(most, rows.len() % most));
        for (tile, packed) in packed.chunks_exact_mut(stride).enumerate() {
            let column = rows.start + tile * most;
            let height = if tile < whole { most } else { last };
            isa.prefetch(first.dy.as_ptr().wrapping_add(column + ROWS_AHEAD * first.dy.len()));
            let first = isa.mul(first.passed(isa, column), steps_of_rows[0]);
            let second = match second {
                Some(second) => isa.mul(second.passed(isa, column), steps_of_rows[1]),
                None => isa.splat(0.0),
            };
            set_step(isa, packed, step * height, form.zip(isa, first, second));
        }
    }
    if let Some(bias) = bias {
        for sum in bias.sums.iter_mut().filter(|sum| sum.is_nan()) {
            *sum = NAN;
        }
    }
}

/// Stores a step of a tile. What exceeds the tile's rows is overwritten by the next step's.
#[inline(always)]
fn set_step<S: Isa>(isa: S, packed: &mut [f32], at: usize, lanes: S::F) {
    const SLACK: &str = "each tile has slack behind it";
    if S::FLOAT_TILE.0 <= LANES / 2 {
        isa.store_first(packed[at..].first_chunk_mut::<{ LANES / 2 }>().expect(SLACK), lanes);
    } else {
        isa.store(packed[at..].first_chunk_mut().expect(SLACK), lanes);
    }
}

/// What g is multiplied with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Right<'a> {
    /// Rows as they are: X's, or those of analog weights.
    Rows(Operand<'a>),
    /// Weights of one bit, `[N, K]`.
    Signs(&'a [f32]),
    /// Weights `[N, K]` of more bits, and what makes codes of each row.
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

    /// Columns `column..column + PANEL` (those that there are) of rows `terms`, as a panel. What stands elsewhere means
    /// nothing.
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
        let steps = panel.len() / (PANEL / LANES);
        for step in 0..steps {
            let row = terms.start + step * F::TERMS;
            let first = self.row(isa, row, column, k);
            let second = if F::TERMS == 2 && row + 1 < terms.end {
                self.row(isa, row + 1, column, k)
            } else {
                [isa.splat(0.0); 2]
            };
            for half in 0..PANEL / LANES {
                let lanes = &mut panel[panel_lane::<S>(steps, step, half) / LANES];
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

/// A panel's columns of values, filled up with zeros.
#[inline(always)]
fn halves<S: Isa>(isa: S, values: &[f32]) -> [S::F; 2] {
    [rows::vector(isa, values, 0), if values.len() > LANES { rows::vector(isa, values, 1) } else { isa.splat(0.0) }]
}

/// The codes of the first `count` of `values`, which is a panel's columns in a row of `k`; NaN where a value is not
/// finite. Meanwhile a row further down is fetched, which lies on another page.
#[inline(always)]
fn quantized<S: Isa>(isa: S, values: &[f32], count: usize, k: usize, coder: &Coder<S>) -> [S::F; 2] {
    for line in (0..PANEL).step_by(LANES) {
        isa.prefetch(values.as_ptr().wrapping_add(ROWS_AHEAD * k + line));
    }
    let values = halves(isa, &values[..count]);
    let mut codes = values;
    for (code, value) in codes.iter_mut().zip(values) {
        // 0 * value is NaN where value is not finite, and else adds nothing.
        *code = isa.fma(isa.splat(0.0), value, isa.to_float(coder.code(isa, value)));
    }
    codes
}

/// The halves of the first `count` of `codes`, which are a panel's columns in a row of `stride`. Meanwhile a row further
/// down is fetched.
#[inline(always)]
fn fetched<S: Isa, T>(isa: S, codes: &[T], stride: usize, count: usize) -> [&[T]; 2] {
    isa.prefetch(codes.as_ptr().wrapping_add(ROWS_AHEAD * stride));
    let (low, high) = codes[..count].split_at(count.min(LANES));
    [low, high]
}
