//! The ADC, and the other last steps on an output.
#![allow(clippy::needless_range_loop, reason = "halves index several arrays at once")]

use super::{GROUP, Pass, padded, pair};
use crate::microkernel::isa::{Isa, LANES};
use crate::microkernel::row_ops::VectorQuantizer;
use crate::params::{OutputRange, Params};
use crate::quantize::{Quantizer, levels};
use crate::reference::NAN;

/// Static full scales and their quantisers, one entry per column, padded to whole groups.
#[derive(Clone, Debug)]
pub(super) struct StaticRanges {
    pub(super) range: Vec<f32>,
    inv: Vec<f32>,
    step: Vec<f32>,
    limit: Vec<f32>,
}

impl StaticRanges {
    /// The full scales of `n` columns; `None` where the parameters do not fix them.
    pub(super) fn new(params: &Params, n: usize) -> Option<Self> {
        let range: Vec<f32> = match &params.output_range {
            OutputRange::Dynamic | OutputRange::Bound(_) => return None,
            OutputRange::Layer(range) => vec![*range; n.next_multiple_of(GROUP)],
            OutputRange::Channel(ranges) => padded(ranges.iter().copied(), 1.0),
        };
        let output_levels = if params.output_bits == 0 { 0 } else { levels(params.output_bits) };
        let quantizers: Vec<_> = range.iter().map(|range| Quantizer::new(output_levels, *range)).collect();
        Some(StaticRanges {
            inv: quantizers.iter().map(|q| q.inv).collect(),
            step: quantizers.iter().map(|q| q.step).collect(),
            limit: quantizers.iter().map(|q| q.limit).collect(),
            range,
        })
    }
}

/// Full scales A * B, of which A is a row's and B, here, a column's; padded to whole groups.
#[derive(Clone, Debug)]
pub(super) struct BoundColumns {
    l_x: f32,
    limit: f32,
    /// B.
    range: Vec<f32>,
    /// L_y / B.
    inv: Vec<f32>,
    /// B / L_y.
    step: Vec<f32>,
}

impl BoundColumns {
    /// Of columns with these `weight_scale`s; `None` where full scales are not bounded.
    pub(super) fn new(params: &Params, weight_scale: &[f32]) -> Option<Self> {
        let OutputRange::Bound(bound) = params.output_range else { return None };
        let l_w = params.weight_full_scale() as f32;
        let limit = if params.output_bits == 0 { 0.0 } else { levels(params.output_bits) as f32 };
        let range = padded(weight_scale.iter().map(|scale| bound * (scale * l_w)), 1.0);
        Some(BoundColumns {
            l_x: params.input_full_scale() as f32,
            limit,
            inv: range.iter().map(|b| limit / b).collect(),
            step: range.iter().map(|b| b / limit).collect(),
            range,
        })
    }

    /// The full scales of a row whose step is `x_step`.
    #[inline(always)]
    pub(super) fn of_row(&self, x_step: f32) -> Bounds<'_> {
        let a = x_step * self.l_x;
        Bounds { columns: self, first: 0, a, inv: 1.0 / a }
    }
}

/// The full scales of a row's columns from one on.
#[derive(Clone, Copy)]
pub(super) struct Bounds<'a> {
    columns: &'a BoundColumns,
    first: usize,
    a: f32,
    /// 1 / A.
    inv: f32,
}

impl Bounds<'_> {
    /// The same from column `first` on.
    #[inline(always)]
    pub(super) fn from(self, first: usize) -> Self {
        Bounds { first, ..self }
    }

    #[inline(always)]
    pub(super) fn ranges<S: Isa>(&self, isa: S, column: usize) -> [S::F; 2] {
        let a = isa.splat(self.a);
        let b = pair(isa, &self.columns.range, self.first + column);
        [isa.mul(a, b[0]), isa.mul(a, b[1])]
    }

    #[inline(always)]
    fn quantizers<S: Isa>(&self, isa: S, column: usize) -> [VectorQuantizer<S>; 2] {
        let inv = pair(isa, &self.columns.inv, self.first + column);
        let step = pair(isa, &self.columns.step, self.first + column);
        [self.quantizer(isa, inv[0], step[0]), self.quantizer(isa, inv[1], step[1])]
    }

    /// Of a vector of columns, with their L_y / B and B / L_y.
    #[inline(always)]
    fn quantizer<S: Isa>(&self, isa: S, inv: S::F, step: S::F) -> VectorQuantizer<S> {
        let (zero, infinity) = (isa.splat(0.0), isa.splat(f32::INFINITY));
        let inv = isa.mul(isa.splat(self.inv), inv);
        // NaN, infinite or 0: every code is 0.
        let inv = isa.select(isa.greater(infinity, isa.abs(inv)), inv, zero);
        let limit = isa.select(isa.greater(isa.abs(inv), zero), isa.splat(self.columns.limit), zero);
        VectorQuantizer::from_vectors(isa, inv, limit, isa.mul(isa.splat(self.a), step))
    }
}

