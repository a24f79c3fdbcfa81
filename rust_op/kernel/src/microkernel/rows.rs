//! Loops over one row: its maximum, its codes.

use super::isa::{Isa, LANES};
use crate::quantize::Quantizer;

/// The bits of infinity: a magnitude that is not finite has bits of this value or more.
pub(crate) const INFINITY_BITS: i32 = 0x7F80_0000;

/// Calls `f` with each 16 elements of `row` and their position, the last ones filled up with zeros.
#[inline(always)]
pub(crate) fn for_each<S: Isa>(isa: S, row: &[f32], mut f: impl FnMut(usize, S::F)) {
    let (chunks, tail) = row.as_chunks::<LANES>();
    for (index, chunk) in chunks.iter().enumerate() {
        f(index * LANES, isa.load(chunk));
    }
    if !tail.is_empty() {
        let mut padded = [0.0; LANES];
        padded[..tail.len()].copy_from_slice(tail);
        f(chunks.len() * LANES, isa.load(&padded));
    }
}

/// The bits of the largest magnitude: of infinity or above where an element is not finite.
#[inline(always)]
pub(crate) fn largest_magnitude<S: Isa>(isa: S, row: &[f32]) -> i32 {
    let (chunks, tail) = row.as_chunks::<{ 4 * LANES }>();
    let mut largest = [isa.splat_i(0); 4];
    for chunk in chunks {
        let (vectors, _) = chunk.as_chunks::<LANES>();
        for (largest, vector) in largest.iter_mut().zip(vectors) {
            *largest = isa.max_i(*largest, isa.magnitude(isa.load(vector)));
        }
    }
    for_each(isa, tail, |_, x| largest[0] = isa.max_i(largest[0], isa.magnitude(x)));
    let [a, b, c, d] = largest;
    isa.largest(isa.max_i(isa.max_i(a, b), isa.max_i(c, d)))
}

/// Sum of magnitudes in the canonical order of the 1-bit scale.
#[inline(always)]
pub(crate) fn sum_magnitudes<S: Isa>(isa: S, row: &[f32]) -> f32 {
    let mut sum = isa.splat(0.0);
    for_each(isa, row, |_, x| sum = isa.add(sum, isa.abs(x)));
    let mut lanes = [0.0; LANES];
    isa.store(&mut lanes, sum);
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// The quantiser in vectors.
#[derive(Clone, Copy)]
pub(crate) struct VectorQuantizer<S: Isa> {
    isa: S,
    pub(crate) inv: S::F,
    pub(crate) limit: S::F,
    pub(crate) step: S::F,
}

impl<S: Isa> VectorQuantizer<S> {
    #[inline(always)]
    pub(crate) fn new(isa: S, quantizer: &Quantizer) -> Self {
        let Quantizer { inv, step, limit } = *quantizer;
        VectorQuantizer { isa, inv: isa.splat(inv), limit: isa.splat(limit), step: isa.splat(step) }
    }

    #[inline(always)]
    pub(crate) fn from_vectors(isa: S, inv: S::F, limit: S::F, step: S::F) -> Self {
        VectorQuantizer { isa, inv, limit, step }
    }

    /// The codes of `v`; some code where v is NaN.
    #[inline(always)]
    pub(crate) fn code(&self, v: S::F) -> S::I {
        let isa = self.isa;
        // Both operands' order matters: NaN, from 0 * infinity where every code is 0, becomes the limit.
        let high = isa.min(isa.mul(v, self.inv), self.limit);
        isa.round(isa.max(high, isa.sub(isa.splat(0.0), self.limit)))
    }

    /// The values of the codes of `v`.
    #[inline(always)]
    pub(crate) fn value(&self, v: S::F) -> S::F {
        self.isa.mul(self.step, self.isa.to_float(self.code(v)))
    }
}

/// Writes codes of up to 8 bits, zeros to the end of `out`, and returns their sum.
#[inline(always)]
pub(crate) fn codes_i8<S: Isa>(isa: S, x: &[f32], out: &mut [i8], code: impl Fn(S::F) -> S::I) -> i32 {
    let mut sum = isa.splat_i(0);
    let (out, padding) = out.split_at_mut(x.len());
    padding.fill(0);
    let (chunks, out_tail) = out.as_chunks_mut::<LANES>();
    for_each(isa, x, |position, x| {
        let codes = code(x);
        sum = isa.add_i(sum, codes);
        match chunks.get_mut(position / LANES) {
            Some(chunk) => isa.store_i8(chunk, codes),
            None => {
                let mut padded = [0; LANES];
                isa.store_i8(&mut padded, codes);
                out_tail.copy_from_slice(&padded[..out_tail.len()]);
            }
        }
    });
    isa.total(sum)
}

/// Writes codes as floats, zeros to the end of `out`.
#[inline(always)]
pub(crate) fn codes_f32<S: Isa>(isa: S, x: &[f32], out: &mut [f32], code: impl Fn(S::F) -> S::I) {
    map(isa, x, out, |x| isa.to_float(code(x)));
}

/// Copies, zeros to the end of `out`.
#[inline(always)]
pub(crate) fn copy<S: Isa>(isa: S, x: &[f32], out: &mut [f32]) {
    map(isa, x, out, |x| x);
}

#[inline(always)]
fn map<S: Isa>(isa: S, x: &[f32], out: &mut [f32], f: impl Fn(S::F) -> S::F) {
    let (out, padding) = out.split_at_mut(x.len());
    padding.fill(0.0);
    let (chunks, out_tail) = out.as_chunks_mut::<LANES>();
    for_each(isa, x, |position, x| match chunks.get_mut(position / LANES) {
        Some(chunk) => isa.store(chunk, f(x)),
        None => {
            let mut padded = [0.0; LANES];
            isa.store(&mut padded, f(x));
            out_tail.copy_from_slice(&padded[..out_tail.len()]);
        }
    });
}

/// Narrows codes that stand as floats.
#[inline(always)]
pub(crate) fn narrow_i8<S: Isa>(isa: S, codes: &[f32], out: &mut [i8]) {
    codes_i8(isa, codes, out, |c| isa.round(c));
}

/// Narrows codes that stand as floats.
#[inline(always)]
pub(crate) fn narrow_i16<S: Isa>(isa: S, codes: &[f32], out: &mut [i16]) {
    let (out, padding) = out.split_at_mut(codes.len());
    padding.fill(0);
    let (chunks, out_tail) = out.as_chunks_mut::<LANES>();
    for_each(isa, codes, |position, c| match chunks.get_mut(position / LANES) {
        Some(chunk) => isa.store_i16(chunk, isa.round(c)),
        None => {
            let mut padded = [0; LANES];
            isa.store_i16(&mut padded, isa.round(c));
            out_tail.copy_from_slice(&padded[..out_tail.len()]);
        }
    });
}

/// Bit k of `mask` is set where |x\[k\]| > `range`; further bits are cleared.
#[inline(always)]
pub(crate) fn saturation_mask<S: Isa>(isa: S, x: &[f32], range: f32, mask: &mut [u8]) {
    let range = isa.splat(range);
    let (words, _) = mask.as_chunks_mut::<2>();
    for_each(isa, x, |position, x| {
        words[position / LANES] = isa.mask_bits(isa.greater(isa.abs(x), range)).to_le_bytes();
    });
}
