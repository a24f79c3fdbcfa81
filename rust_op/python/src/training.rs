//! A forward pass with its gradient, on arrays.

use lumina_kernel::backward::{Operand, Outputs};
use lumina_kernel::precision::{PRECISIONS, Precision};
use lumina_kernel::saved::{code_stride, mask_bits};
use lumina_kernel::{NoiseKey, Params, cost};
use numpy::{Element, PyArray1, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;

use crate::arrays::{self, Arguments};
use crate::error::{renamed, to_python};
use crate::executor::Threads;
use crate::forward::{ForwardPass, Source, fresh_ns, run};
use crate::numbers::{Int, Text};
use crate::params::PyParams;
use crate::saved_layout::{Parts, SavedLayout};
use crate::schema::tier;

/// Bytes at an address that is a multiple of 64.
struct Bytes {
    memory: Vec<u8>,
    offset: usize,
    length: usize,
}

impl Bytes {
    const ALIGNMENT: usize = 64;

    fn new(length: usize) -> PyResult<Self> {
        let (mut memory, whole) = (Vec::new(), length.saturating_add(Self::ALIGNMENT));
        memory.try_reserve_exact(whole).map_err(|error| PyMemoryError::new_err(error.to_string()))?;
        memory.resize(whole, 0);
        let offset = memory.as_ptr().align_offset(Self::ALIGNMENT);
        Ok(Bytes { memory, offset, length })
    }

    fn as_slice(&self) -> &[u8] {
        &self.memory[self.offset..][..self.length]
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.offset..][..self.length]
    }
}

/// The forward pass, and what its gradient needs.
///
/// Args:
///     params: the layer's parameters.
///     x: float32 [M, K].
///     weight: float32 [N, K]; quantised here.
///     bias: float32 [N], or None.
///     seed, stream: 0..2^63-1, key of the noise.
///
/// Returns:
///     Y, float32 [M, N], and a `Saved`, whose method is `backward`.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "one for each array and number")]
pub fn forward_train<'py>(
    py: Python<'py>,
    params: &Bound<'py, PyAny>,
    x: &Bound<'py, PyAny>,
    weight: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    seed: Int,
    stream: Int,
) -> PyResult<(Bound<'py, PyAny>, PySaved)> {
    let params = PyParams::of(params)?;
    let key = NoiseKey { seed: seed.counter("seed")?, stream: stream.counter("stream")? };
    let mut arguments = Arguments::default();
    let (x_object, weight_object) = (x, weight);
    let x = arguments.read::<f32>("x", x)?;
    let (m, k) = arrays::two_dimensions("x", x.shape(), "[M, K]")?;
    let weight = arguments.read::<f32>("weight", weight)?;
    let (n, columns) = arrays::two_dimensions("weight", weight.shape(), "[N, K]")?;
    if columns != k {
        return Err(PyValueError::new_err(format!(
            "weight has shape {}: allowed is (N, K) with K = {k}, the columns of x",
            arrays::Shape(&[n, columns])
        )));
    }
    let bias = bias.map(|bias| arguments.read_shaped::<f32>("bias", bias, &[n], "(N,)")).transpose()?;
    let bias = bias.as_ref().map(|bias| bias.as_slice()).transpose()?;

    let y_object = arrays::new_like(x_object, &[m, n])?;
    let mut y = arguments.write::<f32>("y", &y_object)?;
    let layout = SavedLayout::new(params, n, k, (true, true));
    let mut bytes = Bytes::new(layout.bytes(m))?;
    let saved = Some(layout.split_mut(bytes.as_mut_slice(), m)?);
    let pass = ForwardPass { x: x.as_slice()?, key, y: y.as_slice_mut()?, saved };
    let source = Source { shape: (n, k), weight: weight.as_slice()?, scale: None, bias };
    let (tier, threads) = (tier()?, Threads::current(py)?);
    run(py, fresh_ns(tier, params, (m, n, k)), || pass.run(&threads, &source.prepare(tier, &threads, params)?))?
        .map_err(|error| renamed(error, &[("input", "x")]))?;
    drop(y);
    let x = (params.input_bits == 0).then(|| x_object.clone().unbind());
    let weight = weight_object.clone().unbind();
    Ok((y_object, PySaved { params: params.clone(), shape: (m, n, k), layout, bytes, x, weight }))
}

/// What `forward_train` saved for the gradient. It refers to the weights, and to x if that is analog: they must be
/// unchanged when `backward` is called.
#[pyclass(frozen, name = "Saved", module = "lumina_kernel")]
pub struct PySaved {
    params: Params,
    shape: (usize, usize, usize),
    layout: SavedLayout,
    bytes: Bytes,
    /// X, where it is analog.
    x: Option<Py<PyAny>>,
    weight: Py<PyAny>,
}

impl PySaved {
    fn parts(&self) -> PyResult<Parts<'_>> {
        self.layout.split(self.bytes.as_slice(), self.shape.0)
    }

    /// The bits of a mask `[M, tiles, columns]`, or of `[M, columns]` where there is one tile.
    fn saturated<'py>(
        &self,
        py: Python<'py>,
        mask: Option<&[u8]>,
        (tiles, columns): (usize, usize),
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(mask) = mask else { return Ok(None) };
        let bits = PyArray1::from_vec(py, mask_bits(mask, columns).collect::<Vec<bool>>());
        let m = self.shape.0;
        Ok(Some(match tiles {
            1 => bits.reshape([m, columns])?.into_any(),
            _ => bits.reshape([m, tiles, columns])?.into_any(),
        }))
    }
}

