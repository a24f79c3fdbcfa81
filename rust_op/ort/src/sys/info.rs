//! A node when its session is created: its name, its attributes and its inputs.

use std::ffi::{CStr, c_char};
use std::marker::PhantomData;

use ort_sys::OrtKernelInfo;

use super::tensor::{Tensor, TensorType};
use super::{Api, c_string, call, read_string};
use crate::guard::Failure;

/// A node for which a kernel is being created.
pub(crate) struct KernelInfo<'a> {
    api: Api,
    info: *const OrtKernelInfo,
    alive: PhantomData<&'a OrtKernelInfo>,
}

/// A function of the table that writes a string, or reports its length.
type ReadString =
    unsafe extern "system" fn(*const OrtKernelInfo, usize, *mut c_char, *mut usize) -> ort_sys::OrtStatusPtr;

impl<'a> KernelInfo<'a> {
    /// # Safety
    /// - `info` lives during `'a`.
    pub(super) unsafe fn new(api: Api, info: *const OrtKernelInfo) -> Self {
        KernelInfo { api, info, alive: PhantomData }
    }

    /// The name of the node; empty where it has none.
    pub(crate) fn node_name(&self) -> Result<String, Failure> {
        read_string(|out, size| {
            // SAFETY: `out` is NULL or has `size` bytes.
            unsafe { call!(self.api, KernelInfo_GetNodeName(self.info, out, size)) }
        })
    }

    pub(crate) fn input_count(&self) -> Result<usize, Failure> {
        let mut count = 0;
        // SAFETY: `info` is alive.
        unsafe { call!(self.api, KernelInfo_GetInputCount(self.info, &mut count))? };
        Ok(count)
    }

    /// The name of the value at input `index`; empty where the input is left out.
    pub(crate) fn input_name(&self, index: usize) -> Result<String, Failure> {
        // SAFETY: an entry of the table.
        let read: ReadString = unsafe { (*self.api.table()).KernelInfo_GetInputName };
        // SAFETY: `out` is NULL or has `size` bytes.
        read_string(|out, size| self.api.check(unsafe { read(self.info, index, out, size) }))
    }

    /// The name of the value at output `index`.
    pub(crate) fn output_name(&self, index: usize) -> Result<String, Failure> {
        // SAFETY: an entry of the table.
        let read: ReadString = unsafe { (*self.api.table()).KernelInfo_GetOutputName };
        // SAFETY: `out` is NULL or has `size` bytes.
        read_string(|out, size| self.api.check(unsafe { read(self.info, index, out, size) }))
    }

    /// The type of input `index`, as far as the model states it; no dimensions where it states none.
    /// `None` if it is not a tensor.
    pub(crate) fn input_type(&self, index: usize) -> Result<Option<TensorType>, Failure> {
        let mut ty = std::ptr::null_mut();
        let mut tensor = std::ptr::null();
        // SAFETY: `info` is alive; `tensor` is a part of `ty`, which is released once, after both were read.
        unsafe {
            call!(self.api, KernelInfo_GetInputTypeInfo(self.info, index, &mut ty))?;
            let read = call!(self.api, CastTypeInfoToTensorInfo(ty, &mut tensor))
                .and_then(|()| if tensor.is_null() { Ok(None) } else { TensorType::read(self.api, tensor).map(Some) });
            ((*self.api.table()).ReleaseTypeInfo)(ty);
            read
        }
    }

    /// Input `index`, if it is a constant of the model (an initializer that no graph input overrides).
    pub(crate) fn constant_input(&self, index: usize) -> Result<Option<Tensor<'a>>, Failure> {
        let (mut constant, mut value) = (0, std::ptr::null());
        // SAFETY: `info` is alive; a constant is a tensor in the CPU's memory that stays alive and unchanged
        // while the node's kernel is being created.
        unsafe {
            call!(self.api, KernelInfoGetConstantInput_tensor(self.info, index, &mut constant, &mut value))?;
            if constant == 0 || value.is_null() { Ok(None) } else { Tensor::new(self.api, value).map(Some) }
        }
    }

    /// Attribute `name`, if the node has it.
    ///
    /// # Errors
    /// It has another type; the message is the host's.
    pub(crate) fn int(&self, name: &str) -> Result<Option<i64>, Failure> {
        self.attribute(name, |name| {
            let mut value = 0;
            // SAFETY: `info` is alive, `name` a C string.
            unsafe { call!(self.api, KernelInfoGetAttribute_int64(self.info, name.as_ptr(), &mut value))? };
            Ok(value)
        })
    }

    /// As [`KernelInfo::int`].
    pub(crate) fn float(&self, name: &str) -> Result<Option<f32>, Failure> {
        self.attribute(name, |name| {
            let mut value = 0.0;
            // SAFETY: `info` is alive, `name` a C string.
            unsafe { call!(self.api, KernelInfoGetAttribute_float(self.info, name.as_ptr(), &mut value))? };
            Ok(value)
        })
    }

    /// As [`KernelInfo::int`]; an empty list is an error, since the host reports an attribute of another type as one.
    pub(crate) fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, Failure> {
        self.attribute(name, |name| {
            let mut size = 0;
            // SAFETY: `info` is alive, `name` a C string; the first call asks for the size, the second
            // writes that many elements.
            unsafe {
                let read =
                    |out, size| call!(self.api, KernelInfoGetAttributeArray_float(self.info, name.as_ptr(), out, size));
                read(std::ptr::null_mut(), &mut size)?;
                if size == 0 {
                    return Err(Failure::internal("it is an empty list, or no list of floats"));
                }
                let mut values = vec![0.0; size];
                read(values.as_mut_ptr(), &mut size)?;
                Ok(values)
            }
        })
    }

    /// As [`KernelInfo::int`].
    pub(crate) fn string(&self, name: &str) -> Result<Option<String>, Failure> {
        self.attribute(name, |name| {
            read_string(|out, size| {
                // SAFETY: `info` is alive, `name` a C string; `out` is NULL or has `size` bytes.
                unsafe { call!(self.api, KernelInfoGetAttribute_string(self.info, name.as_ptr(), out, size)) }
            })
        })
    }

    /// Distinguishes a missing attribute from one of another type. Both make `read` fail, so the message is
    /// compared with the one for a name that no node has: whatever the host's wording, only the name differs
    /// if the attribute is missing.
    fn attribute<T>(&self, name: &str, read: impl Fn(&CStr) -> Result<T, Failure>) -> Result<Option<T>, Failure> {
        const NOBODY: &str = "lumina-attribute-that-no-node-has";
        match read(&c_string(name)) {
            Ok(value) => Ok(Some(value)),
            Err(failure) => match read(&c_string(NOBODY)) {
                Err(absent) if absent.message.replace(NOBODY, name) == failure.message => Ok(None),
                _ => Err(failure),
            },
        }
    }
}
