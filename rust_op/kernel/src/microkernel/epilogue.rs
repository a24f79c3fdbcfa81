//! Noise and ADC, over rows of Y that hold z: at most three passes over memory that sits in L1.
//!
//! 1. R, where a law reads it and it is dynamic: max|z|.
//! 2. Noise: v = fma(sigma, eps, z), and max|v|.
//! 3. ADC, digital bias, NaN made canonical, saturation mask.

use super::gauss::Gauss;
use super::isa::{Isa, LANES};
use super::rows::{INFINITY_BITS, VectorQuantizer, largest_magnitude};
use crate::forward::mask_stride;
use crate::params::{BiasStage, NoiseLevels, OutputRange, Params};
use crate::quantize::{Quantizer, levels};
use crate::reference::NAN;
use crate::rng;

/// Rows that have had their noise before the first of them is converted, at most.
const ROWS: usize = 8;
/// Elements of them at most, where they are several: they stay in the first-level cache.
const NEAR_LANES: usize = 1 << 12;
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
    law: Law,
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

/// What a pass does with a group of columns.
trait Pass<S: Isa> {
    /// Implementations are `#[inline(always)]`.
    fn group(&mut self, isa: S, column: usize, values: [S::F; 2]) -> [S::F; 2];
}

/// Replaces each group of `row` by what `pass` makes of it and returns the bits of the largest magnitude.
#[inline(always)]
fn run<S: Isa>(isa: S, row: &mut [f32], pass: &mut impl Pass<S>) -> i32 {
    let mut largest = isa.splat_i(0);
    for start in (0..row.len()).step_by(GROUP) {
        let group = &mut row[start..];
        if let Some((group, _)) = group.split_first_chunk_mut::<GROUP>() {
            let (halves, _) = group.as_chunks_mut::<LANES>();
            let [first, second] = pass.group(isa, start, [isa.load(&halves[0]), isa.load(&halves[1])]);
            largest = isa.max_i(largest, isa.max_i(isa.magnitude(first), isa.magnitude(second)));
            isa.store(&mut halves[0], first);
            isa.store(&mut halves[1], second);
        } else {
            let (low, high) = group.split_at_mut(group.len().min(LANES));
            let [first, second] = pass.group(isa, start, [isa.load_first(low), isa.load_first(high)]);
            for (half, value) in [(low, first), (high, second)] {
                largest = isa.max_i(largest, isa.magnitude(isa.first(value, half.len())));
                isa.store_first(half, value);
            }
        }
    }
    isa.largest(largest)
}

/// The number of these bits, which are of no negative number, where it is finite.
#[inline(always)]
fn finite(bits: i32) -> Option<f32> {
    (bits < INFINITY_BITS).then_some(f32::from_bits(bits as u32))
}

/// Which laws are on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Law {
    Relative,
    Additive,
    Shot,
    Several,
}

/// Pass 2 over the columns of one block.
struct AddNoise<'a, S: Isa> {
    law: Law,
    levels: NoiseLevels,
    /// The static full scales of the block's columns.
    columns: Option<&'a [f32]>,
    row_range: S::F,
    gauss: Gauss<S>,
}

impl<S: Isa> AddNoise<'_, S> {
    #[inline(always)]
    fn sigma(&self, isa: S, z: S::F, range: S::F) -> S::F {
        let NoiseLevels { relative, additive, shot } = self.levels;
        match self.law {
            Law::Relative => isa.mul(isa.splat(relative), isa.abs(z)),
            Law::Additive => isa.mul(isa.splat(additive), range),
            Law::Shot => isa.mul(isa.splat(shot), isa.sqrt(isa.mul(isa.abs(z), range))),
            Law::Several => {
                // An absent law adds +0, which changes no sum of squares.
                let a = isa.mul(isa.splat(relative), isa.abs(z));
                let mut sum = isa.mul(a, a);
                if relative == 0.0 {
                    sum = isa.splat(0.0);
                }
                if additive != 0.0 {
                    let b = isa.mul(isa.splat(additive), range);
                    sum = isa.add(sum, isa.mul(b, b));
                }
                if shot != 0.0 {
                    let c = isa.mul(isa.splat(shot), isa.sqrt(isa.mul(isa.abs(z), range)));
                    sum = isa.add(sum, isa.mul(c, c));
                }
                isa.sqrt(sum)
            }
        }
    }
}

impl<S: Isa> Pass<S> for AddNoise<'_, S> {
    #[inline(always)]
    fn group(&mut self, isa: S, column: usize, z: [S::F; 2]) -> [S::F; 2] {
        let range = match self.columns {
            Some(ranges) => pair(isa, ranges, column),
            None => [self.row_range; 2],
        };
        let eps = self.gauss.group();
        [isa.fma(self.sigma(isa, z[0], range[0]), eps[0], z[0]), isa.fma(self.sigma(isa, z[1], range[1]), eps[1], z[1])]
    }
}

/// Pass 3.
struct Convert<'a, S: Isa> {
    /// The ADC, if there is one; with static full scales, those of a column take its place.
    quantizer: Option<VectorQuantizer<S>>,
    columns: Option<&'a Columns>,
    digital_bias: Option<&'a [f32]>,
    mask: Option<&'a mut [u8]>,
}

