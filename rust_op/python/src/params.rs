//! `Params`: the checked parameters of a layer, as a Python object.

use std::hash::{DefaultHasher, Hash, Hasher};

use lumina_kernel::params::OutputRange;
use lumina_kernel::{Params, Spec};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyTuple};

use crate::error::to_python;
use crate::numbers::{Float, Floats, Int, Text};
use crate::schema::default;

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
///     tile_features: inputs of one pass of the core, each with noise and an ADC of its own; 0 = the whole row.
///     output_bound: ADC full scale in products of two full-scale operands; in place of output_range.
///     noise_read: sigma of each weight in each use, as a fraction of its full scale.
///     photons: photons of a full-scale product on the detector: shot noise of the light that is there; 0 = none.
///     detection: "offset" or "balanced".
///     photon_reference: "full_scale" or "mean".
///     input_noise_relative, input_noise_additive: sigma on the inputs behind the DAC, as a fraction of the value, or of
///         the DAC's full scale.
///     weight_levels: the code that is a weight's full scale; 0 = the largest.
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
            OutputRange::Dynamic | OutputRange::Bound(_) => vec![0.0],
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
        fields.set_item("tile_features", self.tile_features())?;
        fields.set_item("output_bound", self.output_bound())?;
        fields.set_item("noise_read", self.noise_read())?;
        fields.set_item("photons", self.photons())?;
        fields.set_item("detection", self.detection())?;
        fields.set_item("photon_reference", self.photon_reference())?;
        fields.set_item("input_noise_relative", self.input_noise_relative())?;
        fields.set_item("input_noise_additive", self.input_noise_additive())?;
        fields.set_item("weight_levels", self.weight_levels())?;
        Ok(fields)
    }
}

/// A value as Python writes it, with no more digits of a float than 32 bits have.
fn text(value: &Bound<'_, PyAny>) -> PyResult<String> {
    if let Ok(values) = value.cast::<PyTuple>() {
        let words = values.iter().map(|value| text(&value)).collect::<PyResult<Vec<_>>>()?;
        return Ok(format!("({})", words.join(", ")));
    }
    if value.is_exact_instance_of::<PyFloat>() {
        return Ok(format!("{:?}", value.extract::<f32>()?));
    }
    Ok(value.repr()?.to_string())
}

/// Sets the parameters that version 2 of the operator added, from the keywords `given` to `function`.
///
/// # Errors
/// An unknown keyword, as Python itself would say it, or a value of another type.
pub fn set_effects(function: &str, spec: &mut Spec, given: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
    for (name, value) in given.into_iter().flatten() {
        let name: String = name.extract()?;
        match name.as_str() {
            "tile_features" => spec.tile_features = value.extract::<Int>()?.get(&name)?,
            "output_bound" => spec.output_bound = value.extract::<Float>()?.get(&name)?,
            "noise_read" => spec.noise_read = value.extract::<Float>()?.get(&name)?,
            "photons" => spec.photons = value.extract::<Float>()?.get(&name)?,
            "detection" => spec.detection = value.extract::<Text>()?.get(&name)?,
            "photon_reference" => spec.photon_reference = value.extract::<Text>()?.get(&name)?,
            "input_noise_relative" => spec.input_noise_relative = value.extract::<Float>()?.get(&name)?,
            "input_noise_additive" => spec.input_noise_additive = value.extract::<Float>()?.get(&name)?,
            "weight_levels" => spec.weight_levels = value.extract::<Int>()?.get(&name)?,
            _ => return Err(PyTypeError::new_err(format!("{function}() got an unexpected keyword argument '{name}'"))),
        }
    }
    Ok(())
}

#[pymethods]
impl PyParams {
    #[new]
    #[pyo3(
        signature = (
            *, input_bits=Int::from(0), weight_bits=Int::from(0), output_bits=Int::from(8),
            input_range=Float::from(0.0), output_range=Floats::from(0.0), noise_relative=Float::from(0.0),
            noise_additive=Float::from(0.0), noise_shot=Float::from(0.0), bias_stage=Text::from("analog".to_owned()),
            **effects
        ),
        text_signature = "(*, input_bits=0, weight_bits=0, output_bits=8, input_range=0.0, output_range=0.0, noise_relative=0.0, noise_additive=0.0, noise_shot=0.0, bias_stage=\"analog\", tile_features=0, output_bound=0.0, noise_read=0.0, photons=0.0, detection=\"offset\", photon_reference=\"full_scale\", input_noise_relative=0.0, input_noise_additive=0.0, weight_levels=0)"
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
        effects: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let mut spec = Spec {
            input_bits: input_bits.get("input_bits")?,
            weight_bits: weight_bits.get("weight_bits")?,
            output_bits: output_bits.get("output_bits")?,
            input_range: input_range.get("input_range")?,
            output_range: output_range.get("output_range")?,
            noise_relative: noise_relative.get("noise_relative")?,
            noise_additive: noise_additive.get("noise_additive")?,
            noise_shot: noise_shot.get("noise_shot")?,
            bias_stage: bias_stage.get("bias_stage")?,
            ..Spec::default()
        };
        set_effects("Params.__new__", &mut spec, effects)?;
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

    #[getter]
    fn tile_features(&self) -> usize {
        self.0.tile_features.unwrap_or(0)
    }

    #[getter]
    fn output_bound(&self) -> f32 {
        if let OutputRange::Bound(bound) = self.0.output_range { bound } else { 0.0 }
    }

    #[getter]
    fn noise_read(&self) -> f32 {
        self.0.noise.read
    }

    #[getter]
    fn photons(&self) -> f32 {
        self.0.noise.photons.map_or(0.0, |photons| photons.count)
    }

    #[getter]
    fn detection(&self) -> &'static str {
        self.0.noise.photons.map(|photons| photons.detection).unwrap_or_default().name()
    }

    #[getter]
    fn photon_reference(&self) -> &'static str {
        self.0.noise.photons.map(|photons| photons.reference).unwrap_or_default().name()
    }

    #[getter]
    fn input_noise_relative(&self) -> f32 {
        self.0.input_noise.relative
    }

    #[getter]
    fn input_noise_additive(&self) -> f32 {
        self.0.input_noise.additive
    }

    #[getter]
    fn weight_levels(&self) -> i32 {
        self.0.weight_levels.unwrap_or(0)
    }

    /// The parameters as keywords; those that version 2 added, where they are not at their defaults.
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let mut words = Vec::new();
        for (name, value) in self.fields(py)? {
            let name: String = name.extract()?;
            let row = lumina_kernel::schema::parameter(&name);
            if row.since > 1 && value.eq(default(py, row)?)? {
                continue;
            }
            words.push(format!("{name}={}", text(&value)?));
        }
        Ok(format!("Params({})", words.join(", ")))
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.input_bits(), self.weight_bits(), self.output_bits(), self.bias_stage()).hash(&mut hasher);
        (self.tile_features(), self.detection(), self.photon_reference(), self.weight_levels()).hash(&mut hasher);
        let levels = [
            self.input_range(),
            self.noise_relative(),
            self.noise_additive(),
            self.noise_shot(),
            self.output_bound(),
            self.noise_read(),
            self.photons(),
            self.input_noise_relative(),
            self.input_noise_additive(),
        ];
        // -0.0 equals 0.0: adding 0.0 makes their bits equal, too.
        levels.iter().chain(&self.ranges()).for_each(|value| (value + 0.0).to_bits().hash(&mut hasher));
        hasher.finish()
    }

    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        Ok((PyTuple::empty(py), self.fields(py)?))
    }
}
