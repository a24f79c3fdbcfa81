//! Noise and ADC, over rows of Y that hold z: at most three passes over memory that sits in L1.
//!
//! 1. R, where a law reads it and it is dynamic: max|z|.
//! 2. [`noise`]: v = fma(sigma, eps, z), and max|v|.
//! 3. [`adc`]: ADC, digital bias, NaN made canonical, saturation mask.

mod adc;
mod noise;

use crate::microkernel::gauss::Gauss;
use crate::microkernel::isa::{Isa, LANES};
use crate::microkernel::row_ops::{INFINITY_BITS, VectorQuantizer, largest_magnitude};
use crate::params::{BiasStage, NoiseLevels, Params};
use crate::quantize::{Quantizer, levels};
use crate::reference::NAN;
use crate::rng;
use crate::saved::mask_row;
use adc::{Convert, StaticRanges};
use noise::{AddNoise, Law};

/// Maximum rows that get their noise before the first of them is converted.
const ROWS_AT_ONCE: usize = 8;
/// Maximum elements of such rows if there are several: they stay in the first-level cache.
const NEAR_ELEMENTS: usize = 1 << 12;
/// Columns that a pass takes at a time.
const GROUP: usize = 2 * LANES;
/// Groups whose normals are drawn before the first of them is added: so that drawing, and adding, have all registers.
const NOISE_GROUPS: usize = 8;

/// What the epilogue of a layer needs, computed once.
#[derive(Clone, Debug)]
pub(super) struct Epilogue {
    noise: NoiseLevels,
    law: Law,
    output_bits: u32,
    ranges: Option<StaticRanges>,
    digital_bias: Option<Vec<f32>>,
    noise_needs_row_maximum: bool,
    adc_needs_row_maximum: bool,
}

/// `values`, padded to whole groups with `filler`.
pub(super) fn padded(values: impl ExactSizeIterator<Item = f32>, filler: f32) -> Vec<f32> {
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

/// Replaces each group of `row` by the result of `pass` and returns the bits of the largest magnitude.
#[inline(always)]
fn run_pass<S: Isa>(isa: S, row: &mut [f32], pass: &mut impl Pass<S>) -> i32 {
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

/// The non-negative number that has these bits, if it is finite.
#[inline(always)]
fn finite(bits: i32) -> Option<f32> {
    (bits < INFINITY_BITS).then_some(f32::from_bits(bits as u32))
}

impl Epilogue {
    pub(super) fn new(params: &Params, n: usize, bias: Option<&[f32]>) -> Self {
        Epilogue {
            noise: params.noise,
            law: Law::of(params.noise),
            output_bits: params.output_bits,
            ranges: StaticRanges::new(params, n),
            digital_bias: bias
                .filter(|_| params.bias_stage == BiasStage::Digital)
                .map(|bias| padded(bias.iter().copied(), 0.0)),
            noise_needs_row_maximum: params.noise_needs_row_maximum(),
            adc_needs_row_maximum: params.adc_needs_row_maximum(),
        }
    }

    /// Finishes rows of `n` elements that hold z, of which `first_row` is the first; rows whose step is NaN become NaN.
    /// `mask` receives the ADC's saturation bits.
    ///
    /// Pass 3 depends on a row's maximum. So that it need not wait for that, up to [`ROWS_AT_ONCE`] rows go through the
    /// earlier passes before it starts.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "each is a fact of its own")]
    pub(super) fn finish_rows<S: Isa>(
        &self,
        isa: S,
        call_key: u64,
        first_row: u64,
        y: &mut [f32],
        n: usize,
        x_step: &[f32],
        mut mask: Option<&mut [u8]>,
    ) {
        let rows_at_once = (NEAR_ELEMENTS / n).clamp(1, ROWS_AT_ONCE);
        let mut ranges = [None; ROWS_AT_ONCE];
        for (chunk, (y, x_step)) in y.chunks_mut(rows_at_once * n).zip(x_step.chunks(rows_at_once)).enumerate() {
            let first_of_chunk = chunk * rows_at_once;
            for (row, y) in y.chunks_exact_mut(n).enumerate() {
                let m = first_row + (first_of_chunk + row) as u64;
                ranges[row] =
                    if x_step[row].is_nan() { None } else { self.add_noise_and_find_range(isa, call_key, m, y) };
            }
            for (row, y) in y.chunks_exact_mut(n).enumerate() {
                let mask = mask.as_mut().map(|mask| mask_row(mask, first_of_chunk + row, n));
                match ranges[row] {
                    Some(range) => self.finish(isa, range, y, mask),
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
    fn add_noise_and_find_range<S: Isa>(&self, isa: S, call_key: u64, m: u64, y: &mut [f32]) -> Option<f32> {
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
        let mut eps = [[0.0; GROUP]; NOISE_GROUPS];
        for (block, columns) in y.chunks_mut(rng::BLOCK).enumerate() {
            let mut gauss = Gauss::new(isa, rng::block_key(call_key, m, block as u64));
            for (part, columns) in columns.chunks_mut(NOISE_GROUPS * GROUP).enumerate() {
                gauss.fill(&mut eps[..columns.len().div_ceil(GROUP)]);
                let first = block * rng::BLOCK + part * NOISE_GROUPS * GROUP;
                let mut pass = AddNoise {
                    law: self.law,
                    levels: self.noise,
                    columns: self.ranges.as_ref().map(|ranges| &ranges.range[first..]),
                    row_range: isa.splat(row_range),
                    eps: eps.as_flattened(),
                };
                largest = largest.max(run_pass(isa, columns, &mut pass));
            }
        }
        largest
    }

    /// Pass 3.
    #[inline(always)]
    fn finish<S: Isa>(&self, isa: S, row_range: f32, y: &mut [f32], mask: Option<&mut [u8]>) {
        let mut pass = Convert {
            quantizer: match self.output_bits {
                0 => None,
                bits => Some(VectorQuantizer::new(isa, &Quantizer::new(levels(bits), row_range))),
            },
            columns: self.ranges.as_ref(),
            digital_bias: self.digital_bias.as_deref(),
            mask,
        };
        run_pass(isa, y, &mut pass);
    }
}
