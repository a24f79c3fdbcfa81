//! The passes on torch's tensors, for `lumina_onnx.nn`.
//!
//! A numpy view of a tensor costs torch some 0.7 microseconds and each pass has six, as much as all the arithmetic
//! of a small layer. So torch's own C functions say what a tensor is and where: those of DLPack, by a table that
//! `torch.Tensor` carries. What they cannot say is whether a tensor stands for its negative: `lumina_onnx/nn/_ops.py`
//! asks for that, and makes every tensor that is written to. For everyone else there are the functions that take arrays.

#![allow(unsafe_code, reason = "the fence: memory by address is read and written here and nowhere else")]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::slice;

use lumina_kernel::backward::{Factor, Inputs, Operand, Outputs, PRECISIONS, Precision, Weight};
use lumina_kernel::forward::mask_stride;
use lumina_kernel::weights::{CodesMut, WeightSource, code_stride};
use lumina_kernel::{Layer, NoiseKey, Params, Saved, Tier, Weights};
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods, PyType};

use crate::error::{renamed, to_python};
use crate::executor::Threads;
use crate::forward::{backward_cost, cost, run};
use crate::layer::PyPreparedLayer;
use crate::numbers::{Int, Text};
use crate::params::PyParams;
use crate::schema::tier;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Memory at an address, not yet cut into slices. 0 is no memory.
struct Memory {
    name: &'static str,
    next: usize,
}

impl Memory {
    fn new(name: &'static str, address: usize) -> Self {
        Memory { name, next: address }
    }

    /// Checks that there may be `count` elements of `T` from here on, and moves past them.
    fn take<T>(&mut self, count: usize) -> PyResult<usize> {
        let address = self.next;
        let end = count.checked_mul(size_of::<T>()).and_then(|bytes| address.checked_add(bytes));
        match end {
            Some(end) if count == 0 || (address != 0 && address.is_multiple_of(align_of::<T>())) => {
                self.next = end;
                Ok(address)
            }
            _ => Err(PyValueError::new_err(format!(
                "{} is {count} elements of {} bytes at address {address:#x}: allowed is memory that is there, aligned",
                self.name,
                size_of::<T>()
            ))),
        }
    }

    /// The next `count` elements, to be read.
    ///
    /// # Safety
    /// They are initialised, and stay as they are while the slice lives.
    unsafe fn read<'a, T>(&mut self, count: usize) -> PyResult<&'a [T]> {
        let address = self.take::<T>(count)?;
        if count == 0 {
            return Ok(&[]);
        }
        // SAFETY: not null and aligned, see `take`; the rest is the caller's.
        Ok(unsafe { slice::from_raw_parts(address as *const T, count) })
    }

    /// The next `count` elements, to be written.
    ///
    /// # Safety
    /// Any bytes are a `T`, and nobody else reads or writes these while the slice lives.
    unsafe fn write<'a, T>(&mut self, count: usize) -> PyResult<&'a mut [T]> {
        let address = self.take::<T>(count)?;
        if count == 0 {
            return Ok(&mut []);
        }
        // SAFETY: not null and aligned, see `take`; the rest is the caller's.
        Ok(unsafe { slice::from_raw_parts_mut(address as *mut T, count) })
    }

    /// Memory for `rows` rows of `k` codes; none where `bits` is 0.
    ///
    /// # Safety
    /// As [`Memory::write`].
    unsafe fn codes<'a>(&mut self, bits: u32, rows: usize, k: usize) -> PyResult<Option<CodesMut<'a>>> {
        let count = rows.saturating_mul(code_stride(k));
        // SAFETY: the caller's.
        Ok(unsafe {
            match bits {
                0 => None,
                1..=8 => Some(CodesMut::I8(self.write(count)?)),
                _ => Some(CodesMut::I16(self.write(count)?)),
            }
        })
    }

