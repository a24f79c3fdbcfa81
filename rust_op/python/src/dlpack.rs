//! The types, shapes and addresses of torch's tensors, from DLPack's table of C functions that `torch.Tensor` carries,
//! or from a Python function where torch has no such table yet.
//!
//! A numpy view of a tensor costs torch some 0.7 microseconds, and each pass has six tensors: as much as all the
//! arithmetic of a small layer. These functions cannot say whether a tensor stands for its negative: torch is
//! asked for that.

#![allow(unsafe_code, reason = "memory is read and written by address here and nowhere else")]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::slice;

use pyo3::exceptions::{PyException, PyValueError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyCapsule, PyCapsuleMethods, PyType};

/// A tensor as DLPack describes it.
pub struct Described {
    fields: Fields,
    /// What `fields` points to, unless that is torch's own.
    _counts: Vec<i64>,
}

/// The fields of `DLTensor`, in the same order.
#[repr(C)]
struct Fields {
    data: *const c_void,
    device_type: i32,
    device_id: i32,
    dimensions: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

/// `kDLCPU`, and the codes and bits of float32 and of uint8.
const ON_CPU: i32 = 1;
pub const FLOAT32: (u8, u8) = (2, 32);
pub const UINT8: (u8, u8) = (1, 8);

/// A type of elements, with DLPack's code and bits.
pub trait Element {
    const TYPE: (u8, u8);
}
impl Element for f32 {
    const TYPE: (u8, u8) = FLOAT32;
}
impl Element for u8 {
    const TYPE: (u8, u8) = UINT8;
}

/// An address from here on is in memory. A lower one may be what torch reports for a tensor whose storage has no
/// memory: its offset in the storage.
const MEMORY: usize = 1 << 36;

impl Described {
    /// The sizes of the dimensions, if this is a tensor of type `element` in the CPU's memory.
    pub fn sizes(&self, element: (u8, u8)) -> Option<&[i64]> {
        // SAFETY: there are as many sizes as dimensions while the tensor lives.
        let sizes = unsafe { counts(self.fields.shape, self.fields.dimensions) };
        let fits = (self.fields.code, self.fields.bits) == element
            && self.fields.lanes == 1
            && self.fields.device_type == ON_CPU;
        (fits && (!self.fields.data.is_null() || sizes.contains(&0))).then_some(sizes)
    }

    /// The same, if its elements are also contiguous.
    pub fn dense(&self, element: (u8, u8)) -> Option<&[i64]> {
        let sizes = self.sizes(element)?;
        // SAFETY: there are as many strides as sizes.
        let strides = unsafe { counts(self.fields.strides, self.fields.dimensions) };
        let mut expected = 1;
        for (size, stride) in sizes.iter().zip(strides).rev() {
            if *size != 1 && *stride != expected {
                return sizes.contains(&0).then_some(sizes);
            }
            expected = size.saturating_mul(expected);
        }
        Some(sizes)
    }

    /// The address of its elements.
    pub fn address(&self) -> usize {
        self.fields.data.addr().wrapping_add(self.fields.byte_offset as usize)
    }