/// Rows of K codes, from rows of `code_stride(K)`.
pub fn without_padding<'py, T: Element + Copy>(
    py: Python<'py>,
    padded: &[T],
    (rows, k): (usize, usize),
) -> PyResult<Bound<'py, PyAny>> {
    let mut codes = Vec::with_capacity(rows * k);
    padded.chunks_exact(code_stride(k)).for_each(|row| codes.extend_from_slice(&row[..k]));
    Ok(PyArray1::from_vec(py, codes).reshape([rows, k])?.into_any())
}

#[pymethods]
impl PySaved {
    /// The straight-through gradient.
    ///
    /// Args:
    ///     dy: float32 [M, N].
    ///     precision: "highest", "high" or "medium", as in torch.set_float32_matmul_precision; or "8 bits".
    ///
    /// "highest" is float32 in a fixed order. At the others, g s (g: dy where the ADC did not saturate; s: x_step or
    /// weight_scale) is cut into blocks of the terms of a sum and rounded to a fixed point, whose full scale is the
    /// block's largest magnitude: 16 bits in blocks of 512 terms at "high" and "medium", 8 bits in blocks of 256 at "8
    /// bits". Its products with codes c of up to 8 bits are exact. Results are the same bits on every processor and for
    /// any number of threads. An element of dx or dw, a sum of T terms in B blocks, is off the exact sum by at most
    /// (T + 2) 2^-23 sum |g s c| + T 2^-125 (1 + max |c|) at "highest", and at the others by sum over blocks of
    /// max|g s| sum|c| / (2 L - 1), plus (2 B + 8) 2^-24 sum |g s c| + T 2^-112 (1 + max |c|), with L = 32639 or, for 8
    /// bits, 127; where nothing overflows. A side that is analog or has codes of more than 8 bits is computed as at
    /// "highest", and so is db.
    ///
    /// Returns:
    ///     dx [M, K], dw [N, K] and db [N].
    #[pyo3(
        signature = (dy, precision=Text::from("highest".to_owned())),
        text_signature = "($self, dy, precision=\"highest\")"
    )]
    fn backward<'py>(
        &self,
        py: Python<'py>,
        dy: &Bound<'py, PyAny>,
        precision: Text,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let (m, n, k) = self.shape;
        let precision = precision.checked("precision", PRECISIONS, Some)?;
        let precision = Precision::from_name(&precision).map_err(to_python)?;
        let mut arguments = Arguments::default();
        let like = dy;
        let dy = arguments.read_shaped::<f32>("dy", dy, &[m, n], "(M, N)")?;
        let weight = arguments.read_shaped::<f32>("weight", self.weight.bind(py), &[n, k], "(N, K)")?;
        let x = self.x.as_ref().map(|x| arguments.read_shaped::<f32>("x", x.bind(py), &[m, k], "(M, K)"));
        let x = x.transpose()?;
        let made = [vec![m, k], vec![n, k], vec![n]].map(|shape| arrays::new_like(like, &shape));
        let [dx_object, dw_object, db_object] = made;
        let (dx_object, dw_object, db_object) = (dx_object?, dw_object?, db_object?);
        let mut dx = arguments.write::<f32>("dx", &dx_object)?;
        let mut dw = arguments.write::<f32>("dw", &dw_object)?;
        let mut db = arguments.write::<f32>("db", &db_object)?;

        let x = x.as_ref().map(|x| x.as_slice()).transpose()?;
        let inputs = self.parts()?.inputs(dy.as_slice()?, x, Some(weight.as_slice()?));
        let outputs =
            Outputs { x: Some(dx.as_slice_mut()?), weight: Some(dw.as_slice_mut()?), bias: Some(db.as_slice_mut()?) };
        let (tier, threads) = (tier()?, Threads::current(py)?);
        let work = || lumina_kernel::backward(tier, &threads, &self.params, precision, &inputs, outputs);
        run(py, cost::backward_ns(tier, 2, self.shape), work)?
            .map_err(|error| renamed(error, &[("grad_output", "dy")]))?;
        drop((dx, dw, db));
        Ok((dx_object, dw_object, db_object))
    }

    /// The codes of X [M, K], int8 or, from 9 bits on, int16; None where X is analog.
    #[getter]
    fn x_codes<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (m, _, k) = self.shape;
        match self.parts()?.x_codes {
            Some(Operand::I8(codes)) => without_padding(py, codes, (m, k)).map(Some),
            Some(Operand::I16(codes)) => without_padding(py, codes, (m, k)).map(Some),
            Some(Operand::F32(_)) | None => Ok(None),
        }
    }

    /// The step of one code of X, float32 [M]; NaN in rows that are NaN throughout.
    #[getter]
    fn x_step<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        Ok(PyArray1::from_slice(py, self.parts()?.x_step.unwrap_or_default()))
    }

    /// The step of one weight code, float32 [N].
    #[getter]
    fn weight_scale<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        Ok(PyArray1::from_slice(py, self.parts()?.scale))
    }

    /// Where the ADC saturated, bool [M, N], or [M, tiles, N] where rows are split into tiles; None where it cannot.
    #[getter]
    fn adc_saturated<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let tiles = self.params.tiles(self.shape.2).len();
        self.saturated(py, self.parts()?.adc_mask, (tiles, self.shape.1))
    }

    /// Where the DAC saturated, bool [M, K]; None where it cannot.
    #[getter]
    fn dac_saturated<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.saturated(py, self.parts()?.dac_mask, (1, self.shape.2))
    }
}
