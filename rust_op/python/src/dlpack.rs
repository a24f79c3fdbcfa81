//! What torch's tensors are and where: by DLPack's table of C functions, which `torch.Tensor` carries.
//!
//! A numpy view of a tensor costs torch some 0.7 microseconds and each pass has six, as much as all the arithmetic of a
//! small layer. What these functions cannot say is whether a tensor stands for its negative: `lumina_onnx.nn` asks for
//! that, and makes every tensor that is written to.

#![allow(unsafe_code, reason = "the fence: memory by address is read and written here and nowhere else")]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::slice;

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods, PyType};

/// A tensor as DLPack describes it: the fields of `DLTensor`, in its order.
#[repr(C)]
pub struct Described {
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

/// An address from here on is one of memory. Below, it may be what torch says of a tensor whose storage has none: its
/// offset in the storage.
const MEMORY: usize = 1 << 36;

impl Described {
    /// Sizes of the dimensions, where this is a tensor of that type in the CPU's memory.
    pub fn sizes(&self, element: (u8, u8)) -> Option<&[i64]> {
        // SAFETY: as many sizes as dimensions lie there while the tensor lives.
        let sizes = unsafe { counts(self.shape, self.dimensions) };
        let fits = (self.code, self.bits) == element && self.lanes == 1 && self.device_type == ON_CPU;
        (fits && (!self.data.is_null() || sizes.contains(&0))).then_some(sizes)
    }

    /// The same, where in addition its elements stand one after another.
    pub fn dense(&self, element: (u8, u8)) -> Option<&[i64]> {
        let sizes = self.sizes(element)?;
        // SAFETY: as many strides as sizes.
        let strides = unsafe { counts(self.strides, self.dimensions) };
        let mut expected = 1;
        for (size, stride) in sizes.iter().zip(strides).rev() {
            if *size != 1 && *stride != expected {
                return sizes.contains(&0).then_some(sizes);
            }
            expected = size.saturating_mul(expected);
        }
        Some(sizes)
    }

    /// Where its elements are.
    pub fn address(&self) -> usize {
        self.data.addr().wrapping_add(self.byte_offset as usize)
    }

