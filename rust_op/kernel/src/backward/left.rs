//! The left operand of the backward products: the scaled gradient, packed in tiles.

use std::ops::Range;

use super::Inputs;
use crate::microkernel::form::{Form, MAX_TERMS};
use crate::microkernel::isa::{Isa, LANES};
use crate::microkernel::row_ops::{load_vector, store_vector};
use crate::microkernel::tile::gradient::{PackedRowsMut, plane_stride, row_stride, tile_height, tile_stride};
use crate::precision::Block;
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

    /// g times the scale of each element.
    #[inline(always)]
    fn scaled<S: Isa>(&self, isa: S, column: usize, scale: &[f32]) -> S::F {
        isa.mul(self.passed(isa, column), load_vector(isa, &scale[column..], 0))
    }

    /// Prefetches the elements from `column` on, `count` rows below this one.
    #[inline(always)]
    fn prefetch_below<S: Isa>(&self, isa: S, column: usize, count: usize) {
        isa.prefetch(self.dy.as_ptr().wrapping_add(column + count * self.dy.len()));
    }
}

/// Sets the scales of rows whose largest magnitudes are given, in the place of 1 / step.
#[inline(always)]
fn set_scales(block: Block, packed: &mut PackedRowsMut<'_>) {
    for (step, inverse) in packed.steps.iter_mut().zip(packed.inverses.iter_mut()) {
        let scale = block.scale(*inverse);
        (*step, *inverse) = (scale.step, scale.inv);
    }
}

const WHOLE: &str = "rows are whole vectors";

