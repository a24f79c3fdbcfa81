//! The operator's table and the instruction sets, for Python.

use std::sync::OnceLock;

use lumina_kernel::schema::{Kind, PARAMETERS, Parameter};
use lumina_kernel::{Error, Tier};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::error::to_python;

/// The tier that every call uses, chosen once.
pub fn tier() -> PyResult<Tier> {
    static TIER: OnceLock<Result<Tier, Error>> = OnceLock::new();
    TIER.get_or_init(Tier::selected).clone().map_err(to_python)
}

/// The instruction-set tier in use: the fastest that this processor has, or the one that the environment
/// variable LUMINA_ISA names.
///
/// Raises:
///     ValueError: LUMINA_ISA names a tier that this processor lacks.
#[pyfunction]
pub fn isa() -> PyResult<&'static str> {
    Ok(tier()?.name())
}

/// The instruction-set tiers of this processor, slowest first.
#[pyfunction]
pub fn available_isas() -> Vec<&'static str> {
    Tier::available().into_iter().map(Tier::name).collect()
}

fn number<'py>(py: Python<'py>, kind: Kind, value: f64) -> PyResult<Bound<'py, PyAny>> {
    if kind == Kind::Int { (value as i64).into_bound_py_any(py) } else { value.into_bound_py_any(py) }
}

/// The default of a row; None where there is none.
pub fn default<'py>(py: Python<'py>, row: &Parameter) -> PyResult<Bound<'py, PyAny>> {
    match row.kind {
        _ if row.default.is_empty() => Ok(py.None().into_bound(py)),
        Kind::String => row.default.into_bound_py_any(py),
        Kind::Int => row.default.parse::<i64>()?.into_bound_py_any(py),
        Kind::Float | Kind::Floats => row.default.parse::<f64>()?.into_bound_py_any(py),
    }
}

/// The operator's parameters, one dict each, in the order of the documentation.
///
/// Keys: name, type (as ONNX names it), place ("attribute", "input", "call"), default (None where there is
/// none), minimum, maximum (None where there is no bound), choices (empty where any value within the bounds
/// is allowed), allowed (in words), meaning, since (the first version of the operator that has it), draws_noise
/// (whether noise is drawn where it is not at its default).
#[pyfunction]
pub fn schema(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let row = |row: &Parameter| {
        let bound = |value: Option<f64>| value.map(|value| number(py, row.kind, value)).transpose();
        let dict = PyDict::new(py);
        dict.set_item("name", row.name)?;
        dict.set_item("type", row.kind.name())?;
        dict.set_item("place", row.place.name())?;
        dict.set_item("default", default(py, row)?)?;
        dict.set_item("minimum", bound(row.minimum)?)?;
        dict.set_item("maximum", bound(row.maximum)?)?;
        dict.set_item("choices", PyTuple::new(py, row.choices)?)?;
        dict.set_item("allowed", row.allowed)?;
        dict.set_item("meaning", row.meaning)?;
        dict.set_item("since", row.since)?;
        dict.set_item("draws_noise", row.draws_noise)?;
        Ok(dict)
    };
    PARAMETERS.iter().map(row).collect()
}
