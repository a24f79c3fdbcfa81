//! `optical_linear_forward`, and what every forward call shares.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lumina_kernel::error::of_panic;
use lumina_kernel::{Error, Layer, NoiseKey, Params, Saved, Spec, Tier, WeightSource, Weights, cost};
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays::{self, Arguments, Shape};
use crate::error::renamed;
use crate::executor::Threads;
use crate::noise;
use crate::numbers::{Float, Floats, Int, Text};
use crate::params::set_effects;
use crate::schema::tier;

/// Names in [`optical_linear_forward`] that differ from the kernel's.
const NAMES: &[(&str, &str)] = &[("noise_relative", "noise_std"), ("output_bits", "bits")];

/// Work, in nanoseconds, beyond which other threads may run Python meanwhile: releasing the interpreter and
/// taking it back has a cost of its own.
const DETACH_NS: u64 = 20_000;

/// About how long a forward call takes that quantises the weights, in nanoseconds.
pub fn fresh_ns(tier: Tier, params: &Params, (m, n, k): (usize, usize, usize)) -> u64 {
    cost::weights_ns(tier, n, k).saturating_add(cost::forward_ns(tier, params, (m, n, k), 0))
}

/// The weights and the bias of a layer.
pub struct Source<'a> {
    /// N and K.
    pub shape: (usize, usize),
    pub weight: &'a [f32],
    pub scale: Option<&'a [f32]>,
    pub bias: Option<&'a [f32]>,
}

impl Source<'_> {
    /// Builds the layer.
    pub fn prepare(&self, tier: Tier, threads: &Threads, params: &Params) -> Result<Layer, Error> {
        let source = WeightSource::F32(self.weight);
        let weights = Weights::new(tier, threads, params, self.shape, source, self.scale, None)?;
        Layer::new(weights, self.bias)
    }
}

/// What a forward pass reads and writes besides its weights.
pub struct ForwardPass<'a> {
    pub x: &'a [f32],
    pub key: NoiseKey,
    pub y: &'a mut [f32],
    /// Where the scale of W (empty if it is not saved) and the rest are saved.
    pub saved: Option<(&'a mut [f32], Saved<'a>)>,
}

impl ForwardPass<'_> {
    pub fn run(self, threads: &Threads, layer: &Layer) -> Result<(), Error> {
        let saved = self.saved.map(|(scale, saved)| {
            if !scale.is_empty() {
                scale.copy_from_slice(layer.weights().scale());
            }
            saved
        });
        layer.forward(threads, self.x, self.key, self.y, saved)
    }
}

/// Runs `work`, detached from the interpreter if `work_ns` nanoseconds are worth it.
///
/// # Errors
/// A panic. pyo3 would raise it as an exception that is not an `Exception`.
pub fn run<T: Send>(py: Python<'_>, work_ns: u64, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    let work = || catch_unwind(AssertUnwindSafe(work));
    let outcome = if work_ns > DETACH_NS { py.detach(work) } else { work() };
    outcome.map_err(|panic| PyRuntimeError::new_err(of_panic(&*panic)))
}

/// The rows of X `[..., K]`, and the shape of Y.
fn rows_and_output(name: &str, shape: &[usize], n: usize, k: usize) -> PyResult<(usize, Vec<usize>)> {
    match shape.split_last() {
        Some((last, leading)) if *last == k => {
            let mut output = leading.to_vec();
            output.push(n);
            Ok((leading.iter().product(), output))
        }
        _ => Err(PyValueError::new_err(format!(
            "{name} has shape {}: allowed is (..., K) with K = {k}, the columns of weight",
            Shape(shape)
        ))),
    }
}

/// One forward call on the array `object`: checks it and `out`, creates the output and passes both to `work`. `work_ns`
/// gives the time that `work` takes for a number of rows.
pub fn call<'py>(
    arguments: &mut Arguments,
    (name, object): (&'static str, &Bound<'py, PyAny>),
    out: Option<&Bound<'py, PyAny>>,
    (n, k): (usize, usize),
    work_ns: impl FnOnce(usize) -> u64,
    work: impl FnOnce(&[f32], &mut [f32]) -> Result<(), Error> + Send,
) -> PyResult<Result<Bound<'py, PyAny>, Error>> {
    let x = arguments.read::<f32>(name, object)?;
    let (m, shape) = rows_and_output(name, x.shape(), n, k)?;
    let result = match out {
        Some(out) => out.clone(),
        None => arrays::new_like(object, &shape)?,
    };
    let mut y = arguments.write_shaped::<f32>("out", &result, &shape, "the shape of the result")?;
    let (x, y) = (x.as_slice()?, y.as_slice_mut()?);
    Ok(run(object.py(), work_ns(m), || work(x, y))?.map(|()| result))
}

