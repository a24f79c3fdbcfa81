//! Python scalars as arguments. A value that does not fit is kept until the argument's name is known, so
//! that the error can state both.

use std::fmt;

use numpy::PyReadonlyArray1;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt};

/// Why an object is not a `T`.
enum Problem {
    /// A number that `T` cannot hold, as text.
    TooLarge(String),
    /// An object of the type with this name.
    Type(String),
}

/// A scalar argument, or why it is not one.
pub struct Scalar<T>(Result<T, Problem>);

/// An integer.
pub type Int = Scalar<i64>;
/// A floating-point number.
pub type Float = Scalar<f64>;
/// A string.
pub type Text = Scalar<String>;

impl<T> From<T> for Scalar<T> {
    fn from(value: T) -> Self {
        Scalar(Ok(value))
    }
}

impl<'py, T: FromPyObjectOwned<'py>> FromPyObject<'_, 'py> for Scalar<T> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let py = object.py();
        Ok(Scalar(match object.extract::<T>().map_err(Into::<PyErr>::into) {
            Ok(value) => Ok(value),
            Err(error) if error.is_instance_of::<PyOverflowError>(py) => Err(Problem::TooLarge(object.to_string())),
            Err(_) => Err(Problem::Type(object.get_type().fully_qualified_name()?.to_string())),
        }))
    }
}

impl<T: fmt::Display> fmt::Display for Scalar<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(value) => value.fmt(f),
            Err(Problem::TooLarge(text) | Problem::Type(text)) => text.fmt(f),
        }
    }
}

impl<T: Clone + fmt::Display> Scalar<T> {
    /// The value, if it passes `check`.
    pub fn checked<U>(&self, name: &str, allowed: &str, check: impl FnOnce(T) -> Option<U>) -> PyResult<U> {
        match &self.0 {
            Ok(value) => check(value.clone()).ok_or_else(|| not_allowed(name, self, allowed)),
            Err(Problem::TooLarge(_)) => Err(not_allowed(name, self, allowed)),
            Err(Problem::Type(kind)) => {
                Err(PyTypeError::new_err(format!("{name} is of type {kind}: allowed is {allowed}")))
            }
        }
    }
}

impl Int {
    /// The value of the operator's parameter `name`, which the kernel checks further.
    pub fn get(&self, name: &str) -> PyResult<i64> {
        self.get_as(name, name)
    }

    /// The same for an argument that the operator's table calls `parameter`.
    pub fn get_as(&self, name: &str, parameter: &str) -> PyResult<i64> {
        self.checked(name, allowed(parameter), Some)
    }

    /// A seed or stream.
    pub fn counter(&self, name: &str) -> PyResult<u64> {
        match self.0 {
            Ok(value) if value >= 0 => Ok(value as u64), // without looking up what is allowed
            _ => self.checked(name, allowed(name), |value| u64::try_from(value).ok()),
        }
    }

    /// A dimension.
    pub fn size(&self, name: &str) -> PyResult<usize> {
        self.checked(name, "an integer >= 1", |value| usize::try_from(value).ok().filter(|size| *size > 0))
    }
}

impl Float {
    /// The number in 32 bits.
    pub fn get(&self, name: &str) -> PyResult<f32> {
        const ALLOWED: &str = "a number that 32 bits can hold (0, or 1.4e-45 to 3.4e38)";
        self.checked(name, ALLOWED, |value| {
            let narrow = value as f32;
            let lost = (value.is_finite() && narrow.is_infinite()) || (value != 0.0 && narrow == 0.0);
            (!lost).then_some(narrow)
        })
    }
}

impl Text {
    /// The value of the operator's parameter `name`, which the kernel checks further.
    pub fn get(&self, name: &str) -> PyResult<String> {
        self.checked(name, allowed(name), Some)
    }
}

/// One number, or several.
pub struct Floats {
    values: Vec<Float>,
    is_scalar: bool,
}

impl Floats {
    /// The numbers in 32 bits.
    pub fn get(&self, name: &str) -> PyResult<Vec<f32>> {
        if self.is_scalar {
            return self.values.iter().map(|value| value.get(name)).collect();
        }
        self.values.iter().enumerate().map(|(index, value)| value.get(&format!("{name}[{index}]"))).collect()
    }
}

impl From<f64> for Floats {
    fn from(value: f64) -> Self {
        Floats { values: vec![value.into()], is_scalar: true }
    }
}

impl<'py> FromPyObject<'_, 'py> for Floats {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let many = |values| Floats { values, is_scalar: false };
        if let Ok(array) = object.extract::<PyReadonlyArray1<'_, f32>>() {
            return Ok(many(array.as_array().iter().map(|value| f64::from(*value).into()).collect()));
        }
        // Iterating over an array or tensor without dimensions fails, so it is taken as a scalar.
        let is_scalar = object.is_instance_of::<PyFloat>() || object.is_instance_of::<PyInt>();
        match object.try_iter() {
            Ok(items) if !is_scalar => items.map(|item| item?.extract()).collect::<PyResult<_>>().map(many),
            _ => Ok(Floats { values: vec![object.extract()?], is_scalar: true }),
        }
    }
}

fn allowed(parameter: &str) -> &'static str {
    lumina_kernel::schema::parameter(parameter).allowed
}

fn not_allowed(name: &str, value: impl fmt::Display, allowed: &str) -> PyErr {
    PyValueError::new_err(format!("{name} = {value}: allowed is {allowed}"))
}