impl<S: Isa> Pass<S> for Convert<'_, S> {
    #[inline(always)]
    fn group(&mut self, isa: S, column: usize, v: [S::F; 2]) -> [S::F; 2] {
        let mut value = v;
        if let Some(quantizer) = self.quantizer {
            let mut quantizers = [quantizer; 2];
            if let Some(columns) = self.columns {
                let inv = pair(isa, &columns.inv, column);
                let limit = pair(isa, &columns.limit, column);
                let step = pair(isa, &columns.step, column);
                for half in 0..2 {
                    quantizers[half] = VectorQuantizer::from_vectors(isa, inv[half], limit[half], step[half]);
                }
            }
            value = [quantizers[0].value(v[0]), quantizers[1].value(v[1])];
        }
        if let (Some(mask), Some(columns)) = (&mut self.mask, self.columns) {
            let range = pair(isa, &columns.range, column);
            let (words, _) = mask[column / 8..].as_chunks_mut::<2>();
            for (half, word) in words.iter_mut().take(2).enumerate() {
                *word = isa.mask_bits(isa.greater(isa.abs(v[half]), range[half])).to_le_bytes();
            }
        }
        if let Some(bias) = self.digital_bias {
            let bias = pair(isa, bias, column);
            value = [isa.add(value[0], bias[0]), isa.add(value[1], bias[1])];
        }
        let nan = isa.splat(NAN);
        [isa.select(isa.is_nan(v[0]), nan, value[0]), isa.select(isa.is_nan(v[1]), nan, value[1])]
    }
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
            law: match params.noise {
                NoiseLevels { additive: 0.0, shot: 0.0, .. } => Law::Relative,
                NoiseLevels { relative: 0.0, shot: 0.0, .. } => Law::Additive,
                NoiseLevels { relative: 0.0, additive: 0.0, .. } => Law::Shot,
                _ => Law::Several,
            },
            output_bits: params.output_bits,
            columns,
            digital_bias: bias
                .filter(|_| params.bias_stage == BiasStage::Digital)
                .map(|bias| padded(bias.iter().copied(), 0.0)),
            noise_needs_row_maximum: params.noise_needs_row_maximum(),
            adc_needs_row_maximum: params.adc_needs_row_maximum(),
        }
    }

    /// Finishes rows of `n` from row `first` on, which hold z; those whose step is NaN become NaN. `mask` receives the
    /// ADC's saturation bits.
    ///
    /// Pass 3 waits for a row's maximum, so it begins when some more rows, up to [`ROWS`], are through the passes before it.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "each is a fact of its own")]
    pub(crate) fn rows<S: Isa>(
        &self,
        isa: S,
        call_key: u64,
        first: u64,
        y: &mut [f32],
        n: usize,
        steps: &[f32],
        mut mask: Option<&mut [u8]>,
    ) {
        let together = (NEAR_LANES / n).clamp(1, ROWS);
        let mut ranges = [None; ROWS];
        for (chunk, (y, steps)) in y.chunks_mut(together * n).zip(steps.chunks(together)).enumerate() {
            let first_row = chunk * together;
            for (row, y) in y.chunks_exact_mut(n).enumerate() {
                let m = first + (first_row + row) as u64;
                ranges[row] = if steps[row].is_nan() { None } else { self.range(isa, call_key, m, y) };
            }
            for (row, y) in y.chunks_exact_mut(n).enumerate() {
                let mask = mask.as_mut().map(|mask| {
                    let stride = mask_stride(n);
                    &mut mask[(first_row + row) * stride..][..stride]
                });
                match ranges[row] {
                    Some(range) => self.convert(isa, range, y, mask),
                    None => {
                        y.fill(NAN);
                        if let Some(mask) = mask {
                            mask.fill(0);
                        }
                    }
                }
            }
        }
    }

    /// Adds the noise of row `m` and returns the row's range, 0 where nothing reads it; `None` where it is not finite.
    #[inline(always)]
    fn range<S: Isa>(&self, isa: S, call_key: u64, m: u64, y: &mut [f32]) -> Option<f32> {
        let mut range = 0.0;
        if self.noise_needs_row_maximum {
            range = finite(largest_magnitude(isa, y))?;
        }
        if self.noise.any() {
            let largest = self.add_noise(isa, call_key, m, range, y);
            if self.adc_needs_row_maximum {
                range = finite(largest)?;
            }
        } else if self.adc_needs_row_maximum {
            range = finite(largest_magnitude(isa, y))?;
        }
        Some(range)
    }

    /// Pass 2; returns the bits of max|v|.
    #[inline(always)]
    fn add_noise<S: Isa>(&self, isa: S, call_key: u64, m: u64, row_range: f32, y: &mut [f32]) -> i32 {
        let mut largest = 0;
        for (block, columns) in y.chunks_mut(rng::BLOCK).enumerate() {
            let mut pass = AddNoise {
                law: self.law,
                levels: self.noise,
                columns: self.columns.as_ref().map(|columns| &columns.range[block * rng::BLOCK..]),
                row_range: isa.splat(row_range),
                gauss: Gauss::new(isa, rng::block_key(call_key, m, block as u64)),
            };
            largest = largest.max(run(isa, columns, &mut pass));
        }
        largest
    }

    /// Pass 3.
    #[inline(always)]
    fn convert<S: Isa>(&self, isa: S, row_range: f32, y: &mut [f32], mask: Option<&mut [u8]>) {
        let mut pass = Convert {
            quantizer: match self.output_bits {
                0 => None,
                bits => Some(VectorQuantizer::new(isa, &Quantizer::new(levels(bits), row_range))),
            },
            columns: self.columns.as_ref(),
            digital_bias: self.digital_bias.as_deref(),
            mask,
        };
        run(isa, y, &mut pass);
    }
}
