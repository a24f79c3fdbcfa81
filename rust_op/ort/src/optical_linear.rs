//! The operator `lumina::OpticalLinear`, version 1.
//!
//! Inputs, in this order: `X` f32 `[..., K]`; then initializers: `W`, f32 `[N, K]`, int8 codes `[N, K]`
//! or uint8 `[N, ceil(K*b/8)]` with b = 1, 2 or 4 bits a code; `W_scale` f32 `[N]`, ones where W is analog;
//! and `B` f32 `[N]`, which may be left out. Output: `Y` f32 `[..., N]`. Attributes are the rows of
//! [`lumina_kernel::schema::PARAMETERS`] whose place is a node's attribute.
//!
//! All of a node is checked when its session is created. What cannot be: ONNX Runtime does not tell a
//! custom operator which attributes a node has, so one with a name that is not in the table is not seen;
//! nor which version of the domain a model asks for, so nodes say theirs in an attribute. And up to 1.23
//! it crashes on an input with an empty name: a bias is left out by leaving out the input.
//!
//! Noise: the attribute `seed` and, as the stream, the number of runs of this node in this session before
//! this one. A fresh session therefore repeats its sequence. Runs at the same time take the streams in
//! the order in which they reach the node.

mod attributes;
mod inputs;

use std::sync::atomic::{AtomicU64, Ordering};

use lumina_kernel::{Layer, NoiseKey, Tier, schema};

use crate::executor::SessionPool;
use crate::guard::Failure;
use crate::sys::{CustomOp, Dimension, Input, KernelContext, KernelInfo, ShapeContext};

const X: usize = 0;
const W: usize = 1;
const W_SCALE: usize = 2;
const B: usize = 3;

/// The kernel of one node.
#[derive(Debug)]
pub(crate) struct OpticalLinear {
    /// What its messages begin with: operator and node.
    node: String,
    layer: Layer,
    tier: Tier,
    seed: u64,
    invocations: AtomicU64,
}

impl CustomOp for OpticalLinear {
    const NAME: &'static str = schema::OPERATOR;
    const VERSION: i32 = schema::VERSION;
    const INPUTS: &'static [Input] =
        &[Input { optional: false }, Input { optional: false }, Input { optional: false }, Input { optional: true }];

    fn infer_shape(context: &ShapeContext<'_>) -> Result<(), Failure> {
        let (mut shape, weight) = (context.input(X)?, context.input(W)?);
        // A dimension without a number or a name cannot be passed on: hosts would take the -1 that stands
        // for it as a number, and fold it.
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

/// The operator and the node, as a message begins.
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
        Ok(OpticalLinear { node, layer, tier, seed: attributes.seed, invocations: AtomicU64::new(0) })
    }

    fn run(&self, mut context: KernelContext<'_>) -> Result<(), Failure> {
        let x = context.input(X)?.ok_or_else(|| Failure::invalid("input X is missing: allowed is float32 [..., K]"))?;
        let (n, k) = (self.layer.weights().n(), self.layer.weights().k());
        inputs::check_x(x.element(), x.dims(), k)?;
        let mut dims = x.dims().to_vec();
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
            let pool = SessionPool::new(context);
            self.layer.forward(self.tier, &pool, &x, key, y, None).map_err(inputs::failure)?;
            pool.finish()
        })
    }
}
