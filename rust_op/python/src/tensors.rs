//! The passes on torch's tensors, for `lumina_onnx.nn`. Other callers use the functions that take arrays.

#![allow(unsafe_code, reason = "tensors are read and written in place")]

use lumina_kernel::backward::Outputs;
use lumina_kernel::precision::Precision;
use lumina_kernel::{NoiseKey, cost};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

use crate::dlpack::{self, Described, Element, FLOAT32, TensorReader, UINT8, address, elements};
use crate::error::{renamed, to_python};
use crate::executor::Threads;
use crate::forward::{ForwardPass, Source, fresh_ns, run};
use crate::layer::PyPreparedLayer;
use crate::numbers::Int;
use crate::params::PyParams;
use crate::saved_layout::SavedLayout;
use crate::schema::tier;

/// Weights and a bias to be prepared; a bias at address 0 is absent.
///
/// # Safety
/// As for [`dlpack::read`].
unsafe fn source<'a>(shape: (usize, usize), weight: usize, bias: usize) -> PyResult<Source<'a>> {
    // SAFETY: by this function's contract.
    unsafe {
        let weight = dlpack::read("weight", weight, shape.0.saturating_mul(shape.1))?;
        let bias = if bias == 0 { None } else { Some(dlpack::read("bias", bias, shape.0)?) };
        Ok(Source { shape, weight, scale: None, bias })
    }
}

/// Makes torch's tensors.
struct Maker {
    /// Makes a tensor in the CPU's memory from its sizes, strides and dtype.
    empty: Py<PyAny>,
    float32: Py<PyAny>,
    uint8: Py<PyAny>,
}

impl Maker {
    /// A contiguous tensor whose elements have no values yet.
    fn make<'py>(&self, py: Python<'py>, dtype: &Py<PyAny>, sizes: &[i64]) -> PyResult<Bound<'py, PyAny>> {
        let mut strides = vec![1; sizes.len()];
        for axis in (1..sizes.len()).rev() {
            strides[axis - 1] = sizes[axis].max(1).saturating_mul(strides[axis]);
        }
        self.empty.bind(py).call1((PyTuple::new(py, sizes)?, PyTuple::new(py, strides)?, dtype))
    }

    /// [`Maker::make`] of float32, if it is `wanted`.
    fn floats<'py>(&self, py: Python<'py>, wanted: bool, sizes: &[i64]) -> PyResult<Option<Bound<'py, PyAny>>> {
        wanted.then(|| self.make(py, &self.float32, sizes)).transpose()
    }
}

/// A tensor as Python has it.
type Tensor<'py> = Bound<'py, PyAny>;

/// The passes on torch's tensors.
///
/// Args:
///     tensor: torch.Tensor.
///     parameter: torch.nn.Parameter.
///     empty: makes a tensor in the CPU's memory from its sizes, strides and dtype.
///     float32: torch.float32.
///     uint8: torch.uint8.
///     describe: returns a tensor's dtype, address, sizes and strides, or None if it is not in the CPU's memory. None:
///         the table of C functions that `tensor` has does so, in a tenth of the time.
#[pyclass(frozen, name = "_Tensors", module = "lumina_kernel")]
pub struct Tensors {
    reader: TensorReader,
    maker: Maker,
}

#[pymethods]
impl Tensors {
    #[new]
    #[pyo3(signature = (tensor, parameter, empty, float32, uint8, describe=None))]
    fn new(
        py: Python<'_>,
        tensor: Bound<'_, PyType>,
        parameter: Bound<'_, PyType>,
        empty: Py<PyAny>,
        float32: Py<PyAny>,
        uint8: Py<PyAny>,
        describe: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let reader = match describe {
            None => TensorReader::new(tensor, parameter)?,
            Some(describe) => {
                TensorReader::slow(tensor, parameter, describe, float32.clone_ref(py), uint8.clone_ref(py))
            }
        };
        Ok(Tensors { reader, maker: Maker { empty, float32, uint8 } })
    }

