//! The passes on memory that is given by address: what `lumina_onnx.nn` calls on torch's tensors.
//!
//! A numpy view of a tensor costs torch some 0.7 microseconds and each pass has six, as much as all the arithmetic
//! of a small layer. So `lumina_onnx/nn/_ops.py`, which allocates every result itself and knows what each tensor is,
//! hands over addresses and sizes. Nothing else may: whoever gives a wrong one has given memory away. For everyone
//! else there are the functions that take arrays and check them.

#![allow(unsafe_code, reason = "the fence: memory by address is read and written here and nowhere else")]

use std::slice;

use lumina_kernel::backward::{Factor, Inputs, Operand, Outputs, PRECISIONS, Precision, Weight};
use lumina_kernel::forward::mask_stride;
use lumina_kernel::weights::{CodesMut, WeightSource, code_stride};
use lumina_kernel::{Layer, NoiseKey, Params, Saved, Tier, Weights};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

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
        let count = rows * code_stride(k);
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
        let count = rows * code_stride(k);
        // SAFETY: the caller's.
        Ok(unsafe {
            match bits {
                0 => Operand::F32(analog.read(rows * k)?),
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
        _ => 2 * code_stride(k),
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
        let scale = n * size_of::<f32>();
        Layout {
            scale: if for_x { (n, scale.next_multiple_of(LINE) - scale) } else { (0, 0) },
            codes: for_weight.then_some(params.input_bits),
            adc: mask(params.adc_can_saturate(), n),
            dac: mask(params.input_range.is_some() && for_x, k),
        }
    }

    /// Bytes of the scale and what fills it up.
    fn scale_bytes(self) -> usize {
        self.scale.0 * size_of::<f32>() + self.scale.1
    }

    /// Bytes of a row of all that is saved of X and Y.
    fn row_bytes(self, k: usize) -> usize {
        self.codes.map_or(0, |bits| code_bytes(bits, k) + size_of::<f32>()) + self.adc + self.dac
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
            let mut mask = |bytes| if bytes > 0 { saved.write(m * bytes).map(Some) } else { Ok(None) };
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
            let weight = Memory::new("weight", weight).read(n * k)?;
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

/// A `PreparedLayer`, from addresses.
#[pyfunction]
#[pyo3(name = "_prepare_at")]
pub fn prepare_at(
    py: Python<'_>,
    params: &Bound<'_, PyAny>,
    n: usize,
    k: usize,
    weight: usize,
    bias: usize,
) -> PyResult<PyPreparedLayer> {
    let params = PyParams::of(params)?;
    params.check_shape(n, k).map_err(to_python)?;
    // SAFETY: whoever calls vouches for the addresses, and keeps what is there for the time of the call.
    let source = unsafe { Source::at((n, k), weight, bias)? };
    let (tier, threads) = (tier()?, Threads::current(py)?);
    run(py, cost(0, n, k, true), || source.prepare(tier, &threads, params, (n, k)))
        .map(PyPreparedLayer)
        .map_err(to_python)
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

/// The forward pass. Where `layer` is a `PreparedLayer`, its weights serve and `weight` and `bias` are not read. `saved`
/// receives what the gradients of X (`for_x`) and of W (`for_weight`) need, unless it is 0.
#[pyfunction]
#[pyo3(name = "_forward_at")]
#[allow(clippy::too_many_arguments, reason = "one for each tensor")]
pub fn forward_at(
    py: Python<'_>,
    params: &Bound<'_, PyAny>,
    layer: Option<&Bound<'_, PyPreparedLayer>>,
    rows: usize,
    n: usize,
    k: usize,
    x: usize,
    weight: usize,
    bias: usize,
    seed: Int,
    stream: Int,
    y: usize,
    saved: usize,
    for_x: bool,
    for_weight: bool,
) -> PyResult<()> {
    let params = PyParams::of(params)?;
    params.check_shape(n, k).map_err(to_python)?;
    let layout = Layout::new(params, n, k, (for_x, for_weight));
    let key = NoiseKey { seed: seed.counter("seed")?, stream: stream.counter("stream")? };
    // SAFETY: whoever calls vouches for the addresses, and keeps what is there for the time of the call.
    let pass = unsafe {
        let x: &[f32] = Memory::new("x", x).read(rows * k)?;
        let y: &mut [f32] = Memory::new("y", y).write(rows * n)?;
        let saved = if saved == 0 { None } else { Some(layout.write(saved, (rows, k))?) };
        Pass { x, key, y, saved }
    };
    let (tier, threads) = (tier()?, Threads::current(py)?);
    match layer {
        Some(layer) => {
            let layer = &layer.get().0;
            run(py, cost(rows, n, k, false), || pass.run(&threads, layer))
        }
        None => {
            // SAFETY: as above.
            let source = unsafe { Source::at((n, k), weight, bias)? };
            run(py, cost(rows, n, k, true), || pass.run(&threads, &source.prepare(tier, &threads, params, (n, k))?))
        }
    }
    .map_err(|error| renamed(error, &[("input", "x")]))
}

/// `backward`, on addresses. `dx`, `dw` and `db` are 0 where they are not asked for. `weight` is read for `dx`, and `x` for
/// `dw` where it is analog. `for_x` and `for_weight` are those of the forward pass: they say what is at `saved`.
#[pyfunction]
#[pyo3(name = "_backward_at")]
#[allow(clippy::too_many_arguments, reason = "one for each tensor")]
pub fn backward_at(
    py: Python<'_>,
    params: &Bound<'_, PyAny>,
    rows: usize,
    n: usize,
    k: usize,
    dy: usize,
    x: usize,
    weight: usize,
    saved: usize,
    dx: usize,
    dw: usize,
    db: usize,
    precision: Text,
    for_x: bool,
    for_weight: bool,
) -> PyResult<()> {
    let params = PyParams::of(params)?;
    params.check_shape(n, k).map_err(to_python)?;
    let precision = precision.checked("precision", PRECISIONS, Some)?;
    let precision = Precision::from_name(&precision).map_err(to_python)?;
    let m = rows;
    let layout = Layout::new(params, n, k, (for_x, for_weight));
    let mut saved = Memory::new("saved", saved);
    // SAFETY: whoever calls vouches for the addresses, and keeps what is there for the time of the call.
    let (inputs, outputs) = unsafe {
        let wanted = |name, address, count| {
            if address == 0 { Ok::<_, PyErr>(None) } else { Memory::new(name, address).write::<f32>(count).map(Some) }
        };
        let scale = saved.read(layout.scale.0)?;
        saved.take::<u8>(layout.scale.1)?;
        let of_weight = if for_x && dx != 0 {
            let values = Memory::new("weight", weight).read(n * k)?;
            Some(Weight { values, scale })
        } else {
            None
        };
        let of_x = match layout.codes {
            Some(0) if dw == 0 => {
                saved.take::<f32>(m)?;
                None
            }
            Some(bits) => {
                let values = saved.operand(&mut Memory::new("x", x), bits, m, k)?;
                Some(Factor { values, steps: saved.read(m)? })
            }
            None => None,
        };
        let mut mask = |bytes| if bytes > 0 { saved.read(m * bytes).map(Some) } else { Ok(None) };
        let inputs = Inputs {
            shape: (m, n, k),
            dy: Memory::new("dy", dy).read(m * n)?,
            x: of_x,
            weight: of_weight,
            adc_mask: mask(layout.adc)?,
            dac_mask: mask(layout.dac)?,
        };
        let outputs =
            Outputs { x: wanted("dx", dx, m * k)?, weight: wanted("dw", dw, n * k)?, bias: wanted("db", db, n)? };
        (inputs, outputs)
    };
    let products = usize::from(outputs.x.is_some()) + usize::from(outputs.weight.is_some());
    let (tier, threads) = (tier()?, Threads::current(py)?);
    let work = || lumina_kernel::backward(tier, &threads, params, precision, &inputs, outputs);
    run(py, backward_cost(products, m, n, k), work).map_err(to_python)
}
