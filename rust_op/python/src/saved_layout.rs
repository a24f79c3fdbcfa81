//! The layout of what a forward pass saves for its gradient, in one piece of memory.

#![allow(unsafe_code, reason = "bytes are reinterpreted as numbers")]

use lumina_kernel::Params;
use lumina_kernel::Saved;
use lumina_kernel::backward::{Factor, Inputs, Operand, Weight};
use lumina_kernel::saved::{CodeType, CodesMut, code_stride, code_type, mask_stride};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::numbers::Int;
use crate::params::PyParams;

/// Bytes of a cache line.
const LINE: usize = 64;

mod sealed {
    /// Types for which every bit pattern is a value.
    pub trait Plain {}
    impl Plain for u8 {}
    impl Plain for i8 {}
    impl Plain for i16 {}
    impl Plain for f32 {}
}
use sealed::Plain;

fn misplaced<T>(address: usize, count: usize) -> PyErr {
    PyValueError::new_err(format!(
        "saved is {count} elements of {} bytes at address {address:#x}: allowed is memory that is there, aligned",
        size_of::<T>()
    ))
}

/// Splits off `count` elements.
fn take<'a, T: Plain>(rest: &mut &'a [u8], count: usize) -> PyResult<&'a [T]> {
    let address = rest.as_ptr().addr();
    let bytes = count.checked_mul(size_of::<T>()).and_then(|bytes| rest.split_off(..bytes));
    // SAFETY: any bytes are a valid `T`.
    match bytes.map(|bytes| unsafe { bytes.align_to::<T>() }) {
        Some(([], elements, [])) => Ok(elements),
        _ => Err(misplaced::<T>(address, count)),
    }
}

/// Splits off `count` elements, to be written.
fn take_mut<'a, T: Plain>(rest: &mut &'a mut [u8], count: usize) -> PyResult<&'a mut [T]> {
    let address = rest.as_ptr().addr();
    let bytes = count.checked_mul(size_of::<T>()).and_then(|bytes| rest.split_off_mut(..bytes));
    // SAFETY: any bytes are a valid `T`, and any `T` is valid bytes.
    match bytes.map(|bytes| unsafe { bytes.align_to_mut::<T>() }) {
        Some(([], elements, [])) => Ok(elements),
        _ => Err(misplaced::<T>(address, count)),
    }
}

/// Bytes of a row of codes.
fn code_bytes(bits: u32, k: usize) -> usize {
    match code_type(bits) {
        None => 0,
        Some(CodeType::I8) => code_stride(k),
        Some(CodeType::I16) => code_stride(k).saturating_mul(2),
    }
}

/// The parts of what a forward pass saves for the gradients that will be asked for, one after the other.
///
/// These are: the scale of W, if the gradient of X needs it, padded to whole cache lines; all codes of X and then all
/// steps s_x, if the gradient of W needs them; the masks of the ADC and, if the gradient of X needs it, of the DAC. A
/// row of codes is a multiple of 4 bytes, so that everything is aligned. W itself is not saved: the caller has it.
#[derive(Clone, Copy)]
pub struct SavedLayout {
    n: usize,
    k: usize,
    /// Elements of the scale, and bytes of padding behind them.
    scale: (usize, usize),
    /// Bits of the codes, if they are saved.
    codes: Option<u32>,
    /// Bytes of a row of the masks.
    adc: usize,
    dac: usize,
}

impl SavedLayout {
    /// The layout for a layer of `n` outputs and `k` inputs; `for_x` and `for_weight` say whether the gradients of X
    /// and of W may be asked for.
    pub fn new(params: &Params, n: usize, k: usize, (for_x, for_weight): (bool, bool)) -> Self {
        let mask = |saturates, columns| if saturates { mask_stride(columns) } else { 0 };
        let scale = n.saturating_mul(size_of::<f32>());
        SavedLayout {
            n,
            k,
            scale: if for_x { (n, scale.wrapping_neg() % LINE) } else { (0, 0) },
            codes: for_weight.then_some(params.input_code_bits()),
            adc: params.tiles(k).len().saturating_mul(mask(params.adc_can_saturate(), n)),
            dac: mask(params.input_range.is_some() && for_x, k),
        }
    }

