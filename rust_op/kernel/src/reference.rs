//! The operator, one scalar at a time: the definition that every kernel must equal bit for bit.
//!
//! It is written to be read, not to be fast, and it allocates freely. It settles what the contract leaves to an
//! implementation:
//!
//! - [`noise::fill_row`] gives the noise of column n of row m: its module defines the Gaussian's exact order of
//!   operations, [`crate::rng`] the keys and the layout.
//! - A row is NaN throughout where its X holds a NaN, or an infinity without a static `input_range`, and
//!   where a maximum that it needs (of |z| for R, of |v| for the ADC) is not finite.
//! - R of a row without a static range is max|z| of the row, taken only where a law reads R.
//! - sigma of a single law is that law's formula; of several, `sqrt(((r*r) + (a*a)) + (s*s) + ...)` of their
//!   values in the order relative, additive, shot, read, photons, an absent law adding nothing.
//! - A row that is longer than `tile_features` is split: each tile has its z, its noise, R and ADC, and the results are
//!   added. Everything said of a row's maximum holds for each tile's own, and a row is NaN throughout where it is for
//!   one of its tiles.
//! - `code()` of a NaN `v` is not defined; `y` is NaN there. Every NaN result is 0x7FC00000.
//! - `s_x` of a row that is NaN throughout is NaN, so that a gradient that depends on it is NaN too.

use crate::noise;
use crate::params::{BiasStage, Detection, OutputRange, Params, PhotonReference};
use crate::precision::{Block, Precision};
use crate::quantize::{Quantizer, default_scale, levels, weight_code, weight_quantizer};
use crate::rng::{self, NoiseKey};

/// The NaN whose bits every NaN result has.
pub const NAN: f32 = f32::from_bits(0x7FC0_0000);

/// A weight as the product sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// `[N, K]`: codes, or the values themselves where W is analog.
    pub values: Vec<f32>,
    /// `[N]`: the step of one code; 1 where W is analog.
    pub scale: Vec<f32>,
}

/// Quantises W `[N, K]`, which must be finite, with a `scale` of 1 or N elements, or with the default scale.
pub fn quantize_weight(bits: u32, k: usize, w: &[f32], scale: Option<&[f32]>) -> Weight {
    let n = w.len() / k;
    if bits == 0 {
        return Weight { values: w.to_vec(), scale: vec![1.0; n] };
    }
    let mut quantized = Weight { values: Vec::with_capacity(w.len()), scale: Vec::with_capacity(n) };
    for (channel, row) in w.chunks_exact(k).enumerate() {
        let step = match scale {
            None => default_scale(row, bits),
            Some([one]) => *one,
            Some(each) => each[channel],
        };
        let quantizer = weight_quantizer(bits, step);
        quantized.scale.push(step);
        quantized.values.extend(row.iter().map(|value| weight_code(bits, &quantizer, *value) as f32));
    }
    quantized
}

/// One row of X as the product sees it.
struct Row {
    /// Codes, or values where X is analog.
    values: Vec<f32>,
    /// s_x.
    step: f32,
    /// Whether |x| > `input_range`, where that is static.
    saturated: Vec<bool>,
    is_nan: bool,
}

fn dac(params: &Params, x: &[f32], call_key: u64, m: u64) -> Row {
    let has_nan = x.iter().any(|value| value.is_nan());
    let has_infinity = x.iter().any(|value| value.is_infinite());
    let is_nan = has_nan || (has_infinity && params.input_range.is_none());
    if is_nan {
        return Row { values: vec![0.0; x.len()], step: NAN, saturated: vec![false; x.len()], is_nan };
    }
    let Some(levels) = params.input_levels() else {
        return Row { values: x.to_vec(), step: 1.0, saturated: vec![false; x.len()], is_nan };
    };
    let range = params.input_range.unwrap_or_else(|| x.iter().fold(0.0, |max, value| max.max(value.abs())));
    let quantizer = Quantizer::new(levels, range);
    let mut row = Row {
        values: x.iter().map(|value| quantizer.code(*value) as f32).collect(),
        step: quantizer.step,
        saturated: x.iter().map(|value| params.input_range.is_some_and(|range| value.abs() > range)).collect(),
        is_nan,
    };
    if params.input_noise.any() {
        // From here on, codes are on a grid that is 2^shift times as fine.
        let fine = (1 << params.input_shift()) as f32;
        let mut eps = vec![0.0; x.len()];
        noise::fill_row(call_key ^ rng::INPUT_KEY, m, &mut eps);
        for (code, eps) in row.values.iter_mut().zip(eps) {
            *code = noisy_code(params, fine * *code, eps);
        }
        row.step /= fine;
    }
    row
}

