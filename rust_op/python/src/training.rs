//! The two passes of training, on memory that the caller allocates.

use lumina_kernel::backward::{Factor, Inputs, Operand, Outputs, PRECISIONS, Precision, Weight};
use lumina_kernel::forward as kernel_forward;
use lumina_kernel::weights::{self, CodesMut, WeightSource};
use lumina_kernel::{Error, Layer, NoiseKey, Saved, Weights};
use numpy::{PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::{self, Arguments};
use crate::error::{renamed, to_python};
use crate::executor::Threads;
use crate::forward::{backward_cost, cost, run};
use crate::numbers::{Int, Text};
use crate::params::PyParams;
use crate::schema::tier;

type Object<'a, 'py> = &'a Bound<'py, PyAny>;

/// Elements from one row of codes to the next, for rows of k.
#[pyfunction]
pub fn code_stride(k: Int) -> PyResult<usize> {
    Ok(weights::code_stride(k.size("k")?))
}

/// Bytes of one row of mask bits, for rows of `columns`.
#[pyfunction]
pub fn mask_stride(columns: Int) -> PyResult<usize> {
    Ok(kernel_forward::mask_stride(columns.size("columns")?))
}

/// Codes to be written: int8 to 8 bits, int16 above.
enum CodesOut<'py> {
    I8(PyReadwriteArrayDyn<'py, i8>),
    I16(PyReadwriteArrayDyn<'py, i16>),
}

impl<'py> CodesOut<'py> {
    fn new(
        arguments: &mut Arguments,
        name: &'static str,
        object: Option<Object<'_, 'py>>,
        bits: u32,
        (rows, k): (usize, usize),
    ) -> PyResult<Option<Self>> {
        let Some(object) = present(name, object, bits > 0, "its side is quantised", "its side is analog")? else {
            return Ok(None);
        };
        let expected = [rows, weights::code_stride(k)];
        Ok(Some(if bits <= 8 {
            CodesOut::I8(arguments.write_shaped(name, object, &expected, "(rows, code_stride(K))")?)
        } else {
            CodesOut::I16(arguments.write_shaped(name, object, &expected, "(rows, code_stride(K))")?)
        }))
    }

    fn slice(&mut self) -> PyResult<CodesMut<'_>> {
        Ok(match self {
            CodesOut::I8(codes) => CodesMut::I8(codes.as_slice_mut()?),
            CodesOut::I16(codes) => CodesMut::I16(codes.as_slice_mut()?),
        })
    }
}

/// X, to be read: its codes, or its values where it is analog.
enum Rows<'py> {
    F32(PyReadonlyArrayDyn<'py, f32>),
    I8(PyReadonlyArrayDyn<'py, i8>),
    I16(PyReadonlyArrayDyn<'py, i16>),
}

impl<'py> Rows<'py> {
    fn new(
        arguments: &mut Arguments,
        name: &'static str,
        object: Object<'_, 'py>,
        bits: u32,
        (rows, k): (usize, usize),
    ) -> PyResult<Self> {
        let expected = [rows, if bits == 0 { k } else { weights::code_stride(k) }];
        let meaning = if bits == 0 { "(rows, K)" } else { "(rows, code_stride(K))" };
        Ok(match bits {
            0 => Rows::F32(arguments.read_shaped(name, object, &expected, meaning)?),
            1..=8 => Rows::I8(arguments.read_shaped(name, object, &expected, meaning)?),
            _ => Rows::I16(arguments.read_shaped(name, object, &expected, meaning)?),
        })
    }

    fn operand(&self) -> PyResult<Operand<'_>> {
        Ok(match self {
            Rows::F32(values) => Operand::F32(values.as_slice()?),
            Rows::I8(codes) => Operand::I8(codes.as_slice()?),
            Rows::I16(codes) => Operand::I16(codes.as_slice()?),
        })
    }
}

/// Checks that an optional array is there exactly where something uses it.
fn present<'a, 'py>(
    name: &str,
    object: Option<Object<'a, 'py>>,
    wanted: bool,
    because: &str,
    because_not: &str,
) -> PyResult<Option<Object<'a, 'py>>> {
    match (&object, wanted) {
        (None, true) => Err(PyValueError::new_err(format!("{name} is None: allowed is an array where {because}"))),
        (Some(_), false) => {
            Err(PyValueError::new_err(format!("{name} is an array: allowed is None where {because_not}")))
        }
        _ => Ok(object),
    }
}

const ADC_SATURATES: (&str, &str) =
    ("output_bits > 0 and output_range is static", "the ADC cannot saturate (no ADC, or a dynamic output_range)");
const DAC_SATURATES: (&str, &str) = ("input_range is static", "the DAC cannot saturate (a dynamic input_range)");

/// The forward pass, keeping what `backward` needs.
///
/// Every array is allocated by the caller, C-contiguous, a numpy array or a CPU tensor.
///
/// Args:
///     params: the layer's parameters.
///     x: float32 [M, K].
///     weight: float32 [N, K]; quantised here.
///     bias: float32 [N], or None.
///     seed, stream: 0..2^63-1, key of the noise.
///     y: out, float32 [M, N].
///     x_codes: out, [M, code_stride(K)] int8 (int16 from 9 bits); None where input_bits is 0.
///     x_step: out, float32 [M].
///     w_scale: out, float32 [N].
///     adc_mask: out, uint8 [M, mask_stride(N)]; None where output_bits is 0 or output_range dynamic.
///     dac_mask: out, uint8 [M, mask_stride(K)]; None where input_range is dynamic.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "one for each array")]
pub fn forward_train<'py>(
    py: Python<'py>,
    params: Object<'_, 'py>,
    x: Object<'_, 'py>,
    weight: Object<'_, 'py>,
    bias: Option<Object<'_, 'py>>,
    seed: Int,
    stream: Int,
    y: Object<'_, 'py>,
    x_codes: Option<Object<'_, 'py>>,
    x_step: Object<'_, 'py>,
    w_scale: Object<'_, 'py>,
    adc_mask: Option<Object<'_, 'py>>,
    dac_mask: Option<Object<'_, 'py>>,
) -> PyResult<()> {
    let params = PyParams::of(params)?.clone();
    let mut arguments = Arguments::default();
    let key = NoiseKey { seed: seed.counter("seed")?, stream: stream.counter("stream")? };
    let x = arguments.read::<f32>("x", x)?;
    let (m, k) = arrays::two_dimensions("x", x.shape(), "[M, K]")?;
    let weight = arguments.read::<f32>("weight", weight)?;
    let (n, columns) = arrays::two_dimensions("weight", weight.shape(), "[N, K]")?;
    if columns != k {
        return Err(PyValueError::new_err(format!(
            "weight has shape {}: allowed is (N, K) with K = {k}, the columns of x",
            arrays::Shape(&[n, columns])
        )));
    }
    let bias = bias.map(|bias| arguments.read_shaped::<f32>("bias", bias, &[n], "(N,)")).transpose()?;

    let mut y = arguments.write_shaped::<f32>("y", y, &[m, n], "(M, N)")?;
    let mut x_codes = CodesOut::new(&mut arguments, "x_codes", x_codes, params.input_bits, (m, k))?;
    let mut x_step = arguments.write_shaped::<f32>("x_step", x_step, &[m], "(M,)")?;
    let mut w_scale = arguments.write_shaped::<f32>("w_scale", w_scale, &[n], "(N,)")?;
    let mut mask = |name, object, columns, wanted, (because, because_not)| {
        present(name, object, wanted, because, because_not)?
            .map(|mask| {
                arguments.write_shaped::<u8>(name, mask, &[m, kernel_forward::mask_stride(columns)], "(M, mask_stride)")
            })
            .transpose()
    };
    let mut adc_mask = mask("adc_mask", adc_mask, n, params.adc_can_saturate(), ADC_SATURATES)?;
    let mut dac_mask = mask("dac_mask", dac_mask, k, params.input_range.is_some(), DAC_SATURATES)?;

    let (x, weight) = (x.as_slice()?, weight.as_slice()?);
    let bias = bias.as_ref().map(|bias| bias.as_slice()).transpose()?.map(<[f32]>::to_vec);
    let y = y.as_slice_mut()?;
    let w_scale = w_scale.as_slice_mut()?;
    let saved = Saved {
        x_codes: x_codes.as_mut().map(CodesOut::slice).transpose()?,
        x_step: Some(x_step.as_slice_mut()?),
        adc_mask: adc_mask.as_mut().map(|mask| mask.as_slice_mut()).transpose()?,
        dac_mask: dac_mask.as_mut().map(|mask| mask.as_slice_mut()).transpose()?,
    };
    let (tier, threads) = (tier()?, Threads::current(py)?);
    let work = || -> Result<(), Error> {
        let weights = Weights::new(tier, &threads, &params, (n, k), WeightSource::F32(weight), None, None)?;
        w_scale.copy_from_slice(weights.scale());
        Layer::new(params, weights, bias)?.forward(&threads, x, key, y, Some(saved))
    };
    run(py, cost(m, n, k, true), work)?.map_err(|error| renamed(error, &[("input", "x")]))
}

/// The straight-through gradient of `forward_train`'s call.
///
/// Args:
///     params: as in the forward pass.
///     dy: float32 [M, N].
///     x: the codes that the forward pass saved, or X itself where input_bits is 0.
///     x_step: float32 [M], saved.
///     weight: float32 [N, K], as it was in the forward pass; quantised here once more.
///     w_scale: float32 [N], saved.
///     adc_mask, dac_mask: saved, or None where there are none.
///     dx: out, float32 [M, K], or None where it is not asked for.
///     dw: out, float32 [N, K], or None.
///     db: out, float32 [N], or None.
///     precision: "highest", "high" or "medium", as torch.set_float32_matmul_precision names it.
///
/// "highest" is float32 in a fixed order: the same bits on every processor. At the others g may be rounded first; results
/// still do not depend on the number of threads. An element of dx or dw, a sum of T terms g s c (g: dy where the ADC did
/// not saturate; s: x_step or w_scale; c: a code, or a value where that side is analog), is off the exact one by at most
/// (r + (T + 2) 2^-23) sum |g s c| + T 2^-125 (1 + max |c|) where nothing overflows, with r = 0 at "highest", 2^-16 at
/// "high", 2^-8 at "medium". db is the same at each.
#[pyfunction]
#[pyo3(
    signature = (
        params, dy, x, x_step, weight, w_scale, adc_mask, dac_mask, dx, dw, db, precision=Text::from("highest".to_owned())
    ),
    text_signature = "(params, dy, x, x_step, weight, w_scale, adc_mask, dac_mask, dx, dw, db, precision=\"highest\")"
)]
#[allow(clippy::too_many_arguments, reason = "one for each array")]
pub fn backward<'py>(
    py: Python<'py>,
    params: Object<'_, 'py>,
    dy: Object<'_, 'py>,
    x: Object<'_, 'py>,
    x_step: Object<'_, 'py>,
    weight: Object<'_, 'py>,
    w_scale: Object<'_, 'py>,
    adc_mask: Option<Object<'_, 'py>>,
    dac_mask: Option<Object<'_, 'py>>,
    dx: Option<Object<'_, 'py>>,
    dw: Option<Object<'_, 'py>>,
    db: Option<Object<'_, 'py>>,
    precision: Text,
) -> PyResult<()> {
    let params = PyParams::of(params)?;
    let precision = precision.checked("precision", PRECISIONS, Some)?;
    let precision = Precision::from_name(&precision).map_err(to_python)?;
    let mut arguments = Arguments::default();
    let dy = arguments.read::<f32>("dy", dy)?;
    let (m, n) = arrays::two_dimensions("dy", dy.shape(), "[M, N]")?;
    let weight = arguments.read::<f32>("weight", weight)?;
    let (rows, k) = arrays::two_dimensions("weight", weight.shape(), "[N, K]")?;
    if rows != n {
        return Err(PyValueError::new_err(format!(
            "weight has shape {}: allowed is (N, K) with N = {n}, the columns of dy",
            arrays::Shape(&[rows, k])
        )));
    }
    params.check_shape(n, k).map_err(to_python)?;
    let x = Rows::new(&mut arguments, "x", x, params.input_bits, (m, k))?;
    let x_step = arguments.read_shaped::<f32>("x_step", x_step, &[m], "(M,)")?;
    let w_scale = arguments.read_shaped::<f32>("w_scale", w_scale, &[n], "(N,)")?;
    let mut mask = |name, object, columns, wanted, (because, because_not)| {
        present(name, object, wanted, because, because_not)?
            .map(|mask| {
                arguments.read_shaped::<u8>(name, mask, &[m, kernel_forward::mask_stride(columns)], "(M, mask_stride)")
            })
            .transpose()
    };
    let adc_mask = mask("adc_mask", adc_mask, n, params.adc_can_saturate(), ADC_SATURATES)?;
    let dac_mask = mask("dac_mask", dac_mask, k, params.input_range.is_some(), DAC_SATURATES)?;
    let mut out = |name, object: Option<Object<'_, 'py>>, expected: &[usize], meaning| {
        object.map(|object| arguments.write_shaped::<f32>(name, object, expected, meaning)).transpose()
    };
    let mut dx = out("dx", dx, &[m, k], "(M, K)")?;
    let mut dw = out("dw", dw, &[n, k], "(N, K)")?;
    let mut db = out("db", db, &[n], "(N,)")?;

    let products = usize::from(dx.is_some()) + usize::from(dw.is_some());
    let inputs = Inputs {
        shape: (m, n, k),
        dy: dy.as_slice()?,
        x: Some(Factor { values: x.operand()?, steps: x_step.as_slice()? }),
        weight: Some(Weight { values: weight.as_slice()?, scale: w_scale.as_slice()? }),
        adc_mask: adc_mask.as_ref().map(|mask| mask.as_slice()).transpose()?,
        dac_mask: dac_mask.as_ref().map(|mask| mask.as_slice()).transpose()?,
    };
    let outputs = Outputs {
        x: dx.as_mut().map(|out| out.as_slice_mut()).transpose()?,
        weight: dw.as_mut().map(|out| out.as_slice_mut()).transpose()?,
        bias: db.as_mut().map(|out| out.as_slice_mut()).transpose()?,
    };
    let (tier, threads) = (tier()?, Threads::current(py)?);
    let work = || lumina_kernel::backward(tier, &threads, params, precision, &inputs, outputs);
    run(py, backward_cost(products, m, n, k), work)?.map_err(|error| renamed(error, &[("grad_output", "dy")]))
}