/// y = ADC(DAC(x) . W + b + noise), in one pass.
///
/// Takes float32, C-contiguous numpy arrays or CPU torch tensors, without a copy; the result is of the kind
/// of `input`. Without `seed` every call draws fresh noise (`manual_seed` restarts it); with `seed` the call
/// repeats bit for bit.
///
/// Args:
///     input: X, [..., K]. With no rows (M = 0) the result is empty.
///     weight: W, [N, K]; quantised here where weight_bits > 0.
///     bias: [N], or None.
///     noise_std: sigma as a fraction of the signal (noise_relative).
///     bits: ADC resolution, 0 (no ADC) or 2..16 (output_bits).
///     input_bits: DAC resolution, 0 (analog) or 2..16.
///     weight_bits: modulator resolution, 0 (analog) or 1..16.
///     input_range: DAC full scale; 0 = the row's own maximum.
///     output_range: ADC full scale, one number or one per output; 0 = the row's own maximum.
///     weight_scale: step of one weight code, one number or one per output.
///     noise_additive: sigma as a fraction of the full scale.
///     noise_shot: sigma = noise_shot * sqrt(|z| * full scale).
///     bias_stage: "analog" (before noise and ADC) or "digital" (after the ADC).
///     tile_features, output_bound, noise_read, photons, detection, photon_reference, input_noise_relative,
///         input_noise_additive, weight_levels: as in `Params`.
///     seed: 0..2^63-1, key of the noise.
///     stream: 0..2^63-1, counts the draws under one seed; 0 if only the seed is given.
///     out: float32 [..., N] to write the result into; must not share memory with the inputs.
///
/// Returns:
///     Y, float32 [..., N]; this is `out`, if given.
///
/// Raises:
///     TypeError: an argument of another kind or dtype.
///     ValueError: a value or shape that is not allowed, an array that is not C-contiguous, a tensor on
///         another device or one that requires grad.
#[pyfunction]
#[pyo3(
    signature = (
        input, weight, bias, noise_std, bits, *, input_bits=Int::from(0), weight_bits=Int::from(0),
        input_range=Float::from(0.0), output_range=Floats::from(0.0), weight_scale=None,
        noise_additive=Float::from(0.0), noise_shot=Float::from(0.0), bias_stage=Text::from("analog".to_owned()),
        seed=None, stream=None, out=None, **effects
    ),
    text_signature = "(input, weight, bias, noise_std, bits, *, input_bits=0, weight_bits=0, input_range=0.0, output_range=0.0, weight_scale=None, noise_additive=0.0, noise_shot=0.0, bias_stage=\"analog\", tile_features=0, output_bound=0.0, noise_read=0.0, photons=0.0, detection=\"offset\", photon_reference=\"full_scale\", input_noise_relative=0.0, input_noise_additive=0.0, weight_levels=0, seed=None, stream=None, out=None)"
)]
#[allow(clippy::too_many_arguments, reason = "the arguments are rows of the operator's table")]
pub fn optical_linear_forward<'py>(
    py: Python<'py>,
    input: &Bound<'py, PyAny>,
    weight: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    noise_std: Float,
    bits: Int,
    input_bits: Int,
    weight_bits: Int,
    input_range: Float,
    output_range: Floats,
    weight_scale: Option<Floats>,
    noise_additive: Float,
    noise_shot: Float,
    bias_stage: Text,
    seed: Option<Int>,
    stream: Option<Int>,
    out: Option<&Bound<'py, PyAny>>,
    effects: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut spec = Spec {
        input_bits: input_bits.get("input_bits")?,
        weight_bits: weight_bits.get("weight_bits")?,
        output_bits: bits.get_as("bits", "output_bits")?,
        input_range: input_range.get("input_range")?,
        output_range: output_range.get("output_range")?,
        noise_relative: noise_std.get("noise_std")?,
        noise_additive: noise_additive.get("noise_additive")?,
        noise_shot: noise_shot.get("noise_shot")?,
        bias_stage: bias_stage.get("bias_stage")?,
        ..Spec::default()
    };
    set_effects("optical_linear_forward", &mut spec, effects)?;
    let params = Params::new(&spec).map_err(|error| renamed(error, NAMES))?;
    let scale = weight_scale.map(|scale| scale.get("weight_scale")).transpose()?;

    let mut arguments = Arguments::default();
    let weight = arguments.read::<f32>("weight", weight)?;
    let (n, k) = arrays::two_dimensions("weight", weight.shape(), "[N, K]")?;
    // Checked first, since the other arrays are checked against it.
    params.check_shape(n, k).map_err(|error| renamed(error, NAMES))?;
    let bias = bias.map(|bias| arguments.read_shaped::<f32>("bias", bias, &[n], "(N,)")).transpose()?;
    let weight = weight.as_slice()?;
    let bias = bias.as_ref().map(|bias| bias.as_slice()).transpose()?;

    let (tier, threads) = (tier()?, Threads::current(py)?);
    let key: NoiseKey = noise::key(seed.as_ref(), stream.as_ref())?;
    let source = Source { shape: (n, k), weight, scale: scale.as_deref(), bias };
    let work = |x: &[f32], y: &mut [f32]| {
        let layer = source.prepare(tier, &threads, &params)?;
        ForwardPass { x, key, y, saved: None }.run(&threads, &layer)
    };
    let work_ns = |m| fresh_ns(tier, &params, (m, n, k));
    call(&mut arguments, ("input", input), out, (n, k), work_ns, work)?.map_err(|error| renamed(error, NAMES))
}