/// An input code on the fine grid, with noise, rounded to that grid.
fn noisy_code(params: &Params, code: f32, eps: f32) -> f32 {
    let largest = levels(params.input_code_bits()) as f32;
    let relative = params.input_noise.relative * code.abs();
    let additive = params.input_noise.additive * params.input_full_scale() as f32;
    let square = match (params.input_noise.relative != 0.0, params.input_noise.additive != 0.0) {
        (true, true) => relative * relative + additive * additive,
        (true, false) => relative * relative,
        (false, _) => additive * additive,
    };
    // Rounding adds a variance of 1/12.
    let sigma = if square > 0.25 { (square - 1.0 / 12.0).sqrt() } else { square.sqrt() };
    sigma.mul_add(eps, code).clamp(-largest, largest).round_ties_even()
}

fn dot(params: &Params, a: &[f32], c: &[f32]) -> f32 {
    if params.is_integer() {
        a.iter().zip(c).map(|(a, c)| *a as i32 * *c as i32).sum::<i32>() as f32
    } else {
        a.iter().zip(c).fold(0.0, |sum, (a, c)| a.mul_add(*c, sum))
    }
}

/// What the sigma of an output depends on, beside the parameters.
struct Signal {
    /// z.
    z: f32,
    /// The analog bias in z.
    bias: f32,
    /// R, which may be NaN or infinite if no law reads it.
    range: f32,
    /// s_x s_w: what a product of codes stands for.
    step: f32,
    light: Light,
}

/// The light of a row, and of one of its tiles.
#[derive(Clone, Copy)]
struct Light {
    /// sum |a| of the tile.
    tile: f32,
    /// sum a^2 of the tile.
    tile_squares: f32,
    /// sum |a| of the row.
    row: f32,
    /// K.
    k: usize,
}

impl Light {
    /// Of codes, which are added as integers. Where no law reads it (analog inputs have no such sums) it is 0.
    fn new(params: &Params, row: &[f32], tile: &[f32]) -> Self {
        if !params.noise.reads_light() {
            return Light { tile: 0.0, tile_squares: 0.0, row: 0.0, k: row.len() };
        }
        let sum = |codes: &[f32]| codes.iter().map(|a| (*a as i64).abs()).sum::<i64>() as f32;
        let squares = tile.iter().map(|a| *a as i64 * *a as i64).sum::<i64>() as f32;
        Light { tile: sum(tile), tile_squares: squares, row: sum(row), k: row.len() }
    }
}

/// The sum of squares of the values, or the only one of them as it is.
fn root_of_squares(sigmas: &[f32]) -> f32 {
    match sigmas {
        [one] => *one,
        _ => sigmas.iter().map(|sigma| sigma * sigma).reduce(|sum, square| sum + square).expect("a law").sqrt(),
    }
}

fn sigma(params: &Params, signal: &Signal) -> f32 {
    let (levels, Signal { z, range, step, light, .. }) = (&params.noise, signal);
    let mut sigmas = Vec::new();
    if levels.relative != 0.0 {
        sigmas.push(levels.relative * z.abs());
    }
    if levels.additive != 0.0 {
        sigmas.push(levels.additive * range);
    }
    if levels.shot != 0.0 {
        sigmas.push(levels.shot * (z.abs() * range).sqrt());
    }
    if levels.read != 0.0 {
        sigmas.push(step * ((levels.read * params.weight_full_scale() as f32) * light.tile_squares.sqrt()));
    }
    if levels.photons.is_some() {
        sigmas.push(photon_sigma(params, signal));
    }
    root_of_squares(&sigmas)
}

