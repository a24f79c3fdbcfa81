//! The passes on torch's tensors, for `lumina_onnx.nn`. Other callers use the functions that take arrays.

#![allow(unsafe_code, reason = "tensors are read and written in place")]

use lumina_kernel::backward::Outputs;
use lumina_kernel::precision::{PRECISIONS, Precision};
use lumina_kernel::{NoiseKey, cost};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::dlpack::{self, FLOAT32, TensorReader, UINT8, address, elements};
use crate::error::{renamed, to_python};
use crate::executor::Threads;
use crate::forward::{ForwardPass, Source, fresh_ns, run};
use crate::layer::PyPreparedLayer;
use crate::numbers::{Int, Text};
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

/// The passes on torch's tensors.
///
/// Args:
///     tensor: torch.Tensor.
///     parameter: torch.nn.Parameter.
#[pyclass(frozen, name = "_Tensors", module = "lumina_kernel")]
pub struct Tensors(TensorReader);

#[pymethods]
impl Tensors {
    #[new]
    fn new(tensor: Bound<'_, PyType>, parameter: Bound<'_, PyType>) -> PyResult<Self> {
        TensorReader::new(tensor, parameter).map(Tensors)
    }

    /// Whether this is a float32 tensor in the CPU's memory, and not a wrapper of one.
    fn is_float(&self, tensor: &Bound<'_, PyAny>) -> bool {
        self.0.plain(tensor).is_some_and(|tensor| tensor.sizes(FLOAT32).is_some())
    }

    /// Whether these are such tensors: an input [..., K], a weight [N, K], and a bias [N] or None.
    fn are_call(&self, x: &Bound<'_, PyAny>, weight: &Bound<'_, PyAny>, bias: &Bound<'_, PyAny>) -> bool {
        let (Some(x), Some(weight)) = (self.0.plain(x), self.0.plain(weight)) else { return false };
        let (Some(x), Some([n, k])) = (x.sizes(FLOAT32), weight.sizes(FLOAT32)) else { return false };
        let fits = *n > 0 && *k > 0 && x.last() == Some(k);
        fits && (bias.is_none() || self.0.plain(bias).is_some_and(|bias| bias.sizes(FLOAT32) == Some(&[*n])))
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
        let weight = self.0.described(weight).ok_or_else(refused)?;
        let Some([n, k]) = weight.dense(FLOAT32) else { return Err(refused()) };
        let (n, k) = (*n as usize, *k as usize);
        let bias = self.0.optional(bias).and_then(|bias| address(&bias, FLOAT32, n)).ok_or_else(refused)?;
        // SAFETY: these are tensors of these sizes, which the caller keeps and does not change during the call.
        let source = unsafe { source((n, k), weight.address(), bias)? };
        let (tier, threads) = (tier()?, Threads::of_torch(py, threads)?);
        run(py, cost::weights_ns(tier, n, k), || source.prepare(tier, &threads, params))?
            .map(PyPreparedLayer)
            .map_err(to_python)
    }

