//! Python numbers as arguments. What is no number is a `TypeError` from here, to which PyO3 adds the
//! argument's name; a number that does not fit is kept as it came, so that the error can name both.

use std::fmt;

use numpy::PyReadonlyArray1;
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt};

/// An integer, or the text of one beyond 64 bits.
pub struct Int(Result<i64, String>);

impl Int {
    /// The integer, where it fits.
    pub fn value(&self) -> Result<i64, &str> {
        self.0.as_ref().copied().map_err(String::as_str)
    }

    /// The integer; an error that names the argument where it does not fit.
    pub fn get(&self, name: &str) -> PyResult<i64> {
        self.get_as(name, name)
    }

    /// The same, where the operator's table calls the argument `parameter`.
    pub fn get_as(&self, name: &str, parameter: &str) -> PyResult<i64> {
        self.value().map_err(|text| not_allowed(name, text, parameter_allows(parameter)))
    }
}

impl From<i64> for Int {
    fn from(value: i64) -> Self {
        Int(Ok(value))
    }
}

impl fmt::Display for Int {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(value) => value.fmt(f),
            Err(text) => text.fmt(f),
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Int {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<i64>() {
            Ok(value) => Ok(Int(Ok(value))),
            Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => Ok(Int(Err(object.to_string()))),
            Err(error) => Err(error),
        }
    }
}

/// A floating-point number.
#[derive(Clone, Copy)]
pub struct Float(f64);

impl Float {
    /// The number in 32 bits; an error that names the argument where 32 bits cannot hold it.
    pub fn get(self, name: &str) -> PyResult<f32> {
        to_f32(name, self.0)
    }
}

impl From<f64> for Float {
    fn from(value: f64) -> Self {
        Float(value)
    }
}

impl<'py> FromPyObject<'_, 'py> for Float {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        object.extract::<f64>().map(Float)
    }
}

/// One number, or several.
pub struct Floats {
    values: Vec<f64>,
    is_scalar: bool,
}

impl Floats {
    /// The numbers in 32 bits; an error that names the argument where 32 bits cannot hold one.
    pub fn get(&self, name: &str) -> PyResult<Vec<f32>> {
        let one = |(index, value): (usize, &f64)| {
            if self.is_scalar { to_f32(name, *value) } else { to_f32(&format!("{name}[{index}]"), *value) }
        };
        self.values.iter().enumerate().map(one).collect()
    }
}

impl From<f64> for Floats {
    fn from(value: f64) -> Self {
        Floats { values: vec![value], is_scalar: true }
    }
}

impl<'py> FromPyObject<'_, 'py> for Floats {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let scalar = |object: Borrowed<'_, 'py, PyAny>| object.extract::<f64>().map(Floats::from);
        if object.is_instance_of::<PyFloat>() || object.is_instance_of::<PyInt>() {
            return scalar(object);
        }
        let many = |values| Floats { values, is_scalar: false };
        if let Ok(array) = object.extract::<PyReadonlyArray1<'_, f32>>() {
            return Ok(many(array.as_array().iter().map(|value| f64::from(*value)).collect()));
        }
        match object.try_iter() {
            Ok(items) => items.map(|item| item?.extract::<f64>()).collect::<PyResult<_>>().map(many),
            // Arrays and tensors without a dimension refuse to be iterated over.
            Err(_) => scalar(object),
        }
    }
}

/// A seed or stream.
pub fn counter(name: &str, value: &Int) -> PyResult<u64> {
    let fits = value.value().ok().and_then(|value| u64::try_from(value).ok());
    fits.ok_or_else(|| not_allowed(name, value, parameter_allows(name)))
}

fn to_f32(name: &str, value: f64) -> PyResult<f32> {
    let narrow = value as f32;
    let lost = (value.is_finite() && narrow.is_infinite()) || (value != 0.0 && narrow == 0.0);
    if lost {
        return Err(not_allowed(name, value, "a number that 32 bits can hold (1.4e-45 to 3.4e38, or 0)"));
    }
    Ok(narrow)
}

fn parameter_allows(name: &str) -> &'static str {
    lumina_kernel::schema::parameter(name).allowed
}

fn not_allowed(name: &str, value: impl fmt::Display, allowed: &str) -> PyErr {
    PyValueError::new_err(format!("{name} = {value}: allowed is {allowed}"))
}
