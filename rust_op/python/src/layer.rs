//! A layer prepared once and called often, and the storage of weights.

use lumina_kernel::pack::{self, PACKED_BITS, packed_row_bytes};
use lumina_kernel::saved::{CodesMut, code_stride};
use lumina_kernel::{Layer, NoiseKey, Params, Spec, WeightSource, Weights, cost};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::{self, Arguments};
use crate::error::{renamed, to_python};
use crate::executor::Threads;
use crate::forward::{Source, call, run};
use crate::numbers::{Floats, Int};
use crate::params::PyParams;
use crate::schema::tier;
use crate::training::without_padding;

/// A layer whose weights are quantised and packed once.
///
/// Args:
///     params: the layer's parameters.
///     weight: float32 [N, K].
///     bias: float32 [N], or None.
///     weight_scale: step of one weight code, one number or one per output; None for the default.
///
/// Raises:
///     TypeError, ValueError: as optical_linear_forward; also for a weight or bias that is not finite.
#[pyclass(frozen, name = "PreparedLayer", module = "lumina_kernel")]
pub struct PyPreparedLayer(pub(crate) Layer);

impl PyPreparedLayer {
    /// N and K.
    pub fn shape(&self) -> (usize, usize) {
        (self.0.weights().n(), self.0.weights().k())
    }
}

#[pymethods]
impl PyPreparedLayer {
    #[new]
    #[pyo3(signature = (params, weight, bias=None, weight_scale=None))]
    fn new(
        py: Python<'_>,
        params: &Bound<'_, PyAny>,
        weight: &Bound<'_, PyAny>,
        bias: Option<&Bound<'_, PyAny>>,
        weight_scale: Option<Floats>,
    ) -> PyResult<Self> {
        let params = PyParams::of(params)?;
        let mut arguments = Arguments::default();
        let weight = arguments.read::<f32>("weight", weight)?;
        let (n, k) = arrays::two_dimensions("weight", weight.shape(), "[N, K]")?;
        let scale = weight_scale.map(|scale| scale.get("weight_scale")).transpose()?;
        let bias = bias.map(|bias| arguments.read_shaped::<f32>("bias", bias, &[n], "(N,)")).transpose()?;
        let bias = bias.as_ref().map(|bias| bias.as_slice()).transpose()?;
        let source = Source { shape: (n, k), weight: weight.as_slice()?, scale: scale.as_deref(), bias };
        let (tier, threads) = (tier()?, Threads::current(py)?);
        let build = || source.prepare(tier, &threads, params);
        run(py, cost::weights_ns(tier, n, k), build)?.map(PyPreparedLayer).map_err(to_python)
    }

    /// Y [..., N] for X [..., K], as from optical_linear_forward.
    #[pyo3(signature = (x, seed, stream, out=None))]
    fn forward<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        seed: Int,
        stream: Int,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let key = NoiseKey { seed: seed.counter("seed")?, stream: stream.counter("stream")? };
        let threads = Threads::current(py)?;
        let work = |x: &[f32], y: &mut [f32]| self.0.forward(&threads, x, key, y, None);
        call(&mut Arguments::default(), ("x", x), out, (self.n(), self.k()), |m| self.0.forward_ns(m), work)?
            .map_err(|error| renamed(error, &[("input", "x")]))
    }

    /// N, the outputs.
    #[getter]
    fn n(&self) -> usize {
        self.0.weights().n()
    }

    /// K, the inputs.
    #[getter]
    fn k(&self) -> usize {
        self.0.weights().k()
    }

    /// The step of one weight code, float32 [N]; ones where the weights are analog.
    #[getter]
    fn weight_scale<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        PyArray1::from_slice(py, self.0.weights().scale())
    }

    fn __repr__(&self) -> String {
        format!("PreparedLayer(n={}, k={})", self.n(), self.k())
    }
}