/// Poisson noise of the light that is there (T. Wang et al., Nat. Commun. 13, 123, 2022, have photons per product).
fn photon_sigma(params: &Params, signal: &Signal) -> f32 {
    let photons = params.noise.photons.expect("a law of photons");
    let (l_x, l_w) = (i64::from(params.input_full_scale()), i64::from(params.weight_full_scale()));
    let Signal { z, bias, step, light, .. } = signal;
    // "mean": the row's mean light is P, instead of that of full scale.
    let mean = photons.count * light.k as f32;
    match photons.detection {
        // sum |a| (c sign(a) + L_w), from sums that are there.
        Detection::Offset => {
            let factor = match photons.reference {
                PhotonReference::FullScale => (2 * l_x * l_w) as f32 / photons.count,
                PhotonReference::Mean => ((2 * l_w) as f32 * light.row) / mean,
            };
            let seen = (l_w as f32 * light.tile).mul_add(*step, z - bias);
            let seen = if seen < 0.0 { 0.0 } else { seen };
            ((factor * seen) * step).sqrt()
        }
        Detection::Balanced => {
            let factor = match photons.reference {
                PhotonReference::FullScale => (l_x * l_w * l_w) as f32 / photons.count,
                PhotonReference::Mean => ((l_w * l_w) as f32 * light.row) / mean,
            };
            step * (factor * light.tile).sqrt()
        }
    }
}

/// The ADC of one output.
struct Adc {
    quantizer: Quantizer,
    /// R.
    range: f32,
}

/// Full scales of the outputs of a row.
struct Ranges<'a> {
    params: &'a Params,
    weight: &'a Weight,
    x_step: f32,
}

impl Ranges<'_> {
    /// A and B: R is A * B where the parameters bound it.
    fn bound(&self, n: usize) -> Option<(f32, f32)> {
        let OutputRange::Bound(bound) = self.params.output_range else { return None };
        let weight = self.weight.scale[n] * self.params.weight_full_scale() as f32;
        Some((self.x_step * self.params.input_full_scale() as f32, bound * weight))
    }

    /// R, where `row` is the maximum of the tile's row.
    fn get(&self, n: usize, row: f32) -> f32 {
        match self.bound(n) {
            Some((a, b)) => a * b,
            None => self.params.output_range.get(n).unwrap_or(row),
        }
    }

    fn adc(&self, n: usize, row: f32) -> Adc {
        let levels = levels(self.params.output_bits);
        let range = self.get(n, row);
        let quantizer = match self.bound(n) {
            None => Quantizer::new(levels, range),
            Some((a, b)) => {
                let limit = levels as f32;
                Quantizer::of((1.0 / a) * (limit / b), a * (b / limit), limit)
            }
        };
        Adc { quantizer, range }
    }
}

fn maximum(values: &[f32]) -> f32 {
    let is_nan = values.iter().any(|value| value.is_nan());
    if is_nan { NAN } else { values.iter().fold(0.0, |max, value| max.max(value.abs())) }
}

fn canonical(value: f32) -> f32 {
    if value.is_nan() { NAN } else { value }
}

/// The result of a forward pass, with everything that a backward pass may need.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forward {
    /// `[M, N]`.
    pub y: Vec<f32>,
    /// `[M, K]`: DAC codes, or X where it is analog (0 in rows that are NaN throughout).
    pub x_values: Vec<f32>,
    /// `[M]`: s_x.
    pub x_step: Vec<f32>,
    /// `[M, K]`: whether the DAC saturated.
    pub dac_saturated: Vec<bool>,
    /// `[M, tiles, N]`: whether the ADC saturated.
    pub adc_saturated: Vec<bool>,
}

/// The forward pass of X `[M, K]`; `bias` has N elements or is absent.
pub fn forward(params: &Params, weight: &Weight, bias: Option<&[f32]>, x: &[f32], k: usize, key: NoiseKey) -> Forward {
    let call_key = rng::call_key(key);
    let mut result = Forward::default();
    for (m, x) in x.chunks_exact(k).enumerate() {
        let row = dac(params, x, call_key, m as u64);
        let (y, saturated) = output_row(params, weight, bias, &row, call_key, m as u64);
        result.y.extend(y);
        result.adc_saturated.extend(saturated);
        result.x_values.extend(row.values);
        result.x_step.push(row.step);
        result.dac_saturated.extend(row.saturated);
    }
    result
}