    /// The bytes from its first element to behind its last.
    fn extent(&self) -> usize {
        // SAFETY: as many sizes and strides as dimensions lie there while the tensor lives.
        let (sizes, strides) = unsafe { (counts(self.shape, self.dimensions), counts(self.strides, self.dimensions)) };
        if sizes.contains(&0) {
            return 0;
        }
        let last = sizes.iter().zip(strides).fold(0u64, |last, (size, stride)| {
            last.saturating_add(stride.unsigned_abs().saturating_mul(size.unsigned_abs().saturating_sub(1)))
        });
        let bytes = u64::from(self.bits / 8) * u64::from(self.lanes);
        usize::try_from(last.saturating_add(1).saturating_mul(bytes)).unwrap_or(usize::MAX)
    }
}

/// The address of `tensor`, where it has `count` elements of that type, one after another; 0 where it is absent and
/// `None` where it is another.
pub fn address(tensor: &Option<Described>, element: (u8, u8), count: usize) -> Option<usize> {
    match tensor {
        None => Some(0),
        Some(tensor) => (elements(tensor.dense(element)?) == count).then(|| tensor.address()),
    }
}

/// Whether the elements of a tensor lie in its storage: those of a `FakeTensor`, or of one whose storage was freed, lie
/// nowhere.
fn is_stored(tensor: &Bound<'_, PyAny>, described: &Described) -> bool {
    let memory = || -> PyResult<(usize, usize)> {
        let storage = tensor.call_method0(intern!(tensor.py(), "untyped_storage"))?;
        let number = |name| storage.call_method0(name)?.extract();
        Ok((number(intern!(tensor.py(), "data_ptr"))?, number(intern!(tensor.py(), "nbytes"))?))
    };
    match memory() {
        Ok((0, _)) | Err(_) => false,
        Ok((start, bytes)) => {
            let offset = described.address().checked_sub(start);
            offset.and_then(|offset| bytes.checked_sub(offset)).is_some_and(|bytes| bytes >= described.extent())
        }
    }
}

/// How many elements a tensor of these sizes has.
pub fn elements(sizes: &[i64]) -> usize {
    sizes.iter().fold(1, |count: usize, size| count.saturating_mul(*size as usize))
}

/// # Safety
/// `count` numbers lie at `first`, and stay there while the slice lives.
unsafe fn counts<'a>(first: *const i64, count: i32) -> &'a [i64] {
    match usize::try_from(count) {
        // SAFETY: the caller's.
        Ok(count) if count > 0 && !first.is_null() => unsafe { slice::from_raw_parts(first, count) },
        _ => &[],
    }
}

/// Checks that there may be `count` elements of `T` at `address`: whether they are more than none.
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

/// The `count` elements at `address` of the tensor called `name`, to be read. No address has no element.
///
/// # Safety
/// They are initialised, and stay as they are while the slice lives.
pub unsafe fn read<'a, T>(name: &str, address: usize, count: usize) -> PyResult<&'a [T]> {
    if !check_memory::<T>(name, address, count)? {
        return Ok(&[]);
    }
    // SAFETY: not null and aligned, as checked; the rest is the caller's.
    Ok(unsafe { slice::from_raw_parts(address as *const T, count) })
}

/// The same, to be written.
///
/// # Safety
/// Any bytes are a `T`, and nobody else reads or writes these while the slice lives.
pub unsafe fn write<'a, T>(name: &str, address: usize, count: usize) -> PyResult<&'a mut [T]> {
    if !check_memory::<T>(name, address, count)? {
        return Ok(&mut []);
    }
    // SAFETY: not null and aligned, as checked; the rest is the caller's.
    Ok(unsafe { slice::from_raw_parts_mut(address as *mut T, count) })
}

/// DLPack's table of functions, as far as it is used here.
#[repr(C)]
struct ExchangeApi {
    major: u32,
    minor: u32,
    older: *const c_void,
    unused: [*const c_void; 3],
    /// Describes a tensor; not 0, with a Python exception set, where it cannot.
    describe: Option<unsafe extern "C" fn(*mut ffi::PyObject, *mut Described) -> c_int>,
}

/// Major version of DLPack that [`ExchangeApi`] is of.
const DLPACK: u32 = 1;

/// Reads tensors.
pub struct TensorReader {
    tensor: Py<PyType>,
    parameter: Py<PyType>,
    describe: unsafe extern "C" fn(*mut ffi::PyObject, *mut Described) -> c_int,
}

impl TensorReader {
    /// That of these classes, `torch.Tensor` and `torch.nn.Parameter`.
    pub fn new(tensor: Bound<'_, PyType>, parameter: Bound<'_, PyType>) -> PyResult<Self> {
        let capsule =
            tensor.getattr("__dlpack_c_exchange_api__").ok().and_then(|table| table.cast_into::<PyCapsule>().ok());
        let capsule = capsule.ok_or_else(|| {
            PyValueError::new_err(format!(
                "torch.Tensor has no table of DLPack's functions: allowed is a torch with DLPack {DLPACK}, 2.13 or newer"
            ))
        })?;
        let table = capsule.pointer_checked(Some(c"dlpack_exchange_api"))?.cast::<ExchangeApi>();
        // SAFETY: a capsule of this name holds a table that begins with its version, and is never freed.
        let major = unsafe { table.cast::<u32>().read() };
        // SAFETY: within a major version the table only grows.
        let describe = if major == DLPACK { unsafe { table.as_ref() }.describe } else { None };
        let describe = describe.ok_or_else(|| {
            PyValueError::new_err(format!(
                "torch.Tensor has DLPack {major}: allowed is DLPack {DLPACK}, with the function that describes a tensor"
            ))
        })?;
        Ok(TensorReader { tensor: tensor.unbind(), parameter: parameter.unbind(), describe })
    }

    /// What a tensor is; `None` where it cannot be said, as of a wrapper, and where its memory is not there.
    pub fn described(&self, tensor: &Bound<'_, PyAny>) -> Option<Described> {
        let mut described = MaybeUninit::<Described>::uninit();
        // SAFETY: an object, of which the function itself finds out whether it is a tensor; it has filled in all fields where
        // it returns 0.
        let described = unsafe {
            if (self.describe)(tensor.as_ptr(), described.as_mut_ptr()) != 0 {
                drop(PyErr::take(tensor.py()));
                return None;
            }
            described.assume_init()
        };
        // What has no address at all is told by `Described::sizes`.
        let certain = described.data.is_null() || (described.address() >= MEMORY && self.is_plain(tensor));
        (certain || is_stored(tensor, &described)).then_some(described)
    }

    /// Whether this is a tensor of no subclass but `torch.nn.Parameter`.
    fn is_plain(&self, tensor: &Bound<'_, PyAny>) -> bool {
        let class = tensor.get_type_ptr();
        class == self.tensor.as_ptr().cast() || class == self.parameter.as_ptr().cast()
    }

    /// The same where there is a tensor.
    pub fn optional(&self, tensor: Option<&Bound<'_, PyAny>>) -> Option<Option<Described>> {
        match tensor {
            None => Some(None),
            Some(tensor) => self.described(tensor).map(Some),
        }
    }

    /// The same of a tensor that is of no subclass but `torch.nn.Parameter`.
    pub fn plain(&self, tensor: &Bound<'_, PyAny>) -> Option<Described> {
        if self.is_plain(tensor) { self.described(tensor) } else { None }
    }
}