    /// Bytes of the scale and its padding.
    pub fn scale_bytes(self) -> usize {
        self.scale.0.saturating_mul(size_of::<f32>()).saturating_add(self.scale.1)
    }

    /// Bytes per row of all that is saved about X and Y.
    pub fn row_bytes(self) -> usize {
        let codes = self.codes.map_or(0, |bits| code_bytes(bits, self.k).saturating_add(size_of::<f32>()));
        codes.saturating_add(self.adc).saturating_add(self.dac)
    }

    /// Bytes of everything, for `m` rows.
    pub fn bytes(self, m: usize) -> usize {
        self.scale_bytes().saturating_add(m.saturating_mul(self.row_bytes()))
    }

    /// Splits `memory` for a forward pass of `m` rows to fill: the scale, and the rest.
    ///
    /// # Errors
    /// Memory that is not aligned to 4 bytes, or too short.
    pub fn split_mut(self, mut memory: &mut [u8], m: usize) -> PyResult<(&mut [f32], Saved<'_>)> {
        let rest = &mut memory;
        let scale = take_mut(rest, self.scale.0)?;
        take_mut::<u8>(rest, self.scale.1)?.fill(0);
        let count = m.saturating_mul(code_stride(self.k));
        let x_codes = match self.codes.and_then(code_type) {
            None => None,
            Some(CodeType::I8) => Some(CodesMut::I8(take_mut(rest, count)?)),
            Some(CodeType::I16) => Some(CodesMut::I16(take_mut(rest, count)?)),
        };
        let x_step = if self.codes.is_some() { Some(take_mut(rest, m)?) } else { None };
        let mut mask = |bytes: usize| match bytes {
            0 => Ok(None),
            bytes => take_mut(rest, m.saturating_mul(bytes)).map(Some),
        };
        Ok((scale, Saved { x_codes, x_step, adc_mask: mask(self.adc)?, dac_mask: mask(self.dac)? }))
    }

    /// Splits `memory` that a forward pass of `m` rows has filled.
    ///
    /// # Errors
    /// As [`SavedLayout::split_mut`].
    pub fn split(self, mut memory: &[u8], m: usize) -> PyResult<Parts<'_>> {
        let rest = &mut memory;
        let scale = take(rest, self.scale.0)?;
        take::<u8>(rest, self.scale.1)?;
        let count = m.saturating_mul(code_stride(self.k));
        let x_codes = match self.codes.and_then(code_type) {
            None => None,
            Some(CodeType::I8) => Some(Operand::I8(take(rest, count)?)),
            Some(CodeType::I16) => Some(Operand::I16(take(rest, count)?)),
        };
        let x_step = if self.codes.is_some() { Some(take(rest, m)?) } else { None };
        let mut mask = |bytes: usize| match bytes {
            0 => Ok(None),
            bytes => take(rest, m.saturating_mul(bytes)).map(Some),
        };
        let (adc_mask, dac_mask) = (mask(self.adc)?, mask(self.dac)?);
        Ok(Parts { shape: (m, self.n, self.k), scale, x_codes, x_step, adc_mask, dac_mask })
    }
}

/// What a forward pass has saved.
pub struct Parts<'a> {
    shape: (usize, usize, usize),
    pub scale: &'a [f32],
    pub x_codes: Option<Operand<'a>>,
    pub x_step: Option<&'a [f32]>,
    pub adc_mask: Option<&'a [u8]>,
    pub dac_mask: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    /// What the gradient is computed from. The gradient of W needs `x` if X is analog, that of X needs `weight`.
    pub fn inputs(&self, dy: &'a [f32], x: Option<&'a [f32]>, weight: Option<&'a [f32]>) -> Inputs<'a> {
        let values = self.x_codes.or(x.map(Operand::F32));
        Inputs {
            shape: self.shape,
            dy,
            x: values.zip(self.x_step).map(|(values, steps)| Factor { values, steps }),
            weight: weight.map(|values| Weight { values, scale: self.scale }),
            adc_mask: self.adc_mask,
            dac_mask: self.dac_mask,
        }
    }
}

/// The bytes that a forward pass saves for the gradient: a number per call, and a number per row of X.
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
    let layout = SavedLayout::new(params, n.size("n")?, k.size("k")?, (for_x, for_weight));
    Ok((layout.scale_bytes(), layout.row_bytes()))
}