    /// Whether this is a float32 tensor in the CPU's memory, and not a wrapper of one.
    fn is_float(&self, tensor: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.reader.plain(tensor)?.is_some_and(|tensor| tensor.sizes(FLOAT32).is_some()))
    }

    /// Whether these are such tensors: an input [..., K], a weight [N, K], and a bias [N] or None.
    fn are_call(&self, x: &Bound<'_, PyAny>, weight: &Bound<'_, PyAny>, bias: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Some(x) = self.reader.plain(x)? else { return Ok(false) };
        let Some(weight) = self.reader.plain(weight)? else { return Ok(false) };
        let (Some(x), Some([n, k])) = (x.sizes(FLOAT32), weight.sizes(FLOAT32)) else { return Ok(false) };
        if *n == 0 || *k == 0 || x.last() != Some(k) {
            return Ok(false);
        }
        Ok(bias.is_none() || self.reader.plain(bias)?.is_some_and(|bias| bias.sizes(FLOAT32) == Some(&[*n])))
    }

    /// A `PreparedLayer` from a weight [N, K], and a bias [N] or None.
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
        let operand = |tensor| self.reader.operand(tensor);
        let weight = operand(weight)?.ok_or_else(refused)?;
        let Some([n, k]) = weight.dense(FLOAT32) else { return Err(refused()) };
        let (n, k) = (*n as usize, *k as usize);
        let bias = optional(bias, operand)?.and_then(|bias| address(&bias, FLOAT32, n)).ok_or_else(refused)?;
        // SAFETY: these are tensors of these sizes, which the caller keeps and does not change during the call.
        let source = unsafe { source((n, k), weight.address(), bias)? };
        let (tier, threads) = (tier()?, Threads::of_torch(py, threads)?);
        run(py, cost::weights_ns(tier, n, k), || source.prepare(tier, &threads, params))?
            .map(PyPreparedLayer)
            .map_err(to_python)
    }

    /// The forward pass. If `layer` is a `PreparedLayer`, its weights are used, and only the shapes of `weight` and
    /// `bias` are read. `kept` says whether the gradients of X and of W may be asked for; None: neither.
    ///
    /// Returns:
    ///     Y, and the bytes that the gradients need (None where `kept` is). None, and nothing was done, if an operand is
    ///     not dense, of another type or size, or stands for its negative.
    #[allow(clippy::too_many_arguments, reason = "one for each tensor")]
    fn forward<'py>(
        &self,
        py: Python<'py>,
        params: &Bound<'py, PyAny>,
        layer: Option<&Bound<'py, PyPreparedLayer>>,
        x: &Tensor<'py>,
        weight: &Tensor<'py>,
        bias: Option<&Tensor<'py>>,
        seed: Int,
        stream: Int,
        kept: Option<(bool, bool)>,
        threads: usize,
    ) -> PyResult<Option<(Tensor<'py>, Option<Tensor<'py>>)>> {
        let params = PyParams::of(params)?;
        let reader = &self.reader;
        let unread = layer.is_some();
        let of_layer = |tensor| if unread { reader.described(tensor) } else { reader.operand(tensor) };
        let Some(x) = reader.operand(x)? else { return Ok(None) };
        let Some(weight) = of_layer(weight)? else { return Ok(None) };
        let Some(bias) = optional(bias, of_layer)? else { return Ok(None) };
        let (Some(sizes), Some([n, k])) = (x.dense(FLOAT32), weight.dense(FLOAT32)) else { return Ok(None) };
        let (n, k) = (*n as usize, *k as usize);
        if sizes.last() != Some(&(k as i64)) || layer.is_some_and(|layer| layer.get().shape() != (n, k)) {
            return Ok(None);
        }
        let Some(bias) = address(&bias, FLOAT32, n) else { return Ok(None) };
        let key = NoiseKey { seed: seed.counter("seed")?, stream: stream.counter("stream")? };
        let rows = elements(&sizes[..sizes.len() - 1]);

        let mut sizes = sizes.to_vec();
        *sizes.last_mut().expect("an input has a last dimension") = n as i64;
        let y = self.maker.make(py, &self.maker.float32, &sizes)?;
        let layout = kept.map(|kept| SavedLayout::new(params, n, k, kept));
        let saved = layout.map(|layout| {
            let bytes = layout.bytes(rows);
            self.maker.make(py, &self.maker.uint8, &[bytes as i64]).map(|saved| (saved, bytes))
        });
        let saved = saved.transpose()?;
        // SAFETY: these are tensors of these sizes. The caller keeps them during the call and changes none; `y` and
        // `saved` were made above.
        let pass = unsafe {
            let x = dlpack::read("x", x.address(), rows.saturating_mul(k))?;
            let y = self.made("y", &y, rows.saturating_mul(n))?;
            let saved = match (layout, &saved) {
                (Some(layout), Some((saved, bytes))) => {
                    Some(layout.split_mut(self.made("saved", saved, *bytes)?, rows)?)
                }
                _ => None,
            };
            ForwardPass { x, key, y, saved }
        };
        let (tier, threads) = (tier()?, Threads::of_torch(py, threads)?);
        match layer {
            Some(layer) => {
                let layer = &layer.get().0;
                run(py, layer.forward_ns(rows), || pass.run(&threads, layer))?
            }
            None => {
                // SAFETY: as above.
                let source = unsafe { source((n, k), weight.address(), bias)? };
                run(py, fresh_ns(tier, params, (rows, n, k)), || {
                    pass.run(&threads, &source.prepare(tier, &threads, params)?)
                })?
            }
        }
        .map_err(|error| renamed(error, &[("input", "x")]))?;
        Ok(Some((y, saved.map(|(saved, _)| saved))))
    }

    /// The backward pass: the gradients that are `needed`, of x, weight and bias. `weight` is read for that of x, and an
    /// analog `x` for that of weight. `kept` is that of the forward pass: it says what is in `saved`.
    ///
    /// Returns:
    ///     The gradients, None for each that is not needed; None in place of all as from `forward`, and if `saved` is
    ///     not aligned.
    #[allow(clippy::too_many_arguments, reason = "one for each tensor")]
    fn backward<'py>(
        &self,
        py: Python<'py>,
        params: &Bound<'py, PyAny>,
        k: usize,
        dy: &Tensor<'py>,
        x: Option<&Tensor<'py>>,
        weight: Option<&Tensor<'py>>,
        saved: &Tensor<'py>,
        needed: (bool, bool, bool),
        kept: (bool, bool),
        precision: &str,
        threads: usize,
    ) -> PyResult<Option<Gradients<'py>>> {
        let params = PyParams::of(params)?;
        let Some(dy) = self.reader.operand(dy)? else { return Ok(None) };
        let Some(saved) = self.reader.described(saved)? else { return Ok(None) };
        let Some([leading @ .., n]) = dy.dense(FLOAT32) else { return Ok(None) };
        let (m, n) = (elements(leading), *n as usize);
        let precision = Precision::from_name(precision).map_err(to_python)?;
        let layout = SavedLayout::new(params, n, k, kept);
        let bytes = layout.bytes(m);
        let Some(saved) = address(&Some(saved), UINT8, bytes) else { return Ok(None) };
        let of_x: Vec<i64> = leading.iter().copied().chain([k as i64]).collect();
        let of_weight = [n as i64, k as i64];
        let shaped = |tensor: Option<&Tensor<'py>>, sizes: &[i64]| -> PyResult<Option<usize>> {
            Ok(optional(tensor, |tensor| self.reader.operand(tensor))?.and_then(|tensor| match tensor {
                None => Some(0),
                Some(tensor) => (tensor.dense(FLOAT32)? == sizes).then(|| tensor.address()),
            }))
        };
        let Some(x) = shaped(x, &of_x)? else { return Ok(None) };
        let Some(weight) = shaped(weight, &of_weight)? else { return Ok(None) };
        if !saved.is_multiple_of(align_of::<f32>()) {
            return Ok(None);
        }

        let (need_x, need_weight, need_bias) = needed;
        let floats = |needed, sizes: &[i64]| self.maker.floats(py, needed, sizes);
        let dx = floats(need_x, &of_x)?;
        let dw = floats(need_weight, &of_weight)?;
        let db = floats(need_bias, &of_weight[..1])?;
        let (x_count, y_count, weight_count) = (m.saturating_mul(k), m.saturating_mul(n), n.saturating_mul(k));
        // SAFETY: as in `forward`; `dx`, `dw` and `db` were made above.
        let (inputs, outputs) = unsafe {
            let saved = layout.split(dlpack::read("saved", saved, bytes)?, m)?;
            let weight = if kept.0 && need_x { Some(dlpack::read("weight", weight, weight_count)?) } else { None };
            let is_analog = kept.1 && params.input_bits == 0;
            let x = if is_analog && need_weight { Some(dlpack::read("x", x, x_count)?) } else { None };
            let inputs = saved.inputs(dlpack::read("dy", dy.address(), y_count)?, x, weight);
            let write = |name, tensor: &Option<_>, count| {
                tensor.as_ref().map(|tensor| self.made(name, tensor, count)).transpose()
            };
            let outputs = Outputs {
                x: write("dx", &dx, x_count)?,
                weight: write("dw", &dw, weight_count)?,
                bias: write("db", &db, n)?,
            };
            (inputs, outputs)
        };
        let products = usize::from(need_x) + usize::from(need_weight);
        let (tier, threads) = (tier()?, Threads::of_torch(py, threads)?);
        let work = || lumina_kernel::backward(tier, &threads, params, precision, &inputs, outputs);
        run(py, cost::backward_ns(tier, products, (m, n, k)), work)?.map_err(to_python)?;
        Ok(Some((dx, dw, db)))
    }
}

impl Tensors {
    /// The memory of a tensor that was made for a call, to be written: `count` elements.
    ///
    /// # Safety
    /// As for [`dlpack::write`].
    unsafe fn made<'a, T: Element>(&self, name: &str, tensor: &Tensor<'_>, count: usize) -> PyResult<&'a mut [T]> {
        let made = self.reader.described(tensor)?.and_then(|tensor| address(&Some(tensor), T::TYPE, count));
        let address = made.ok_or_else(|| PyValueError::new_err(format!("torch made no dense tensor for {name}")))?;
        // SAFETY: by this function's contract.
        unsafe { dlpack::write(name, address, count) }
    }
}

/// The gradients of x, weight and bias.
type Gradients<'py> = (Option<Tensor<'py>>, Option<Tensor<'py>>, Option<Tensor<'py>>);

/// `describe` for a tensor that may be absent.
fn optional<'a, 'py>(
    tensor: Option<&'a Tensor<'py>>,
    describe: impl FnOnce(&'a Tensor<'py>) -> PyResult<Option<Described>>,
) -> PyResult<Option<Option<Described>>> {
    match tensor {
        None => Ok(Some(None)),
        Some(tensor) => Ok(describe(tensor)?.map(Some)),
    }
}
