//! AVX2 with FMA. One vector is a pair of registers: lanes 0..7, then 8..15.
//!
//! | step | instructions |
//! |---|---|
//! | dot | `vpsignb`, `vpmaddubsw` on \|a\| and c sign(a), `vpmaddwd` with ones: exact, since 2 * 127 * 127 < 2^15 |
//! | dot of up to 4 bits | `vpmaddubsw` on c + z and a, `vpaddw`; `vpmaddwd` with ones before 16 bits overflow |
//! | mask | the top bit of each lane |
//! | 64-bit product | three `vpmuludq` |

use std::arch::x86_64::*;

use super::isa::{Isa, LANES, Vectorized};

/// Permission to use AVX2 and FMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx2(());

/// # Safety
/// The processor has the enabled features, which a value of [`Avx2`] proves.
#[target_feature(enable = "avx2,fma")]
unsafe fn trampoline<V: Vectorized>(isa: Avx2, op: V) -> V::Output {
    op.run(isa)
}

/// 16 x f32.
#[derive(Clone, Copy)]
pub(crate) struct F(__m256, __m256);
/// 16 x i32, 8 x u64, or a mask in the top bits of 16 lanes.
#[derive(Clone, Copy)]
pub(crate) struct I(__m256i, __m256i);
/// 4 codes a of a row, repeated for each column of a register, and \|a\|.
#[derive(Clone, Copy)]
pub(crate) struct A {
    code: __m256i,
    magnitude: __m256i,
}