/// What the ADC of one tile sees.
struct Tile {
    v: Vec<f32>,
    /// max|v|.
    largest: f32,
}

/// One row of Y, and `[tiles, N]` whether the ADC saturated.
fn output_row(
    params: &Params,
    weight: &Weight,
    bias: Option<&[f32]>,
    row: &Row,
    call_key: u64,
    m: u64,
) -> (Vec<f32>, Vec<bool>) {
    let (n, k) = (weight.scale.len(), row.values.len());
    let nan_row = (vec![NAN; n], vec![false; n * params.tiles(k).len()]);
    if row.is_nan {
        return nan_row;
    }
    let ranges = Ranges { params, weight, x_step: row.step };
    let mut tiles = Vec::new();
    for (u, part) in params.tiles(k).enumerate() {
        let bias = bias.filter(|_| params.bias_stage == BiasStage::Analog && u == 0);
        let Some(tile) = tile(params, weight, bias, row, &ranges, (part, u), (call_key, m)) else { return nan_row };
        tiles.push(tile);
    }

    let y = (0..n).map(|n| {
        let bias = bias.filter(|_| params.bias_stage == BiasStage::Digital).map(|bias| bias[n]);
        let sum = sum_of_tiles(params, &ranges, &tiles, n);
        canonical(bias.map_or(sum, |bias| sum + bias))
    });
    let saturated = tiles.iter().flat_map(|tile| {
        let ranges = &ranges;
        (0..n).map(move |n| params.adc_can_saturate() && tile.v[n].abs() > ranges.adc(n, 0.0).range)
    });
    (y.collect(), saturated.collect())
}

/// v of tile `u`, whose inputs are `part`; `None` where a maximum that it needs is not finite.
fn tile(
    params: &Params,
    weight: &Weight,
    bias: Option<&[f32]>,
    row: &Row,
    ranges: &Ranges<'_>,
    (part, u): (std::ops::Range<usize>, usize),
    (call_key, m): (u64, u64),
) -> Option<Tile> {
    let (n, k) = (weight.scale.len(), row.values.len());
    let bias_at = |n: usize| bias.map_or(0.0, |bias| bias[n]);
    let z: Vec<f32> = (0..n)
        .map(|n| {
            let weights = &weight.values[n * k..(n + 1) * k];
            let acc = dot(params, &row.values[part.clone()], &weights[part.clone()]);
            acc.mul_add(row.step * weight.scale[n], bias_at(n))
        })
        .collect();

    let mut v = z.clone();
    if params.noise.any() {
        let largest = maximum(&z);
        if params.noise_needs_row_maximum() && !largest.is_finite() {
            return None;
        }
        let light = Light::new(params, &row.values, &row.values[part]);
        let mut eps = vec![0.0; n];
        noise::fill_tile(call_key, m, u as u64, &mut eps);
        for n in 0..n {
            let step = row.step * weight.scale[n];
            let signal = Signal { z: z[n], bias: bias_at(n), range: ranges.get(n, largest), step, light };
            v[n] = sigma(params, &signal).mul_add(eps[n], z[n]);
        }
    }

    let largest = maximum(&v);
    if params.adc_needs_row_maximum() && !largest.is_finite() {
        return None;
    }
    Some(Tile { v, largest })
}

/// Output `n` of all tiles together.
fn sum_of_tiles(params: &Params, ranges: &Ranges<'_>, tiles: &[Tile], n: usize) -> f32 {
    let v: Vec<f32> = tiles.iter().map(|tile| tile.v[n]).collect();
    if v.iter().any(|v| v.is_nan()) {
        return NAN;
    }
    if params.output_bits == 0 {
        return v.into_iter().reduce(|sum, v| sum + v).expect("a tile");
    }
    if params.adc_needs_row_maximum() {
        return tiles.iter().fold(0.0, |sum, tile| {
            let quantizer = ranges.adc(n, tile.largest).quantizer;
            quantizer.step.mul_add(quantizer.code(tile.v[n]) as f32, sum)
        });
    }
    let quantizer = ranges.adc(n, 0.0).quantizer;
    quantizer.step * v.iter().map(|v| quantizer.code(*v)).sum::<i32>() as f32
}

