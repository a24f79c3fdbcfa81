//! NEON, which every aarch64 processor has, and the dot products of Armv8.2. One vector is four registers: lanes 0..3,
//! 4..7, 8..11, 12..15.
//!
//! | step | instructions |
//! |---|---|
//! | integer tiles | loops of their own: [`multiply`], and with dot products [`dotprod`] |
//! | dot (of the groups that those leave over) | `smull`, `addp`, `sadalp`: exact, since 2 * 127 * 127 < 2^15; or `sdot` |
//! | mask | all bits of each lane |
//! | min, max | a comparison and `bsl`: `fmin` and `fmax` return a NaN whichever operand it is |
//! | 64-bit product | `mul` of exchanged halves, `uaddlp`, `umlal` |

mod blocks;
mod dotprod;
mod multiply;

use std::arch::aarch64::*;
use std::arch::asm;

use blocks::{add_groups, repeated};

use super::isa::{Isa, LANES, TileOrigin, Vectorized};

/// Permission to use NEON and, with `DOT`, dot products for codes. Everything else is the same with and without them, and
/// compiled once: for `Neon<false>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neon<const DOT: bool> {
    /// Whether codes are multiplied as `Neon<true>`, whose instructions the processor then has.
    dotprod: bool,
}

/// # Safety
/// The processor has the enabled features, which a value of [`Neon`] proves.
#[target_feature(enable = "neon")]
unsafe fn trampoline<V: Vectorized>(isa: Neon<false>, op: V) -> V::Output {
    op.run(isa)
}

/// # Safety
/// The processor has the enabled features, which a value of `Neon<true>` proves.
#[target_feature(enable = "neon,dotprod")]
unsafe fn trampoline_of_products<V: Vectorized>(isa: Neon<true>, op: V) -> V::Output {
    op.run(isa)
}

/// 16 x f32.
#[derive(Clone, Copy)]
pub(crate) struct F([float32x4_t; 4]);
/// 16 x i32.
#[derive(Clone, Copy)]
pub(crate) struct I([int32x4_t; 4]);
/// 16 x bool: all bits of a lane, or none.
#[derive(Clone, Copy)]
pub(crate) struct M([uint32x4_t; 4]);
/// 8 x u64.
#[derive(Clone, Copy)]
pub(crate) struct U([uint64x2_t; 4]);

/// A function of each register.
macro_rules! each {
    ($to:ident, $f:ident, $($operand:expr),+) => {{
        let mut out = [$f($($operand.0[0]),+); _];
        for (register, out) in out.iter_mut().enumerate().skip(1) {
            *out = $f($($operand.0[register]),+);
        }
        $to(out)
    }};
}

