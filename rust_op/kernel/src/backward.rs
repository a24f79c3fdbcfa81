//! The straight-through gradient.

use crate::error::Error;
use crate::executor::Executor;
use crate::forward::mask_stride;
use crate::microkernel::Tier;
use crate::params::Params;
use crate::reference;
use crate::weights::code_stride;

/// One side of the product as the forward pass left it.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// Analog values, in rows of K.
    F32(&'a [f32]),
    /// Codes of up to 8 bits, in rows of [`code_stride`].
    I8(&'a [i8]),
    /// Codes of 9..16 bits, in rows of [`code_stride`].
    I16(&'a [i16]),
}

impl Operand<'_> {
    fn values(&self, rows: usize, k: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(rows * k);
        for row in 0..rows {
            for column in 0..k {
                out.push(match self {
                    Operand::F32(values) => values[row * k + column],
                    Operand::I8(codes) => f32::from(codes[row * code_stride(k) + column]),
                    Operand::I16(codes) => f32::from(codes[row * code_stride(k) + column]),
                });
            }
        }
        out
    }
}

/// What the gradient is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// dY `[M, N]`.
    pub dy: &'a [f32],
    /// X, or its codes, `[M, K]`.
    pub x: Operand<'a>,
    /// s_x `[M]`.
    pub x_step: &'a [f32],
    /// W, or its codes, `[N, K]`.
    pub weight: Operand<'a>,
    /// `[N]`.
    pub weight_scale: &'a [f32],
    /// As in [`crate::forward::Saved`].
    pub adc_mask: Option<&'a [u8]>,
    /// As in [`crate::forward::Saved`].
    pub dac_mask: Option<&'a [u8]>,
    /// K.
    pub k: usize,
}

/// The gradients asked for.
#[derive(Debug, Default)]
pub struct Outputs<'a> {
    /// dX `[M, K]`.
    pub x: Option<&'a mut [f32]>,
    /// dW `[N, K]`.
    pub weight: Option<&'a mut [f32]>,
    /// db `[N]`.
    pub bias: Option<&'a mut [f32]>,
}

/// The gradient of a forward pass (`docs/operator.md`, "Gradient").
///
/// # Errors
/// A length that does not fit the others.
pub fn backward(
    _tier: Tier,
    _executor: &dyn Executor,
    params: &Params,
    inputs: &Inputs<'_>,
    outputs: Outputs<'_>,
) -> Result<(), Error> {
    let (m, n, k) = (inputs.x_step.len(), inputs.weight_scale.len(), inputs.k);
    if inputs.dy.len() != m * n {
        return Err(Error::Length {
            name: "grad_output",
            length: inputs.dy.len(),
            allowed: format!("M * N = {m} * {n}"),
        });
    }
    let bits = |mask: Option<&[u8]>, columns: usize| -> Vec<bool> {
        (0..m * columns)
            .map(|i| {
                mask.is_some_and(|mask| {
                    mask[i / columns * mask_stride(columns) + i % columns / 8] >> (i % columns % 8) & 1 == 1
                })
            })
            .collect()
    };
    let weight = reference::Weight { values: inputs.weight.values(n, k), scale: inputs.weight_scale.to_vec() };
    let forward = reference::Forward {
        y: Vec::new(),
        x_values: inputs.x.values(m, k),
        x_step: inputs.x_step.to_vec(),
        dac_saturated: bits(inputs.dac_mask, k),
        adc_saturated: bits(inputs.adc_mask, n),
    };
    let gradients = reference::backward(params, &weight, &forward, inputs.dy, k);
    let copy = |out: Option<&mut [f32]>, values: &[f32]| {
        if let Some(out) = out {
            out.copy_from_slice(values);
        }
    };
    copy(outputs.x, &gradients.x);
    copy(outputs.weight, &gradients.weight);
    copy(outputs.bias, &gradients.bias);
    Ok(())
}
