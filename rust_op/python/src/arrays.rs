//! Arrays as arguments: numpy arrays, and torch tensors through their numpy view. Nothing is copied or
//! converted; what cannot be read in place is an error that names the argument, what was given and what is
//! allowed.

use std::ops::Range;

use numpy::{
    Element, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

/// An element type that arguments may have.
pub trait Dtype: Element {
    /// Its name in numpy.
    const NAME: &'static str;
}

impl Dtype for f32 {
    const NAME: &'static str = "float32";
}
impl Dtype for i8 {
    const NAME: &'static str = "int8";
}
impl Dtype for i16 {
    const NAME: &'static str = "int16";
}
impl Dtype for u8 {
    const NAME: &'static str = "uint8";
}

/// Whether `object` is a torch tensor. torch is never imported: without it there are no tensors.
pub fn is_tensor(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    static MODULES: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    let py = object.py();
    let modules = MODULES.get_or_try_init(py, || {
        py.import("sys")?.getattr("modules")?.cast_into::<PyDict>().map(Bound::unbind).map_err(PyErr::from)
    })?;
    match modules.bind(py).get_item("torch")? {
        Some(torch) if !torch.is_none() => match torch.getattr_opt("Tensor")? {
            Some(class) => object.is_instance(&class),
            None => Ok(false),
        },
        _ => Ok(false),
    }
}

/// The numpy array that `object` is, or its numpy view.
fn untyped<'py>(name: &str, wanted: &str, object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    if let Ok(array) = object.cast::<PyUntypedArray>() {
        return Ok(array.clone());
    }
    let allowed = format!("allowed is a C-contiguous {wanted} numpy array or CPU torch tensor");
    if !is_tensor(object)? {
        let kind = object.get_type().fully_qualified_name()?;
        return Err(PyTypeError::new_err(format!("{name} is of type {kind}: {allowed}")));
    }
    let device = object.getattr("device")?;
    if device.getattr("type")?.to_string() != "cpu" {
        return Err(PyValueError::new_err(format!("{name} is on the device {device}: {allowed} ({name}.cpu())")));
    }
    if object.getattr("requires_grad")?.is_truthy()? {
        return Err(PyValueError::new_err(format!(
            "{name} requires grad, and nothing here is recorded for a gradient: allowed is a detached tensor \
             ({name}.detach()); lumina_onnx.nn.functional.optical_linear is the differentiable function"
        )));
    }
    let array = object.call_method0("numpy").map_err(|error| {
        let dtype = object.getattr("dtype").map_or_else(|_| "?".to_owned(), |dtype| dtype.to_string());
        PyTypeError::new_err(format!("{name} is a {dtype} tensor without a numpy view ({error}): {allowed}"))
    })?;
    let array = array.cast_into::<PyUntypedArray>()?;
    check_stored(name, object, &array)?;
    Ok(array)
}

/// Refuses a tensor whose storage was freed or shrunk: torch makes a view even of that.
fn check_stored(name: &str, tensor: &Bound<'_, PyAny>, view: &Bound<'_, PyUntypedArray>) -> PyResult<()> {
    let py = tensor.py();
    let storage: usize =
        tensor.call_method0(intern!(py, "untyped_storage"))?.call_method0(intern!(py, "nbytes"))?.extract()?;
    let offset: usize = tensor.call_method0(intern!(py, "storage_offset"))?.extract()?;
    let lengths = view.shape().iter().zip(view.strides());
    let last: usize = lengths.map(|(length, stride)| length.saturating_sub(1) * stride.unsigned_abs()).sum();
    let size = view.dtype().itemsize();
    let end = if view.is_empty() { 0 } else { offset * size + last + size };
    if end <= storage {
        return Ok(());
    }
    Err(PyValueError::new_err(format!(
        "{name} is a tensor of {end} bytes, its offset among them, in a storage of {storage}: allowed is one that has its memory"
    )))
}

/// `object` as an array of `T` in C order.
fn typed<'py, T: Dtype>(name: &str, object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    let array = untyped(name, T::NAME, object)?;
    let Ok(typed) = array.cast::<PyArrayDyn<T>>() else {
        return Err(PyTypeError::new_err(format!("{name} has dtype {}: allowed is {}", array.dtype(), T::NAME)));
    };
    // A slice of a Fortran-ordered array would be read in memory order.
    if !array.is_c_contiguous() {
        return Err(PyValueError::new_err(format!(
            "{name} of shape {} is not C-contiguous (strides in bytes {:?}): allowed is a C-contiguous array \
             (numpy.ascontiguousarray({name}), {name}.contiguous())",
            Shape(array.shape()),
            array.strides()
        )));
    }
    if !array.is_aligned() {
        return Err(PyValueError::new_err(format!(
            "{name} starts at an address that is no multiple of its element's size: allowed is an aligned array"
        )));
    }
    Ok(typed.clone())
}

