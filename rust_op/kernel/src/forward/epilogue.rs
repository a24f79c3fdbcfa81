//! Noise and ADC, over rows of Y that hold z: at most three passes over memory that sits in L1.
//!
//! 1. R, where a law reads it and it is dynamic: max|z|.
//! 2. [`noise`]: v = fma(sigma, eps, z), and max|v|.
//! 3. [`adc`]: ADC, digital bias, NaN made canonical, saturation mask.
//!
//! Where rows are split into tiles, z of each goes through the passes in memory of its own, and the third adds the ADC's
//! results to Y; a last one does what is left.

mod adc;
mod noise;

use crate::microkernel::gauss::Gauss;
use crate::microkernel::isa::{Isa, LANES};
use crate::microkernel::row_ops::{INFINITY_BITS, VectorQuantizer, largest_magnitude};
use crate::params::{BiasStage, NoiseLevels};
use crate::quantize::{Quantizer, levels};
use crate::reference::NAN;
use crate::rng;
use crate::saved::{mask_row, mask_stride};
use crate::weights::Weights;
use adc::{Adc, AddTile, BoundColumns, Bounds, Convert, FinishSum, StaticRanges, Sum};
pub(super) use noise::RowLight;
use noise::{AddLitNoise, AddNoise, Law, LightColumns, LightLevels};

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
    light: Option<Lit>,
    output_bits: u32,
    ranges: Option<StaticRanges>,
    bounds: Option<BoundColumns>,
    digital_bias: Option<Vec<f32>>,
    noise_needs_row_maximum: bool,
    adc_needs_row_maximum: bool,
    tiles: usize,
    sum: Sum,
}

/// What laws of light read.
#[derive(Clone, Debug)]
struct Lit {
    levels: LightLevels,
    /// s_w, padded to whole groups.
    weight_scale: Vec<f32>,
    /// The analog bias, if there is one.
    bias: Option<Vec<f32>>,
}

/// The rows that a call of the epilogue works on.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) call_key: u64,
    /// The first one's number in the call.
    pub(super) first: u64,
    /// Columns.
    pub(super) n: usize,
    /// s_x of each: NaN where a row is NaN throughout.
    pub(super) x_step: &'a [f32],
    /// Of each; empty where no law reads it.
    pub(super) light: &'a [RowLight],
}

