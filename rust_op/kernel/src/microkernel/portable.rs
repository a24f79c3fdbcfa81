//! The portable tier: plain Rust. On a processor without fused multiply-add, `mul_add` is a call into
//! the C library for every lane: correct, but slow.

use super::isa::{Isa, LANES, Vectorized};

/// Permission that every processor gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Portable;

#[inline(always)]
fn map<A: Copy, B: Default + Copy>(a: [A; LANES], f: impl Fn(A) -> B) -> [B; LANES] {
    let mut out = [B::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane]);
    }
    out
}

#[inline(always)]
fn zip<A: Copy, B: Copy, C: Default + Copy>(a: [A; LANES], b: [B; LANES], f: impl Fn(A, B) -> C) -> [C; LANES] {
    let mut out = [C::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

#[inline(always)]
fn zip_u(a: [u64; 8], b: [u64; 8], f: impl Fn(u64, u64) -> u64) -> [u64; 8] {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

impl Isa for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type M = [bool; LANES];
    type U = [u64; 8];
    type A = [i8; 4];

    const NAME: &'static str = "portable";
    const PRODUCTS_PER_NS: (u64, u64) = (2, 1);
    const SIGNED_CODES: bool = false;
    const MAGNITUDES: bool = false;
    const SIGNS: bool = false;
    const SMALL_SUMS: bool = false;
    const ONE_CHAIN: bool = false;
    const INT_TILE: (usize, usize) = (4, 1);
    const PANEL_WIDE_ROWS: usize = 2;
    const STAY_PACKED: usize = 24;
    const FLOAT_TILE: (usize, usize) = (4, 1);
    const BY_FOURS: u32 = 8;
    const BY_HALVES: bool = false;

    fn detect() -> Option<Self> {
        Some(Portable)
    }
    #[inline(always)]
    fn vectorize<V: Vectorized>(self, op: V) -> V::Output {
        op.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load_ptr(self, source: *const f32) -> Self::F {
        // SAFETY: valid for 16 elements, by this method's contract.
        unsafe { source.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, target: *mut f32, value: Self::F) {
        // SAFETY: valid for 16 elements, by this method's contract.
        unsafe { target.cast::<Self::F>().write_unaligned(value) }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let mut out = c;
        for lane in 0..LANES {
            out[lane] = a[lane].mul_add(b[lane], c[lane]);
        }
        out
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        map(a, f32::sqrt)
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::I {
        map(a, |a| a.round_ties_even() as i32)
    }
    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        map(a, |a| a as f32)
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        map(a, |a| a.to_bits() as i32)
    }
    #[inline(always)]
    fn from_bits(self, a: Self::I) -> Self::F {
        map(a, |a| f32::from_bits(a as u32))
    }
    #[inline(always)]
    fn is_nan(self, a: Self::F) -> Self::M {
        map(a, f32::is_nan)
    }
    #[inline(always)]
    fn greater(self, a: Self::F, b: Self::F) -> Self::M {
        zip(a, b, |a, b| a > b)
    }
    #[inline(always)]
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F {
        let mut out = no;
        for lane in 0..LANES {
            if mask[lane] {
                out[lane] = yes[lane];
            }
        }
        out
    }
    #[inline(always)]
    fn mask_bits(self, mask: Self::M) -> u16 {
        mask.iter().enumerate().fold(0, |bits, (lane, set)| bits | u16::from(*set) << lane)
    }
    #[inline(always)]
    fn mask(self, bits: u16) -> Self::M {
        std::array::from_fn(|lane| bits >> lane & 1 == 1)
    }
    #[inline(always)]
    fn has_bit<const BIT: u32>(self, a: Self::I) -> Self::M {
        map(a, |a| a >> BIT & 1 == 1)
    }

    #[inline(always)]
    fn splat_i(self, value: i32) -> Self::I {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load_i_ptr(self, source: *const u8) -> Self::I {
        // SAFETY: valid for 64 bytes, by this method's contract.
        let bytes = unsafe { source.cast::<[[u8; 4]; LANES]>().read_unaligned() };
        map(bytes, i32::from_le_bytes)
    }
    #[inline(always)]
    unsafe fn store_i_ptr(self, target: *mut u8, value: Self::I) {
        // SAFETY: valid for 64 bytes, by this method's contract.
        unsafe { target.cast::<[[u8; 4]; LANES]>().write_unaligned(map(value, i32::to_le_bytes)) }
    }
    #[inline(always)]
    fn load_i8(self, source: &[i8; LANES]) -> Self::I {
        map(*source, i32::from)
    }
    #[inline(always)]
    fn load_i16(self, source: &[i16; LANES]) -> Self::I {
        map(*source, i32::from)
    }
    #[inline(always)]
    fn store_i8(self, target: &mut [i8; LANES], value: Self::I) {
        *target = map(value, |a| a as i8);
    }
    #[inline(always)]
    fn store_i16(self, target: &mut [i16; LANES], value: Self::I) {
        *target = map(value, |a| a as i16);
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn xor(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::max)
    }
    #[inline(always)]
    fn shl<const COUNT: u32>(self, a: Self::I) -> Self::I {
        map(a, |a| a << COUNT)
    }
    #[inline(always)]
    fn shr<const COUNT: u32>(self, a: Self::I) -> Self::I {
        map(a, |a| ((a as u32) >> COUNT) as i32)
    }
    #[inline(always)]
    fn sar<const COUNT: u32>(self, a: Self::I) -> Self::I {
        map(a, |a| a >> COUNT)
    }
    #[inline(always)]
    fn transpose(self, rows: [Self::I; LANES]) -> [Self::I; LANES] {
        std::array::from_fn(|column| std::array::from_fn(|row| rows[row][column]))
    }

    #[inline(always)]
    unsafe fn activations(self, codes: *const i8, _magnitudes: *const i8) -> Self::A {
        // SAFETY: valid for 4 codes, by this method's contract.
        unsafe { codes.cast::<Self::A>().read() }
    }
    #[inline(always)]
    fn dot(self, sum: Self::I, stored: Self::I, activations: Self::A) -> Self::I {
        let mut out = sum;
        for lane in 0..LANES {
            let codes = stored[lane].to_le_bytes();
            for k in 0..4 {
                let product = i32::from(codes[k]) * i32::from(activations[k]);
                out[lane] = out[lane].wrapping_add(product);
            }
        }
        out
    }

    #[inline(always)]
    fn dot_pairs(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let products = |a: i32, b: i32| i32::from(a as i16) * i32::from(b as i16) + (a >> 16) * (b >> 16);
        zip(sum, zip(a, b, products), i32::wrapping_add)
    }

    #[inline(always)]
    fn splat_u(self, value: u64) -> Self::U {
        [value; 8]
    }
    #[inline(always)]
    fn load_u(self, source: &[u64; 8]) -> Self::U {
        *source
    }
    #[inline(always)]
    fn add_u(self, a: Self::U, b: Self::U) -> Self::U {
        zip_u(a, b, u64::wrapping_add)
    }
    #[inline(always)]
    fn mul_u(self, a: Self::U, b: Self::U) -> Self::U {
        zip_u(a, b, u64::wrapping_mul)
    }
    #[inline(always)]
    fn xor_u(self, a: Self::U, b: Self::U) -> Self::U {
        zip_u(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn shl_u<const COUNT: u32>(self, a: Self::U) -> Self::U {
        a.map(|a| a << COUNT)
    }
    #[inline(always)]
    fn shr_u<const COUNT: u32>(self, a: Self::U) -> Self::U {
        a.map(|a| a >> COUNT)
    }
    #[inline(always)]
    fn rotl_u<const COUNT: u32, const REST: u32>(self, a: Self::U) -> Self::U {
        a.map(|a| a.rotate_left(COUNT))
    }
    #[inline(always)]
    fn halves(self, a: Self::U) -> Self::I {
        std::array::from_fn(|half| (a[half / 2] >> (32 * (half % 2))) as i32)
    }
}