/// `sum` plus the products of four codes in each lane.
#[inline(always)]
fn sdot(sum: int32x4_t, stored: int8x16_t, codes: int8x16_t) -> int32x4_t {
    let mut out = sum;
    // The intrinsic is not stable yet.
    // SAFETY: the instruction touches no memory. Where the processor may lack it, it does not assemble: this is inlined
    // into functions with the feature.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) out, in(vreg) stored, in(vreg) codes,
            options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// 2^-60. For smaller numbers, which are zeros, y only has to be finite and positive.
const SMALLEST: f32 = 1.0 / (1u64 << 60) as f32;

/// The square roots of numbers from 2^-60 to 2^60, or of zeros, as `fsqrt` rounds them, in a third of its time: `fsqrt`
/// blocks a vector unit of a Cortex-A72 for 34 cycles.
///
/// Two of Newton's steps from the processor's estimate y of 1 / sqrt(x), which the architecture defines in every bit;
/// then g = x y is corrected by its exact residual (P. Markstein, IBM J. Res. Dev. 34, 1990, doi:10.1147/rd.341.0111).
/// Powers of 4 change nothing but exponents, so that a test over all numbers of [1, 4) is a proof.
#[inline(always)]
fn sqrt_of_moderate(x: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is part of aarch64.
    unsafe {
        // As integers, the numbers have the same order, and operations take half the time.
        let y = vmaxq_s32(vreinterpretq_s32_f32(x), vdupq_n_s32(SMALLEST.to_bits() as i32));
        let y = vrsqrteq_f32(vreinterpretq_f32_s32(y));
        let y = vmulq_f32(y, vrsqrtsq_f32(vmulq_f32(x, y), y));
        let y = vmulq_f32(y, vrsqrtsq_f32(vmulq_f32(x, y), y));
        let g = vmulq_f32(x, y);
        let half_y = vreinterpretq_f32_s32(vsubq_s32(vreinterpretq_s32_f32(y), vdupq_n_s32(1 << 23)));
        vfmaq_f32(g, vfmsq_f32(x, g, g), half_y)
    }
}

/// Shifts left, or right where the count is negative.
#[inline(always)]
fn shift_u(a: U, count: i64) -> U {
    let mut out = a;
    for register in &mut out.0 {
        // SAFETY: NEON is part of aarch64.
        *register = unsafe { vshlq_u64(*register, vdupq_n_s64(count)) };
    }
    out
}

/// Transposes 4 x 4 lanes.
#[inline(always)]
fn transpose_4(rows: [int32x4_t; 4]) -> [int32x4_t; 4] {
    // SAFETY: NEON is part of aarch64.
    unsafe {
        let even_low = vreinterpretq_s64_s32(vtrn1q_s32(rows[0], rows[1]));
        let odd_low = vreinterpretq_s64_s32(vtrn2q_s32(rows[0], rows[1]));
        let even_high = vreinterpretq_s64_s32(vtrn1q_s32(rows[2], rows[3]));
        let odd_high = vreinterpretq_s64_s32(vtrn2q_s32(rows[2], rows[3]));
        [
            vreinterpretq_s32_s64(vtrn1q_s64(even_low, even_high)),
            vreinterpretq_s32_s64(vtrn1q_s64(odd_low, odd_high)),
            vreinterpretq_s32_s64(vtrn2q_s64(even_low, even_high)),
            vreinterpretq_s32_s64(vtrn2q_s64(odd_low, odd_high)),
        ]
    }
}

impl<const DOT: bool> Isa for Neon<DOT> {
    type F = F;
    type I = I;
    type M = M;
    type U = U;
    type A = int8x16_t;

    const NAME: &'static str = if DOT { "neon_dotprod" } else { "neon" };
    const PRODUCTS_PER_NS: (u64, u64) = if DOT { (70, 19) } else { (12, 6) };
    const SIGNED_CODES: bool = true;
    const MAGNITUDES: bool = false;
    const SIGNS: bool = false;
    const SMALL_SUMS: bool = false;
    const ONE_CHAIN: bool = true;
    const INT_TILE: (usize, usize) = if DOT { (4, 1) } else { (2, 1) };
    const PANEL_WIDE_ROWS: usize = if DOT { 2 } else { 0 };
    const STAY_PACKED: usize = if DOT { 8 } else { usize::MAX };
    const OWN_TILES: bool = true;
    const FLOAT_TILE: (usize, usize) = (6, 1);
    const BY_FOURS: u32 = 8;
    const BY_HALVES: bool = true;

    fn detect() -> Option<Self> {
        let has = std::arch::is_aarch64_feature_detected!("neon")
            && (!DOT || std::arch::is_aarch64_feature_detected!("dotprod"));
        has.then_some(Neon { dotprod: DOT })
    }
    #[inline(always)]
    fn vectorize<V: Vectorized>(self, op: V) -> V::Output {
        // SAFETY: `self` proves the features.
        unsafe { trampoline(Neon { dotprod: self.dotprod }, op) }
    }
    #[inline(always)]
    fn with_products<V: Vectorized>(self, op: V) -> V::Output {
        if self.dotprod && !DOT {
            // SAFETY: `dotprod` says that the processor has them.
            unsafe { trampoline_of_products(Neon { dotprod: true }, op) }
        } else {
            op.run(self)
        }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> F {
        // SAFETY: `self` proves the instruction.
        unsafe { F([vdupq_n_f32(value); 4]) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, source: *const f32) -> F {
        // SAFETY: `self` proves the instruction; the pointer is valid by this method's contract.
        unsafe { F([vld1q_f32(source), vld1q_f32(source.add(4)), vld1q_f32(source.add(8)), vld1q_f32(source.add(12))]) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, target: *mut f32, value: F) {
        // SAFETY: `self` proves the instruction; the pointer is valid by this method's contract.
        unsafe {
            vst1q_f32(target, value.0[0]);
            vst1q_f32(target.add(4), value.0[1]);
            vst1q_f32(target.add(8), value.0[2]);
            vst1q_f32(target.add(12), value.0[3]);
        }
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(F, vaddq_f32, a, b) }
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(F, vsubq_f32, a, b) }
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(F, vmulq_f32, a, b) }
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        // Not `fmin`, of which a NaN comes out whichever operand it is.
        self.select(self.greater(b, a), a, b)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        self.select(self.greater(a, b), a, b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(F, vfmaq_f32, c, a, b) }
    }
    #[inline(always)]
    fn sqrt(self, a: F) -> F {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(F, vsqrtq_f32, a) }
    }
    #[inline(always)]
    fn round(self, a: F) -> I {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(I, vcvtnq_s32_f32, a) }
    }
    #[inline(always)]
    fn to_float(self, a: I) -> F {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(F, vcvtq_f32_s32, a) }
    }
    #[inline(always)]
    fn bits(self, a: F) -> I {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(I, vreinterpretq_s32_f32, a) }
    }
    #[inline(always)]
    fn from_bits(self, a: I) -> F {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(F, vreinterpretq_f32_s32, a) }
    }
    #[inline(always)]
    fn is_nan(self, a: F) -> M {
        // SAFETY: `self` proves the instruction.
        unsafe {
            let equal: M = each!(M, vceqq_f32, a, a);
            each!(M, vmvnq_u32, equal)
        }
    }
    #[inline(always)]
    fn greater(self, a: F, b: F) -> M {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(M, vcgtq_f32, a, b) }
    }
    #[inline(always)]
    fn select(self, mask: M, yes: F, no: F) -> F {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(F, vbslq_f32, mask, yes, no) }
    }
    #[inline(always)]
    fn mask_bits(self, mask: M) -> u16 {
        // SAFETY: `self` proves the instruction.
        unsafe {
            let low = vuzp1q_u16(vreinterpretq_u16_u32(mask.0[0]), vreinterpretq_u16_u32(mask.0[1]));
            let high = vuzp1q_u16(vreinterpretq_u16_u32(mask.0[2]), vreinterpretq_u16_u32(mask.0[3]));
            let place = vld1q_u16([1, 2, 4, 8, 16, 32, 64, 128].as_ptr());
            vaddvq_u16(vandq_u16(low, place)) | vaddvq_u16(vandq_u16(high, place)) << 8
        }
    }
    #[inline(always)]
    fn mask(self, bits: u16) -> M {
        // SAFETY: `self` proves the instruction.
        unsafe {
            let bits = vdupq_n_u32(u32::from(bits));
            let place = vld1q_u32([1, 2, 4, 8].as_ptr());
            M([
                vtstq_u32(bits, place),
                vtstq_u32(bits, vshlq_n_u32::<4>(place)),
                vtstq_u32(bits, vshlq_n_u32::<8>(place)),
                vtstq_u32(bits, vshlq_n_u32::<12>(place)),
            ])
        }
    }
    #[inline(always)]
    fn has_bit<const BIT: u32>(self, a: I) -> M {
        // SAFETY: `self` proves the instruction.
        let (mut out, bit) = unsafe { (M([vdupq_n_u32(0); 4]), vdupq_n_s32(1 << BIT)) };
        for (out, a) in out.0.iter_mut().zip(a.0) {
            // Of the intrinsic, the compiler makes two instructions.
            // SAFETY: `self` proves the instruction, which touches no memory.
            unsafe {
                asm!("cmtst {0:v}.4s, {1:v}.4s, {2:v}.4s", out(vreg) *out, in(vreg) a, in(vreg) bit,
                    options(pure, nomem, nostack, preserves_flags));
            }
        }
        out
    }
    #[inline(always)]
    fn splat_i(self, value: i32) -> I {
        // SAFETY: `self` proves the instruction.
        unsafe { I([vdupq_n_s32(value); 4]) }
    }
    #[inline(always)]
    unsafe fn load_i_ptr(self, source: *const u8) -> I {
        // SAFETY: `self` proves the instruction; the pointer is valid by this method's contract.
        unsafe {
            I([
                vreinterpretq_s32_u8(vld1q_u8(source)),
                vreinterpretq_s32_u8(vld1q_u8(source.add(16))),
                vreinterpretq_s32_u8(vld1q_u8(source.add(32))),
                vreinterpretq_s32_u8(vld1q_u8(source.add(48))),
            ])
        }
    }
    #[inline(always)]
    unsafe fn store_i_ptr(self, target: *mut u8, value: I) {
        // SAFETY: `self` proves the instruction; the pointer is valid by this method's contract.
        unsafe {
            vst1q_u8(target, vreinterpretq_u8_s32(value.0[0]));
            vst1q_u8(target.add(16), vreinterpretq_u8_s32(value.0[1]));
            vst1q_u8(target.add(32), vreinterpretq_u8_s32(value.0[2]));
            vst1q_u8(target.add(48), vreinterpretq_u8_s32(value.0[3]));
        }
    }
    #[inline(always)]
    fn load_i8(self, source: &[i8; LANES]) -> I {
        // SAFETY: `self` proves the instruction; the reference is to as many bytes.
        unsafe {
            let bytes = vld1q_s8(source.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            I([vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)])
        }
    }
    #[inline(always)]
    fn load_i16(self, source: &[i16; LANES]) -> I {
        // SAFETY: `self` proves the instruction; the reference is to as many bytes.
        unsafe {
            let (low, high) = (vld1q_s16(source.as_ptr()), vld1q_s16(source.as_ptr().add(8)));
            I([vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)])
        }
    }
    #[inline(always)]
    fn store_i8(self, target: &mut [i8; LANES], value: I) {
        // SAFETY: `self` proves the instruction; the reference is to as many bytes.
        unsafe {
            let low = vuzp1q_s16(vreinterpretq_s16_s32(value.0[0]), vreinterpretq_s16_s32(value.0[1]));
            let high = vuzp1q_s16(vreinterpretq_s16_s32(value.0[2]), vreinterpretq_s16_s32(value.0[3]));
            vst1q_s8(target.as_mut_ptr(), vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high)));
        }
    }
    #[inline(always)]
    fn store_i16(self, target: &mut [i16; LANES], value: I) {
        // SAFETY: `self` proves the instruction; the reference is to as many bytes.
        unsafe {
            let low = vuzp1q_s16(vreinterpretq_s16_s32(value.0[0]), vreinterpretq_s16_s32(value.0[1]));
            let high = vuzp1q_s16(vreinterpretq_s16_s32(value.0[2]), vreinterpretq_s16_s32(value.0[3]));
            vst1q_s16(target.as_mut_ptr(), low);
            vst1q_s16(target.as_mut_ptr().add(8), high);
        }
    }
    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(I, vaddq_s32, a, b) }
    }
    #[inline(always)]
    fn sub_i(self, a: I, b: I) -> I {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(I, vsubq_s32, a, b) }
    }
    #[inline(always)]
    fn and(self, a: I, b: I) -> I {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(I, vandq_s32, a, b) }
    }
    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(I, vorrq_s32, a, b) }
    }
    #[inline(always)]
    fn xor(self, a: I, b: I) -> I {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(I, veorq_s32, a, b) }
    }
    #[inline(always)]
    fn max_i(self, a: I, b: I) -> I {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(I, vmaxq_s32, a, b) }
    }
    // An immediate cannot be computed from a constant of the trait's type, so counts are in registers: the compiler makes
    // immediates of them.
    #[inline(always)]
    fn shl<const COUNT: u32>(self, a: I) -> I {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(I, vshlq_s32, a, I([vdupq_n_s32(COUNT as i32); 4])) }
    }
    #[inline(always)]
    fn shr<const COUNT: u32>(self, a: I) -> I {
        let mut out = a;
        for out in &mut out.0 {
            // SAFETY: `self` proves the instruction.
            unsafe {
                let shifted = vshlq_u32(vreinterpretq_u32_s32(*out), vdupq_n_s32(-(COUNT as i32)));
                *out = vreinterpretq_s32_u32(shifted);
            }
        }
        out
    }
    #[inline(always)]
    fn sar<const COUNT: u32>(self, a: I) -> I {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(I, vshlq_s32, a, I([vdupq_n_s32(-(COUNT as i32)); 4])) }
    }
    #[inline(always)]
    fn transpose(self, rows: [I; LANES]) -> [I; LANES] {
        let mut columns = rows;
        for i in 0..4 {
            for j in 0..4 {
                let block = [rows[4 * j].0[i], rows[4 * j + 1].0[i], rows[4 * j + 2].0[i], rows[4 * j + 3].0[i]];
                let block = transpose_4(block);
                for c in 0..4 {
                    columns[4 * i + c].0[j] = block[c];
                }
            }
        }
        columns
    }

    #[inline(always)]
    unsafe fn activations(self, codes: *const i8, _magnitudes: *const i8) -> int8x16_t {
        // SAFETY: valid for 4 bytes, by this method's contract.
        unsafe { repeated(codes) }
    }
    #[inline(always)]
    fn dot(self, sum: I, stored: I, activations: int8x16_t) -> I {
        let mut out = sum;
        for (out, stored) in out.0.iter_mut().zip(stored.0) {
            // SAFETY: `self` proves the instructions.
            unsafe {
                let stored = vreinterpretq_s8_s32(stored);
                *out = if DOT {
                    sdot(*out, stored, activations)
                } else {
                    let low = vmull_s8(vget_low_s8(stored), vget_low_s8(activations));
                    vpadalq_s16(*out, vpaddq_s16(low, vmull_high_s8(stored, activations)))
                };
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn code_tile<const SIZE: u32, const MR: usize, const NV: usize>(
        self,
        origin: TileOrigin,
        start: [i32; MR],
    ) -> [[I; NV]; MR] {
        // SAFETY: by this method's contract.
        let (mut sums, done) = unsafe {
            if DOT { dotprod::products::<SIZE, MR, NV>(origin) } else { multiply::products::<SIZE, MR, NV>(origin) }
        };
        // SAFETY: by this method's contract.
        unsafe { add_groups::<DOT, SIZE, MR, NV>(self, &mut sums, origin, done) };
        for (sums, start) in sums.iter_mut().zip(start) {
            for sum in sums {
                // A single bit stands for 0 or 2.
                let codes = if SIZE == 1 { self.add_i(*sum, *sum) } else { *sum };
                *sum = self.add_i(codes, self.splat_i(start));
            }
        }
        sums
    }

    #[inline(always)]
    fn splat_u(self, value: u64) -> U {
        // SAFETY: `self` proves the instruction.
        unsafe { U([vdupq_n_u64(value); 4]) }
    }
    #[inline(always)]
    fn load_u(self, source: &[u64; 8]) -> U {
        let source = source.as_ptr();
        // SAFETY: `self` proves the instruction; the reference is to 8 elements.
        unsafe { U([vld1q_u64(source), vld1q_u64(source.add(2)), vld1q_u64(source.add(4)), vld1q_u64(source.add(6))]) }
    }
    #[inline(always)]
    fn add_u(self, a: U, b: U) -> U {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(U, vaddq_u64, a, b) }
    }
    #[inline(always)]
    fn mul_u(self, a: U, b: U) -> U {
        let mut out = a;
        for (a, b) in out.0.iter_mut().zip(b.0) {
            // low(a) low(b) + ((low(a) high(b) + high(a) low(b)) << 32), modulo 2^64.
            // SAFETY: `self` proves the instructions.
            unsafe {
                let cross = vpaddlq_u32(vmulq_u32(vreinterpretq_u32_u64(*a), vrev64q_u32(vreinterpretq_u32_u64(b))));
                *a = vmlal_u32(vshlq_n_u64::<32>(cross), vmovn_u64(*a), vmovn_u64(b));
            }
        }
        out
    }
    #[inline(always)]
    fn xor_u(self, a: U, b: U) -> U {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(U, veorq_u64, a, b) }
    }
    #[inline(always)]
    fn shl_u<const COUNT: u32>(self, a: U) -> U {
        shift_u(a, COUNT as i64)
    }
    #[inline(always)]
    fn shr_u<const COUNT: u32>(self, a: U) -> U {
        shift_u(a, -(COUNT as i64))
    }
    #[inline(always)]
    fn rotl_u<const COUNT: u32, const REST: u32>(self, a: U) -> U {
        let mut out = a;
        for out in &mut out.0 {
            // SAFETY: `self` proves the instructions, which touch no memory.
            unsafe {
                asm!(
                    "shl {to:v}.2d, {from:v}.2d, #{count}",
                    "sri {to:v}.2d, {from:v}.2d, #{rest}",
                    from = in(vreg) *out, to = out(vreg) *out, count = const COUNT, rest = const REST,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
        }
        out
    }
    #[inline(always)]
    fn halves(self, a: U) -> I {
        // SAFETY: `self` proves the instruction.
        unsafe { each!(I, vreinterpretq_s32_u64, a) }
    }

    #[inline(always)]
    fn fraction_plus(self, a: I, b: f32) -> F {
        let mut out = self.splat(b);
        for (out, a) in out.0.iter_mut().zip(a.0) {
            // SAFETY: `self` proves the instruction.
            *out = unsafe { vaddq_f32(vcvtq_n_f32_s32::<31>(a), *out) };
        }
        out
    }
    #[inline(always)]
    fn exchange(self, mask: M, a: F, b: F) -> [F; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let (a, b): (M, M) = (each!(M, vreinterpretq_u32_f32, a), each!(M, vreinterpretq_u32_f32, b));
            let different: M = each!(M, veorq_u32, a, b);
            let different: M = each!(M, vandq_u32, different, mask);
            let (a, b): (M, M) = (each!(M, veorq_u32, a, different), each!(M, veorq_u32, b, different));
            [each!(F, vreinterpretq_f32_u32, a), each!(F, vreinterpretq_f32_u32, b)]
        }
    }
    #[inline(always)]
    fn with_sign(self, a: F, sign: I) -> F {
        let mut out = a;
        for (out, sign) in out.0.iter_mut().zip(sign.0) {
            // Of the intrinsic, the compiler makes three instructions.
            // SAFETY: `self` proves the instruction, which touches no memory.
            unsafe {
                asm!("bit {0:v}.16b, {1:v}.16b, {2:v}.16b", inout(vreg) *out, in(vreg) sign,
                    in(vreg) vdupq_n_u32(1 << 31), options(pure, nomem, nostack, preserves_flags));
            }
        }
        out
    }
    #[inline(always)]
    fn fma_constant(self, a: F, b: F, c: &'static [f32; 4]) -> F {
        let mut out = a;
        for (out, b) in out.0.iter_mut().zip(b.0) {
            let constant: float32x4_t;
            // `fmla` overwrites what it adds to. Loading that each time costs no time of a vector unit; copying a register,
            // as the compiler would, does. The operand that is not used makes each load another one to the compiler.
            // SAFETY: reads 16 bytes of a reference.
            unsafe {
                asm!("ldr {0:q}, [{1}] // {2:v}", out(vreg) constant, in(reg) c, in(vreg) *out,
                    options(pure, readonly, nostack, preserves_flags));
                *out = vfmaq_f32(constant, *out, b);
            }
        }
        out
    }
    #[inline(always)]
    fn sqrt_of_moderate(self, a: F) -> F {
        let mut out = a;
        for x in &mut out.0 {
            *x = sqrt_of_moderate(*x);
        }
        out
    }
    #[inline(always)]
    unsafe fn fma_at(self, a: *const f32, b: F, c: F) -> F {
        let element: float32x4_t;
        // For a value in all lanes the compiler would choose `ld1r`, which also takes time of a vector unit; a load into
        // one lane, by which `fmla` can multiply, does not.
        // SAFETY: reads 4 bytes, which are valid by this method's contract.
        unsafe {
            asm!("ldr {0:s}, [{1}]", out(vreg) element, in(reg) a, options(pure, readonly, nostack, preserves_flags));
        }
        let mut out = c;
        for (out, b) in out.0.iter_mut().zip(b.0) {
            // SAFETY: `self` proves the instruction.
            *out = unsafe { vfmaq_laneq_f32::<0>(*out, b, element) };
        }
        out
    }
    /// The processors' own prefetchers follow a panel.
    #[inline(always)]
    fn prefetch<T>(self, _address: *const T) {}
    #[inline(always)]
    fn largest(self, value: I) -> i32 {
        let [a, b, c, d] = value.0;
        // SAFETY: `self` proves the instructions.
        unsafe { vmaxvq_s32(vmaxq_s32(vmaxq_s32(a, b), vmaxq_s32(c, d))) }
    }
    #[inline(always)]
    fn total(self, value: I) -> i32 {
        let [a, b, c, d] = value.0;
        // SAFETY: `self` proves the instructions.
        unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn square_roots_are_those_of_the_processor() {
        let same = |x: [f32; 4]| {
            let mut root = [0.0; 4];
            // SAFETY: arrays of 4 elements.
            unsafe { vst1q_f32(root.as_mut_ptr(), sqrt_of_moderate(vld1q_f32(x.as_ptr()))) };
            assert_eq!(root.map(f32::to_bits), x.map(|x| x.sqrt().to_bits()), "{x:?}");
        };
        for bits in (1f32.to_bits()..4f32.to_bits()).step_by(4) {
            same([0, 1, 2, 3].map(|lane| f32::from_bits(bits + lane)));
        }
        for power in -30..30 {
            same([1.0, 1.337, 2.0, 3.999].map(|x| x * 4f32.powi(power)));
        }
        same([0.0, -0.0, 1.0, 2.0]);
    }
}