/// What is found of a row before its ADC.
#[derive(Clone, Copy)]
struct Found<'a> {
    /// The row's own full scale; 0 where nothing reads it.
    range: f32,
    bounds: Option<Bounds<'a>>,
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
    pub(super) fn new(weights: &Weights, bias: Option<&[f32]>) -> Self {
        let (params, n, tiles) = (weights.params(), weights.n(), weights.params().tiles(weights.k()).len());
        let bias_of = |stage| bias.filter(|_| params.bias_stage == stage).map(|bias| padded(bias.iter().copied(), 0.0));
        Epilogue {
            noise: params.noise,
            law: Law::of(params.noise),
            light: LightLevels::of(params, weights.k()).map(|levels| Lit {
                levels,
                weight_scale: padded(weights.scale().iter().copied(), 0.0),
                bias: bias_of(BiasStage::Analog),
            }),
            output_bits: params.output_bits,
            ranges: StaticRanges::new(params, n),
            bounds: BoundColumns::new(params, weights.scale()),
            digital_bias: bias_of(BiasStage::Digital),
            noise_needs_row_maximum: params.noise_needs_row_maximum(),
            adc_needs_row_maximum: params.adc_needs_row_maximum(),
            tiles,
            sum: Sum::of(params, tiles),
        }
    }

    /// Whether a law reads the light.
    pub(super) fn reads_light(&self) -> bool {
        self.light.is_some()
    }

    /// Whether sums of codes take memory beside Y.
    pub(super) fn has_low_sums(&self) -> bool {
        self.sum == Sum::Halves
    }

    /// Finishes rows of `y` that hold z; rows whose step is NaN become NaN. `mask` receives the ADC's saturation bits.
    ///
    /// Pass 3 depends on a row's maximum. So that it need not wait for that, up to [`ROWS_AT_ONCE`] rows go through the
    /// earlier passes before it starts.
    #[inline(always)]
    pub(super) fn finish_rows<S: Isa>(&self, isa: S, rows: Rows<'_>, y: &mut [f32], mut mask: Option<&mut [u8]>) {
        let n = rows.n;
        let rows_at_once = (NEAR_ELEMENTS / n).clamp(1, ROWS_AT_ONCE);
        let mut found = [None; ROWS_AT_ONCE];
        for (chunk, y) in y.chunks_mut(rows_at_once * n).enumerate() {
            let first = chunk * rows_at_once;
            for (row, y) in y.chunks_exact_mut(n).enumerate() {
                found[row] = self.find(isa, &rows, first + row, 0, y);
            }
            for (row, y) in y.chunks_exact_mut(n).enumerate() {
                let mask = mask.as_mut().map(|mask| mask_row(mask, first + row, n));
                match found[row] {
                    Some(found) => {
                        let mut pass =
                            Convert { adc: self.adc(isa, found, mask), digital_bias: self.digital_bias.as_deref() };
                        run_pass(isa, y, &mut pass);
                    }
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

    /// Adds tile `tile` of rows, `z`, to `sums`, of which `low` has a part ([`Epilogue::has_low_sums`]). Sets `is_nan`
    /// for rows that are NaN throughout from this tile on, and leaves those for which it is set.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "each is a fact of its own")]
    pub(super) fn add_tile<S: Isa>(
        &self,
        isa: S,
        rows: Rows<'_>,
        tile: usize,
        z: &mut [f32],
        sums: &mut [f32],
        low: &mut [f32],
        is_nan: &mut [bool],
        mut mask: Option<&mut [u8]>,
    ) {
        let n = rows.n;
        for (row, (z, sums)) in z.chunks_exact_mut(n).zip(sums.chunks_exact_mut(n)).enumerate() {
            let found = if is_nan[row] { None } else { self.find(isa, &rows, row, tile, z) };
            let mask = mask.as_mut().map(|mask| mask_row(mask, row * self.tiles + tile, n));
            let Some(found) = found else {
                is_nan[row] = true;
                continue;
            };
            let low = if low.is_empty() { &mut [][..] } else { &mut low[row * n..(row + 1) * n] };
            let adc = self.adc(isa, found, mask);
            run_pass(isa, sums, &mut AddTile { adc, sum: self.sum, first: tile == 0, v: z, low });
        }
    }

    /// Finishes rows whose tiles have all been added to `sums`.
    #[inline(always)]
    pub(super) fn finish_sums<S: Isa>(
        &self,
        isa: S,
        rows: Rows<'_>,
        sums: &mut [f32],
        low: &[f32],
        is_nan: &[bool],
        mut mask: Option<&mut [u8]>,
    ) {
        let n = rows.n;
        for (row, sums) in sums.chunks_exact_mut(n).enumerate() {
            if is_nan[row] {
                sums.fill(NAN);
                if let Some(mask) = &mut mask {
                    let length = self.tiles * mask_stride(n);
                    mask[row * length..(row + 1) * length].fill(0);
                }
                continue;
            }
            let low = if low.is_empty() { low } else { &low[row * n..(row + 1) * n] };
            let found = Found { range: 0.0, bounds: self.bounds_of(rows.x_step[row]) };
            let adc = self.adc(isa, found, None);
            let digital_bias = self.digital_bias.as_deref();
            run_pass(isa, sums, &mut FinishSum { adc, sum: self.sum, low, digital_bias });
        }
    }

    #[inline(always)]
    fn bounds_of(&self, x_step: f32) -> Option<Bounds<'_>> {
        self.bounds.as_ref().map(|bounds| bounds.of_row(x_step))
    }

    /// Passes 1 and 2 of row `row` of `rows`; `None` where it is NaN throughout.
    #[inline(always)]
    fn find<S: Isa>(&self, isa: S, rows: &Rows<'_>, row: usize, tile: usize, z: &mut [f32]) -> Option<Found<'_>> {
        let x_step = rows.x_step[row];
        if x_step.is_nan() {
            return None;
        }
        let bounds = self.bounds_of(x_step);
        let mut range = 0.0;
        if self.noise_needs_row_maximum {
            range = finite(largest_magnitude(isa, z))?;
        }
        if self.noise.any() {
            let largest = self.add_noise(isa, rows, row, tile, range, z);
            if self.adc_needs_row_maximum {
                range = finite(largest)?;
            }
        } else if self.adc_needs_row_maximum {
            range = finite(largest_magnitude(isa, z))?;
        }
        Some(Found { range, bounds })
    }

    /// Pass 2; returns the bits of max|v|.
    #[inline(always)]
    fn add_noise<S: Isa>(
        &self,
        isa: S,
        rows: &Rows<'_>,
        row: usize,
        tile: usize,
        row_range: f32,
        z: &mut [f32],
    ) -> i32 {
        let m = rows.first + row as u64;
        let x_step = rows.x_step[row];
        let bounds = self.bounds_of(x_step);
        let light = self.light.as_ref().map(|lit| (lit, lit.levels.terms(x_step, rows.light[row])));
        let mut largest = 0;
        let mut eps = [[0.0; GROUP]; NOISE_GROUPS];
        for (block, columns) in z.chunks_mut(rng::BLOCK).enumerate() {
            let number = rng::block_of_tile(tile as u64, block as u64);
            let mut gauss = Gauss::new(isa, rng::block_key(rows.call_key, m, number));
            for (part, columns) in columns.chunks_mut(NOISE_GROUPS * GROUP).enumerate() {
                gauss.fill(&mut eps[..columns.len().div_ceil(GROUP)]);
                let first = block * rng::BLOCK + part * NOISE_GROUPS * GROUP;
                let mut noise = AddNoise {
                    law: self.law,
                    levels: self.noise,
                    columns: self.ranges.as_ref().map(|ranges| &ranges.range[first..]),
                    row_range: isa.splat(row_range),
                    eps: eps.as_flattened(),
                };
                largest = largest.max(if bounds.is_none() && light.is_none() {
                    run_pass(isa, columns, &mut noise)
                } else {
                    let bounds = bounds.map(|bounds| bounds.from(first));
                    let light = light.map(|(lit, terms)| (lit.columns(first, tile), terms));
                    run_pass(isa, columns, &mut AddLitNoise { noise, bounds, light })
                });
            }
        }
        largest
    }

    /// The ADC of a row.
    #[inline(always)]
    fn adc<'a, S: Isa>(&'a self, isa: S, found: Found<'a>, mask: Option<&'a mut [u8]>) -> Adc<'a, S> {
        Adc {
            quantizer: match self.output_bits {
                0 => None,
                bits => Some(VectorQuantizer::new(isa, &Quantizer::new(levels(bits), found.range))),
            },
            columns: self.ranges.as_ref(),
            bounds: found.bounds,
            mask,
        }
    }
}

impl Lit {
    /// Of the columns from `first` on. The bias enters in the first tile.
    #[inline(always)]
    fn columns(&self, first: usize, tile: usize) -> LightColumns<'_> {
        let bias = self.bias.as_ref().filter(|_| tile == 0);
        LightColumns { weight_scale: &self.weight_scale[first..], bias: bias.map(|bias| &bias[first..]) }
    }
}