/// The ADC of a row's columns.
pub(super) struct Adc<'a, S: Isa> {
    /// `None` without an ADC; with full scales of the columns, each one's own quantiser takes its place.
    pub(super) quantizer: Option<VectorQuantizer<S>>,
    pub(super) columns: Option<&'a StaticRanges>,
    pub(super) bounds: Option<Bounds<'a>>,
    pub(super) mask: Option<&'a mut [u8]>,
}

impl<S: Isa> Adc<'_, S> {
    /// The quantisers of a group of columns, if there is an ADC.
    #[inline(always)]
    fn quantizers(&self, isa: S, column: usize) -> Option<[VectorQuantizer<S>; 2]> {
        let quantizer = self.quantizer?;
        if let Some(bounds) = &self.bounds {
            return Some(bounds.quantizers(isa, column));
        }
        let mut quantizers = [quantizer; 2];
        if let Some(columns) = self.columns {
            let inv = pair(isa, &columns.inv, column);
            let limit = pair(isa, &columns.limit, column);
            let step = pair(isa, &columns.step, column);
            for half in 0..2 {
                quantizers[half] = VectorQuantizer::from_vectors(isa, inv[half], limit[half], step[half]);
            }
        }
        Some(quantizers)
    }

    /// Writes the mask of a group of columns.
    #[inline(always)]
    fn saturate(&mut self, isa: S, column: usize, v: [S::F; 2]) {
        let Some(mask) = &mut self.mask else { return };
        let range = match (self.columns, &self.bounds) {
            (Some(columns), _) => pair(isa, &columns.range, column),
            (None, Some(bounds)) => bounds.ranges(isa, column),
            (None, None) => return,
        };
        let (words, _) = mask[column / 8..].as_chunks_mut::<2>();
        for (half, word) in words.iter_mut().take(2).enumerate() {
            *word = isa.mask_bits(isa.greater(isa.abs(v[half]), range[half])).to_le_bytes();
        }
    }
}

/// Adds the digital bias.
#[inline(always)]
fn add_bias<S: Isa>(isa: S, column: usize, value: [S::F; 2], digital_bias: Option<&[f32]>) -> [S::F; 2] {
    let Some(bias) = digital_bias else { return value };
    let bias = pair(isa, bias, column);
    [isa.add(value[0], bias[0]), isa.add(value[1], bias[1])]
}

/// Makes `value` the canonical NaN where `test` is NaN.
#[inline(always)]
fn canonical<S: Isa>(isa: S, test: [S::F; 2], value: [S::F; 2]) -> [S::F; 2] {
    let nan = isa.splat(NAN);
    [isa.select(isa.is_nan(test[0]), nan, value[0]), isa.select(isa.is_nan(test[1]), nan, value[1])]
}

/// Pass 3: ADC, digital bias, NaN made canonical, saturation mask.
pub(super) struct Convert<'a, S: Isa> {
    pub(super) adc: Adc<'a, S>,
    pub(super) digital_bias: Option<&'a [f32]>,
}

impl<S: Isa> Pass<S> for Convert<'_, S> {
    #[inline(always)]
    fn group(&mut self, isa: S, column: usize, v: [S::F; 2]) -> [S::F; 2] {
        let mut value = v;
        if let Some(quantizers) = self.adc.quantizers(isa, column) {
            value = [quantizers[0].value(v[0]), quantizers[1].value(v[1])];
            if self.adc.bounds.is_some() {
                // A step may be infinite, so that 0 codes are NaN.
                value = canonical(isa, value, value);
            }
        }
        self.adc.saturate(isa, column, v);
        let value = add_bias(isa, column, value, self.digital_bias);
        canonical(isa, v, value)
    }
}

/// How the results of tiles are added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sum {
    /// v, in floats.
    Values,
    /// Values of the ADC, in floats: each tile has a step of its own.
    Steps,
    /// Codes, exact in floats: all tiles together stay within 2^24.
    Codes,
    /// Codes in two parts, c = 256 h + l with l in 0..256: the sums of both are exact in floats, whatever the number of
    /// tiles.
    Halves,
}

