//! The straight-through gradient: [`left`] and [`right`] pack the operands of its two products, [`strip`] cuts them
//! into tasks.

mod left;
mod right;
mod strip;

use crate::cost;
use crate::error::Error;
use crate::executor::{Executor, run_each, threads_for};
use crate::float_env::FloatEnv;
use crate::microkernel::Tier;
use crate::microkernel::output::OutputBlock;
use crate::params::{BiasStage, Params};
use crate::precision::Precision;
use crate::quantize::{Quantizer, weight_quantizer};
use crate::saved::{CodeType, check_length, code_stride, code_type, mask_stride};
use right::Right;
use strip::{Call, Operands, Side, interleave};

/// X as the forward pass left it.
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
    /// The type of the elements.
    fn name(&self) -> &'static str {
        match self {
            Operand::F32(_) => "float32",
            Operand::I8(_) => "int8",
            Operand::I16(_) => "int16",
        }
    }

    /// The number of elements, and the number that `rows` rows of `k` take.
    fn length(&self, rows: usize, k: usize) -> (usize, usize) {
        match self {
            Operand::F32(values) => (values.len(), rows * k),
            Operand::I8(codes) => (codes.len(), rows * code_stride(k)),
            Operand::I16(codes) => (codes.len(), rows * code_stride(k)),
        }
    }
}

/// X, and the step of each of its rows.
#[derive(Clone, Copy, Debug)]
pub struct Factor<'a> {
    /// Rows of K.
    pub values: Operand<'a>,
    /// s_x `[M]`.
    pub steps: &'a [f32],
}

/// W as the forward pass received it. The same quantiser computes its codes again from the scale, so they are the same.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// `[N, K]`. Where a value is not finite, which no forward pass accepts, the elements of dX that depend on it are
    /// not finite either.
    pub values: &'a [f32],
    /// `[N]`, as [`crate::Weights::scale`] is.
    pub scale: &'a [f32],
}

/// What the gradient is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// M, N and K.
    pub shape: (usize, usize, usize),
    /// dY `[M, N]`.
    pub dy: &'a [f32],
    /// X, from which dW is computed.
    pub x: Option<Factor<'a>>,
    /// W, from which dX is computed.
    pub weight: Option<Weight<'a>>,
    /// As in [`crate::saved::Saved`].
    pub adc_mask: Option<&'a [u8]>,
    /// As in [`crate::saved::Saved`].
    pub dac_mask: Option<&'a [u8]>,
}

/// One of the parts that rows were split into. Where its ADC did not saturate, dY serves its own columns of dX and dW.
#[derive(Clone, Copy, Debug)]
struct Tile {
    index: usize,
    /// Of how many, as the mask has them.
    count: usize,
    /// Its columns.
    first: usize,
    end: usize,
}

impl Tile {
    fn columns(&self) -> usize {
        self.end - self.first
    }
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
/// A length that does not fit the others, or a factor that is absent.
pub fn backward(
    tier: Tier,
    executor: &dyn Executor,
    params: &Params,
    precision: Precision,
    inputs: &Inputs<'_>,
    outputs: Outputs<'_>,
) -> Result<(), Error> {
    let (m, n, k) = inputs.shape;
    check(params, inputs, &outputs)?;
    let Outputs { x: dx, weight: dw, bias: db } = outputs;
    let products = usize::from(dx.is_some()) + usize::from(dw.is_some());
    let quantizers = match (&dx, &inputs.weight) {
        (Some(_), Some(weight)) => quantizers(params.weight_bits, weight.scale),
        _ => Vec::new(),
    };
    let mut for_x = dx.zip(inputs.weight).map(|(dx, Weight { values, scale })| {
        let right = match params.weight_bits {
            0 => Right::Rows(Operand::F32(values), 0),
            1 => Right::Signs(values),
            bits => Right::Quantized { values, bits, quantizers: &quantizers },
        };
        (Operands { right, left_scale: scale }, OutputBlock::new(dx, (m, k)))
    });
    let mut for_weight = dw.zip(inputs.x).map(|(dw, Factor { values, steps })| {
        let right = Right::Rows(values, params.input_code_bits());
        (Operands { right, left_scale: steps }, OutputBlock::new(dw, (n, k)))
    });

    let unmasked_bias = params.bias_stage == BiasStage::Digital;
    let work = cost::work(tier, cost::backward_ns(tier, products, inputs.shape));
    let threads = threads_for(executor, work);
    let (mut x_tasks, mut weight_tasks, mut db) = (Vec::new(), Vec::new(), db);
    for tile in tiles(params, inputs) {
        let call = Call { tier, precision, inputs, tile, threads, unmasked_bias };
        append(&mut x_tasks, call.tasks(Side::X, m, next_columns(&mut for_x, tile), None));
        // The bias enters in the first tile.
        append(&mut weight_tasks, call.tasks(Side::Weight, n, next_columns(&mut for_weight, tile), db.take()));
    }
    // Interleaved, since the first tasks of a strip pack it while its other tasks would wait.
    run_each(executor, work, interleave(x_tasks, weight_tasks), |task| task.run());
    Ok(())
}

/// The operands of a product, and the next columns of its result: those of `tile`.
fn next_columns<'a>(
    product: &mut Option<(Operands<'a>, OutputBlock<'a>)>,
    tile: Tile,
) -> Option<(Operands<'a>, OutputBlock<'a>)> {
    product.as_mut().map(|(operands, output)| (*operands, output.take_columns(tile.columns())))
}

