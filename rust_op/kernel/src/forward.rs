//! The fused forward pass.

use crate::error::Error;
use crate::executor::Executor;
use crate::microkernel::Tier;
use crate::params::Params;
use crate::quantize;
use crate::reference;
use crate::rng::NoiseKey;
use crate::weights::{CodesMut, Weights, code_stride};

/// A layer: checked parameters, weights and bias that fit together.
#[derive(Clone, Debug)]
pub struct Layer {
    params: Params,
    weights: Weights,
    bias: Option<Vec<f32>>,
}

/// What a backward pass needs of a forward pass, in memory of the caller's.
#[derive(Debug)]
pub struct Saved<'a> {
    /// `[M, code_stride(K)]`: DAC codes (i8 to 8 bits, i16 above); `None` where X is analog.
    pub x_codes: Option<CodesMut<'a>>,
    /// `[M]`: s_x; NaN in rows that are NaN throughout.
    pub x_step: &'a mut [f32],
    /// `[M, mask_stride(N)]`: bit n is set where the ADC saturated; `None` where it cannot.
    pub adc_mask: Option<&'a mut [u8]>,
    /// `[M, mask_stride(K)]`: bit k is set where the DAC saturated; `None` where it cannot.
    pub dac_mask: Option<&'a mut [u8]>,
}

/// Bytes of one row of `columns` mask bits.
pub const fn mask_stride(columns: usize) -> usize {
    columns.div_ceil(16) * 2
}

impl Layer {
    /// Puts a layer together; the shape was checked when `weights` was made with the same `params`.
    ///
    /// # Errors
    /// A bias that has not N finite elements.
    pub fn new(params: Params, weights: Weights, bias: Option<Vec<f32>>) -> Result<Self, Error> {
        params.check_shape(weights.n(), weights.k())?;
        if let Some(bias) = &bias {
            if bias.len() != weights.n() {
                return Err(Error::Length {
                    name: "bias",
                    length: bias.len(),
                    allowed: format!("N = {}", weights.n()),
                });
            }
            quantize::check_finite("bias", bias, None)?;
        }
        Ok(Layer { params, weights, bias })
    }

    /// The parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// `y = ADC(DAC(x) . W + b + noise)`, X `[M, K]`, Y `[M, N]`, row-major.
    ///
    /// # Errors
    /// An `x` that is no whole number of rows, or a `y` of another size.
    pub fn forward(
        &self,
        _tier: Tier,
        _executor: &dyn Executor,
        x: &[f32],
        key: NoiseKey,
        y: &mut [f32],
        saved: Option<Saved<'_>>,
    ) -> Result<(), Error> {
        let (n, k) = (self.weights.n(), self.weights.k());
        let rows = x.len() / k;
        if !x.len().is_multiple_of(k) {
            return Err(Error::Length { name: "input", length: x.len(), allowed: format!("a multiple of K = {k}") });
        }
        if y.len() != rows * n {
            return Err(Error::Length { name: "out", length: y.len(), allowed: format!("M * N = {rows} * {n}") });
        }
        let result = reference::forward(&self.params, &self.weights.plain, self.bias.as_deref(), x, k, key);
        y.copy_from_slice(&result.y);
        if let Some(saved) = saved {
            saved.x_step.copy_from_slice(&result.x_step);
            match saved.x_codes {
                Some(CodesMut::I8(out)) => {
                    for (row, out) in result.x_values.chunks_exact(k).zip(out.chunks_exact_mut(code_stride(k))) {
                        out.fill(0);
                        row.iter().zip(out).for_each(|(c, out)| *out = *c as i8);
                    }
                }
                Some(CodesMut::I16(out)) => {
                    for (row, out) in result.x_values.chunks_exact(k).zip(out.chunks_exact_mut(code_stride(k))) {
                        out.fill(0);
                        row.iter().zip(out).for_each(|(c, out)| *out = *c as i16);
                    }
                }
                None => {}
            }
            let fill = |mask: Option<&mut [u8]>, bits: &[bool], columns: usize| {
                if let Some(mask) = mask {
                    for (bits, mask) in bits.chunks_exact(columns).zip(mask.chunks_exact_mut(mask_stride(columns))) {
                        mask.fill(0);
                        bits.iter().enumerate().for_each(|(i, bit)| mask[i / 8] |= u8::from(*bit) << (i % 8));
                    }
                }
            };
            fill(saved.adc_mask, &result.adc_saturated, n);
            fill(saved.dac_mask, &result.dac_saturated, k);
        }
        Ok(())
    }
}