    /// The codes of `rows` rows of `k`, or where `bits` is 0 the values at `analog`.
    ///
    /// # Safety
    /// As [`Memory::read`].
    unsafe fn operand<'a>(&mut self, analog: &mut Self, bits: u32, rows: usize, k: usize) -> PyResult<Operand<'a>> {
        let count = rows.saturating_mul(code_stride(k));
        // SAFETY: the caller's.
        Ok(unsafe {
            match bits {
                0 => Operand::F32(analog.read(rows.saturating_mul(k))?),
                1..=8 => Operand::I8(self.read(count)?),
                _ => Operand::I16(self.read(count)?),
            }
        })
    }
}

/// Bytes of a row of codes.
fn code_bytes(bits: u32, k: usize) -> usize {
    match bits {
        0 => 0,
        1..=8 => code_stride(k),
        _ => code_stride(k).saturating_mul(2),
    }
}

/// What a forward pass saves for the gradients that will be asked for, one after the other.
///
/// The scale of W, where X's gradient needs it, filled up to whole cache lines; all codes of X and all steps s_x, where
/// W's does; then the masks of the ADC and, where X's needs it, of the DAC. A row of codes is a multiple of 4 bytes, so
/// that all of it is aligned. W itself is not saved: whoever calls still has it.
#[derive(Clone, Copy)]
struct Layout {
    /// Elements of the scale, and bytes behind them.
    scale: (usize, usize),
    /// Bits of the codes, where they are saved.
    codes: Option<u32>,
    /// Bytes of a row of the masks.
    adc: usize,
    dac: usize,
}

impl Layout {
    fn new(params: &Params, n: usize, k: usize, (for_x, for_weight): (bool, bool)) -> Self {
        let mask = |saturates, columns| if saturates { mask_stride(columns) } else { 0 };
        let scale = n.saturating_mul(size_of::<f32>());
        Layout {
            scale: if for_x { (n, scale.wrapping_neg() % LINE) } else { (0, 0) },
            codes: for_weight.then_some(params.input_bits),
            adc: mask(params.adc_can_saturate(), n),
            dac: mask(params.input_range.is_some() && for_x, k),
        }
    }

    /// Bytes of the scale and what fills it up.
    fn scale_bytes(self) -> usize {
        self.scale.0.saturating_mul(size_of::<f32>()).saturating_add(self.scale.1)
    }

    /// Bytes of a row of all that is saved of X and Y.
    fn row_bytes(self, k: usize) -> usize {
        let codes = self.codes.map_or(0, |bits| code_bytes(bits, k).saturating_add(size_of::<f32>()));
        codes.saturating_add(self.adc).saturating_add(self.dac)
    }

    /// Bytes of all of it, for `m` rows.
    fn bytes(self, m: usize, k: usize) -> usize {
        self.scale_bytes().saturating_add(m.saturating_mul(self.row_bytes(k)))
    }

    /// The memory at `address` as a forward pass of `m` rows fills it: the scale, and the rest.
    ///
    /// # Safety
    /// As [`Memory::write`].
    unsafe fn write<'a>(self, address: usize, (m, k): (usize, usize)) -> PyResult<(&'a mut [f32], Saved<'a>)> {
        let mut saved = Memory::new("saved", address);
        // SAFETY: the caller's.
        unsafe {
            let scale = saved.write(self.scale.0)?;
            saved.write::<u8>(self.scale.1)?.fill(0);
            let (x_codes, x_step) = match self.codes {
                Some(bits) => (saved.codes(bits, m, k)?, Some(saved.write(m)?)),
                None => (None, None),
            };
            let mut mask = |bytes: usize| match bytes {
                0 => Ok(None),
                bytes => saved.write(m.saturating_mul(bytes)).map(Some),
            };
            Ok((scale, Saved { x_codes, x_step, adc_mask: mask(self.adc)?, dac_mask: mask(self.dac)? }))
        }
    }
}