    /// The forward pass. If `layer` is a `PreparedLayer`, its weights are used, and `weight` and `bias` are not read.
    /// `saved`, unless it is None, receives what the gradients of X (`for_x`) and of W (`for_weight`) need.
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
        let (Some(x), Some(weight), Some(bias)) =
            (self.0.described(x), self.0.described(weight), self.0.optional(bias))
        else {
            return Ok(false);
        };
        let (Some(y), Some(saved)) = (self.0.described(y), self.0.optional(saved)) else { return Ok(false) };
        let (Some(sizes), Some([n, k])) = (x.dense(FLOAT32), weight.dense(FLOAT32)) else { return Ok(false) };
        let (n, k) = (*n as usize, *k as usize);
        if sizes.last() != Some(&(k as i64)) || layer.is_some_and(|layer| layer.get().shape() != (n, k)) {
            return Ok(false);
        }
        let rows = elements(&sizes[..sizes.len() - 1]);
        let layout = SavedLayout::new(params, n, k, (for_x, for_weight));
        let bytes = layout.bytes(rows);
        let bias = address(&bias, FLOAT32, n);
        let saved_address = address(&saved, UINT8, bytes);
        let y = address(&Some(y), FLOAT32, rows.saturating_mul(n));
        let (Some(bias), Some(y), Some(saved_address)) = (bias, y, saved_address) else {
            return Ok(false);
        };
        let key = NoiseKey { seed: seed.counter("seed")?, stream: stream.counter("stream")? };
        // SAFETY: these are tensors of these sizes. The caller keeps them during the call, changes none, and has
        // created `y` and `saved` for it.
        let pass = unsafe {
            let x = dlpack::read("x", x.address(), rows.saturating_mul(k))?;
            let y = dlpack::write("y", y, rows.saturating_mul(n))?;
            let saved = match saved {
                None => None,
                Some(_) => Some(layout.split_mut(dlpack::write("saved", saved_address, bytes)?, rows)?),
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
        Ok(true)
    }

    /// The backward pass. `dx`, `dw` and `db` are None if they are not asked for. `weight` is read for `dx`, and an
    /// analog `x` for `dw`. `for_x` and `for_weight` are those of the forward pass: they say what is in `saved`.
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
        let (Some(dy), Some(saved)) = (self.0.described(dy), self.0.described(saved)) else { return Ok(false) };
        let Some([leading @ .., n]) = dy.dense(FLOAT32) else { return Ok(false) };
        let (m, n) = (elements(leading), *n as usize);
        let precision = precision.checked("precision", PRECISIONS, Some)?;
        let precision = Precision::from_name(&precision).map_err(to_python)?;
        let layout = SavedLayout::new(params, n, k, (for_x, for_weight));
        let bytes = layout.bytes(m);
        let Some(saved) = address(&Some(saved), UINT8, bytes) else { return Ok(false) };
        let floats = |tensor, count| self.0.optional(tensor).and_then(|tensor| address(&tensor, FLOAT32, count));
        let shaped = |tensor: Option<&Bound<'_, PyAny>>, leading: &[i64]| {
            let tensor = self.0.optional(tensor)?;
            let fits = |sizes: &[i64]| sizes.split_last() == Some((&(k as i64), leading));
            let other = tensor.as_ref().is_some_and(|tensor| !tensor.dense(FLOAT32).is_some_and(fits));
            if other { None } else { Some(tensor.map_or(0, |tensor| tensor.address())) }
        };
        let (Some(x), Some(weight)) = (shaped(x, leading), shaped(weight, &[n as i64])) else { return Ok(false) };
        let (of_x, of_y, of_weight) = (m.saturating_mul(k), m.saturating_mul(n), n.saturating_mul(k));
        let wanted = (floats(dx, of_x), floats(dw, of_weight), floats(db, n));
        let (Some(x_out), Some(weight_out), Some(bias_out)) = wanted else { return Ok(false) };
        // SAFETY: as in `forward`; `dx`, `dw` and `db` were created for this call.
        let (inputs, outputs) = unsafe {
            let saved = layout.split(dlpack::read("saved", saved, bytes)?, m)?;
            let weight = if for_x && dx.is_some() { Some(dlpack::read("weight", weight, of_weight)?) } else { None };
            let is_analog = for_weight && params.input_bits == 0;
            let x = if is_analog && dw.is_some() { Some(dlpack::read("x", x, of_x)?) } else { None };
            let inputs = saved.inputs(dlpack::read("dy", dy.address(), of_y)?, x, weight);
            let write = |name, tensor: Option<_>, address, count| {
                tensor.map(|_| dlpack::write::<f32>(name, address, count)).transpose()
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
        run(py, cost::backward_ns(tier, products, (m, n, k)), work)?.map_err(to_python)?;
        Ok(true)
    }
}
