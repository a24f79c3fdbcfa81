//! Weights, quantised, checked and laid out for the kernels.

use crate::error::Error;
use crate::executor::Executor;
use crate::microkernel::Tier;
use crate::pack;
use crate::params::Params;
use crate::quantize::{self, levels};
use crate::reference;

/// Where weights come from.
#[derive(Clone, Copy, Debug)]
pub enum WeightSource<'a> {
    /// `[N, K]`: quantised here (or used as they are with weight_bits 0).
    F32(&'a [f32]),
    /// `[N, K]`: codes of 1..8 bits.
    Codes(&'a [i8]),
    /// `[N, ceil(K*b/8)]`: codes of b = 1, 2 or 4 bits as [`pack`] stores them.
    Packed(&'a [u8]),
}

/// Codes to keep for a backward pass, in rows of [`code_stride`].
#[derive(Debug)]
pub enum CodesMut<'a> {
    /// Codes of 1..8 bits.
    I8(&'a mut [i8]),
    /// Codes of 9..16 bits.
    I16(&'a mut [i16]),
}

/// Elements from one row of codes to the next, for rows of `k`: a multiple of 4, the padding 0; for long
/// rows an odd multiple of a cache line, so that rows do not all fall into the same cache sets.
pub const fn code_stride(k: usize) -> usize {
    if k < 512 { k.next_multiple_of(4) } else { k.div_ceil(64) / 2 * 128 + 64 }
}

/// The weights of a layer.
#[derive(Clone, Debug)]
pub struct Weights {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) plain: reference::Weight,
}

impl Weights {
    /// Quantises (or unpacks), checks and lays out W `[n, k]`.
    ///
    /// `scale` has 1 or N elements; without it weights in f32 take the default scale, codes need one,
    /// analog weights have none. `codes` receives the codes, if asked for.
    ///
    /// # Errors
    /// A shape or parameter that does not fit, a weight or scale that is not finite, a code out of range.
    #[allow(clippy::too_many_arguments, reason = "each is a fact of its own")]
    pub fn new(
        _tier: Tier,
        _executor: &dyn Executor,
        params: &Params,
        (n, k): (usize, usize),
        source: WeightSource<'_>,
        scale: Option<&[f32]>,
        codes: Option<CodesMut<'_>>,
    ) -> Result<Self, Error> {
        params.check_shape(n, k)?;
        let bits = params.weight_bits;
        if let Some(scale) = scale {
            if bits == 0 {
                return Err(Error::Ignored {
                    name: "weight_scale",
                    value: format!("{scale:?}"),
                    because: "with weight_bits 0 the weights are analog",
                });
            }
            quantize::check_scale(scale, n, Some(levels(bits)))?;
        }
        let spread = |scale: &[f32]| if scale.len() == 1 { vec![scale[0]; n] } else { scale.to_vec() };
        let need_scale = || {
            scale
                .map(spread)
                .ok_or_else(|| Error::value("weight_scale", "none", "1 or N numbers where the weights are codes"))
        };
        let length = |length: usize, expected: usize| {
            if length == expected {
                Ok(())
            } else {
                Err(Error::Length { name: "weight", length, allowed: format!("{expected} for N = {n}, K = {k}") })
            }
        };
        let plain = match source {
            WeightSource::F32(w) => {
                length(w.len(), n * k)?;
                quantize::check_finite("weight", w, Some(k))?;
                reference::quantize_weight(bits, k, w, scale)
            }
            WeightSource::Codes(c) => {
                length(c.len(), n * k)?;
                if !(1..=8).contains(&bits) {
                    return Err(Error::value("weight_bits", bits, "1..8 where the weights are int8 codes"));
                }
                pack::check_codes(bits, k, c)?;
                reference::Weight { values: c.iter().map(|c| f32::from(*c)).collect(), scale: need_scale()? }
            }
            WeightSource::Packed(p) => {
                if !pack::PACKED_BITS.contains(&bits) {
                    return Err(Error::value("weight_bits", bits, "1, 2 or 4 where the weights are packed in uint8"));
                }
                let row_bytes = pack::packed_row_bytes(bits, k);
                length(p.len(), n * row_bytes)?;
                let mut values = vec![0i8; n * k];
                for (row, (packed, codes)) in p.chunks_exact(row_bytes).zip(values.chunks_exact_mut(k)).enumerate() {
                    pack::unpack_row(bits, packed, codes).map_err(|column| Error::Element {
                        name: "weight",
                        index: vec![row, column],
                        value: format!("-{}", 1 << (bits - 1)),
                        allowed: "a stored code of 1..2^weight_bits-1 (any with weight_bits 1), padding bits 0",
                    })?;
                }
                reference::Weight { values: values.iter().map(|c| f32::from(*c)).collect(), scale: need_scale()? }
            }
        };
        match codes {
            Some(CodesMut::I8(out)) => {
                for (row, out) in plain.values.chunks_exact(k).zip(out.chunks_exact_mut(code_stride(k))) {
                    out.fill(0);
                    row.iter().zip(out).for_each(|(c, out)| *out = *c as i8);
                }
            }
            Some(CodesMut::I16(out)) => {
                for (row, out) in plain.values.chunks_exact(k).zip(out.chunks_exact_mut(code_stride(k))) {
                    out.fill(0);
                    row.iter().zip(out).for_each(|(c, out)| *out = *c as i16);
                }
            }
            None => {}
        }
        Ok(Weights { n, k, plain })
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// `[N]`: the step of one code; 1 where W is analog.
    pub fn scale(&self) -> &[f32] {
        &self.plain.scale
    }
}