/// Packs g * `scale`: rows `rows` of g become rows, its columns `terms` the terms of the sums.
#[inline(always)]
pub(super) fn pack_for_x<S: Isa, F: Form<S>>(
    isa: S,
    form: F,
    inputs: &Inputs<'_>,
    rows: Range<usize>,
    terms: Range<usize>,
    scale: &[f32],
    mut packed: PackedRowsMut<'_>,
) {
    let (tile_rows, _) = S::FLOAT_TILE;
    let depth = terms.len().div_ceil(F::TERMS);
    if let Some(block) = form.block() {
        for (index, largest) in rows.clone().zip(packed.inverses.iter_mut()) {
            let row = GradientRow::new(inputs, index);
            let mut magnitude = isa.splat_i(0);
            for column in terms.clone().step_by(LANES) {
                row.prefetch_below(isa, column, 1);
                magnitude = isa.max_i(magnitude, isa.magnitude(row.scaled(isa, column, scale)));
            }
            *largest = f32::from_bits(isa.largest(magnitude) as u32);
        }
        set_scales(block, &mut packed);
    }
    if F::BY_ROWS {
        let plane_lanes = plane_stride(rows.len(), depth);
        for (index, row) in rows.enumerate() {
            let (row, inverse) = (GradientRow::new(inputs, row), isa.splat(packed.inverses[index]));
            let mut totals = [isa.splat_i(0); 2];
            for start in (0..depth).step_by(LANES) {
                let mut elements = [form.zero(isa); MAX_TERMS];
                for (part, element) in elements.iter_mut().enumerate().take(F::TERMS) {
                    let column = terms.start + part * depth + start;
                    if column < terms.end {
                        let scaled = row.scaled(isa, column, scale);
                        let scaled = if depth - start < LANES { isa.first(scaled, depth - start) } else { scaled };
                        *element = form.left(isa, scaled, inverse);
                    }
                }
                for (plane, total) in totals.iter_mut().enumerate().take(form.planes()) {
                    let (part, sum) = form.plane(isa, elements, plane, *total);
                    *total = sum;
                    let at = plane * plane_lanes + index * row_stride(depth) + start;
                    isa.store(packed.lanes[at..].first_chunk_mut().expect(WHOLE), form.lanes(isa, part));
                }
            }
            for (sums, total) in packed.sums.iter_mut().zip(totals) {
                // NaN has no code of its own; such a row has codes of 0 by definition.
                sums[index] = if packed.inverses[index] == 0.0 { 0 } else { isa.total(total) };
            }
        }
        return;
    }
    for (tile, packed_tile) in packed.lanes.chunks_exact_mut(tile_stride(tile_rows, depth)).enumerate() {
        let first = rows.start + tile * tile_rows;
        let height = tile_height(tile_rows, rows.end - first);
        let count = height.min(rows.end - first);
        let inverses = &packed.inverses[tile * tile_rows..];
        let mut taken = [GradientRow::new(inputs, first); LANES];
        for (row, taken) in taken.iter_mut().enumerate().take(count) {
            *taken = GradientRow::new(inputs, first + row);
        }
        for start in (0..depth).step_by(LANES) {
            let mut vectors = [isa.splat_i(0); LANES];
            for (index, (row, lanes)) in taken.iter().zip(&mut vectors).enumerate().take(count) {
                let mut elements = [form.zero(isa); MAX_TERMS];
                for (part, element) in elements.iter_mut().enumerate().take(F::TERMS) {
                    let column = terms.start + part * depth + start;
                    if column < terms.end {
                        row.prefetch_below(isa, column, tile_rows);
                        *element = form.left(isa, row.scaled(isa, column, scale), isa.splat(inverses[index]));
                    }
                }
                *lanes = isa.bits(form.lanes(isa, elements));
            }
            for (k, lanes) in (start..depth).zip(isa.transpose(vectors)) {
                set_lanes(isa, packed_tile, k * height, isa.from_bits(lanes));
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

/// Rows `terms` of g times s_x, as the terms of a block.
struct Source<'a> {
    inputs: &'a Inputs<'a>,
    terms: Range<usize>,
    x_step: &'a [f32],
}

impl Source<'_> {
    /// The terms of lane `lane`, in 16 columns from `column` on.
    #[inline(always)]
    fn elements<S: Isa, F: Form<S>>(
        &self,
        isa: S,
        form: F,
        lane: usize,
        column: usize,
        inverses: S::F,
    ) -> [F::Element; MAX_TERMS] {
        let depth = self.terms.len().div_ceil(F::TERMS);
        let mut elements = [form.zero(isa); MAX_TERMS];
        for (part, element) in elements.iter_mut().enumerate().take(F::TERMS) {
            let index = self.terms.start + part * depth + lane;
            if index < self.terms.end {
                let row = GradientRow::new(self.inputs, index);
                row.prefetch_below(isa, column, ROWS_AHEAD);
                let scaled = isa.mul(row.passed(isa, column), isa.splat(self.x_step[index]));
                *element = form.left(isa, scaled, inverses);
            }
        }
        elements
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
    mut packed: Option<(PackedRowsMut<'_>, &[f32])>,
    mut bias: Option<Bias<'_>>,
) {
    let (tile_rows, _) = S::FLOAT_TILE;
    let depth = terms.len().div_ceil(F::TERMS);
    if let (Some((packed, _)), Some(_)) = (&mut packed, form.block()) {
        packed.inverses.fill(0.0);
    }
    // What reads a row of dY first also adds it to the bias's gradient: a pass for the blocks' scales, or the packing.
    let scales = form.block().is_some();
    if scales || packed.is_none() {
        for index in terms.clone() {
            let row = GradientRow::new(inputs, index);
            if let Some(bias) = &mut bias {
                bias.add(isa, row, rows.start);
            }
            if let Some((packed, x_step)) = &mut packed {
                let x_step = isa.splat(x_step[index]);
                let (magnitudes, _) = packed.inverses.as_chunks_mut::<LANES>();
                for (column, largest) in rows.clone().step_by(LANES).zip(magnitudes) {
                    row.prefetch_below(isa, column, ROWS_AHEAD);
                    let magnitude = isa.magnitude(isa.mul(row.passed(isa, column), x_step));
                    isa.store(largest, isa.from_bits(isa.max_i(isa.bits(isa.load(largest)), magnitude)));
                }
            }
        }
    }
    if let Some((mut packed, x_step)) = packed {
        if let Some(block) = form.block() {
            set_scales(block, &mut packed);
        }
        let source = Source { inputs, terms, x_step };
        if F::BY_ROWS {
            packed.sums.iter_mut().for_each(|sums| sums.fill(0));
            for start in (0..depth).step_by(LANES) {
                for first in (0..rows.len()).step_by(LANES) {
                    let inverses = isa.load_first(&packed.inverses[first..]);
                    let mut totals = [isa.splat_i(0); 2];
                    let mut vectors = [[isa.splat_i(0); LANES]; 2];
                    for lane in start..depth.min(start + LANES) {
                        let elements = source.elements(isa, form, lane, rows.start + first, inverses);
                        for plane in 0..form.planes() {
                            let (part, sum) = form.plane(isa, elements, plane, totals[plane]);
                            totals[plane] = sum;
                            vectors[plane][lane - start] = isa.bits(form.lanes(isa, part));
                        }
                    }
                    for plane in 0..form.planes() {
                        let sums = packed.sums[plane][first..].iter_mut().zip(&packed.inverses[first..]);
                        for ((sum, inverse), total) in sums.zip(isa.lanes(totals[plane])) {
                            *sum += if *inverse == 0.0 { 0 } else { total };
                        }
                        for (row, lanes) in (first..rows.len()).zip(isa.transpose(vectors[plane])) {
                            let at = plane * plane_stride(rows.len(), depth) + row * row_stride(depth) + start;
                            let memory = packed.lanes[at..].first_chunk_mut().expect(WHOLE);
                            isa.store(memory, isa.from_bits(lanes));
                        }
                    }
                }
            }
        } else {
            let (whole, last) = (rows.len() / tile_rows, tile_height(tile_rows, rows.len() % tile_rows));
            for k in 0..depth {
                if let (false, Some(bias)) = (scales, &mut bias) {
                    bias.add(isa, GradientRow::new(inputs, source.terms.start + k), rows.start);
                }
                for (tile, packed_tile) in packed.lanes.chunks_exact_mut(tile_stride(tile_rows, depth)).enumerate() {
                    let height = if tile < whole { tile_rows } else { last };
                    let inverses =
                        if scales { isa.load_first(&packed.inverses[tile * tile_rows..]) } else { isa.splat(0.0) };
                    let elements = source.elements(isa, form, k, rows.start + tile * tile_rows, inverses);
                    set_lanes(isa, packed_tile, k * height, form.lanes(isa, elements));
                }
            }
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