/// Gradients of X `[M, K]`, W `[N, K]` and bias `[N]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    /// `[M, K]`.
    pub x: Vec<f32>,
    /// `[N, K]`.
    pub weight: Vec<f32>,
    /// `[N]`.
    pub bias: Vec<f32>,
}

/// The left operand of a gradient's product: one row's terms v.
enum Left {
    Floats(Vec<f32>),
    /// Blocks of [`Block::terms`] terms: their codes, and what a code stands for.
    Blocks(Vec<(Vec<i32>, f32)>, Block),
}

impl Left {
    fn new(terms: Vec<f32>, block: Option<Block>) -> Self {
        let Some(block) = block else { return Left::Floats(terms) };
        let coded = terms.chunks(block.terms).map(|terms| {
            let scale = block.scale(maximum(terms));
            let code = |v: &f32| if scale.step.is_nan() { 0 } else { scale.code(*v) };
            (terms.iter().map(code).collect(), scale.step)
        });
        Left::Blocks(coded.collect(), block)
    }

    /// The sum of products with `right`, codes or analog values. A code is NaN if its weight is not finite.
    fn dot(&self, right: impl Fn(usize) -> f32) -> f32 {
        match self {
            Left::Floats(terms) => terms.iter().enumerate().fold(0.0, |sum, (index, v)| v.mul_add(right(index), sum)),
            Left::Blocks(blocks, block) => blocks.iter().enumerate().fold(0.0, |sum, (index, (codes, step))| {
                let right = |i: usize| right(index * block.terms + i);
                if (0..codes.len()).any(|i| right(i).is_nan()) {
                    return NAN;
                }
                let products = codes.iter().enumerate().map(|(i, code)| code * right(i) as i32);
                (products.sum::<i32>() as f32).mul_add(*step, sum)
            }),
        }
    }
}

/// The straight-through gradient of dY `[M, N]`, clipped where a static range saturated. Each element is one chain from
/// 0 (n ascending for X, m ascending for W): of fused multiply-adds that codes enter unscaled, or, below
/// [`Precision::Highest`], of the sums of blocks.
pub fn backward(
    params: &Params,
    weight: &Weight,
    forward: &Forward,
    dy: &[f32],
    k: usize,
    precision: Precision,
) -> Gradients {
    let n = weight.scale.len();
    let m = forward.x_step.len();
    let tile = params.tile(k);
    let tiles = params.tiles(k).len();
    // dY of row, tile and output, where that tile's ADC did not saturate.
    let g = |row: usize, u: usize, n_: usize| {
        if forward.adc_saturated[(row * tiles + u) * n + n_] { 0.0 } else { dy[row * n + n_] }
    };

    let mut gradients = Gradients::default();
    for row in 0..m {
        for u in 0..tiles {
            let terms = (0..n).map(|n_| g(row, u, n_) * weight.scale[n_]).collect();
            let left = Left::new(terms, precision.block(params.weight_bits));
            for column in u * tile..k.min((u + 1) * tile) {
                let sum = left.dot(|n_| weight.values[n_ * k + column]);
                let masked = forward.dac_saturated[row * k + column];
                gradients.x.push(if masked { 0.0 } else { canonical(sum) });
            }
        }
    }
    for n_ in 0..n {
        for u in 0..tiles {
            let terms = (0..m).map(|row| g(row, u, n_) * forward.x_step[row]).collect();
            let left = Left::new(terms, precision.block(params.input_code_bits()));
            for column in u * tile..k.min((u + 1) * tile) {
                gradients.weight.push(canonical(left.dot(|row| forward.x_values[row * k + column])));
            }
        }
        let through_adc = params.bias_stage == BiasStage::Analog;
        let source = |row| if through_adc { g(row, 0, n_) } else { dy[row * n + n_] };
        gradients.bias.push(canonical((0..m).fold(0.0f32, |sum, row| sum + source(row))));
    }
    gradients
}