/// The arrays of one call. Those that are written share no memory with any other.
///
/// numpy's own tracking of borrows only sees base objects, and two tensors can share memory without sharing
/// a base object.
#[derive(Default)]
pub struct Arguments {
    read: Vec<(&'static str, Range<usize>)>,
    written: Vec<(&'static str, Range<usize>)>,
}

impl Arguments {
    /// `object`, to be read.
    pub fn read<'py, T: Dtype>(
        &mut self,
        name: &'static str,
        object: &Bound<'py, PyAny>,
    ) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
        let array = typed::<T>(name, object)?;
        let memory = memory(&array);
        check_apart(name, &memory, &self.written)?;
        self.read.push((name, memory));
        array.try_readonly().map_err(|error| busy(name, error))
    }

    /// `object`, to be written.
    pub fn write<'py, T: Dtype>(
        &mut self,
        name: &'static str,
        object: &Bound<'py, PyAny>,
    ) -> PyResult<PyReadwriteArrayDyn<'py, T>> {
        let array = typed::<T>(name, object)?;
        let memory = memory(&array);
        check_apart(name, &memory, &self.read)?;
        check_apart(name, &memory, &self.written)?;
        self.written.push((name, memory));
        array.try_readwrite().map_err(|error| busy(name, error))
    }

    /// `object`, to be read, of the shape `expected`, which is `meaning` in words.
    pub fn read_shaped<'py, T: Dtype>(
        &mut self,
        name: &'static str,
        object: &Bound<'py, PyAny>,
        expected: &[usize],
        meaning: &str,
    ) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
        let array = self.read::<T>(name, object)?;
        check_shape(name, array.shape(), expected, meaning)?;
        Ok(array)
    }

    /// `object`, to be written, of the shape `expected`, which is `meaning` in words.
    pub fn write_shaped<'py, T: Dtype>(
        &mut self,
        name: &'static str,
        object: &Bound<'py, PyAny>,
        expected: &[usize],
        meaning: &str,
    ) -> PyResult<PyReadwriteArrayDyn<'py, T>> {
        let array = self.write::<T>(name, object)?;
        check_shape(name, array.shape(), expected, meaning)?;
        Ok(array)
    }
}

fn memory<T: Element>(array: &Bound<'_, PyArrayDyn<T>>) -> Range<usize> {
    let start = array.data() as usize;
    start..start + array.len() * size_of::<T>()
}

fn check_apart(name: &str, memory: &Range<usize>, others: &[(&'static str, Range<usize>)]) -> PyResult<()> {
    let overlap = |other: &Range<usize>| memory.start.max(other.start) < memory.end.min(other.end);
    match others.iter().find(|(_, other)| overlap(other)) {
        None => Ok(()),
        Some((other, _)) => {
            Err(PyValueError::new_err(format!("{name} shares memory with {other}: allowed is memory of its own")))
        }
    }
}

fn busy(name: &str, error: numpy::BorrowError) -> PyErr {
    let why = match error {
        numpy::BorrowError::NotWriteable => "is read-only: allowed is a writeable array",
        _ => "is in use by a call in another thread: allowed is memory of its own",
    };
    PyValueError::new_err(format!("{name} {why}"))
}

/// A shape as Python prints it.
pub struct Shape<'a>(pub &'a [usize]);

impl std::fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            [one] => write!(f, "({one},)"),
            several => {
                let numbers: Vec<String> = several.iter().map(ToString::to_string).collect();
                write!(f, "({})", numbers.join(", "))
            }
        }
    }
}

/// Checks that the array called `name` has the shape `expected`, which is `meaning` in words.
fn check_shape(name: &str, shape: &[usize], expected: &[usize], meaning: &str) -> PyResult<()> {
    if shape == expected {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("{name} has shape {}: allowed is {meaning} = {}", Shape(shape), Shape(expected))))
}

/// The two dimensions of the array called `name`, which are `meaning` in words.
pub fn two_dimensions(name: &str, shape: &[usize], meaning: &str) -> PyResult<(usize, usize)> {
    match shape {
        [rows, columns] => Ok((*rows, *columns)),
        _ => Err(PyValueError::new_err(format!("{name} has shape {}: allowed is {meaning}", Shape(shape)))),
    }
}

/// A new float32 array of `shape`, of the kind of `like`: a tensor if that is one, else a numpy array. numpy is called
/// through Python, so that an array that does not fit into memory raises Python's error; a result of its C API would
/// have to be unwrapped.
pub fn new_like<'py>(like: &Bound<'py, PyAny>, shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    if is_tensor(like)? {
        return like.call_method1("new_empty", (PyTuple::new(like.py(), shape)?,));
    }
    static EMPTY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = like.py();
    let empty = EMPTY.get_or_try_init(py, || py.import("numpy")?.getattr("empty").map(Bound::unbind))?;
    empty.bind(py).call1((PyTuple::new(py, shape)?, numpy::dtype::<f32>(py)))
}
