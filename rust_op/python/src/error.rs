//! The kernel's errors as Python exceptions: each of them is about a wrong value.

use lumina_kernel::Error;
use pyo3::PyErr;
use pyo3::exceptions::PyValueError;

/// A `ValueError` with the kernel's message.
pub fn to_python(error: Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// The same, with the argument renamed by `names`: pairs of the kernel's name and Python's.
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
