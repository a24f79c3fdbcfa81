//! The functions that LuminaFlow's SDK calls in a module of this name, on this operator.

use lumina_kernel::backward::{Factor, Inputs, Operand, Outputs, Weight};
use lumina_kernel::precision::Precision;
use lumina_kernel::{Params, Spec, cost};
use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::arrays::{self, Arguments};
use crate::error::to_python;
use crate::executor::{Threads, num_threads};
use crate::forward::{optical_linear_forward, run};
use crate::numbers::{Float, Floats, Int, Text};
use crate::schema::{isa, tier};

/// From so many bits on, LuminaFlow means no quantisation.
const UNQUANTISED: i64 = 32;

/// `object`, or a copy of it in C order if it is a numpy array in another order.
fn in_order<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    match object.cast::<PyUntypedArray>() {
        Ok(array) if !array.is_c_contiguous() => {
            object.py().import("numpy")?.call_method1("ascontiguousarray", (object,))
        }
        _ => Ok(object.clone()),
    }
}

fn forward<'py>(
    input: &Bound<'py, PyAny>,
    weight: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    noise_std: Float,
    bits: Int,
    seed: Option<Int>,
) -> PyResult<Bound<'py, PyAny>> {
    let bits = if bits.get_as("bits", "output_bits")? >= UNQUANTISED { Int::from(0) } else { bits };
    let (input, weight) = (in_order(input)?, in_order(weight)?);
    let bias = bias.map(in_order).transpose()?;
    optical_linear_forward(
        input.py(),
        &input,
        &weight,
        bias.as_ref(),
        noise_std,
        bits,
        Int::from(0),
        Int::from(0),
        Float::from(0.0),
        Floats::from(0.0),
        None,
        Float::from(0.0),
        Float::from(0.0),
        Text::from("analog".to_owned()),
        seed,
        None,
        None,
        None,
    )
}

/// What LuminaFlow's SDK calls in training: `optical_linear_forward` with a seed.
///
/// Rows have noise of their own, and a call with the same seed repeats bit for bit.
///
/// Args:
///     input: X, float32 [..., K]; a numpy array in another order than C is copied.
///     weight: W, float32 [N, K], analog.
///     bias: float32 [N], or None.
///     noise_std: sigma as a fraction of the signal.
///     bits: resolution of the ADC, 2..16; 0, and 32 or more, mean no ADC.
///     seed: 0..2^63-1, key of the noise.
///
/// Returns:
///     Y, float32 [..., N].
///
/// Raises:
///     TypeError, ValueError: as `optical_linear_forward`.
#[pyfunction]
pub fn optical_linear_fused<'py>(
    input: &Bound<'py, PyAny>,
    weight: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    noise_std: Float,
    bits: Int,
    seed: Int,
) -> PyResult<Bound<'py, PyAny>> {
    forward(input, weight, bias, noise_std, bits, Some(seed))
}

/// What LuminaFlow's SDK calls in inference: `optical_linear_fused` without noise.
///
/// Args:
///     input: X, float32 [..., K].
///     weight: W, float32 [N, K], analog.
///     bias: float32 [N], or None.
///     bits: resolution of the ADC, 2..16; 0, and 32 or more, mean no ADC.
///
/// Returns:
///     Y, float32 [..., N].
///
/// Raises:
///     TypeError, ValueError: as `optical_linear_forward`.
#[pyfunction]
pub fn optical_linear_infer<'py>(
    input: &Bound<'py, PyAny>,
    weight: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    bits: Int,
) -> PyResult<Bound<'py, PyAny>> {
    forward(input, weight, bias, Float::from(0.0), bits, None)
}

/// The straight-through gradient of `optical_linear_fused`: grad_output . W and grad_output^T . X, in float32.
///
/// Args:
///     grad_output: float32 [M, N]; a numpy array in another order than C is copied, here and below.
///     input: X, float32 [M, K].
///     weight: W, float32 [N, K].
///
/// Returns:
///     grad_input, float32 [M, K], and grad_weight, float32 [N, K].
///
/// Raises:
///     TypeError, ValueError: an array of another type, dtype or shape.
#[pyfunction]
pub fn optical_linear_backward_kernel<'py>(
    grad_output: &Bound<'py, PyAny>,
    input: &Bound<'py, PyAny>,
    weight: &Bound<'py, PyAny>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let py = input.py();
    let (grad_output, input, weight) = (in_order(grad_output)?, in_order(input)?, in_order(weight)?);
    let mut arguments = Arguments::default();
    let x = arguments.read::<f32>("input", &input)?;
    let (m, k) = arrays::two_dimensions("input", x.shape(), "[M, K]")?;
    let dy = arguments.read::<f32>("grad_output", &grad_output)?;
    let (_, n) = arrays::two_dimensions("grad_output", dy.shape(), "[M, N]")?;
    let dy = arguments.read_shaped::<f32>("grad_output", &grad_output, &[m, n], "(M, N), M the rows of input")?;
    let w = arguments.read_shaped::<f32>("weight", &weight, &[n, k], "(N, K), K the columns of input")?;
    let (dx_object, dw_object) = (arrays::new_like(&input, &[m, k])?, arrays::new_like(&input, &[n, k])?);
    let mut dx = arguments.write::<f32>("grad_input", &dx_object)?;
    let mut dw = arguments.write::<f32>("grad_weight", &dw_object)?;

    let analog = Spec { input_bits: 0, weight_bits: 0, output_bits: 0, ..Spec::default() };
    let params = Params::new(&analog).map_err(to_python)?;
    // Analog values have steps of 1.
    let (steps, scale) = (vec![1.0; m], vec![1.0; n]);
    let inputs = Inputs {
        shape: (m, n, k),
        dy: dy.as_slice()?,
        x: Some(Factor { values: Operand::F32(x.as_slice()?), steps: &steps }),
        weight: Some(Weight { values: w.as_slice()?, scale: &scale }),
        adc_mask: None,
        dac_mask: None,
    };
    let outputs = Outputs { x: Some(dx.as_slice_mut()?), weight: Some(dw.as_slice_mut()?), bias: None };
    let (tier, threads) = (tier()?, Threads::current(py)?);
    let work = || lumina_kernel::backward(tier, &threads, &params, Precision::Highest, &inputs, outputs);
    run(py, cost::backward_ns(tier, 2, inputs.shape), work)?.map_err(to_python)?;
    drop((dx, dw));
    Ok((dx_object, dw_object))
}

/// The module's version, for LuminaFlow's SDK; the same as `__version__`.
#[pyfunction]
pub fn version() -> &'static str {
    lumina_kernel::VERSION
}

/// A greeting, for LuminaFlow's SDK, with the version, the instruction-set tier and the number of threads.
#[pyfunction]
pub fn hello_lumina(py: Python<'_>) -> PyResult<String> {
    Ok(format!("Hello from lumina_kernel {}: tier {}, {} threads", version(), isa()?, num_threads(py)))
}
