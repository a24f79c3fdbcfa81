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
//! - sigma of a single law is that law's formula; of several, `sqrt(((r*r) + (a*a)) + (s*s))` of their
//!   values in the order relative, additive, shot, an absent law adding nothing.
//! - `code()` of a NaN `v` is not defined; `y` is NaN there. Every NaN result is 0x7FC00000.
//! - `s_x` of a row that is NaN throughout is NaN, so that a gradient that depends on it is NaN too.

use crate::noise;
use crate::params::{BiasStage, NoiseLevels, Params};
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

fn dac(params: &Params, x: &[f32]) -> Row {
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
    Row {
        values: x.iter().map(|value| quantizer.code(*value) as f32).collect(),
        step: quantizer.step,
        saturated: x.iter().map(|value| params.input_range.is_some_and(|range| value.abs() > range)).collect(),
        is_nan,
    }
}

fn dot(params: &Params, a: &[f32], c: &[f32]) -> f32 {
    if params.is_integer() {
        a.iter().zip(c).map(|(a, c)| *a as i32 * *c as i32).sum::<i32>() as f32
    } else {
        a.iter().zip(c).fold(0.0, |sum, (a, c)| a.mul_add(*c, sum))
    }
}

/// sigma at signal `z` and full scale `range`, which may be NaN or infinite if no law reads it.
fn sigma(levels: &NoiseLevels, z: f32, range: f32) -> f32 {
    let relative = levels.relative * z.abs();
    let additive = levels.additive * range;
    let shot = levels.shot * (z.abs() * range).sqrt();
    let laws = [(levels.relative, relative), (levels.additive, additive), (levels.shot, shot)];
    let present: Vec<f32> = laws.iter().filter(|(level, _)| *level != 0.0).map(|(_, sigma)| *sigma).collect();
    match present[..] {
        [one] => one,
        _ => present.iter().map(|sigma| sigma * sigma).reduce(|sum, square| sum + square).expect("a law").sqrt(),
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
    /// `[M, N]`: whether the ADC saturated.
    pub adc_saturated: Vec<bool>,
}

/// The forward pass of X `[M, K]`; `bias` has N elements or is absent.
pub fn forward(params: &Params, weight: &Weight, bias: Option<&[f32]>, x: &[f32], k: usize, key: NoiseKey) -> Forward {
    let call_key = rng::call_key(key);
    let mut result = Forward::default();
    for (m, x) in x.chunks_exact(k).enumerate() {
        let row = dac(params, x);
        let (y, saturated) = output_row(params, weight, bias, &row, k, call_key, m as u64);
        result.y.extend(y);
        result.adc_saturated.extend(saturated);
        result.x_values.extend(row.values);
        result.x_step.push(row.step);
        result.dac_saturated.extend(row.saturated);
    }
    result
}

fn output_row(
    params: &Params,
    weight: &Weight,
    bias: Option<&[f32]>,
    row: &Row,
    k: usize,
    call_key: u64,
    m: u64,
) -> (Vec<f32>, Vec<bool>) {
    let n = weight.scale.len();
    let nan_row = (vec![NAN; n], vec![false; n]);
    if row.is_nan {
        return nan_row;
    }
    let bias_at = |stage, n: usize| bias.filter(|_| params.bias_stage == stage).map_or(0.0, |bias| bias[n]);

    let z: Vec<f32> = (0..n)
        .map(|n| {
            let acc = dot(params, &row.values, &weight.values[n * k..(n + 1) * k]);
            acc.mul_add(row.step * weight.scale[n], bias_at(BiasStage::Analog, n))
        })
        .collect();

    let mut v = z.clone();
    if params.noise.any() {
        let row_range = maximum(&z);
        if params.noise_needs_row_maximum() && !row_range.is_finite() {
            return nan_row;
        }
        let mut eps = vec![0.0; n];
        noise::fill_row(call_key, m, &mut eps);
        for n in 0..n {
            let range = params.output_range.get(n).unwrap_or(row_range);
            v[n] = sigma(&params.noise, z[n], range).mul_add(eps[n], z[n]);
        }
    }

    let row_range = maximum(&v);
    if params.adc_needs_row_maximum() && !row_range.is_finite() {
        return nan_row;
    }
    let adc = |n: usize| {
        let range = params.output_range.get(n).unwrap_or(row_range);
        if params.output_bits == 0 || v[n].is_nan() {
            return v[n];
        }
        let quantizer = Quantizer::new(levels(params.output_bits), range);
        quantizer.step * quantizer.code(v[n]) as f32
    };
    let with_digital_bias = |n: usize| match params.bias_stage {
        BiasStage::Digital if bias.is_some() => adc(n) + bias_at(BiasStage::Digital, n),
        _ => adc(n),
    };
    let y = (0..n).map(|n| canonical(with_digital_bias(n))).collect();
    let saturated = (0..n)
        .map(|n| params.adc_can_saturate() && params.output_range.get(n).is_some_and(|range| v[n].abs() > range))
        .collect();
    (y, saturated)
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
    let g: Vec<f32> =
        dy.iter().zip(&forward.adc_saturated).map(|(dy, saturated)| if *saturated { 0.0 } else { *dy }).collect();

    let mut gradients = Gradients::default();
    for row in 0..m {
        let terms = (0..n).map(|n_| g[row * n + n_] * weight.scale[n_]).collect();
        let left = Left::new(terms, precision.block(params.weight_bits));
        for column in 0..k {
            let sum = left.dot(|n_| weight.values[n_ * k + column]);
            let masked = forward.dac_saturated[row * k + column];
            gradients.x.push(if masked { 0.0 } else { canonical(sum) });
        }
    }
    for n_ in 0..n {
        let terms = (0..m).map(|row| g[row * n + n_] * forward.x_step[row]).collect();
        let left = Left::new(terms, precision.block(params.input_bits));
        for column in 0..k {
            gradients.weight.push(canonical(left.dot(|row| forward.x_values[row * k + column])));
        }
        let through_adc = params.bias_stage == BiasStage::Analog;
        let source = if through_adc { &g[..] } else { dy };
        gradients.bias.push(canonical((0..m).fold(0.0f32, |sum, row| sum + source[row * n + n_])));
    }
    gradients
}