/// The tiles that differ in what they let pass.
fn tiles(params: &Params, inputs: &Inputs<'_>) -> impl Iterator<Item = Tile> + use<> {
    let (.., k) = inputs.shape;
    let columns = if inputs.adc_mask.is_some() { params.tile(k) } else { k };
    let count = k.div_ceil(columns);
    (0..count).map(move |index| {
        let first = index * columns;
        Tile { index, count, first, end: k.min(first + columns) }
    })
}

/// Appends `more` to `all`.
fn append<T>(all: &mut Vec<T>, more: Vec<T>) {
    if all.is_empty() {
        *all = more;
    } else {
        all.extend(more);
    }
}

/// The quantiser of each row of W; empty where W is analog or has one bit.
fn quantizers(bits: u32, scale: &[f32]) -> Vec<Quantizer> {
    let _environment = FloatEnv::canonical();
    let scale = if bits > 1 { scale } else { &[] };
    scale.iter().map(|scale| weight_quantizer(bits, *scale)).collect()
}

fn check(params: &Params, inputs: &Inputs<'_>, outputs: &Outputs<'_>) -> Result<(), Error> {
    let (m, n, k) = inputs.shape;
    params.check_shape(n, k)?;
    check_length("grad_output", inputs.dy.len(), m * n)?;
    let absent =
        |name, gradient| Err(Error::value(name, "absent", format!("it is there where {gradient} is asked for")));
    match &inputs.x {
        Some(Factor { values, steps }) => {
            let (length, expected) = values.length(m, k);
            check_length("x", length, expected)?;
            check_length("x_step", steps.len(), m)?;
            let held = match values {
                Operand::F32(_) => None,
                Operand::I8(_) => Some(CodeType::I8),
                Operand::I16(_) => Some(CodeType::I16),
            };
            if code_type(params.input_bits) != held {
                let given = format!("{} where input_bits is {}", values.name(), params.input_bits);
                return Err(Error::value("x", given, "float32 for 0, int8 for 1..8, int16 for 9..16"));
            }
        }
        None if outputs.weight.is_some() => return absent("x", "grad_weight"),
        None => {}
    }
    match &inputs.weight {
        Some(Weight { values, scale }) => {
            check_length("weight", values.len(), n * k)?;
            check_length("weight_scale", scale.len(), n)?;
        }
        None if outputs.x.is_some() => return absent("weight", "grad_x"),
        None => {}
    }
    if let Some(mask) = inputs.adc_mask {
        check_length("adc_mask", mask.len(), m * params.tiles(k).len() * mask_stride(n))?;
    }
    if let Some(mask) = inputs.dac_mask {
        check_length("dac_mask", mask.len(), m * mask_stride(k))?;
    }
    if let Some(dx) = &outputs.x {
        check_length("grad_x", dx.len(), m * k)?;
    }
    if let Some(dw) = &outputs.weight {
        check_length("grad_weight", dw.len(), n * k)?;
    }
    if let Some(db) = &outputs.bias {
        check_length("grad_bias", db.len(), n)?;
    }
    Ok(())
}
