//! Noise and ADC, over one row of Y that holds z: at most three passes over memory that sits in L1.
//!
//! 1. R, where a law reads it and it is dynamic: max|z|.
//! 2. Noise: v = fma(sigma, eps, z), and max|v|.
//! 3. ADC, digital bias, NaN made canonical, saturation mask.

use super::gauss::Gauss;
use super::isa::{Isa, LANES};
use super::rows::{INFINITY_BITS, VectorQuantizer, largest_magnitude};
use crate::params::{BiasStage, NoiseLevels, OutputRange, Params};
use crate::quantize::{Quantizer, levels};
use crate::reference::NAN;
use crate::rng;

/// Columns that a pass takes at a time.
const GROUP: usize = 2 * LANES;

/// Static full scales, one entry a column, filled up to whole groups.
#[derive(Clone, Debug)]
struct Columns {
    range: Vec<f32>,
    inv: Vec<f32>,
    step: Vec<f32>,
    limit: Vec<f32>,
}

/// What the epilogue of a layer needs, worked out once.
#[derive(Clone, Debug)]
pub(crate) struct Epilogue {
    noise: NoiseLevels,
    output_bits: u32,
    columns: Option<Columns>,
    digital_bias: Option<Vec<f32>>,
    noise_needs_row_maximum: bool,
    adc_needs_row_maximum: bool,
}

/// `values` filled up to whole groups with `filler`.
pub(crate) fn padded(values: impl ExactSizeIterator<Item = f32>, filler: f32) -> Vec<f32> {
    let count = values.len().next_multiple_of(GROUP);
    values.chain(std::iter::repeat(filler)).take(count).collect()
}

#[inline(always)]
fn pair<S: Isa>(isa: S, values: &[f32], column: usize) -> [S::F; 2] {
    let (chunks, _) = values[column..].as_chunks::<LANES>();
    [isa.load(&chunks[0]), isa.load(&chunks[1])]
}

/// Replaces each group of `row` by `f(column, group)` and returns the bits of the largest magnitude.
#[inline(always)]
fn pass<S: Isa>(isa: S, row: &mut [f32], mut f: impl FnMut(usize, [S::F; 2]) -> [S::F; 2]) -> i32 {
    let mut largest = isa.splat_i(0);
    let (groups, tail) = row.as_chunks_mut::<GROUP>();
    let whole = groups.len() * GROUP;
    for (index, group) in groups.iter_mut().enumerate() {
        let (halves, _) = group.as_chunks_mut::<LANES>();
        let [first, second] = f(index * GROUP, [isa.load(&halves[0]), isa.load(&halves[1])]);
        largest = isa.max_i(largest, isa.max_i(isa.magnitude(first), isa.magnitude(second)));
        isa.store(&mut halves[0], first);
        isa.store(&mut halves[1], second);
    }
    if !tail.is_empty() {
        let mut group = [[0.0; LANES]; 2];
        group.as_flattened_mut()[..tail.len()].copy_from_slice(tail);
        let [first, second] = f(whole, [isa.load(&group[0]), isa.load(&group[1])]);
        isa.store(&mut group[0], first);
        isa.store(&mut group[1], second);
        tail.copy_from_slice(&group.as_flattened()[..tail.len()]);
        group.as_flattened_mut()[tail.len()..].fill(0.0);
        for half in &group {
            largest = isa.max_i(largest, isa.magnitude(isa.load(half)));
        }
    }
    isa.largest(largest)
}

impl Epilogue {
    pub(crate) fn new(params: &Params, n: usize, bias: Option<&[f32]>) -> Self {
        let columns = (!params.output_range.is_dynamic()).then(|| {
            let range: Vec<f32> = match &params.output_range {
                OutputRange::Channel(ranges) => padded(ranges.iter().copied(), 1.0),
                other => vec![other.get(0).expect("a static range"); n.next_multiple_of(GROUP)],
            };
            let output_levels = if params.output_bits == 0 { 0 } else { levels(params.output_bits) };
            let quantizers: Vec<_> = range.iter().map(|range| Quantizer::new(output_levels, *range)).collect();
            Columns {
                inv: quantizers.iter().map(|q| q.inv).collect(),
                step: quantizers.iter().map(|q| q.step).collect(),
                limit: quantizers.iter().map(|q| q.limit).collect(),
                range,
            }
        });
        Epilogue {
            noise: params.noise,
            output_bits: params.output_bits,
            columns,
            digital_bias: bias
                .filter(|_| params.bias_stage == BiasStage::Digital)
                .map(|bias| padded(bias.iter().copied(), 0.0)),
            noise_needs_row_maximum: params.noise_needs_row_maximum(),
            adc_needs_row_maximum: params.adc_needs_row_maximum(),
        }
    }

    /// Finishes row `m`, which holds z; `is_nan` rows become NaN. `mask` receives the ADC's saturation bits.
    #[inline(always)]
    pub(crate) fn row<S: Isa>(
        &self,
        isa: S,
        call_key: u64,
        m: u64,
        is_nan: bool,
        y: &mut [f32],
        mut mask: Option<&mut [u8]>,
    ) {
        if is_nan || !self.finish(isa, call_key, m, y, mask.as_deref_mut()) {
            y.fill(NAN);
            if let Some(mask) = mask {
                mask.fill(0);
            }
        }
    }