/// Bytes of what a forward pass saves for the gradient: those that each call takes, and those for each row of X.
#[pyfunction]
#[pyo3(name = "_saved_bytes")]
pub fn saved_bytes(
    params: &Bound<'_, PyAny>,
    n: Int,
    k: Int,
    for_x: bool,
    for_weight: bool,
) -> PyResult<(usize, usize)> {
    let params = PyParams::of(params)?;
    let (n, k) = (n.size("n")?, k.size("k")?);
    let layout = Layout::new(params, n, k, (for_x, for_weight));
    Ok((layout.scale_bytes(), layout.row_bytes(k)))
}

/// Weights to be prepared.
struct Source<'a> {
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl<'a> Source<'a> {
    /// # Safety
    /// As [`Memory::read`].
    unsafe fn at((n, k): (usize, usize), weight: usize, bias: usize) -> PyResult<Self> {
        // SAFETY: the caller's.
        unsafe {
            let weight = Memory::new("weight", weight).read(n.saturating_mul(k))?;
            let bias = if bias == 0 { None } else { Some(Memory::new("bias", bias).read(n)?) };
            Ok(Source { weight, bias })
        }
    }

    fn prepare(
        self,
        tier: Tier,
        threads: &Threads,
        params: &Params,
        shape: (usize, usize),
    ) -> Result<Layer, lumina_kernel::Error> {
        let weights = Weights::new(tier, threads, params, shape, WeightSource::F32(self.weight), None, None)?;
        Layer::new(params.clone(), weights, self.bias.map(<[f32]>::to_vec))
    }
}

/// What a forward pass reads and writes beside its weights.
struct Pass<'a> {
    x: &'a [f32],
    key: NoiseKey,
    y: &'a mut [f32],
    saved: Option<(&'a mut [f32], Saved<'a>)>,
}

impl Pass<'_> {
    fn run(self, threads: &Threads, layer: &Layer) -> Result<(), lumina_kernel::Error> {
        let saved = self.saved.map(|(scale, saved)| {
            if !scale.is_empty() {
                scale.copy_from_slice(layer.weights().scale());
            }
            saved
        });
        layer.forward(threads, self.x, self.key, self.y, saved)
    }
}

/// A tensor as DLPack describes it: the fields of `DLTensor`, in its order.
#[repr(C)]
struct Described {
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
const FLOAT32: (u8, u8) = (2, 32);
const UINT8: (u8, u8) = (1, 8);

/// An address from here on is one of memory. Below, it may be what torch says of a tensor whose storage has none: its offset
/// in the storage.
const MEMORY: usize = 1 << 36;

impl Described {
    /// Sizes of the dimensions, where this is a tensor of that type in the CPU's memory.
    fn sizes(&self, element: (u8, u8)) -> Option<&[i64]> {
        // SAFETY: as many sizes as dimensions lie there while the tensor lives.
        let sizes = unsafe { counts(self.shape, self.dimensions) };
        let fits = (self.code, self.bits) == element && self.lanes == 1 && self.device_type == ON_CPU;
        (fits && (!self.data.is_null() || sizes.contains(&0))).then_some(sizes)
    }