/// Quantises weights.
///
/// Args:
///     weight: float32 [N, K].
///     bits: 1..16.
///     weight_scale: step of one code, one number or one per output; None for max|w_n| / L, or with 1 bit
///         mean|w_n|.
///
/// Returns:
///     The codes [N, K] (int8; from 9 bits on int16) and the scale, float32 [N].
#[pyfunction]
#[pyo3(signature = (weight, bits, weight_scale=None))]
pub fn quantize_weight<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
    bits: Int,
    weight_scale: Option<Floats>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyArray1<f32>>)> {
    let weight_bits = bits.checked("bits", "1..16", |bits| (1..=16).contains(&bits).then_some(bits))?;
    let params = Params::new(&Spec { weight_bits, ..Spec::default() }).map_err(to_python)?;
    let weight = Arguments::default().read::<f32>("weight", weight)?;
    let (n, k) = arrays::two_dimensions("weight", weight.shape(), "[N, K]")?;
    let scale = weight_scale.map(|scale| scale.get("weight_scale")).transpose()?;
    let weight = weight.as_slice()?;
    let (tier, threads) = (tier()?, Threads::current(py)?);
    let quantize = |codes: CodesMut<'_>| {
        let source = WeightSource::F32(weight);
        run(py, cost::weights_ns(tier, n, k), || {
            Weights::new(tier, &threads, &params, (n, k), source, scale.as_deref(), Some(codes))
        })?
        .map_err(to_python)
    };
    let (codes, weights) = if params.weight_bits <= 8 {
        let mut codes = vec![0i8; n * code_stride(k)];
        let weights = quantize(CodesMut::I8(&mut codes))?;
        (without_padding(py, &codes, (n, k))?, weights)
    } else {
        let mut codes = vec![0i16; n * code_stride(k)];
        let weights = quantize(CodesMut::I16(&mut codes))?;
        (without_padding(py, &codes, (n, k))?, weights)
    };
    Ok((codes, PyArray1::from_slice(py, weights.scale())))
}

fn packed_bits(bits: &Int) -> PyResult<u32> {
    bits.checked("bits", "1, 2 or 4", |bits| u32::try_from(bits).ok().filter(|bits| PACKED_BITS.contains(bits)))
}

/// Packs several codes to a byte, as a model file stores them: c + 2^(bits-1) (with 1 bit: 0 for -1 and 1
/// for +1), low bits first, rows padded with zero bits.
///
/// Args:
///     codes: int8 [N, K], each within -L..L (with 1 bit: -1 or +1).
///     bits: 1, 2 or 4.
///
/// Returns:
///     uint8 [N, ceil(K * bits / 8)].
#[pyfunction]
pub fn pack_weight<'py>(py: Python<'py>, codes: &Bound<'py, PyAny>, bits: Int) -> PyResult<Bound<'py, PyArray2<u8>>> {
    let bits = packed_bits(&bits)?;
    let codes = Arguments::default().read::<i8>("codes", codes)?;
    let (n, k) = arrays::two_dimensions("codes", codes.shape(), "[N, K]")?;
    if k == 0 {
        return Err(PyValueError::new_err("codes has K = 0 columns: allowed is at least 1"));
    }
    // A copy: another thread may write to the array between check and use.
    let codes = codes.as_slice()?.to_vec();
    for (row, codes) in codes.chunks_exact(k).enumerate() {
        pack::check_codes(bits, row, codes).map_err(|error| renamed(error, &[("weight", "codes")]))?;
    }
    PyArray1::from_vec(py, pack::pack_codes(bits, k, &codes)).reshape([n, packed_row_bytes(bits, k)])
}

/// The inverse of pack_weight.
///
/// Args:
///     packed: uint8 [N, ceil(K * bits / 8)].
///     bits: 1, 2 or 4.
///     in_features: K.
///
/// Returns:
///     The codes, int8 [N, K].
///
/// Raises:
///     ValueError: also for a code of -2^(bits-1), which no quantiser gives, and for padding bits that are not 0.
#[pyfunction]
pub fn unpack_weight<'py>(
    py: Python<'py>,
    packed: &Bound<'py, PyAny>,
    bits: Int,
    in_features: Int,
) -> PyResult<Bound<'py, PyArray2<i8>>> {
    let bits = packed_bits(&bits)?;
    let packed = Arguments::default().read::<u8>("packed", packed)?;
    let (n, columns) = arrays::two_dimensions("packed", packed.shape(), "[N, ceil(K * bits / 8)]")?;
    if columns == 0 {
        return Err(PyValueError::new_err("packed has rows of 0 bytes: allowed is at least 1"));
    }
    let per_byte = 8 / bits as usize;
    let allowed = format!(
        "{}..{} where a row has {columns} bytes of {per_byte} codes",
        (columns - 1) * per_byte + 1,
        columns * per_byte
    );
    let k = in_features.checked("in_features", &allowed, |k| {
        usize::try_from(k).ok().filter(|k| *k > 0 && packed_row_bytes(bits, *k) == columns)
    })?;
    let mut codes = vec![0i8; n * k];
    for (row, (packed, codes)) in packed.as_slice()?.chunks_exact(columns).zip(codes.chunks_exact_mut(k)).enumerate() {
        pack::unpack_row(bits, row, packed, codes).map_err(|error| renamed(error, &[("weight", "packed")]))?;
    }
    PyArray1::from_vec(py, codes).reshape([n, k])
}
