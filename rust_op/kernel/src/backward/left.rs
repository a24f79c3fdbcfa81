//! The left operand of the backward products: the scaled gradient, packed in tiles or row by row.

use std::ops::Range;

use super::{Inputs, Tile};
use crate::microkernel::buffer::Buffer;
use crate::microkernel::form::{Form, MAX_TERMS};
use crate::microkernel::isa::{Isa, LANES};
use crate::microkernel::row_ops::{load_vector, store_vector};
use crate::microkernel::tile::gradient::{PackedRowsMut, plane_stride, row_stride, tile_height, tile_stride};
use crate::precision::Block;
use crate::reference::NAN;
use crate::saved::{mask_stride, mask_word};

/// How many rows ahead of their use rows are prefetched where a matrix is read a strip of columns at a time.
pub(super) const ROWS_AHEAD: usize = 8;

/// A row of dY, and the mask of the elements where the ADC saturated.
#[derive(Clone, Copy)]
struct GradientRow<'a> {
    dy: &'a [f32],
    mask: Option<&'a [u8]>,
}

impl<'a> GradientRow<'a> {
    #[inline(always)]
    fn new(inputs: &Inputs<'a>, tile: Tile, row: usize) -> Self {
        let (_, n, _) = inputs.shape;
        let stride = mask_stride(n);
        let mask = inputs.adc_mask.map(|mask| &mask[(row * tile.count + tile.index) * stride..][..stride]);
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

/// Columns of g that are scaled at a time, for the gradient of the weights: whole tiles and vectors. Twice as many would
/// take more memory than the panels, which come after them.
const COLUMNS: usize = 48;
const WHOLE: &str = "rows are whole vectors";

/// Sets the scale of row `index`, whose largest |v| has these bits.
#[inline(always)]
fn set_scale(block: Block, packed: &mut PackedRowsMut<'_>, index: usize, largest: i32) {
    let scale = block.scale(f32::from_bits(largest as u32));
    (packed.steps[index], packed.inverses[index]) = (scale.step, scale.inv);
}

/// Packs g * `scale`: rows `rows` of g become rows, its columns `terms` the terms of the sums.
#[inline(always)]
pub(super) fn pack_for_x<S: Isa, F: Form<S>>(
    isa: S,
    form: F,
    (inputs, tile): (&Inputs<'_>, Tile),
    rows: Range<usize>,
    terms: Range<usize>,
    scale: &[f32],
    mut packed: PackedRowsMut<'_>,
) {
    let (tile_rows, _) = S::FLOAT_TILE;
    let depth = terms.len().div_ceil(F::TERMS);
    // No term has a code before the largest one of its row is known: a tile, or a row, is scaled and then packed.
    let at_once = if F::BY_ROWS { 1 } else { tile_rows };
    let stride = (F::TERMS * depth).next_multiple_of(LANES) + LANES;
    let mut values = Buffer::<f32>::new(at_once * stride);
    let values = values.as_mut_slice();
    for first in (0..rows.len()).step_by(at_once) {
        let count = at_once.min(rows.len() - first);
        for (index, values) in (first..first + count).zip(values.chunks_exact_mut(stride)) {
            let row = GradientRow::new(inputs, tile, rows.start + index);
            let largest = scale_row(isa, row, terms.clone(), scale, at_once, values);
            if let Some(block) = form.block() {
                set_scale(block, &mut packed, index, isa.largest(largest));
            }
        }
        if F::BY_ROWS {
            pack_row(isa, form, depth, values, first, rows.len(), &mut packed);
        } else {
            let stride_of_tile = tile_stride(tile_rows, depth);
            let packed_tile = &mut packed.lanes[first / tile_rows * stride_of_tile..][..stride_of_tile];
            let height = tile_height(tile_rows, rows.len() - first);
            for start in (0..depth).step_by(LANES) {
                let mut vectors = [isa.splat_i(0); LANES];
                for (index, lanes) in vectors.iter_mut().enumerate().take(count) {
                    let inverse = isa.splat(packed.inverses[first + index]);
                    let elements = row_elements(isa, form, &values[index * stride..], depth, start, inverse);
                    *lanes = isa.bits(form.lanes(isa, elements));
                }
                for (k, lanes) in (start..depth).zip(isa.transpose(vectors)) {
                    set_lanes(isa, packed_tile, k * height, isa.from_bits(lanes));
                }
            }
        }
    }
}

/// Writes elements `terms` of `row` times `scale` into `values`, followed by zeros. Returns the bits of the largest
/// magnitudes.
#[inline(always)]
fn scale_row<S: Isa>(
    isa: S,
    row: GradientRow<'_>,
    terms: Range<usize>,
    scale: &[f32],
    rows_ahead: usize,
    values: &mut [f32],
) -> S::I {
    let (vectors, _) = values.as_chunks_mut::<LANES>();
    let (vectors, behind) = vectors.split_at_mut(terms.len().div_ceil(LANES));
    let mut largest = isa.splat_i(0);
    for (column, values) in terms.step_by(LANES).zip(vectors) {
        row.prefetch_below(isa, column, rows_ahead);
        let scaled = row.scaled(isa, column, scale);
        largest = isa.max_i(largest, isa.magnitude(scaled));
        isa.store(values, scaled);
    }
    behind.as_flattened_mut().fill(0.0);
    largest
}

/// The terms of 16 lanes from `start` on, of a row of scaled values.
#[inline(always)]
fn row_elements<S: Isa, F: Form<S>>(
    isa: S,
    form: F,
    values: &[f32],
    depth: usize,
    start: usize,
    inverse: S::F,
) -> [F::Element; MAX_TERMS] {
    let mut elements = [form.zero(isa); MAX_TERMS];
    for (part, element) in elements.iter_mut().enumerate().take(F::TERMS) {
        let values = values[part * depth + start..].first_chunk().expect("zeros follow the terms");
        *element = form.left(isa, isa.load(values), inverse);
    }
    elements
}

/// Packs row `index` of `rows`.
#[inline(always)]
fn pack_row<S: Isa, F: Form<S>>(
    isa: S,
    form: F,
    depth: usize,
    values: &[f32],
    index: usize,
    rows: usize,
    packed: &mut PackedRowsMut<'_>,
) {
    let inverse = isa.splat(packed.inverses[index]);
    let mut totals = [isa.splat_i(0); 2];
    for start in (0..depth).step_by(LANES) {
        let mut elements = row_elements(isa, form, values, depth, start, inverse);
        if depth - start < LANES {
            // The other lanes hold terms of other parts.
            elements = elements.map(|element| form.first(isa, element, depth - start));
        }
        for (plane, total) in totals.iter_mut().enumerate().take(form.planes()) {
            let (part, sum) = form.plane(isa, elements, plane, *total);
            *total = sum;
            let at = plane * plane_stride(rows, depth) + index * row_stride(depth) + start;
            isa.store(packed.lanes[at..].first_chunk_mut().expect(WHOLE), form.lanes(isa, part));
        }
    }
    for (sums, total) in packed.sums.iter_mut().zip(totals) {
        // NaN has no code of its own; such a row has codes of 0 by definition.
        sums[index] = if packed.inverses[index] == 0.0 { 0 } else { isa.total(total) };
    }
}

/// The bias's gradient in some columns.
pub(super) struct Bias<'a> {
    pub(super) sums: &'a mut [f32],
    /// Whether dY counts even where the ADC saturated.
    pub(super) unmasked: bool,
}

impl Bias<'_> {
    /// Adds the elements of `row` from `column` on to sums `sums`.
    #[inline(always)]
    fn add<S: Isa>(&mut self, isa: S, row: GradientRow<'_>, column: usize, sums: Range<usize>) {
        let row = if self.unmasked { GradientRow { mask: None, ..row } } else { row };
        let (sums, tail) = self.sums[sums].as_chunks_mut::<LANES>();
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
    (inputs, tile): (&Inputs<'_>, Tile),
    rows: Range<usize>,
    terms: Range<usize>,
    packed: Option<(PackedRowsMut<'_>, &[f32])>,
    mut bias: Option<Bias<'_>>,
) {
    match (packed, form.block()) {
        (Some((packed, x_step)), Some(block)) => {
            pack_columns(isa, form, block, (inputs, tile), rows, terms, x_step, packed, bias.as_mut());
        }
        (mut packed, _) => {
            let (tile_rows, _) = S::FLOAT_TILE;
            let (whole, last) = (rows.len() / tile_rows, tile_height(tile_rows, rows.len() % tile_rows));
            for (k, index) in terms.clone().enumerate() {
                let row = GradientRow::new(inputs, tile, index);
                if let Some(bias) = &mut bias {
                    bias.add(isa, row, rows.start, 0..rows.len());
                }
                let Some((packed, x_step)) = &mut packed else { continue };
                let x_step = isa.splat(x_step[index]);
                for (tile, packed_tile) in
                    packed.lanes.chunks_exact_mut(tile_stride(tile_rows, terms.len())).enumerate()
                {
                    let column = rows.start + tile * tile_rows;
                    let height = if tile < whole { tile_rows } else { last };
                    row.prefetch_below(isa, column, ROWS_AHEAD);
                    set_lanes(isa, packed_tile, k * height, isa.mul(row.passed(isa, column), x_step));
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

/// [`pack_for_weight`] where the left operand gets codes: some columns are scaled and then packed.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "each is a fact of its own")]
fn pack_columns<S: Isa, F: Form<S>>(
    isa: S,
    form: F,
    block: Block,
    (inputs, tile): (&Inputs<'_>, Tile),
    rows: Range<usize>,
    terms: Range<usize>,
    x_step: &[f32],
    mut packed: PackedRowsMut<'_>,
    mut bias: Option<&mut Bias<'_>>,
) {
    let (tile_rows, _) = S::FLOAT_TILE;
    let depth = terms.len().div_ceil(F::TERMS);
    // A vector may begin in any column, and then ends in those of the next term, or behind them all.
    let mut values = Buffer::<f32>::new(terms.len() * COLUMNS + LANES);
    for first in (0..rows.len()).step_by(COLUMNS) {
        let columns = first..rows.len().min(first + COLUMNS);
        let mut largest = [isa.splat_i(0); COLUMNS / LANES];
        for (index, values) in terms.clone().zip(values.as_mut_slice().chunks_exact_mut(COLUMNS)) {
            let row = GradientRow::new(inputs, tile, index);
            if let Some(bias) = &mut bias {
                bias.add(isa, row, rows.start + first, columns.clone());
            }
            let x_step = isa.splat(x_step[index]);
            let (vectors, _) = values.as_chunks_mut::<LANES>();
            for (column, (values, largest)) in columns.clone().step_by(LANES).zip(vectors.iter_mut().zip(&mut largest))
            {
                row.prefetch_below(isa, rows.start + column, ROWS_AHEAD);
                let scaled = isa.mul(row.passed(isa, rows.start + column), x_step);
                *largest = isa.max_i(*largest, isa.magnitude(scaled));
                isa.store(values, scaled);
            }
        }
        for (index, largest) in columns.clone().zip(largest.into_iter().flat_map(|largest| isa.lanes(largest))) {
            set_scale(block, &mut packed, index, largest);
        }
        let values = Scaled { values: values.as_slice(), terms: terms.len() };
        if F::BY_ROWS {
            for column in columns.clone().step_by(LANES) {
                pack_rows(isa, form, depth, &values, column - first, column, rows.len(), &mut packed);
            }
            continue;
        }
        for tile in (columns.start..columns.end).step_by(tile_rows) {
            let height = tile_height(tile_rows, rows.len() - tile);
            let inverses = isa.load_first(&packed.inverses[tile..]);
            let stride = tile_stride(tile_rows, depth);
            let packed_tile = &mut packed.lanes[tile / tile_rows * stride..][..stride];
            for lane in 0..depth {
                let elements = values.elements(isa, form, lane, tile - first, inverses);
                set_lanes(isa, packed_tile, lane * height, form.lanes(isa, elements));
            }
        }
    }
}

/// Scaled values: [`COLUMNS`] for each term of a block.
struct Scaled<'a> {
    values: &'a [f32],
    terms: usize,
}

impl Scaled<'_> {
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
        let depth = self.terms.div_ceil(F::TERMS);
        let mut elements = [form.zero(isa); MAX_TERMS];
        for (part, element) in elements.iter_mut().enumerate().take(F::TERMS) {
            let term = part * depth + lane;
            if term < self.terms {
                let values = self.values[term * COLUMNS + column..].first_chunk().expect("a whole vector");
                *element = form.left(isa, isa.load(values), inverses);
            }
        }
        elements
    }
}

/// Packs up to 16 rows from `first` on, of `rows`, which are columns from `column` on of the values.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "each is a fact of its own")]
fn pack_rows<S: Isa, F: Form<S>>(
    isa: S,
    form: F,
    depth: usize,
    values: &Scaled<'_>,
    column: usize,
    first: usize,
    rows: usize,
    packed: &mut PackedRowsMut<'_>,
) {
    let inverses = isa.load_first(&packed.inverses[first..]);
    let mut totals = [isa.splat_i(0); 2];
    for start in (0..depth).step_by(LANES) {
        let mut vectors = [[isa.splat_i(0); LANES]; 2];
        for lane in start..depth.min(start + LANES) {
            let elements = values.elements(isa, form, lane, column, inverses);
            for plane in 0..form.planes() {
                let (part, sum) = form.plane(isa, elements, plane, totals[plane]);
                totals[plane] = sum;
                vectors[plane][lane - start] = isa.bits(form.lanes(isa, part));
            }
        }
        for (plane, vectors) in vectors.into_iter().enumerate().take(form.planes()) {
            for (row, lanes) in (first..rows).zip(isa.transpose(vectors)) {
                let at = plane * plane_stride(rows, depth) + row * row_stride(depth) + start;
                isa.store(packed.lanes[at..].first_chunk_mut().expect(WHOLE), isa.from_bits(lanes));
            }
        }
    }
    for (sums, totals) in packed.sums.iter_mut().zip(totals) {
        let sums = sums[first..].iter_mut().zip(&packed.inverses[first..]);
        for ((sum, inverse), total) in sums.zip(isa.lanes(totals)) {
            *sum = if *inverse == 0.0 { 0 } else { total };
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