impl Sum {
    pub(super) fn of(params: &Params, tiles: usize) -> Self {
        match params.output_bits {
            0 => Sum::Values,
            _ if params.adc_needs_row_maximum() => Sum::Steps,
            bits if tiles * levels(bits) as usize <= 1 << f32::MANTISSA_DIGITS => Sum::Codes,
            _ => Sum::Halves,
        }
    }
}

/// Loads a vector of `row` from `column` on: zeros past its end.
#[inline(always)]
fn load_at<S: Isa>(isa: S, row: &[f32], column: usize) -> S::F {
    let values = row.get(column..).unwrap_or_default();
    match values.first_chunk() {
        Some(whole) => isa.load(whole),
        None => isa.load_first(values),
    }
}

#[inline(always)]
fn store_at<S: Isa>(isa: S, row: &mut [f32], column: usize, value: S::F) {
    let values = row.get_mut(column..).unwrap_or_default();
    match values.first_chunk_mut() {
        Some(whole) => isa.store(whole, value),
        None => isa.store_first(values, value),
    }
}

/// Pass 3 of one tile of a row, over the sums of those before it: adds what its ADC gives.
pub(super) struct AddTile<'a, S: Isa> {
    pub(super) adc: Adc<'a, S>,
    pub(super) sum: Sum,
    /// Whether this is the first tile: the sums are yet to be set.
    pub(super) first: bool,
    /// v of the row's columns.
    pub(super) v: &'a [f32],
    /// The sums of l.
    pub(super) low: &'a mut [f32],
}

impl<S: Isa> Pass<S> for AddTile<'_, S> {
    #[inline(always)]
    fn group(&mut self, isa: S, column: usize, before: [S::F; 2]) -> [S::F; 2] {
        let v = match self.v[column..].first_chunk::<GROUP>() {
            Some(_) => pair(isa, self.v, column),
            None => [load_at(isa, self.v, column), load_at(isa, self.v, column + LANES)],
        };
        let quantizers = self.adc.quantizers(isa, column);
        self.adc.saturate(isa, column, v);
        let mut after = [v[0], v[1]];
        for half in 0..2 {
            let before = if self.first { isa.splat(0.0) } else { before[half] };
            let Some(quantizers) = &quantizers else {
                if !self.first {
                    after[half] = isa.add(before, v[half]);
                }
                continue;
            };
            let quantizer = &quantizers[half];
            let code = quantizer.code(v[half]);
            let sum = match self.sum {
                Sum::Steps | Sum::Values => isa.fma(quantizer.step(), isa.to_float(code), before),
                Sum::Codes => isa.add(before, isa.to_float(code)),
                Sum::Halves => {
                    let at = column + half * LANES;
                    let low = isa.to_float(isa.and(code, isa.splat_i(0xFF)));
                    let low_before = if self.first { isa.splat(0.0) } else { load_at(isa, self.low, at) };
                    store_at(isa, self.low, at, isa.add(low_before, low));
                    isa.add(before, isa.to_float(isa.sar::<8>(code)))
                }
            };
            after[half] = isa.select(isa.is_nan(v[half]), isa.splat(NAN), sum);
        }
        after
    }
}

/// What is left to be done where all tiles of a row have been added.
pub(super) struct FinishSum<'a, S: Isa> {
    /// The ADC, where its step is that of all tiles.
    pub(super) adc: Adc<'a, S>,
    pub(super) sum: Sum,
    pub(super) low: &'a [f32],
    pub(super) digital_bias: Option<&'a [f32]>,
}

impl<S: Isa> Pass<S> for FinishSum<'_, S> {
    #[inline(always)]
    fn group(&mut self, isa: S, column: usize, sum: [S::F; 2]) -> [S::F; 2] {
        let mut value = sum;
        if let (Sum::Codes | Sum::Halves, Some(quantizers)) = (self.sum, self.adc.quantizers(isa, column)) {
            for half in 0..2 {
                if self.sum == Sum::Halves {
                    // One rounding: to the float that is nearest to the sum of codes.
                    let low = load_at(isa, self.low, column + half * LANES);
                    value[half] = isa.fma(value[half], isa.splat(256.0), low);
                }
                value[half] = isa.mul(quantizers[half].step(), value[half]);
            }
        }
        let value = add_bias(isa, column, value, self.digital_bias);
        canonical(isa, value, value)
    }
}