    /// The same, where in addition its elements stand one after another.
    fn dense(&self, element: (u8, u8)) -> Option<&[i64]> {
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
    fn address(&self) -> usize {
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
fn address(tensor: &Option<Described>, element: (u8, u8), count: usize) -> Option<usize> {
    match tensor {
        None => Some(0),
        Some(tensor) => (elements(tensor.dense(element)?) == count).then(|| tensor.address()),
    }
}

/// Whether the elements of a tensor lie in its storage: those of a `FakeTensor`, or of one whose storage was freed, lie nowhere.
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
fn elements(sizes: &[i64]) -> usize {
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

/// The passes on torch's tensors.
///
/// Args:
///     tensor: torch.Tensor.
///     parameter: torch.nn.Parameter.
#[pyclass(frozen, name = "_Tensors", module = "lumina_kernel")]
pub struct Tensors {
    tensor: Py<PyType>,
    parameter: Py<PyType>,
    describe: unsafe extern "C" fn(*mut ffi::PyObject, *mut Described) -> c_int,
}

#[pymethods]
impl Tensors {
    #[new]
    fn new(tensor: Bound<'_, PyType>, parameter: Bound<'_, PyType>) -> PyResult<Self> {
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
        Ok(Tensors { tensor: tensor.unbind(), parameter: parameter.unbind(), describe })
    }

    /// Whether this is a float32 tensor in the CPU's memory, and no wrapper of one.
    fn is_float(&self, tensor: &Bound<'_, PyAny>) -> bool {
        self.plain(tensor).is_some_and(|tensor| tensor.sizes(FLOAT32).is_some())
    }

    /// Whether these are such an input [..., K], weight [N, K] and bias [N] or None.
    fn are_call(&self, x: &Bound<'_, PyAny>, weight: &Bound<'_, PyAny>, bias: &Bound<'_, PyAny>) -> bool {
        let (Some(x), Some(weight)) = (self.plain(x), self.plain(weight)) else { return false };
        let (Some(x), Some([n, k])) = (x.sizes(FLOAT32), weight.sizes(FLOAT32)) else { return false };
        let fits = *n > 0 && *k > 0 && x.last() == Some(k);
        fits && (bias.is_none() || self.plain(bias).is_some_and(|bias| bias.sizes(FLOAT32) == Some(&[*n])))
    }

    /// A `PreparedLayer` of a weight [N, K] and a bias [N] or None.
    fn prepare(
        &self,
        py: Python<'_>,
        params: &Bound<'_, PyAny>,
        weight: &Bound<'_, PyAny>,
        bias: Option<&Bound<'_, PyAny>>,
        threads: usize,
    ) -> PyResult<PyPreparedLayer> {
        let params = PyParams::of(params)?;
        let refused = || PyValueError::new_err("weight or bias is no dense float32 tensor [N, K] or [N]");
        let weight = self.described(weight).ok_or_else(refused)?;
        let Some([n, k]) = weight.dense(FLOAT32) else { return Err(refused()) };
        let (n, k) = (*n as usize, *k as usize);
        params.check_shape(n, k).map_err(to_python)?;
        let bias = self.optional(bias).and_then(|bias| address(&bias, FLOAT32, n)).ok_or_else(refused)?;
        // SAFETY: tensors of these sizes, which whoever calls keeps and does not change for the time of the call.
        let source = unsafe { Source::at((n, k), weight.address(), bias)? };
        let (tier, threads) = (tier()?, Threads::of_torch(py, threads)?);
        run(py, cost(0, n, k, true), || source.prepare(tier, &threads, params, (n, k)))?
            .map(PyPreparedLayer)
            .map_err(to_python)
    }

    /// The forward pass. Where `layer` is a `PreparedLayer`, its weights serve and `weight` and `bias` are not read.
    /// `saved` receives what the gradients of X (`for_x`) and of W (`for_weight`) need, unless it is None.
    ///
    /// Returns:
    ///     Whether all tensors are dense and of the right type and size: if not, nothing was done.
    #[allow(clippy::too_many_arguments, reason = "one for each tensor")]
    fn forward(
        &self,
        py: Python<'_>,
        params: &Bound<'_, PyAny>,
        layer: Option<&Bound<'_, PyPreparedLayer>>,
        x: &Bound<'_, PyAny>,
        weight: &Bound<'_, PyAny>,
        bias: Option<&Bound<'_, PyAny>>,
        seed: Int,
        stream: Int,
        y: &Bound<'_, PyAny>,
        saved: Option<&Bound<'_, PyAny>>,
        for_x: bool,
        for_weight: bool,
        threads: usize,
    ) -> PyResult<bool> {
        let params = PyParams::of(params)?;
        let (Some(x), Some(weight), Some(bias)) = (self.described(x), self.described(weight), self.optional(bias))
        else {
            return Ok(false);
        };
        let (Some(y), Some(saved)) = (self.described(y), self.optional(saved)) else { return Ok(false) };
        let (Some(sizes), Some([n, k])) = (x.dense(FLOAT32), weight.dense(FLOAT32)) else { return Ok(false) };
        let (n, k) = (*n as usize, *k as usize);
        params.check_shape(n, k).map_err(to_python)?;
        if sizes.last() != Some(&(k as i64)) || layer.is_some_and(|layer| layer.get().shape() != (n, k)) {
            return Ok(false);
        }
        let rows = elements(&sizes[..sizes.len() - 1]);
        let layout = Layout::new(params, n, k, (for_x, for_weight));
        let bias = address(&bias, FLOAT32, n);
        let saved_address = address(&saved, UINT8, layout.bytes(rows, k));
        let y = address(&Some(y), FLOAT32, rows.saturating_mul(n));
        let (Some(bias), Some(y), Some(saved_address)) = (bias, y, saved_address) else {
            return Ok(false);
        };
        let key = NoiseKey { seed: seed.counter("seed")?, stream: stream.counter("stream")? };
        // SAFETY: tensors of these sizes. Whoever calls keeps them for the time of the call, changes none, and has made `y`
        // and `saved` for it.
        let pass = unsafe {
            let x: &[f32] = Memory::new("x", x.address()).read(rows.saturating_mul(k))?;
            let y: &mut [f32] = Memory::new("y", y).write(rows.saturating_mul(n))?;
            let saved = if saved.is_none() { None } else { Some(layout.write(saved_address, (rows, k))?) };
            Pass { x, key, y, saved }
        };
        let (tier, threads) = (tier()?, Threads::of_torch(py, threads)?);
        match layer {
            Some(layer) => {
                let layer = &layer.get().0;
                run(py, cost(rows, n, k, false), || pass.run(&threads, layer))?
            }
            None => {
                // SAFETY: as above.
                let source = unsafe { Source::at((n, k), weight.address(), bias)? };
                run(py, cost(rows, n, k, true), || {
                    pass.run(&threads, &source.prepare(tier, &threads, params, (n, k))?)
                })?
            }
        }
        .map_err(|error| renamed(error, &[("input", "x")]))?;
        Ok(true)
    }

    /// `backward`. `dx`, `dw` and `db` are None where they are not asked for. `weight` is read for `dx`, and `x` for `dw`
    /// where it is analog. `for_x` and `for_weight` are those of the forward pass: they say what is in `saved`.
    ///
    /// Returns:
    ///     As `forward`.
    #[allow(clippy::too_many_arguments, reason = "one for each tensor")]
    fn backward(
        &self,
        py: Python<'_>,
        params: &Bound<'_, PyAny>,
        k: usize,
        dy: &Bound<'_, PyAny>,
        x: Option<&Bound<'_, PyAny>>,
        weight: Option<&Bound<'_, PyAny>>,
        saved: &Bound<'_, PyAny>,
        dx: Option<&Bound<'_, PyAny>>,
        dw: Option<&Bound<'_, PyAny>>,
        db: Option<&Bound<'_, PyAny>>,
        precision: Text,
        for_x: bool,
        for_weight: bool,
        threads: usize,
    ) -> PyResult<bool> {
        let params = PyParams::of(params)?;
        let (Some(dy), Some(saved)) = (self.described(dy), self.described(saved)) else { return Ok(false) };
        let Some([leading @ .., n]) = dy.dense(FLOAT32) else { return Ok(false) };
        let (m, n) = (elements(leading), *n as usize);
        params.check_shape(n, k).map_err(to_python)?;
        let precision = precision.checked("precision", PRECISIONS, Some)?;
        let precision = Precision::from_name(&precision).map_err(to_python)?;
        let layout = Layout::new(params, n, k, (for_x, for_weight));
        let Some(saved) = address(&Some(saved), UINT8, layout.bytes(m, k)) else { return Ok(false) };
        let floats = |tensor, count| self.optional(tensor).and_then(|tensor| address(&tensor, FLOAT32, count));
        let shaped = |tensor: Option<&Bound<'_, PyAny>>, leading: &[i64]| {
            let tensor = self.optional(tensor)?;
            let fits = |sizes: &[i64]| sizes.split_last() == Some((&(k as i64), leading));
            let other = tensor.as_ref().is_some_and(|tensor| !tensor.dense(FLOAT32).is_some_and(fits));
            if other { None } else { Some(tensor.map_or(0, |tensor| tensor.address())) }
        };
        let (Some(x), Some(weight)) = (shaped(x, leading), shaped(weight, &[n as i64])) else { return Ok(false) };
        let (of_x, of_y, of_weight) = (m.saturating_mul(k), m.saturating_mul(n), n.saturating_mul(k));
        let wanted = (floats(dx, of_x), floats(dw, of_weight), floats(db, n));
        let (Some(x_out), Some(weight_out), Some(bias_out)) = wanted else { return Ok(false) };
        let mut saved = Memory::new("saved", saved);
        // SAFETY: as in `forward`; `dx`, `dw` and `db` were made for this call.
        let (inputs, outputs) = unsafe {
            let write = |name, tensor: Option<_>, address, count| {
                tensor.map(|_| Memory::new(name, address).write::<f32>(count)).transpose()
            };
            let scale = saved.read(layout.scale.0)?;
            saved.take::<u8>(layout.scale.1)?;
            let weight = if for_x && dx.is_some() {
                let values = Memory::new("weight", weight).read(of_weight)?;
                Some(Weight { values, scale })
            } else {
                None
            };
            let x = match layout.codes {
                Some(0) if dw.is_none() => {
                    saved.take::<f32>(m)?;
                    None
                }
                Some(bits) => {
                    let values = saved.operand(&mut Memory::new("x", x), bits, m, k)?;
                    Some(Factor { values, steps: saved.read(m)? })
                }
                None => None,
            };
            let mut mask = |bytes: usize| match bytes {
                0 => Ok(None),
                bytes => saved.read(m.saturating_mul(bytes)).map(Some),
            };
            let inputs = Inputs {
                shape: (m, n, k),
                dy: Memory::new("dy", dy.address()).read(of_y)?,
                x,
                weight,
                adc_mask: mask(layout.adc)?,
                dac_mask: mask(layout.dac)?,
            };
            let outputs = Outputs {
                x: write("dx", dx, x_out, of_x)?,
                weight: write("dw", dw, weight_out, of_weight)?,
                bias: write("db", db, bias_out, n)?,
            };
            (inputs, outputs)
        };
        let products = usize::from(outputs.x.is_some()) + usize::from(outputs.weight.is_some());
        let (tier, threads) = (tier()?, Threads::of_torch(py, threads)?);
        let work = || lumina_kernel::backward(tier, &threads, params, precision, &inputs, outputs);
        run(py, backward_cost(products, m, n, k), work)?.map_err(to_python)?;
        Ok(true)
    }
}

impl Tensors {
    /// What a tensor is; `None` where it cannot be said, as of a wrapper, and where its memory is not there.
    fn described(&self, tensor: &Bound<'_, PyAny>) -> Option<Described> {
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
    fn optional(&self, tensor: Option<&Bound<'_, PyAny>>) -> Option<Option<Described>> {
        match tensor {
            None => Some(None),
            Some(tensor) => self.described(tensor).map(Some),
        }
    }

    /// The same of a tensor that is of no subclass but `torch.nn.Parameter`.
    fn plain(&self, tensor: &Bound<'_, PyAny>) -> Option<Described> {
        if self.is_plain(tensor) { self.described(tensor) } else { None }
    }
}
