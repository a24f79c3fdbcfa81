//! The operator `lumina::OpticalLinear`, versions 1 and 2.
//!
//! Inputs, in this order: `X` f32 `[..., K]`; then initializers: `W`, f32 `[N, K]`, int8 codes `[N, K]`
//! or uint8 `[N, ceil(K*b/8)]` with b = 1, 2 or 4 bits per code; `W_scale` f32 `[N]`, ones where W is analog;
//! and `B` f32 `[N]`, which may be left out. Output: `Y` f32 `[..., N]`. Attributes are the rows of
//! [`lumina_kernel::schema::PARAMETERS`] whose place is a node's attribute.
//!
//! A node is checked when its session is created, except for what ONNX Runtime does not tell a custom operator. It does
//! not say which attributes a node has, so an attribute whose name is not in the table goes unnoticed; nor which
//! version of the domain a model asks for, so nodes state theirs in an attribute. Up to 1.23, ONNX Runtime crashes on
//! an input with an empty name, so a bias is left out by leaving out the input.
//!
//! The noise is keyed by the attribute `seed` and, as the stream, the number of earlier runs of this node in this
//! session. A fresh session therefore repeats its sequence. Concurrent runs take the streams in the order in which they
//! reach the node.

mod attributes;
mod inputs;

use std::sync::atomic::{AtomicU64, Ordering};

use lumina_kernel::{Layer, NoiseKey, Tier, cost, schema};

use crate::executor::SessionPool;
use crate::guard::Failure;
use crate::sharing::Sharing;
use crate::sys::{CustomOp, Dimension, Input, KernelContext, KernelInfo, ShapeContext};

const X: usize = 0;
const W: usize = 1;
const W_SCALE: usize = 2;
const B: usize = 3;

/// The kernel of one node.
#[derive(Debug)]
pub(crate) struct OpticalLinear {
    /// The start of its messages: operator and node.
    node: String,
    layer: Layer,
    seed: u64,
    invocations: AtomicU64,
    sharing: Sharing,
}

impl CustomOp for OpticalLinear {
    const NAME: &'static str = schema::OPERATOR;
    const VERSION: i32 = schema::DOMAIN_VERSION;
    const INPUTS: &'static [Input] =
        &[Input { optional: false }, Input { optional: false }, Input { optional: false }, Input { optional: true }];

    fn infer_shape(context: &ShapeContext<'_>) -> Result<(), Failure> {
        let (mut shape, weight) = (context.input(X)?, context.input(W)?);
        // A dimension without a number or a name cannot be passed on: hosts would take the -1 that stands
        // for it to be a number, and fold it.
        if shape.iter().rev().skip(1).any(|dim| *dim == Dimension::Unknown) {
            return Ok(());
        }
        if let (Some(last), [n @ Dimension::Known(_), _]) = (shape.last_mut(), &weight[..]) {
            *last = n.clone();
            context.set_output(0, &shape)?;
        }
        Ok(())
    }

    fn create(info: &KernelInfo<'_>) -> Result<Self, Failure> {
        let node = describe(info)?;
        Self::build(info, node.clone()).map_err(|failure| failure.within(&node))
    }

    fn compute(&self, context: KernelContext<'_>) -> Result<(), Failure> {
        self.run(context).map_err(|failure| failure.within(&self.node))
    }
}

/// The operator and the node, as the start of a message.
fn describe(info: &KernelInfo<'_>) -> Result<String, Failure> {
    let operator = format!("{}::{} node", schema::DOMAIN, schema::OPERATOR);
    let name = info.node_name()?;
    Ok(if name.is_empty() {
        format!("{operator} without a name (output {:?}): ", info.output_name(0)?)
    } else {
        format!("{operator} {name:?}: ")
    })
}

impl OpticalLinear {
    fn build(info: &KernelInfo<'_>, node: String) -> Result<Self, Failure> {
        let attributes = attributes::read(info)?;
        let tier = Tier::selected().map_err(inputs::failure)?;
        let layer = inputs::read(info, &attributes, tier)?;
        Ok(OpticalLinear {
            node,
            layer,
            seed: attributes.seed,
            invocations: AtomicU64::new(0),
            sharing: Sharing::default(),
        })
    }

    fn run(&self, mut context: KernelContext<'_>) -> Result<(), Failure> {
        let x = context.input(X)?.ok_or_else(|| Failure::invalid("input X is missing: allowed is float32 [..., K]"))?;
        let (n, k) = (self.layer.weights().n(), self.layer.weights().k());
        inputs::check_x(x.element(), x.dims(), k)?;
        let mut dims = x.dims().clone();
        if let Some(last) = dims.last_mut() {
            *last = n as i64;
        }
        let Some(x) = x.data::<f32>()? else {
            return Err(Failure::internal("input X: its elements cannot be read"));
        };
        context.output(&dims, &[&x], |context, y| {
            let key = NoiseKey { seed: self.seed, stream: self.invocations.fetch_add(1, Ordering::Relaxed) };
            if y.is_empty() {
                return Ok(());
            }
            let estimate_ns = self.layer.forward_ns(y.len() / n);
            let attempt = self.sharing.attempt(estimate_ns, cost::wake_ns(self.layer.weights().tier()));
            let pool = SessionPool::new(context, attempt.share, estimate_ns);
            self.layer.forward(&pool, &x, key, y, None).map_err(inputs::failure)?;
            pool.finish()?;
            attempt.done();
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use lumina_kernel::{Params, Serial, Spec, WeightSource, Weights};

    use super::*;
    use crate::sys::fake;

    /// A noisy node with a bias.
    fn node(input_bits: i64, weight_bits: i64, n: usize, k: usize) -> OpticalLinear {
        let spec = Spec { input_bits, weight_bits, output_bits: 8, noise_relative: 0.1, ..Spec::default() };
        let (params, tier) = (Params::new(&spec).unwrap(), Tier::selected().unwrap());
        let w: Vec<f32> = (0..n * k).map(|i| (i % 17) as f32 - 8.0).collect();
        let weights = Weights::new(tier, &Serial, &params, (n, k), WeightSource::F32(&w), None, None).unwrap();
        let layer = Layer::new(weights, Some(&vec![0.5; n])).unwrap();
        let sharing = Sharing::default();
        OpticalLinear { node: "a node: ".into(), layer, seed: 1, invocations: AtomicU64::new(0), sharing }
    }

    /// Covers calls cut by columns and by rows, into one task and several, with weights packed, unpacked and in floats.
    #[test]
    fn a_run_allocates_nothing() {
        for (m, n, k) in [(1, 256, 256), (1, 1024, 1024), (16, 300, 200), (40, 1024, 768), (300, 65, 33)] {
            for (input_bits, weight_bits) in [(8, 8), (8, 4), (8, 1), (12, 4), (0, 0)] {
                let node = node(input_bits, weight_bits, n, k);
                let mut x: Vec<f32> = (0..m * k).map(|i| (i % 13) as f32 - 6.0).collect();
                let mut run = || fake::run(&node, &[m as i64, 1, k as i64], &mut x, &[m as i64, 1, n as i64]);
                run();
                let (y, allocations) = run();
                assert_eq!(allocations, 0, "{m} x {k} x {n}, {input_bits} and {weight_bits} bits");
                assert!(y.iter().all(|y| y.is_finite()) && y.iter().any(|y| *y != 0.0));
            }
        }
    }
}
