//! The kernel's errors as Python exceptions: every one of them is a wrong value.

use lumina_kernel::Error;
use pyo3::PyErr;
use pyo3::exceptions::PyValueError;

/// A `ValueError` with the kernel's sentence.
pub fn to_python(error: Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// The same, where Python calls the argument `python` what the kernel calls `kernel`.
pub fn renamed(mut error: Error, names: &[(&str, &'static str)]) -> PyErr {
    if let Error::Value { name, .. }
    | Error::Length { name, .. }
    | Error::Element { name, .. }
    | Error::Changed { name, .. }
    | Error::Ignored { name, .. } = &mut error
        && let Some((_, python)) = names.iter().find(|(kernel, _)| kernel == name)
    {
        *name = python;
    }
    to_python(error)
}
