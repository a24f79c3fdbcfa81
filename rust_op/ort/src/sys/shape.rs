//! Shape inference, while a graph is loaded.

use std::ffi::{CString, c_char};
use std::marker::PhantomData;

use ort_sys::OrtShapeInferContext;

use super::tensor::TensorType;
use super::{Api, c_string, call, string};
use crate::guard::Failure;

/// A dimension of a shape that may be partly unknown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Dimension {
    /// A number.
    Known(i64),
    /// A name; the same name stands for the same number.
    Named(String),
    /// Nothing is known.
    Unknown,
}

/// A node whose output shape is being inferred.
pub(crate) struct ShapeContext<'a> {
    api: Api,
    context: *const OrtShapeInferContext,
    alive: PhantomData<&'a OrtShapeInferContext>,
}

impl ShapeContext<'_> {
    /// # Safety
    /// - `context` lives as long as the value.
    pub(super) unsafe fn new(api: Api, context: *const OrtShapeInferContext) -> Self {
        ShapeContext { api, context, alive: PhantomData }
    }

    /// The dimensions of input `index`; none for a scalar, and where nothing is known.
    pub(crate) fn input(&self, index: usize) -> Result<Vec<Dimension>, Failure> {
        let mut info = std::ptr::null_mut();
        // SAFETY: the context is alive, and keeps `info` and the names in it alive.
        unsafe {
            call!(self.api, ShapeInferContext_GetInputTypeShape(self.context, index, &mut info))?;
            let dims = TensorType::read(self.api, info)?.dims;
            let mut names = vec![c"".as_ptr(); dims.len()];
            call!(self.api, GetSymbolicDimensions(info, names.as_mut_ptr(), names.len()))?;
            Ok(dims
                .iter()
                .zip(names)
                .map(|(&dim, name)| match (dim, string(name)) {
                    (0.., _) => Dimension::Known(dim),
                    (_, name) if name.is_empty() => Dimension::Unknown,
                    (_, name) => Dimension::Named(name),
                })
                .collect())
        }
    }

    /// Sets the dimensions of output `index`, each known or named.
    pub(crate) fn set_output(&self, index: usize, dims: &[Dimension]) -> Result<(), Failure> {
        let known: Vec<i64> = dims.iter().map(|dim| if let Dimension::Known(dim) = dim { *dim } else { -1 }).collect();
        let names: Vec<CString> =
            dims.iter().map(|dim| if let Dimension::Named(name) = dim { c_string(name) } else { c"".into() }).collect();
        let mut names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect::<Vec<_>>();
        let mut info = std::ptr::null_mut();
        // SAFETY: `info` is created, filled, passed to the host, which copies it, and released once.
        unsafe {
            call!(self.api, CreateTensorTypeAndShapeInfo(&mut info))?;
            let set = call!(
                self.api,
                SetTensorElementType(info, ort_sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
            )
            .and_then(|()| call!(self.api, SetDimensions(info, known.as_ptr(), known.len())))
            .and_then(|()| call!(self.api, SetSymbolicDimensions(info, names.as_mut_ptr(), names.len())))
            .and_then(|()| call!(self.api, ShapeInferContext_SetOutputTypeShape(self.context, index, info)));
            ((*self.api.table()).ReleaseTensorTypeAndShapeInfo)(info);
            set
        }
    }
}