    /// Whether the row's maxima are finite.
    #[inline(always)]
    fn finish<S: Isa>(&self, isa: S, call_key: u64, m: u64, y: &mut [f32], mask: Option<&mut [u8]>) -> bool {
        let mut row_range = 0.0;
        if self.noise_needs_row_maximum {
            let largest = largest_magnitude(isa, y);
            if largest >= INFINITY_BITS {
                return false;
            }
            row_range = f32::from_bits(largest as u32);
        }
        if self.noise.any() {
            let largest = self.add_noise(isa, call_key, m, row_range, y);
            if self.adc_needs_row_maximum {
                if largest >= INFINITY_BITS {
                    return false;
                }
                row_range = f32::from_bits(largest as u32);
            }
        } else if self.adc_needs_row_maximum {
            let largest = largest_magnitude(isa, y);
            if largest >= INFINITY_BITS {
                return false;
            }
            row_range = f32::from_bits(largest as u32);
        }
        self.convert(isa, row_range, y, mask);
        true
    }

    /// Pass 2; returns the bits of max|v|.
    #[inline(always)]
    fn add_noise<S: Isa>(&self, isa: S, call_key: u64, m: u64, row_range: f32, y: &mut [f32]) -> i32 {
        let NoiseLevels { relative, additive, shot } = self.noise;
        let laws = [relative, additive, shot].iter().filter(|level| **level != 0.0).count();
        let range_at = |column: usize| match &self.columns {
            Some(columns) => pair(isa, &columns.range, column),
            None => [isa.splat(row_range); 2],
        };
        let shot_sigma = |z: S::F, range: S::F| isa.mul(isa.splat(shot), isa.sqrt(isa.mul(isa.abs(z), range)));
        let mut largest = 0;
        for (block, columns) in y.chunks_mut(rng::BLOCK).enumerate() {
            let start = block * rng::BLOCK;
            let mut gauss = Gauss::new(isa, rng::block_key(call_key, m, block as u64));
            let found = if laws > 1 {
                pass(isa, columns, |column, z| {
                    let range = range_at(start + column);
                    let eps = gauss.group();
                    std::array::from_fn(|half| {
                        let mut sum = None;
                        let mut add = |present: bool, sigma: S::F| {
                            if present {
                                let square = isa.mul(sigma, sigma);
                                sum = Some(sum.map_or(square, |sum| isa.add(sum, square)));
                            }
                        };
                        add(relative != 0.0, isa.mul(isa.splat(relative), isa.abs(z[half])));
                        add(additive != 0.0, isa.mul(isa.splat(additive), range[half]));
                        add(shot != 0.0, shot_sigma(z[half], range[half]));
                        isa.fma(isa.sqrt(sum.expect("two laws")), eps[half], z[half])
                    })
                })
            } else if relative != 0.0 {
                pass(isa, columns, |_, z| {
                    let eps = gauss.group();
                    std::array::from_fn(|half| {
                        isa.fma(isa.mul(isa.splat(relative), isa.abs(z[half])), eps[half], z[half])
                    })
                })
            } else if additive != 0.0 {
                pass(isa, columns, |column, z| {
                    let range = range_at(start + column);
                    let eps = gauss.group();
                    std::array::from_fn(|half| isa.fma(isa.mul(isa.splat(additive), range[half]), eps[half], z[half]))
                })
            } else {
                pass(isa, columns, |column, z| {
                    let range = range_at(start + column);
                    let eps = gauss.group();
                    std::array::from_fn(|half| isa.fma(shot_sigma(z[half], range[half]), eps[half], z[half]))
                })
            };
            largest = largest.max(found);
        }
        largest
    }

    /// Pass 3.
    #[inline(always)]
    fn convert<S: Isa>(&self, isa: S, row_range: f32, y: &mut [f32], mut mask: Option<&mut [u8]>) {
        let nan = isa.splat(NAN);
        let row_quantizer = (self.output_bits > 0)
            .then(|| VectorQuantizer::new(isa, &Quantizer::new(levels(self.output_bits), row_range)));
        pass(isa, y, |column, v| {
            let bias = self.digital_bias.as_ref().map(|bias| pair(isa, bias, column));
            let mut quantizers = row_quantizer.map(|quantizer| [quantizer; 2]);
            if let (Some(quantizers), Some(columns)) = (&mut quantizers, &self.columns) {
                let inv = pair(isa, &columns.inv, column);
                let limit = pair(isa, &columns.limit, column);
                let step = pair(isa, &columns.step, column);
                *quantizers =
                    std::array::from_fn(|half| VectorQuantizer::from_vectors(isa, inv[half], limit[half], step[half]));
            }
            if let (Some(mask), Some(columns)) = (&mut mask, &self.columns) {
                let range = pair(isa, &columns.range, column);
                let (words, _) = mask[column / 8..].as_chunks_mut::<2>();
                for (half, word) in words.iter_mut().take(2).enumerate() {
                    *word = isa.mask_bits(isa.greater(isa.abs(v[half]), range[half])).to_le_bytes();
                }
            }
            std::array::from_fn(|half| {
                let mut value = match &quantizers {
                    Some(quantizers) => quantizers[half].value(v[half]),
                    None => v[half],
                };
                if let Some(bias) = &bias {
                    value = isa.add(value, bias[half]);
                }
                isa.select(isa.is_nan(v[half]), nan, value)
            })
        });
    }
}
