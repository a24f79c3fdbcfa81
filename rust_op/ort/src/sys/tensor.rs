//! Tensors that the host owns.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use ort_sys::{ONNXTensorElementDataType as Onnx, OrtTensorTypeAndShapeInfo, OrtValue};

use super::{Api, call};
use crate::guard::Failure;

/// The type of a tensor's elements, as ONNX's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ElementType(i32);

impl ElementType {
    pub(crate) const FLOAT: Self = Self(Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT as i32);
    pub(crate) const UINT8: Self = Self(Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 as i32);
    pub(crate) const INT8: Self = Self(Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 as i32);
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 23] = [
            "undefined",
            "float32",
            "uint8",
            "int8",
            "uint16",
            "int16",
            "int32",
            "int64",
            "string",
            "bool",
            "float16",
            "float64",
            "uint32",
            "uint64",
            "complex64",
            "complex128",
            "bfloat16",
            "float8e4m3fn",
            "float8e4m3fnuz",
            "float8e5m2",
            "float8e5m2fnuz",
            "uint4",
            "int4",
        ];
        match usize::try_from(self.0).ok().and_then(|index| NAMES.get(index)) {
            Some(name) => f.write_str(name),
            None => write!(f, "ONNX element type {}", self.0),
        }
    }
}

/// Number of dimensions up to which a shape needs no heap memory.
const USUAL_RANK: usize = 8;

/// The dimensions of a tensor, read in every run.
#[derive(Clone)]
pub(crate) struct Dims {
    rank: usize,
    usual: [i64; USUAL_RANK],
    /// All dimensions if there are more than [`USUAL_RANK`], else empty.
    many: Vec<i64>,
}

impl Dims {
    /// `rank` zeros.
    fn zeros(rank: usize) -> Self {
        Dims { rank, usual: [0; USUAL_RANK], many: if rank > USUAL_RANK { vec![0; rank] } else { Vec::new() } }
    }
}

impl Deref for Dims {
    type Target = [i64];

    fn deref(&self) -> &[i64] {
        if self.rank > USUAL_RANK { &self.many } else { &self.usual[..self.rank] }
    }
}

impl DerefMut for Dims {
    fn deref_mut(&mut self) -> &mut [i64] {
        if self.rank > USUAL_RANK { &mut self.many } else { &mut self.usual[..self.rank] }
    }
}

/// Element type and dimensions; an unknown dimension is -1.
pub(crate) struct TensorType {
    pub(crate) element: ElementType,
    pub(crate) dims: Dims,
}

impl TensorType {
    /// # Safety
    /// - `info` is alive.
    pub(super) unsafe fn read(api: Api, info: *const OrtTensorTypeAndShapeInfo) -> Result<Self, Failure> {
        let (mut element, mut rank) = (0i32, 0);
        // SAFETY: `info` is alive; the outputs are as large as what is written, the enum being an `int` in C.
        unsafe {
            call!(api, GetTensorElementType(info, (&raw mut element).cast()))?;
            call!(api, GetDimensionsCount(info, &mut rank))?;
            let mut dims = Dims::zeros(rank);
            call!(api, GetDimensions(info, dims.as_mut_ptr(), rank))?;
            Ok(TensorType { element: ElementType(element), dims })
        }
    }
}

mod sealed {
    /// Elements for which any bits are a value.
    pub(crate) trait Element: Copy {
        const TYPE: super::ElementType;
    }
    impl Element for f32 {
        const TYPE: super::ElementType = super::ElementType::FLOAT;
    }
    impl Element for i8 {
        const TYPE: super::ElementType = super::ElementType::INT8;
    }
    impl Element for u8 {
        const TYPE: super::ElementType = super::ElementType::UINT8;
    }
}
use sealed::Element;

/// A tensor that lives during `'a`.
pub(crate) struct Tensor<'a> {
    api: Api,
    value: *const OrtValue,
    ty: TensorType,
    alive: PhantomData<&'a OrtValue>,
}

impl<'a> Tensor<'a> {
    /// # Safety
    /// - `value` is a tensor in the CPU's memory, and nothing writes to it during `'a`.
    pub(super) unsafe fn new(api: Api, value: *const OrtValue) -> Result<Self, Failure> {
        let mut info = std::ptr::null_mut();
        // SAFETY: `value` is a tensor; `info` is released once, after it has been read.
        let ty = unsafe {
            call!(api, GetTensorTypeAndShape(value, &mut info))?;
            let ty = TensorType::read(api, info);
            ((*api.table()).ReleaseTensorTypeAndShapeInfo)(info);
            ty?
        };
        Ok(Tensor { api, value, ty, alive: PhantomData })
    }

    pub(crate) fn element(&self) -> ElementType {
        self.ty.element
    }

    pub(crate) fn dims(&self) -> &Dims {
        &self.ty.dims
    }

    /// The elements in row-major order, if they are of type `T`. They are copied if the host's memory is not
    /// aligned; that of a model's external file need not be.
    pub(crate) fn data<T: Element>(&self) -> Result<Option<Cow<'a, [T]>>, Failure> {
        if self.ty.element != T::TYPE {
            return Ok(None);
        }
        let length = element_count(&self.ty.dims)?;
        let mut data = std::ptr::null_mut();
        // SAFETY: the value is a tensor; the host's function takes it as mutable, but nothing is written here.
        unsafe { call!(self.api, GetTensorMutableData(self.value.cast_mut(), &mut data))? };
        let data = data.cast_const().cast::<T>();
        Ok(Some(if length == 0 || data.is_null() {
            Cow::Borrowed(&[])
        } else if data.is_aligned() {
            // SAFETY: `length` elements of this type, aligned, and unchanged during 'a by the contract of `new`.
            Cow::Borrowed(unsafe { std::slice::from_raw_parts(data, length) })
        } else {
            // SAFETY: as above, but read one by one, whatever their alignment.
            Cow::Owned((0..length).map(|index| unsafe { data.add(index).read_unaligned() }).collect())
        }))
    }
}

/// The product of dimensions that are all known.
pub(super) fn element_count(dims: &[i64]) -> Result<usize, Failure> {
    dims.iter()
        .try_fold(1usize, |count, dim| usize::try_from(*dim).ok().and_then(|dim| count.checked_mul(dim)))
        .ok_or_else(|| Failure::internal(format!("a tensor with dimensions {dims:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_any_rank() {
        for rank in [0, 1, USUAL_RANK, USUAL_RANK + 1, 40] {
            let mut dims = Dims::zeros(rank);
            dims.iter_mut().zip(1..).for_each(|(dim, value)| *dim = value);
            assert_eq!(*dims.clone(), (1..=rank as i64).collect::<Vec<_>>()[..]);
        }
    }
}
