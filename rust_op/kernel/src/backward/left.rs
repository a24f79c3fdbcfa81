//! The left operand of the backward products: the scaled gradient, packed in tiles.

use std::ops::Range;

use super::Inputs;
use crate::microkernel::form::Form;
use crate::microkernel::isa::{Isa, LANES};
use crate::microkernel::row_ops::{load_vector, store_vector};
use crate::microkernel::tile::gradient::{tile_height, tile_stride};
use crate::reference::NAN;
use crate::saved::mask_stride;

/// How many rows ahead of their use rows are prefetched where a matrix is read a strip of columns at a time.
pub(super) const ROWS_AHEAD: usize = 8;

/// Bits `column..column + 16` of a row of mask bits; bits past its end are 0.
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

/// A row of dY, and the mask of the elements where the ADC saturated.
#[derive(Clone, Copy)]
struct GradientRow<'a> {
    dy: &'a [f32],
    mask: Option<&'a [u8]>,
}

impl<'a> GradientRow<'a> {
    #[inline(always)]
    fn new(inputs: &Inputs<'a>, row: usize) -> Self {
        let (_, n, _) = inputs.shape;
        let stride = mask_stride(n);
        let mask = inputs.adc_mask.map(|mask| &mask[row * stride..(row + 1) * stride]);
        GradientRow { dy: &inputs.dy[row * n..(row + 1) * n], mask }
    }

    /// g of 16 elements from `column` on; zeros past the row's end.
    #[inline(always)]
    fn passed<S: Isa>(&self, isa: S, column: usize) -> S::F {
        let dy = match self.dy[column..].first_chunk::<LANES>() {
            Some(dy) => isa.load(dy),
            None => load_vector(isa, &self.dy[column..], 0),
        };
        match self.mask {
            Some(mask) => isa.select(isa.mask(mask_word(mask, column)), isa.splat(0.0), dy),
            None => dy,
        }
    }
}

/// Packs g * `scale`: rows `rows` of g become rows, its columns `terms` the terms of the sums.
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
    let (tile_rows, _) = S::FLOAT_TILE;
    let depth = terms.len().div_ceil(F::TERMS);
    for (tile, packed) in packed.chunks_exact_mut(tile_stride(tile_rows, depth)).enumerate() {
        let first = rows.start + tile * tile_rows;
        let height = tile_height(tile_rows, rows.end - first);
        let count = height.min(rows.end - first);
        let mut taken = [GradientRow::new(inputs, first); LANES];
        for (row, taken) in taken.iter_mut().enumerate().take(count) {
            *taken = GradientRow::new(inputs, first + row);
        }
        for start in (0..depth).step_by(LANES) {
            let column = terms.start + start * F::TERMS;
            let mut vectors = [isa.splat_i(0); LANES];
            let mut halves = [[isa.splat(0.0); LANES]; 2];
            for (half, lanes) in halves.iter_mut().enumerate().take(F::TERMS) {
                let column = column + half * LANES;
                if column < terms.end {
                    let scales = load_vector(isa, &scale[column..], 0);
                    for (row, lanes) in taken[..count].iter().zip(lanes) {
                        isa.prefetch(row.dy.as_ptr().wrapping_add(column + tile_rows * row.dy.len()));
                        *lanes = isa.mul(row.passed(isa, column), scales);
                    }
                }
            }
            for (row, vector) in vectors.iter_mut().enumerate().take(count) {
                *vector = isa.bits(form.join(isa, halves[0][row], halves[1][row]));
            }
            for (k, lanes) in (start..depth).zip(isa.transpose(vectors)) {
                set_lanes(isa, packed, k * height, isa.from_bits(lanes));
            }
        }
    }
}

/// The bias's gradient in some columns.
pub(super) struct Bias<'a> {
    pub(super) sums: &'a mut [f32],
    /// Whether dY counts even where the ADC saturated.
    pub(super) unmasked: bool,
}

impl Bias<'_> {
    /// Adds the elements of `row` from `column` on.
    #[inline(always)]
    fn add<S: Isa>(&mut self, isa: S, row: GradientRow<'_>, column: usize) {
        let row = if self.unmasked { GradientRow { mask: None, ..row } } else { row };
        let (sums, tail) = self.sums.as_chunks_mut::<LANES>();
        for (v, sum) in sums.iter_mut().enumerate() {
            isa.store(sum, isa.add(isa.load(sum), row.passed(isa, column + v * LANES)));
        }
        if !tail.is_empty() {
            let sum = isa.add(load_vector(isa, tail, 0), row.passed(isa, column + sums.len() * LANES));
            store_vector(isa, tail, 0, sum);
        }
    }
}

/// Packs g * s_x, if `packed` holds memory for it (and s_x): columns `rows` of g become rows, its rows `terms` the
/// terms of the sums. Adds g to the bias's gradient, if there is one.
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
    let (tile_rows, _) = S::FLOAT_TILE;
    let depth = terms.len().div_ceil(F::TERMS);
    let stride = tile_stride(tile_rows, depth);
    for k in 0..depth {
        let row = terms.start + k * F::TERMS;
        let first = GradientRow::new(inputs, row);
        let second = if F::TERMS == 2 && row + 1 < terms.end { Some(GradientRow::new(inputs, row + 1)) } else { None };
        if let Some(bias) = &mut bias {
            bias.add(isa, first, rows.start);
            if let Some(second) = second {
                bias.add(isa, second, rows.start);
            }
        }
        let Some((packed, x_step)) = &mut packed else { continue };
        let x_steps = [isa.splat(x_step[row]), isa.splat(if second.is_some() { x_step[row + 1] } else { 0.0 })];
        let (whole, last) = (rows.len() / tile_rows, tile_height(tile_rows, rows.len() % tile_rows));
        for (tile, packed) in packed.chunks_exact_mut(stride).enumerate() {
            let column = rows.start + tile * tile_rows;
            let height = if tile < whole { tile_rows } else { last };
            isa.prefetch(first.dy.as_ptr().wrapping_add(column + ROWS_AHEAD * first.dy.len()));
            let first = isa.mul(first.passed(isa, column), x_steps[0]);
            let second = match second {
                Some(second) => isa.mul(second.passed(isa, column), x_steps[1]),
                None => isa.splat(0.0),
            };
            set_lanes(isa, packed, k * height, form.zip(isa, first, second));
        }
    }
    if let Some(bias) = bias {
        for sum in bias.sums.iter_mut().filter(|sum| sum.is_nan()) {
            *sum = NAN;
        }
    }
}

/// Stores one lane of each row of a tile. Lanes beyond the tile's rows are overwritten by the next store, or lie in the
/// slack behind the tile.
#[inline(always)]
fn set_lanes<S: Isa>(isa: S, packed: &mut [f32], at: usize, lanes: S::F) {
    const SLACK: &str = "each tile has slack behind it";
    if S::FLOAT_TILE.0 <= LANES / 2 {
        isa.store_first(packed[at..].first_chunk_mut::<{ LANES / 2 }>().expect(SLACK), lanes);
    } else {
        isa.store(packed[at..].first_chunk_mut().expect(SLACK), lanes);
    }
}
