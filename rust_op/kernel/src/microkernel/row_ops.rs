//! Loops over one row: its maximum, its codes.
//!
//! Nothing here takes a closure, which would be compiled without the tier's instructions unless it happened to be
//! inlined.

use super::isa::{Isa, LANES};
use crate::quantize::Quantizer;
use crate::saved::CodesMut;

/// The bits of infinity: the bits of a magnitude that is not finite have this value or a greater one.
pub(crate) const INFINITY_BITS: i32 = 0x7F80_0000;

/// Vector `index` of `row`, the last one padded with zeros.
#[inline(always)]
pub(crate) fn load_vector<S: Isa>(isa: S, row: &[f32], index: usize) -> S::F {
    let (chunks, tail) = row.as_chunks::<LANES>();
    match chunks.get(index) {
        Some(chunk) => isa.load(chunk),
        None => isa.load_first(tail),
    }
}

/// Writes vector `index` of `row`, the last one as far as the row goes.
#[inline(always)]
pub(crate) fn store_vector<S: Isa>(isa: S, row: &mut [f32], index: usize, value: S::F) {
    let (chunks, tail) = row.as_chunks_mut::<LANES>();
    match chunks.get_mut(index) {
        Some(chunk) => isa.store(chunk, value),
        None => isa.store_first(tail, value),
    }
}

/// The bits of the largest magnitude: [`INFINITY_BITS`] or more if an element is not finite.
#[inline(always)]
pub(crate) fn largest_magnitude<S: Isa>(isa: S, row: &[f32]) -> i32 {
    let (chunks, tail) = row.as_chunks::<{ 4 * LANES }>();
    let mut largest = [isa.splat_i(0); 4];
    for chunk in chunks {
        let (vectors, _) = chunk.as_chunks::<LANES>();
        for v in 0..4 {
            largest[v] = isa.max_i(largest[v], isa.magnitude(isa.load(&vectors[v])));
        }
    }
    for index in 0..tail.len().div_ceil(LANES) {
        largest[0] = isa.max_i(largest[0], isa.magnitude(load_vector(isa, tail, index)));
    }
    let [a, b, c, d] = largest;
    isa.largest(isa.max_i(isa.max_i(a, b), isa.max_i(c, d)))
}

/// The sum of magnitudes in the canonical order of the 1-bit scale.
#[inline(always)]
pub(crate) fn sum_magnitudes<S: Isa>(isa: S, row: &[f32]) -> f32 {
    let mut sum = isa.splat(0.0);
    for index in 0..row.len().div_ceil(LANES) {
        sum = isa.add(sum, isa.abs(load_vector(isa, row, index)));
    }
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
    inv: S::F,
    limit: S::F,
    step: S::F,
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

    /// The codes of `v`; an unspecified code where v is NaN.
    #[inline(always)]
    pub(crate) fn code(&self, v: S::F) -> S::I {
        let isa = self.isa;
        // The order of the operands matters: NaN, from 0 * infinity where every code is 0, becomes the limit.
        let high = isa.min(isa.mul(v, self.inv), self.limit);
        isa.round(isa.max(high, isa.sub(isa.splat(0.0), self.limit)))
    }

    /// What a code stands for.
    #[inline(always)]
    pub(crate) fn step(&self) -> S::F {
        self.step
    }

    /// The values of the codes of `v`.
    #[inline(always)]
    pub(crate) fn value(&self, v: S::F) -> S::F {
        self.isa.mul(self.step, self.isa.to_float(self.code(v)))
    }
}

/// What turns values into codes.
#[derive(Clone, Copy)]
pub(crate) enum Coder<S: Isa> {
    /// The quantiser.
    Quantizer(VectorQuantizer<S>),
    /// The sign: weights of one bit.
    Sign,
    /// Nothing: the values are codes already.
    Narrow,
}

impl<S: Isa> Coder<S> {
    #[inline(always)]
    pub(crate) fn code(&self, isa: S, x: S::F) -> S::I {
        match self {
            Coder::Quantizer(quantizer) => quantizer.code(x),
            Coder::Sign => {
                let below = isa.greater(isa.splat(0.0), x);
                isa.round(isa.select(below, isa.splat(-1.0), isa.splat(1.0)))
            }
            Coder::Narrow => isa.round(x),
        }
    }
}

