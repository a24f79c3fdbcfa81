//! `Params`: the checked parameters of a layer, as a Python object.

use std::hash::{DefaultHasher, Hash, Hasher};

use lumina_kernel::params::OutputRange;
use lumina_kernel::{Params, Spec};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::error::to_python;
use crate::numbers::{Float, Floats, Int, Text};

/// The parameters of an optical linear layer, checked. Immutable; floats are kept in 32 bits.
///
/// Args:
///     input_bits: DAC resolution, 0 (analog) or 2..16.
///     weight_bits: modulator resolution, 0 (analog) or 1..16.
///     output_bits: ADC resolution, 0 (no ADC) or 2..16.
///     input_range: DAC full scale; 0 = the row's own maximum.
///     output_range: ADC full scale, one number or one per output; 0 = the row's own maximum.
///     noise_relative: sigma as a fraction of the signal.
///     noise_additive: sigma as a fraction of the full scale.
///     noise_shot: sigma = noise_shot * sqrt(|z| * full scale).
///     bias_stage: "analog" (before noise and ADC) or "digital" (after the ADC).
///
/// Raises:
///     ValueError: a value that is not allowed, or that the others make meaningless.
#[pyclass(frozen, eq, name = "Params", module = "lumina_kernel")]
#[derive(PartialEq)]
pub struct PyParams(Params);

impl PyParams {
    /// The kernel's parameters in the argument `params`.
    pub fn of<'a>(params: &'a Bound<'_, PyAny>) -> PyResult<&'a Params> {
        match params.cast::<PyParams>() {
            Ok(params) => Ok(&params.get().0),
            Err(_) => Err(PyTypeError::new_err(format!(
                "params is of type {}: allowed is lumina_kernel.Params",
                params.get_type().fully_qualified_name()?
            ))),
        }
    }

    fn ranges(&self) -> Vec<f32> {
        match &self.0.output_range {
            OutputRange::Dynamic => vec![0.0],
            OutputRange::Layer(range) => vec![*range],
            OutputRange::Channel(ranges) => ranges.clone(),
        }
    }

    fn fields<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let fields = PyDict::new(py);
        fields.set_item("input_bits", self.input_bits())?;
        fields.set_item("weight_bits", self.weight_bits())?;
        fields.set_item("output_bits", self.output_bits())?;
        fields.set_item("input_range", self.input_range())?;
        fields.set_item("output_range", self.output_range(py)?)?;
        fields.set_item("noise_relative", self.noise_relative())?;
        fields.set_item("noise_additive", self.noise_additive())?;
        fields.set_item("noise_shot", self.noise_shot())?;
        fields.set_item("bias_stage", self.bias_stage())?;
        Ok(fields)
    }
}

#[pymethods]
impl PyParams {
    #[new]
    #[pyo3(
        signature = (
            *, input_bits=Int::from(0), weight_bits=Int::from(0), output_bits=Int::from(8),
            input_range=Float::from(0.0), output_range=Floats::from(0.0), noise_relative=Float::from(0.0),
            noise_additive=Float::from(0.0), noise_shot=Float::from(0.0), bias_stage=Text::from("analog".to_owned())
        ),
        text_signature = "(*, input_bits=0, weight_bits=0, output_bits=8, input_range=0.0, output_range=0.0, noise_relative=0.0, noise_additive=0.0, noise_shot=0.0, bias_stage=\"analog\")"
    )]
    #[allow(clippy::too_many_arguments, reason = "the arguments are rows of the operator's table")]
    fn new(
        input_bits: Int,
        weight_bits: Int,
        output_bits: Int,
        input_range: Float,
        output_range: Floats,
        noise_relative: Float,
        noise_additive: Float,
        noise_shot: Float,
        bias_stage: Text,
    ) -> PyResult<Self> {
        let spec = Spec {
            input_bits: input_bits.get("input_bits")?,
            weight_bits: weight_bits.get("weight_bits")?,
            output_bits: output_bits.get("output_bits")?,
            input_range: input_range.get("input_range")?,
            output_range: output_range.get("output_range")?,
            noise_relative: noise_relative.get("noise_relative")?,
            noise_additive: noise_additive.get("noise_additive")?,
            noise_shot: noise_shot.get("noise_shot")?,
            bias_stage: bias_stage.get("bias_stage")?,
        };
        Params::new(&spec).map(PyParams).map_err(to_python)
    }

    #[getter]
    fn input_bits(&self) -> u32 {
        self.0.input_bits
    }

    #[getter]
    fn weight_bits(&self) -> u32 {
        self.0.weight_bits
    }

    #[getter]
    fn output_bits(&self) -> u32 {
        self.0.output_bits
    }

    #[getter]
    fn input_range(&self) -> f32 {
        self.0.input_range.unwrap_or(0.0)
    }

    /// A number, or a tuple of one number per output.
    #[getter]
    fn output_range<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.ranges()[..] {
            [one] => one.into_bound_py_any(py),
            ref several => Ok(PyTuple::new(py, several)?.into_any()),
        }
    }

    #[getter]
    fn noise_relative(&self) -> f32 {
        self.0.noise.relative
    }

    #[getter]
    fn noise_additive(&self) -> f32 {
        self.0.noise.additive
    }

    #[getter]
    fn noise_shot(&self) -> f32 {
        self.0.noise.shot
    }

    #[getter]
    fn bias_stage(&self) -> &'static str {
        self.0.bias_stage.name()
    }

    fn __repr__(&self) -> String {
        let ranges = match &self.ranges()[..] {
            [one] => format!("{one:?}"),
            several => {
                let numbers: Vec<String> = several.iter().map(|range| format!("{range:?}")).collect();
                format!("({})", numbers.join(", "))
            }
        };
        format!(
            "Params(input_bits={}, weight_bits={}, output_bits={}, input_range={:?}, output_range={ranges}, \
             noise_relative={:?}, noise_additive={:?}, noise_shot={:?}, bias_stage='{}')",
            self.input_bits(),
            self.weight_bits(),
            self.output_bits(),
            self.input_range(),
            self.noise_relative(),
            self.noise_additive(),
            self.noise_shot(),
            self.bias_stage()
        )
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.input_bits(), self.weight_bits(), self.output_bits(), self.bias_stage()).hash(&mut hasher);
        let levels = [self.input_range(), self.noise_relative(), self.noise_additive(), self.noise_shot()];
        // -0.0 equals 0.0: adding 0.0 makes their bits equal, too.
        levels.iter().chain(&self.ranges()).for_each(|value| (value + 0.0).to_bits().hash(&mut hasher));
        hasher.finish()
    }

    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        Ok((PyTuple::empty(py), self.fields(py)?))
    }
}