/// Transposes 8 x 8 lanes.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn transpose_8(rows: [__m256i; 8]) -> [__m256i; 8] {
    // SAFETY: AVX2, by this function's contract.
    unsafe {
        let mut pairs = rows;
        let mut quads = rows;
        let mut columns = rows;
        for i in (0..8).step_by(2) {
            pairs[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
            pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
        }
        for i in (0..8).step_by(4) {
            quads[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
            quads[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
            quads[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
            quads[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
        }
        for c in 0..4 {
            columns[c] = _mm256_permute2x128_si256::<0x20>(quads[c], quads[4 + c]);
            columns[4 + c] = _mm256_permute2x128_si256::<0x31>(quads[c], quads[4 + c]);
        }
        columns
    }
}

impl Isa for Avx2 {
    type F = F;
    type I = I;
    type M = I;
    type U = I;
    type A = A;

    const NAME: &'static str = "avx2";
    const PRODUCTS_PER_NS: (u64, u64) = (80, 50);
    const SIGNED_CODES: bool = true;
    const MAGNITUDES: bool = true;
    const SIGNS: bool = false;
    const SMALL_SUMS: bool = true;
    const ONE_CHAIN: bool = true;
    const INT_TILE: (usize, usize) = (4, 1);
    const PANEL_WIDE_ROWS: usize = 2;
    const STAY_PACKED: usize = 8;
    const FLOAT_TILE: (usize, usize) = (6, 1);
    const BY_FOURS: u32 = 4;
    const BY_HALVES: bool = false;

    fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }
    #[inline(always)]
    fn vectorize<V: Vectorized>(self, op: V) -> V::Output {
        // SAFETY: `self` proves the features.
        unsafe { trampoline(self, op) }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { F(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, source: *const f32) -> Self::F {
        // SAFETY: `self` proves the instruction; the pointer is valid by this method's contract.
        unsafe { F(_mm256_loadu_ps(source), _mm256_loadu_ps(source.add(8))) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, target: *mut f32, value: Self::F) {
        // SAFETY: `self` proves the instruction; the pointer is valid by this method's contract.
        unsafe {
            _mm256_storeu_ps(target, value.0);
            _mm256_storeu_ps(target.add(8), value.1);
        }
    }
    #[inline(always)]
    fn load_first(self, source: &[f32]) -> Self::F {
        let count = source.len().min(LANES) as i32;
        // SAFETY: `self` proves the instructions, which read nothing in lanes where the mask's top bit is clear: the
        // second half's address may lie past the end of the slice, but is then only formed.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let low = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes);
            let high = _mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), lanes);
            let source = source.as_ptr();
            F(_mm256_maskload_ps(source, low), _mm256_maskload_ps(source.wrapping_add(8), high))
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { F(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { F(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { F(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { F(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { F(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { F(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { F(_mm256_sqrt_ps(a.0), _mm256_sqrt_ps(a.1)) }
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { I(_mm256_cvtps_epi32(a.0), _mm256_cvtps_epi32(a.1)) }
    }
    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { F(_mm256_cvtepi32_ps(a.0), _mm256_cvtepi32_ps(a.1)) }
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { I(_mm256_castps_si256(a.0), _mm256_castps_si256(a.1)) }
    }
    #[inline(always)]
    fn from_bits(self, a: Self::I) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { F(_mm256_castsi256_ps(a.0), _mm256_castsi256_ps(a.1)) }
    }
    #[inline(always)]
    fn is_nan(self, a: Self::F) -> Self::M {
        // SAFETY: `self` proves the instruction.
        unsafe { self.bits(F(_mm256_cmp_ps::<_CMP_UNORD_Q>(a.0, a.0), _mm256_cmp_ps::<_CMP_UNORD_Q>(a.1, a.1))) }
    }
    #[inline(always)]
    fn greater(self, a: Self::F, b: Self::F) -> Self::M {
        // SAFETY: `self` proves the instruction.
        unsafe { self.bits(F(_mm256_cmp_ps::<_CMP_GT_OQ>(a.0, b.0), _mm256_cmp_ps::<_CMP_GT_OQ>(a.1, b.1))) }
    }
    #[inline(always)]
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F {
        let mask = self.from_bits(mask);
        // SAFETY: `self` proves the instruction.
        unsafe { F(_mm256_blendv_ps(no.0, yes.0, mask.0), _mm256_blendv_ps(no.1, yes.1, mask.1)) }
    }
    #[inline(always)]
    fn mask_bits(self, mask: Self::M) -> u16 {
        let mask = self.from_bits(mask);
        // SAFETY: `self` proves the instruction.
        unsafe { (_mm256_movemask_ps(mask.0) | _mm256_movemask_ps(mask.1) << 8) as u16 }
    }
    #[inline(always)]
    fn mask(self, bits: u16) -> Self::M {
        // Bit n becomes the top bit of lane n.
        // SAFETY: `self` proves the instruction.
        unsafe {
            let bits = _mm256_set1_epi32(i32::from(bits));
            let low = _mm256_sllv_epi32(bits, _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24));
            let high = _mm256_sllv_epi32(bits, _mm256_setr_epi32(23, 22, 21, 20, 19, 18, 17, 16));
            I(low, high)
        }
    }
    #[inline(always)]
    fn has_bit<const BIT: u32>(self, a: Self::I) -> Self::M {
        // SAFETY: `self` proves the instruction.
        unsafe {
            let count = _mm_cvtsi32_si128(31 - BIT as i32);
            I(_mm256_sll_epi32(a.0, count), _mm256_sll_epi32(a.1, count))
        }
    }
    #[inline(always)]
    fn splat_i(self, value: i32) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { I(_mm256_set1_epi32(value), _mm256_set1_epi32(value)) }
    }
    #[inline(always)]
    unsafe fn load_i_ptr(self, source: *const u8) -> Self::I {
        // SAFETY: `self` proves the instruction; the pointer is valid by this method's contract.
        unsafe { I(_mm256_loadu_si256(source.cast()), _mm256_loadu_si256(source.add(32).cast())) }
    }
    #[inline(always)]
    unsafe fn store_i_ptr(self, target: *mut u8, value: Self::I) {
        // SAFETY: `self` proves the instruction; the pointer is valid by this method's contract.
        unsafe {
            _mm256_storeu_si256(target.cast(), value.0);
            _mm256_storeu_si256(target.add(32).cast(), value.1);
        }
    }
    #[inline(always)]
    fn load_i8(self, source: &[i8; LANES]) -> Self::I {
        // SAFETY: `self` proves the instruction; the reference is to as many bytes.
        unsafe {
            let bytes = _mm_loadu_si128(source.as_ptr().cast());
            I(_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)))
        }
    }
    #[inline(always)]
    fn load_i16(self, source: &[i16; LANES]) -> Self::I {
        let source: *const __m128i = source.as_ptr().cast();
        // SAFETY: `self` proves the instruction; the reference is to as many bytes.
        unsafe {
            I(_mm256_cvtepi16_epi32(_mm_loadu_si128(source)), _mm256_cvtepi16_epi32(_mm_loadu_si128(source.add(1))))
        }
    }
    #[inline(always)]
    fn store_i8(self, target: &mut [i8; LANES], value: Self::I) {
        // SAFETY: `self` proves the instruction; the reference is to as many bytes.
        unsafe {
            // The packs work within 128-bit halves: words 0-3, 8-11 | 4-7, 12-15, put in order at the end.
            let words = _mm256_permute4x64_epi64::<0xD8>(_mm256_packs_epi32(value.0, value.1));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(target.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn store_i16(self, target: &mut [i16; LANES], value: Self::I) {
        // SAFETY: `self` proves the instruction; the reference is to as many bytes.
        unsafe {
            let words = _mm256_permute4x64_epi64::<0xD8>(_mm256_packs_epi32(value.0, value.1));
            _mm256_storeu_si256(target.as_mut_ptr().cast(), words);
        }
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { I(_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1)) }
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { I(_mm256_sub_epi32(a.0, b.0), _mm256_sub_epi32(a.1, b.1)) }
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { I(_mm256_and_si256(a.0, b.0), _mm256_and_si256(a.1, b.1)) }
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { I(_mm256_or_si256(a.0, b.0), _mm256_or_si256(a.1, b.1)) }
    }
    #[inline(always)]
    fn xor(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { I(_mm256_xor_si256(a.0, b.0), _mm256_xor_si256(a.1, b.1)) }
    }
    #[inline(always)]
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { I(_mm256_max_epi32(a.0, b.0), _mm256_max_epi32(a.1, b.1)) }
    }
    #[inline(always)]
    fn shl<const COUNT: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe {
            let count = _mm_cvtsi32_si128(COUNT as i32);
            I(_mm256_sll_epi32(a.0, count), _mm256_sll_epi32(a.1, count))
        }
    }
    #[inline(always)]
    fn shr<const COUNT: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe {
            let count = _mm_cvtsi32_si128(COUNT as i32);
            I(_mm256_srl_epi32(a.0, count), _mm256_srl_epi32(a.1, count))
        }
    }
    #[inline(always)]
    fn sar<const COUNT: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe {
            let count = _mm_cvtsi32_si128(COUNT as i32);
            I(_mm256_sra_epi32(a.0, count), _mm256_sra_epi32(a.1, count))
        }
    }
    #[inline(always)]
    fn transpose(self, rows: [Self::I; LANES]) -> [Self::I; LANES] {
        let mut columns = rows;
        for half in 0..2 {
            // Columns 8 * half .. 8 * half + 7 are register `half` of each row.
            let mut top = [rows[0].0; 8];
            let mut bottom = top;
            for i in 0..8 {
                top[i] = if half == 0 { rows[i].0 } else { rows[i].1 };
                bottom[i] = if half == 0 { rows[8 + i].0 } else { rows[8 + i].1 };
            }
            // SAFETY: `self` proves the instructions.
            let (top, bottom) = unsafe { (transpose_8(top), transpose_8(bottom)) };
            for i in 0..8 {
                columns[8 * half + i] = I(top[i], bottom[i]);
            }
        }
        columns
    }

    #[inline(always)]
    unsafe fn activations(self, codes: *const i8, magnitudes: *const i8) -> Self::A {
        // SAFETY: `self` proves the instruction; both are valid for 4 bytes, by this method's contract.
        unsafe {
            A {
                code: _mm256_set1_epi32(codes.cast::<i32>().read_unaligned()),
                magnitude: _mm256_set1_epi32(magnitudes.cast::<i32>().read_unaligned()),
            }
        }
    }
    #[inline(always)]
    fn dot(self, sum: Self::I, stored: Self::I, activations: Self::A) -> Self::I {
        let A { code, magnitude } = activations;
        // SAFETY: `self` proves the instructions.
        let pairs = unsafe {
            let low = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(stored.0, code));
            I(low, _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(stored.1, code)))
        };
        self.widen(sum, pairs)
    }
    #[inline(always)]
    fn dot_small(self, sums: Self::I, stored: Self::I, activations: Self::A) -> Self::I {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let low = _mm256_add_epi16(sums.0, _mm256_maddubs_epi16(stored.0, activations.code));
            I(low, _mm256_add_epi16(sums.1, _mm256_maddubs_epi16(stored.1, activations.code)))
        }
    }
    #[inline(always)]
    fn widen(self, sum: Self::I, small: Self::I) -> Self::I {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            self.add_i(sum, I(_mm256_madd_epi16(small.0, ones), _mm256_madd_epi16(small.1, ones)))
        }
    }
    #[inline(always)]
    fn dot_pairs(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instructions.
        unsafe { self.add_i(sum, I(_mm256_madd_epi16(a.0, b.0), _mm256_madd_epi16(a.1, b.1))) }
    }

    #[inline(always)]
    fn splat_u(self, value: u64) -> Self::U {
        // SAFETY: `self` proves the instruction.
        unsafe { I(_mm256_set1_epi64x(value as i64), _mm256_set1_epi64x(value as i64)) }
    }
    #[inline(always)]
    fn load_u(self, source: &[u64; 8]) -> Self::U {
        // SAFETY: the reference is to 64 bytes.
        unsafe { self.load_i_ptr(source.as_ptr().cast()) }
    }
    #[inline(always)]
    fn add_u(self, a: Self::U, b: Self::U) -> Self::U {
        // SAFETY: `self` proves the instruction.
        unsafe { I(_mm256_add_epi64(a.0, b.0), _mm256_add_epi64(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul_u(self, a: Self::U, b: Self::U) -> Self::U {
        // low(a) low(b) + ((low(a) high(b) + high(a) low(b)) << 32), modulo 2^64.
        let cross = self.add_u(self.mul_low(a, self.shr_u::<32>(b)), self.mul_low(self.shr_u::<32>(a), b));
        self.add_u(self.mul_low(a, b), self.shl_u::<32>(cross))
    }
    #[inline(always)]
    fn xor_u(self, a: Self::U, b: Self::U) -> Self::U {
        self.xor(a, b)
    }
    #[inline(always)]
    fn shl_u<const COUNT: u32>(self, a: Self::U) -> Self::U {
        // SAFETY: `self` proves the instruction.
        unsafe {
            let count = _mm_cvtsi32_si128(COUNT as i32);
            I(_mm256_sll_epi64(a.0, count), _mm256_sll_epi64(a.1, count))
        }
    }
    #[inline(always)]
    fn shr_u<const COUNT: u32>(self, a: Self::U) -> Self::U {
        // SAFETY: `self` proves the instruction.
        unsafe {
            let count = _mm_cvtsi32_si128(COUNT as i32);
            I(_mm256_srl_epi64(a.0, count), _mm256_srl_epi64(a.1, count))
        }
    }
    #[inline(always)]
    fn rotl_u<const COUNT: u32, const REST: u32>(self, a: Self::U) -> Self::U {
        self.or(self.shl_u::<COUNT>(a), self.shr_u::<REST>(a))
    }
    #[inline(always)]
    fn halves(self, a: Self::U) -> Self::I {
        a
    }
}

impl Avx2 {
    /// The product of the low halves of each 64-bit lane.
    #[inline(always)]
    fn mul_low(self, a: I, b: I) -> I {
        // SAFETY: `self` proves the instruction.
        unsafe { I(_mm256_mul_epu32(a.0, b.0), _mm256_mul_epu32(a.1, b.1)) }
    }
}