/// Writes codes of up to 8 bits, then zeros to the end of `out`, and returns the sum of the codes. Also prefetches the
/// row after `x`, which the hardware's prefetchers do not recognise until it is read.
#[inline(always)]
pub(crate) fn codes_i8<S: Isa>(isa: S, x: &[f32], out: &mut [i8], coder: &Coder<S>) -> i32 {
    let mut sum = isa.splat_i(0);
    let (out, padding) = out.split_at_mut(x.len());
    padding.fill(0);
    let (chunks, out_tail) = out.as_chunks_mut::<LANES>();
    let (x_chunks, x_tail) = x.as_chunks::<LANES>();
    for (row, out) in x_chunks.iter().zip(chunks) {
        isa.prefetch(row.as_ptr().wrapping_add(x.len()));
        let codes = coder.code(isa, isa.load(row));
        sum = isa.add_i(sum, codes);
        isa.store_i8(out, codes);
    }
    if !x_tail.is_empty() {
        let codes = coder.code(isa, isa.load_first(x_tail));
        isa.store_i8_first(out_tail, codes);
        // Lanes past the end have codes too (a sign is never 0), which must not count.
        sum = isa.add_i(sum, isa.bits(isa.first(isa.from_bits(codes), x_tail.len())));
    }
    isa.total(sum)
}

/// Writes |c| of each code.
#[inline(always)]
pub(crate) fn magnitudes(codes: &[i8], out: &mut [i8]) {
    for (out, code) in out.iter_mut().zip(codes) {
        *out = code.wrapping_abs();
    }
}

/// Replaces codes by their signs: -1 where a code is negative, else 0. Returns the sum of the magnitudes of the
/// negative codes, which [`Isa::dot`] leaves out.
#[inline(always)]
pub(crate) fn signs(codes: &mut [i8], magnitudes: &[i8]) -> i32 {
    let mut negative = 0;
    for (code, magnitude) in codes.iter_mut().zip(magnitudes) {
        *code >>= 7;
        negative += i32::from(*magnitude & *code);
    }
    negative
}

/// Writes codes that are held as floats into a row of saved codes, then zeros to the end of the row.
#[inline(always)]
pub(crate) fn narrow<S: Isa>(isa: S, codes: &[f32], out: CodesMut<'_>) {
    match out {
        CodesMut::I8(out) => {
            codes_i8(isa, codes, out, &Coder::Narrow);
        }
        CodesMut::I16(out) => narrow_i16(isa, codes, out),
    }
}

/// Writes codes of up to 16 bits that are held as floats, then zeros to the end of `out`.
#[inline(always)]
fn narrow_i16<S: Isa>(isa: S, codes: &[f32], out: &mut [i16]) {
    let (out, padding) = out.split_at_mut(codes.len());
    padding.fill(0);
    let (chunks, out_tail) = out.as_chunks_mut::<LANES>();
    for index in 0..codes.len().div_ceil(LANES) {
        let value = isa.round(load_vector(isa, codes, index));
        match chunks.get_mut(index) {
            Some(chunk) => isa.store_i16(chunk, value),
            None => isa.store_i16_first(out_tail, value),
        }
    }
}

/// Writes codes as floats, then zeros to the end of `out`.
#[inline(always)]
pub(crate) fn codes_f32<S: Isa>(isa: S, x: &[f32], out: &mut [f32], coder: &Coder<S>) {
    let (out, padding) = out.split_at_mut(x.len());
    padding.fill(0.0);
    for index in 0..x.len().div_ceil(LANES) {
        store_vector(isa, out, index, isa.to_float(coder.code(isa, load_vector(isa, x, index))));
    }
}

/// Sets bit k of `mask` where |x\[k\]| > `range` and clears all other bits.
#[inline(always)]
pub(crate) fn saturation_mask<S: Isa>(isa: S, x: &[f32], range: f32, mask: &mut [u8]) {
    let range = isa.splat(range);
    let (words, _) = mask.as_chunks_mut::<2>();
    for (index, word) in words.iter_mut().enumerate() {
        *word = isa.mask_bits(isa.greater(isa.abs(load_vector(isa, x, index)), range)).to_le_bytes();
    }
}
