//! AVX-512, with VNNI and without it. One vector is one register: F = 16 x f32 in zmm, I = 16 x i32, U = 8 x u64.
//!
//! | step | instructions |
//! |---|---|
//! | dot with VNNI | `vpdpbusd` zmm: u8 codes c + z times i8 activations, four products per lane |
//! | dot without | `vpxor`, `vpmaddubsw` on \|a\| and c ^ s, `vpmaddwd` with ones: exact, since 2 * 127 * 128 < 2^15 |
//! | dot of up to 4 bits without VNNI | as on AVX2 |
//! | mask | k registers |
//! | 64-bit product | `vpmullq` (AVX-512DQ) |

use std::arch::x86_64::*;

use super::isa::{Isa, LANES, Vectorized, first_bits};

/// Permission to use AVX-512 F, BW, DQ and VL, and with `VNNI` also VNNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512<const VNNI: bool>(());

/// # Safety
/// The processor has the enabled features, which a value of [`Avx512`] proves.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn trampoline<const VNNI: bool, V: Vectorized>(isa: Avx512<VNNI>, op: V) -> V::Output {
    op.run(isa)
}

/// # Safety
/// The processor has the enabled features, which a value of [`Avx512<true>`] proves.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn trampoline_vnni<const VNNI: bool, V: Vectorized>(isa: Avx512<VNNI>, op: V) -> V::Output {
    op.run(isa)
}

/// 4 codes a of a row, or their signs, repeated for each column, and \|a\| where that is needed.
#[derive(Clone, Copy)]
pub(crate) struct A {
    code: __m512i,
    magnitude: __m512i,
}

impl<const VNNI: bool> Isa for Avx512<VNNI> {
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;
    type U = __m512i;
    type A = A;

    const NAME: &'static str = if VNNI { "avx512" } else { "avx512bw" };
    const PRODUCTS_PER_NS: (u64, u64) = if VNNI { (400, 100) } else { (70, 50) };
    const SIGNED_CODES: bool = !VNNI;
    const MAGNITUDES: bool = !VNNI;
    const SIGNS: bool = !VNNI;
    const SMALL_SUMS: bool = !VNNI;
    const ONE_CHAIN: bool = !VNNI;
    const INT_TILE: (usize, usize) = (12, 2);
    const PANEL_WIDE_ROWS: usize = 2;
    const STAY_PACKED: usize = if VNNI { 24 } else { 8 };
    const STREAMED_BITS: &'static [u32] = if VNNI { &[4, 8] } else { &[8] };
    const FLOAT_TILE: (usize, usize) = (12, 2);
    const BY_FOURS: u32 = if VNNI { 8 } else { 4 };
    const BY_HALVES: bool = false;

    fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && (!VNNI || is_x86_feature_detected!("avx512vnni"))
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma");
        has.then_some(Avx512(()))
    }
    #[inline(always)]
    fn vectorize<V: Vectorized>(self, op: V) -> V::Output {
        // SAFETY: `self` proves the features.
        unsafe { if VNNI { trampoline_vnni(self, op) } else { trampoline(self, op) } }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, source: *const f32) -> Self::F {
        // SAFETY: `self` proves the instruction; the pointer is valid by this method's contract.
        unsafe { _mm512_loadu_ps(source) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, target: *mut f32, value: Self::F) {
        // SAFETY: `self` proves the instruction; the pointer is valid by this method's contract.
        unsafe { _mm512_storeu_ps(target, value) }
    }
    #[inline(always)]
    fn load_first(self, source: &[f32]) -> Self::F {
        // SAFETY: `self` proves the instruction, which reads nothing where the mask has no bit.
        unsafe { _mm512_maskz_loadu_ps(first_bits(source.len()), source.as_ptr()) }
    }
    #[inline(always)]
    fn store_first(self, target: &mut [f32], value: Self::F) {
        // SAFETY: `self` proves the instruction, which writes nothing where the mask has no bit.
        unsafe { _mm512_mask_storeu_ps(target.as_mut_ptr(), first_bits(target.len()), value) }
    }
    #[inline(always)]
    fn load_i8_first(self, source: &[i8]) -> Self::I {
        // SAFETY: `self` proves the instructions, which read nothing where the mask has no bit.
        unsafe { _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_bits(source.len()), source.as_ptr())) }
    }
    #[inline(always)]
    fn load_i16_first(self, source: &[i16]) -> Self::I {
        // SAFETY: `self` proves the instructions, which read nothing where the mask has no bit.
        unsafe { _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(first_bits(source.len()), source.as_ptr())) }
    }
    #[inline(always)]
    fn store_i8_first(self, target: &mut [i8], value: Self::I) {
        // SAFETY: `self` proves the instruction, which writes nothing where the mask has no bit.
        unsafe { _mm512_mask_cvtepi32_storeu_epi8(target.as_mut_ptr(), first_bits(target.len()), value) }
    }
    #[inline(always)]
    fn store_i16_first(self, target: &mut [i16], value: Self::I) {
        // SAFETY: `self` proves the instruction, which writes nothing where the mask has no bit.
        unsafe { _mm512_mask_cvtepi32_storeu_epi16(target.as_mut_ptr(), first_bits(target.len()), value) }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_cvtps_epi32(a) }
    }
    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_castps_si512(a) }
    }
    #[inline(always)]
    fn from_bits(self, a: Self::I) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    fn is_nan(self, a: Self::F) -> Self::M {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a) }
    }
    #[inline(always)]
    fn greater(self, a: Self::F, b: Self::F) -> Self::M {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_mask_blend_ps(mask, no, yes) }
    }
    #[inline(always)]
    fn mask_bits(self, mask: Self::M) -> u16 {
        mask
    }
    #[inline(always)]
    fn mask(self, bits: u16) -> Self::M {
        bits
    }
    #[inline(always)]
    fn has_bit<const BIT: u32>(self, a: Self::I) -> Self::M {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_test_epi32_mask(a, _mm512_set1_epi32(1 << BIT)) }
    }
    #[inline(always)]
    fn splat_i(self, value: i32) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn load_i_ptr(self, source: *const u8) -> Self::I {
        // SAFETY: `self` proves the instruction; the pointer is valid by this method's contract.
        unsafe { _mm512_loadu_si512(source.cast()) }
    }
    #[inline(always)]
    unsafe fn store_i_ptr(self, target: *mut u8, value: Self::I) {
        // SAFETY: `self` proves the instruction; the pointer is valid by this method's contract.
        unsafe { _mm512_storeu_si512(target.cast(), value) }
    }
    #[inline(always)]
    fn load_i8(self, source: &[i8; LANES]) -> Self::I {
        // SAFETY: `self` proves the instruction; the reference is to as many bytes.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(source.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_i16(self, source: &[i16; LANES]) -> Self::I {
        // SAFETY: `self` proves the instruction; the reference is to as many bytes.
        unsafe { _mm512_cvtepi16_epi32(_mm256_loadu_si256(source.as_ptr().cast())) }
    }
    #[inline(always)]
    fn store_i8(self, target: &mut [i8; LANES], value: Self::I) {
        // SAFETY: `self` proves the instruction; the reference is to as many bytes.
        unsafe { _mm_storeu_si128(target.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(value)) }
    }
    #[inline(always)]
    fn store_i16(self, target: &mut [i16; LANES], value: Self::I) {
        // SAFETY: `self` proves the instruction; the reference is to as many bytes.
        unsafe { _mm256_storeu_si256(target.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(value)) }
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_max_epi32(a, b) }
    }
    #[inline(always)]
    fn shl<const COUNT: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_slli_epi32::<COUNT>(a) }
    }
    #[inline(always)]
    fn shr<const COUNT: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_srli_epi32::<COUNT>(a) }
    }
    #[inline(always)]
    fn sar<const COUNT: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_srai_epi32::<COUNT>(a) }
    }
    #[inline(always)]
    fn transpose(self, rows: [Self::I; LANES]) -> [Self::I; LANES] {
        let mut pairs = rows;
        let mut quads = rows;
        // SAFETY: `self` proves the instructions.
        unsafe {
            for i in (0..LANES).step_by(2) {
                pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
            }
            for i in (0..LANES).step_by(4) {
                quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
                quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
                quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
                quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
            }
            // quads[4 r + c] holds column 4 q + c of rows 4 r .. 4 r + 3 in its 128-bit quarter q.
            let mut columns = rows;
            for c in 0..4 {
                let low01 = _mm512_shuffle_i32x4::<0x44>(quads[c], quads[4 + c]);
                let high01 = _mm512_shuffle_i32x4::<0xEE>(quads[c], quads[4 + c]);
                let low23 = _mm512_shuffle_i32x4::<0x44>(quads[8 + c], quads[12 + c]);
                let high23 = _mm512_shuffle_i32x4::<0xEE>(quads[8 + c], quads[12 + c]);
                columns[c] = _mm512_shuffle_i32x4::<0x88>(low01, low23);
                columns[4 + c] = _mm512_shuffle_i32x4::<0xDD>(low01, low23);
                columns[8 + c] = _mm512_shuffle_i32x4::<0x88>(high01, high23);
                columns[12 + c] = _mm512_shuffle_i32x4::<0xDD>(high01, high23);
            }
            columns
        }
    }

    #[inline(always)]
    unsafe fn activations(self, codes: *const i8, magnitudes: *const i8) -> Self::A {
        let magnitudes = if VNNI { codes } else { magnitudes };
        // SAFETY: both are valid for 4 bytes, by this method's contract.
        let (code, magnitude) =
            unsafe { (codes.cast::<i32>().read_unaligned(), magnitudes.cast::<i32>().read_unaligned()) };
        A { code: self.splat_i(code), magnitude: self.splat_i(magnitude) }
    }
    #[inline(always)]
    fn dot(self, sum: Self::I, stored: Self::I, activations: Self::A) -> Self::I {
        let A { code, magnitude } = activations;
        // SAFETY: `self` proves the instructions, including that of VNNI if `VNNI` is true.
        unsafe {
            if VNNI {
                return _mm512_dpbusd_epi32(sum, stored, code);
            }
            self.widen(sum, _mm512_maddubs_epi16(magnitude, _mm512_xor_si512(stored, code)))
        }
    }
    #[inline(always)]
    fn dot_small(self, sums: Self::I, stored: Self::I, activations: Self::A) -> Self::I {
        if VNNI {
            return self.dot(sums, stored, activations);
        }
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_add_epi16(sums, _mm512_maddubs_epi16(stored, activations.code)) }
    }
    #[inline(always)]
    fn widen(self, sum: Self::I, small: Self::I) -> Self::I {
        if VNNI {
            return self.add_i(sum, small);
        }
        // SAFETY: `self` proves the instructions.
        unsafe { self.add_i(sum, _mm512_madd_epi16(small, _mm512_set1_epi16(1))) }
    }

    #[inline(always)]
    fn dot_pairs(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves the instructions.
        unsafe { if VNNI { _mm512_dpwssd_epi32(sum, a, b) } else { _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)) } }
    }

    #[inline(always)]
    fn splat_u(self, value: u64) -> Self::U {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_set1_epi64(value as i64) }
    }
    #[inline(always)]
    fn load_u(self, source: &[u64; 8]) -> Self::U {
        // SAFETY: `self` proves the instruction; the reference is to as many bytes.
        unsafe { _mm512_loadu_si512(source.as_ptr().cast()) }
    }
    #[inline(always)]
    fn add_u(self, a: Self::U, b: Self::U) -> Self::U {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_add_epi64(a, b) }
    }
    #[inline(always)]
    fn mul_u(self, a: Self::U, b: Self::U) -> Self::U {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_mullo_epi64(a, b) }
    }
    #[inline(always)]
    fn xor_u(self, a: Self::U, b: Self::U) -> Self::U {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn shl_u<const COUNT: u32>(self, a: Self::U) -> Self::U {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_slli_epi64::<COUNT>(a) }
    }
    #[inline(always)]
    fn shr_u<const COUNT: u32>(self, a: Self::U) -> Self::U {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_srli_epi64::<COUNT>(a) }
    }
    #[inline(always)]
    fn rotl_u<const COUNT: u32, const REST: u32>(self, a: Self::U) -> Self::U {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm512_or_si512(_mm512_slli_epi64::<COUNT>(a), _mm512_srli_epi64::<REST>(a)) }
    }
    #[inline(always)]
    fn halves(self, a: Self::U) -> Self::I {
        a
    }
}