    /// The bytes from the start of its first element to the end of its last.
    fn extent(&self) -> usize {
        // SAFETY: there are as many sizes and strides as dimensions while the tensor lives.
        let (sizes, strides) = unsafe {
            (counts(self.fields.shape, self.fields.dimensions), counts(self.fields.strides, self.fields.dimensions))
        };
        if sizes.contains(&0) {
            return 0;
        }
        let last = sizes.iter().zip(strides).fold(0u64, |last, (size, stride)| {
            last.saturating_add(stride.unsigned_abs().saturating_mul(size.unsigned_abs().saturating_sub(1)))
        });
        let bytes = u64::from(self.fields.bits / 8) * u64::from(self.fields.lanes);
        usize::try_from(last.saturating_add(1).saturating_mul(bytes)).unwrap_or(usize::MAX)
    }
}

/// The address of `tensor` if it has `count` contiguous elements of type `element`, else `None`; 0 if it is absent.
pub fn address(tensor: &Option<Described>, element: (u8, u8), count: usize) -> Option<usize> {
    match tensor {
        None => Some(0),
        Some(tensor) => (elements(tensor.dense(element)?) == count).then(|| tensor.address()),
    }
}

/// The value; `None` for an exception that says that a tensor cannot be described. Others, such as `KeyboardInterrupt`,
/// are not about the tensor.
fn unless_refused<T>(py: Python<'_>, result: PyResult<T>) -> PyResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_instance_of::<PyException>(py) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the elements of a tensor are in its storage: those of a `FakeTensor`, or of a tensor whose storage was
/// freed, are nowhere.
fn is_stored(tensor: &Bound<'_, PyAny>, described: &Described) -> PyResult<bool> {
    let memory = || -> PyResult<(usize, usize)> {
        let storage = tensor.call_method0(intern!(tensor.py(), "untyped_storage"))?;
        let number = |name| storage.call_method0(name)?.extract();
        Ok((number(intern!(tensor.py(), "data_ptr"))?, number(intern!(tensor.py(), "nbytes"))?))
    };
    Ok(match unless_refused(tensor.py(), memory())? {
        Some((0, _)) | None => false,
        Some((start, bytes)) => {
            let offset = described.address().checked_sub(start);
            offset.and_then(|offset| bytes.checked_sub(offset)).is_some_and(|bytes| bytes >= described.extent())
        }
    })
}

/// How many elements a tensor of these sizes has.
pub fn elements(sizes: &[i64]) -> usize {
    sizes.iter().fold(1, |count: usize, size| count.saturating_mul(*size as usize))
}

/// # Safety
/// `first` points to `count` numbers, which stay there while the slice lives.
unsafe fn counts<'a>(first: *const i64, count: i32) -> &'a [i64] {
    match usize::try_from(count) {
        // SAFETY: by this function's contract.
        Ok(count) if count > 0 && !first.is_null() => unsafe { slice::from_raw_parts(first, count) },
        _ => &[],
    }
}

/// Checks that `count` elements of `T` may be at `address`; returns whether there are any.
fn check_memory<T>(name: &str, address: usize, count: usize) -> PyResult<bool> {
    let fits = count.checked_mul(size_of::<T>()).and_then(|bytes| address.checked_add(bytes)).is_some();
    if fits && (count == 0 || (address != 0 && address.is_multiple_of(align_of::<T>()))) {
        return Ok(count > 0);
    }
    Err(PyValueError::new_err(format!(
        "{name} is {count} elements of {} bytes at address {address:#x}: allowed is memory that is there, aligned",
        size_of::<T>()
    )))
}

/// The `count` elements at `address` of the tensor called `name`, to be read. An address of 0 is allowed only for a
/// `count` of 0.
///
/// # Safety
/// The elements are initialised, and do not change while the slice lives.
pub unsafe fn read<'a, T>(name: &str, address: usize, count: usize) -> PyResult<&'a [T]> {
    if !check_memory::<T>(name, address, count)? {
        return Ok(&[]);
    }
    // SAFETY: not null and aligned, as checked; the rest holds by this function's contract.
    Ok(unsafe { slice::from_raw_parts(address as *const T, count) })
}

/// The same, to be written.
///
/// # Safety
/// Any bytes are a valid `T`, and nothing else reads or writes the elements while the slice lives.
pub unsafe fn write<'a, T>(name: &str, address: usize, count: usize) -> PyResult<&'a mut [T]> {
    if !check_memory::<T>(name, address, count)? {
        return Ok(&mut []);
    }
    // SAFETY: not null and aligned, as checked; the rest holds by this function's contract.
    Ok(unsafe { slice::from_raw_parts_mut(address as *mut T, count) })
}

/// DLPack's table of functions, as far as it is used here.
#[repr(C)]
struct ExchangeApi {
    major: u32,
    minor: u32,
    older: *const c_void,
    unused: [*const c_void; 3],
    /// Describes a tensor. Where it cannot, it returns a value other than 0 and sets a Python exception.
    describe: Option<unsafe extern "C" fn(*mut ffi::PyObject, *mut Fields) -> c_int>,
}

/// The major version of DLPack that [`ExchangeApi`] belongs to.
const DLPACK: u32 = 1;

/// What describes a tensor.
enum Describe {
    /// A function of DLPack's table.
    Table(unsafe extern "C" fn(*mut ffi::PyObject, *mut Fields) -> c_int),
    /// A Python function that returns a tensor's dtype, address, sizes and strides, or None if it is not in the CPU's
    /// memory; and torch's dtypes of which it may be.
    Function(Py<PyAny>, [(Py<PyAny>, (u8, u8)); 2]),
}

/// Reads tensors.
pub struct TensorReader {
    tensor: Py<PyType>,
    parameter: Py<PyType>,
    describe: Describe,
}

impl TensorReader {
    /// The reader for these classes, `torch.Tensor` and `torch.nn.Parameter`, with the table that the former has.
    pub fn new(tensor: Bound<'_, PyType>, parameter: Bound<'_, PyType>) -> PyResult<Self> {
        let describe = Describe::Table(Self::of_table(&tensor)?);
        Ok(TensorReader { tensor: tensor.unbind(), parameter: parameter.unbind(), describe })
    }

    /// The same without the table: `describe` is asked, and `float32` and `uint8` are torch's dtypes.
    pub fn slow(
        tensor: Bound<'_, PyType>,
        parameter: Bound<'_, PyType>,
        describe: Py<PyAny>,
        float32: Py<PyAny>,
        uint8: Py<PyAny>,
    ) -> Self {
        let describe = Describe::Function(describe, [(float32, FLOAT32), (uint8, UINT8)]);
        TensorReader { tensor: tensor.unbind(), parameter: parameter.unbind(), describe }
    }

    fn of_table(
        tensor: &Bound<'_, PyType>,
    ) -> PyResult<unsafe extern "C" fn(*mut ffi::PyObject, *mut Fields) -> c_int> {
        let capsule =
            tensor.getattr("__dlpack_c_exchange_api__").ok().and_then(|table| table.cast_into::<PyCapsule>().ok());
        let capsule = capsule.ok_or_else(|| {
            PyValueError::new_err(format!(
                "torch.Tensor has no table of DLPack's functions: allowed is a torch with DLPack {DLPACK}, or a function \
                 that describes a tensor"
            ))
        })?;
        let table = capsule.pointer_checked(Some(c"dlpack_exchange_api"))?.cast::<ExchangeApi>();
        // SAFETY: a capsule of this name holds a table that begins with its version, and is never freed.
        let major = unsafe { table.cast::<u32>().read() };
        // SAFETY: within a major version the table only grows.
        let describe = if major == DLPACK { unsafe { table.as_ref() }.describe } else { None };
        describe.ok_or_else(|| {
            PyValueError::new_err(format!(
                "torch.Tensor has DLPack {major}: allowed is DLPack {DLPACK}, with the function that describes a tensor"
            ))
        })
    }

    /// Describes a tensor; `None` if it cannot be described, such as a wrapper, or if its memory is not there. An error
    /// is an exception that comes from elsewhere, such as `KeyboardInterrupt`.
    pub fn described(&self, tensor: &Bound<'_, PyAny>) -> PyResult<Option<Described>> {
        let described = match &self.describe {
            Describe::Table(describe) => {
                let mut fields = MaybeUninit::<Fields>::uninit();
                // SAFETY: the function takes any object and checks itself whether it is a tensor; if it returns 0, it
                // has filled in all fields.
                let fields = unsafe {
                    if describe(tensor.as_ptr(), fields.as_mut_ptr()) != 0 {
                        return unless_refused(tensor.py(), Err(PyErr::fetch(tensor.py())));
                    }
                    fields.assume_init()
                };
                Described { fields, _counts: Vec::new() }
            }
            Describe::Function(describe, dtypes) => {
                let answer = describe.bind(tensor.py()).call1((tensor,));
                let Some(answer) = unless_refused(tensor.py(), answer)? else { return Ok(None) };
                let Some(described) = told(&answer, dtypes) else { return Ok(None) };
                described
            }
        };
        // `Described::sizes` deals with a tensor that has no address at all.
        let certain = described.fields.data.is_null() || (described.address() >= MEMORY && self.is_plain(tensor));
        Ok((certain || is_stored(tensor, &described)?).then_some(described))
    }

    /// Whether this is a tensor, and of no subclass but `torch.nn.Parameter`.
    fn is_plain(&self, tensor: &Bound<'_, PyAny>) -> bool {
        let class = tensor.get_type_ptr();
        class == self.tensor.as_ptr().cast() || class == self.parameter.as_ptr().cast()
    }

    /// [`TensorReader::described`] for a tensor whose elements are read; `None` also if it stands for its negative.
    pub fn operand(&self, tensor: &Bound<'_, PyAny>) -> PyResult<Option<Described>> {
        let Some(described) = self.described(tensor)? else { return Ok(None) };
        let negative = unless_refused(tensor.py(), tensor.call_method0(intern!(tensor.py(), "is_neg")))?;
        Ok(negative.is_some_and(|negative| negative.is(PyBool::new(tensor.py(), false))).then_some(described))
    }

    /// [`TensorReader::described`] for a tensor of no subclass but `torch.nn.Parameter`; `None` for others.
    pub fn plain(&self, tensor: &Bound<'_, PyAny>) -> PyResult<Option<Described>> {
        if self.is_plain(tensor) { self.described(tensor) } else { Ok(None) }
    }
}

/// What a Python function said of a tensor; `None` if it said nothing, or named another dtype.
fn told(answer: &Bound<'_, PyAny>, dtypes: &[(Py<PyAny>, (u8, u8))]) -> Option<Described> {
    let (dtype, address, mut counts, strides): (Py<PyAny>, usize, Vec<i64>, Vec<i64>) = answer.extract().ok()?;
    let (code, bits) = dtypes.iter().find(|(known, _)| known.is(&dtype))?.1;
    if counts.len() != strides.len() || counts.iter().any(|size| *size < 0) {
        return None;
    }
    let dimensions = i32::try_from(counts.len()).ok()?;
    counts.extend(strides);
    let fields = Fields {
        data: address as *const c_void,
        device_type: ON_CPU,
        device_id: 0,
        dimensions,
        code,
        bits,
        lanes: 1,
        shape: counts.as_ptr(),
        strides: counts[dimensions as usize..].as_ptr(),
        byte_offset: 0,
    };
    Some(Described { fields, _counts: counts })
}
