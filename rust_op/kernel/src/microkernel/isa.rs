//! What the loops need from an instruction set. A tier's file holds these methods and nothing else.
//!
//! All vectors have 16 lanes of 32 bits, whatever the width of the registers, so that a loop reads the same on
//! every tier and the canonical orders (noise, mean) need no special cases. A value of an implementing
//! type is the permission to use its instructions: it can be made only if the processor has them.

use crate::noise::UNIFORM_STEP;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// 16 bits, of which the first `count` are set.
#[inline(always)]
pub(crate) const fn first_bits(count: usize) -> u16 {
    if count < LANES { (1 << count) - 1 } else { u16::MAX }
}

/// Copies up to 16 elements, as many as both sides have, in pieces of fixed sizes: a call into the C library would take
/// longer.
#[inline(always)]
fn copy_first<T: Copy>(source: &[T], target: &mut [T]) {
    #[inline(always)]
    fn piece<T: Copy, const N: usize>(source: &[T], target: &mut [T], at: &mut usize, count: usize) {
        if count & N != 0 {
            target[*at..][..N].copy_from_slice(&source[*at..][..N]);
            *at += N;
        }
    }
    let (count, mut at) = (source.len().min(target.len()).min(LANES), 0);
    piece::<T, LANES>(source, target, &mut at, count);
    piece::<T, { LANES / 2 }>(source, target, &mut at, count);
    piece::<T, { LANES / 4 }>(source, target, &mut at, count);
    piece::<T, { LANES / 8 }>(source, target, &mut at, count);
    piece::<T, 1>(source, target, &mut at, count);
}

/// The first 16 elements; zeros past the end.
#[inline(always)]
fn filled<T: Copy + Default>(source: &[T]) -> [T; LANES] {
    if let Some(whole) = source.first_chunk() {
        return *whole;
    }
    let mut lanes = [T::default(); LANES];
    copy_first(source, &mut lanes);
    lanes
}

/// Where an integer tile of some rows and vectors begins: the operands of its algorithm.
///
/// The contract of the algorithms: `codes` points to as many rows as the tile has, `stride` apart, of `4 * groups`
/// codes each, and so does `magnitudes` for a tier and storage that read them; `panel` points to blocks
/// [`BLOCK_BYTES`](super::panels::BLOCK_BYTES) apart that hold `groups` groups, and of each block to as many vectors as
/// the tile has.
#[derive(Clone, Copy)]
pub(crate) struct TileOrigin {
    pub(crate) codes: *const i8,
    pub(crate) magnitudes: *const i8,
    pub(crate) stride: usize,
    pub(crate) panel: *const u8,
    pub(crate) groups: usize,
    /// Whether panels are prefetched.
    pub(crate) fetch: bool,
    /// What is prefetched at the first block.
    pub(crate) ahead: *const u8,
}

/// A computation that is compiled once for each tier, with that tier's instructions.
pub(crate) trait Vectorized {
    /// What it returns.
    type Output;
    /// The computation. Implementations are `#[inline(always)]`, and so is all that they call.
    fn run<S: Isa>(self, isa: S) -> Self::Output;
}

/// One instruction set.
///
/// Floating-point methods are the IEEE operations of the same name; `min(a, b)` and `max(a, b)` are b where
/// either is NaN. Integers wrap.
pub(crate) trait Isa: Copy + Send + Sync + 'static {
    /// 16 x f32.
    type F: Copy;
    /// 16 x i32.
    type I: Copy;
    /// 16 x bool.
    type M: Copy;
    /// 8 x u64.
    type U: Copy;
    /// 4 codes of a row of X, repeated for each column, ready for [`Isa::dot`].
    type A: Copy;

    /// The tier's name.
    const NAME: &'static str;
    /// Approximate multiply-adds per nanosecond on one core: of codes, and of floats.
    const PRODUCTS_PER_NS: (u64, u64);
    /// Whether the stored codes that [`Isa::dot`] multiplies are signed bytes, so that panels of 8 bits hold the codes
    /// as they are; otherwise they are unsigned.
    const SIGNED_CODES: bool;
    /// Whether it then also takes the magnitudes of X's codes.
    const MAGNITUDES: bool;
    /// Whether [`Isa::dot`], with [`Isa::MAGNITUDES`], takes the signs s of X's codes a (0 or -1) instead of the
    /// codes, and sums |a| (c ^ s). That is |a| c, or -|a| c - |a| where a is negative: the caller has to add the sum
    /// of these |a|.
    const SIGNS: bool;
    /// Whether [`Isa::dot_small`] sums in 16 bits, which have room for the products of small codes.
    const SMALL_SUMS: bool;
    /// Whether a sum is ready in time for the next [`Isa::dot`], so that one chain is as fast as several.
    const ONE_CHAIN: bool;
    /// Rows of an integer tile, and how many vectors wide it is.
    const INT_TILE: (usize, usize);
    /// Rows up to which a tile is as wide as a panel although larger ones are not, for codes of more than 2 bits.
    const PANEL_WIDE_ROWS: usize;
    /// Rows up to which packed panels are read as they are. With more rows, unpacking a panel once pays.
    const STAY_PACKED: usize;
    /// Whether [`Isa::code_tile`] computes this tier's integer tiles.
    const OWN_TILES: bool = false;
    /// The bits of codes with which one row meets [`STREAMS`](super::tile::int::STREAMS) panels at once: where the sums of
    /// all of them fit the registers.
    const STREAMED_BITS: &'static [u32] = &[];
    /// Rows of a float tile, and how many vectors wide it is.
    const FLOAT_TILE: (usize, usize);
    /// Bits up to which codes are multiplied with gradients of 8 bits faster by fours than in pairs.
    const BY_FOURS: u32;
    /// Whether codes are multiplied with gradients of 16 bits faster by fours, in two products, than in pairs.
    const BY_HALVES: bool;

    /// The permission, if this processor has the instructions.
    fn detect() -> Option<Self>;
    /// Runs `op` with this tier's instructions.
    fn vectorize<V: Vectorized>(self, op: V) -> V::Output;
    /// Runs `op`, which multiplies codes, from within [`Isa::vectorize`]: with instructions for that alone, where there
    /// are any.
    #[inline(always)]
    fn with_products<V: Vectorized>(self, op: V) -> V::Output {
        op.run(self)
    }

    fn splat(self, value: f32) -> Self::F;
    /// # Safety
    /// `source` is valid for reads of 16 elements.
    unsafe fn load_ptr(self, source: *const f32) -> Self::F;
    /// # Safety
    /// `target` is valid for writes of 16 elements.
    unsafe fn store_ptr(self, target: *mut f32, value: Self::F);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn sqrt(self, a: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even; values are within i32.
    fn round(self, a: Self::F) -> Self::I;
    fn to_float(self, a: Self::I) -> Self::F;
    fn bits(self, a: Self::F) -> Self::I;
    fn from_bits(self, a: Self::I) -> Self::F;
    fn is_nan(self, a: Self::F) -> Self::M;
    fn greater(self, a: Self::F, b: Self::F) -> Self::M;
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F;
    /// Lane n as bit n.
    fn mask_bits(self, mask: Self::M) -> u16;
    /// The lanes whose bits are set.
    fn mask(self, bits: u16) -> Self::M;
    /// The lanes in which bit `BIT` is set.
    fn has_bit<const BIT: u32>(self, a: Self::I) -> Self::M;

    fn splat_i(self, value: i32) -> Self::I;
    /// # Safety
    /// `source` is valid for reads of 64 bytes.
    unsafe fn load_i_ptr(self, source: *const u8) -> Self::I;
    /// # Safety
    /// `target` is valid for writes of 64 bytes.
    unsafe fn store_i_ptr(self, target: *mut u8, value: Self::I);
    /// Widens 16 codes.
    fn load_i8(self, source: &[i8; LANES]) -> Self::I;
    /// Widens 16 codes.
    fn load_i16(self, source: &[i16; LANES]) -> Self::I;
    /// Narrows lanes that fit.
    fn store_i8(self, target: &mut [i8; LANES], value: Self::I);
    /// Narrows lanes that fit.
    fn store_i16(self, target: &mut [i16; LANES], value: Self::I);
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn shl<const COUNT: u32>(self, a: Self::I) -> Self::I;
    fn shr<const COUNT: u32>(self, a: Self::I) -> Self::I;
    /// Arithmetic shift right.
    fn sar<const COUNT: u32>(self, a: Self::I) -> Self::I;
    /// Rows become columns.
    fn transpose(self, rows: [Self::I; LANES]) -> [Self::I; LANES];

    /// 4 codes of a row of X, or their signs ([`Isa::SIGNS`]), and their magnitudes where [`Isa::dot`] takes them.
    ///
    /// # Safety
    /// `codes` is valid for reads of 4 bytes; with [`Isa::MAGNITUDES`], so is `magnitudes`.
    unsafe fn activations(self, codes: *const i8, magnitudes: *const i8) -> Self::A;
    /// Adds to each column the product of its 4 stored codes with the 4 of `activations`; with [`Isa::SIGNS`], less
    /// what that leaves to the caller.
    fn dot(self, sum: Self::I, stored: Self::I, activations: Self::A) -> Self::I;
    /// The same for unsigned codes of up to 4 bits, into sums for [`Isa::widen`]: with [`Isa::SMALL_SUMS`] 32 sums of
    /// 16 bits, which the caller has to keep from overflowing.
    #[inline(always)]
    fn dot_small(self, sums: Self::I, stored: Self::I, activations: Self::A) -> Self::I {
        self.dot(sums, stored, activations)
    }
    /// Adds the sums of [`Isa::dot_small`] to sums of 32 bits.
    #[inline(always)]
    fn widen(self, sum: Self::I, small: Self::I) -> Self::I {
        self.add_i(sum, small)
    }

    /// With [`Isa::OWN_TILES`], the sums of MR rows of codes with NV vectors of columns of a panel, whose codes take
    /// `SIZE` bits each; each row's sums begin with its `start`.
    ///
    /// # Safety
    /// As [`TileOrigin`] says, for MR rows and NV vectors.
    #[inline(always)]
    unsafe fn code_tile<const SIZE: u32, const MR: usize, const NV: usize>(
        self,
        _origin: TileOrigin,
        _start: [i32; MR],
    ) -> [[Self::I; NV]; MR] {
        unreachable!("a tier without tiles of its own")
    }

    /// The low bytes of four vectors: in each lane those of its four integers, the first one's lowest.
    #[inline(always)]
    fn low_bytes(self, [a, b, c, d]: [Self::I; 4]) -> Self::I {
        let byte = self.splat_i(0xFF);
        let low = self.or(self.and(a, byte), self.shl::<8>(self.and(b, byte)));
        self.or(low, self.or(self.shl::<16>(self.and(c, byte)), self.shl::<24>(d)))
    }

    /// Adds to each lane the two products of its 16-bit integers, which do not overflow. Not called with
    /// [`Isa::BY_HALVES`].
    #[inline(always)]
    fn dot_pairs(self, _sum: Self::I, _a: Self::I, _b: Self::I) -> Self::I {
        unreachable!("a tier that multiplies in halves")
    }

    fn splat_u(self, value: u64) -> Self::U;
    fn load_u(self, source: &[u64; 8]) -> Self::U;
    fn add_u(self, a: Self::U, b: Self::U) -> Self::U;
    fn mul_u(self, a: Self::U, b: Self::U) -> Self::U;
    fn xor_u(self, a: Self::U, b: Self::U) -> Self::U;
    fn shl_u<const COUNT: u32>(self, a: Self::U) -> Self::U;
    fn shr_u<const COUNT: u32>(self, a: Self::U) -> Self::U;
    /// Rotates by COUNT; REST is 64 - COUNT.
    fn rotl_u<const COUNT: u32, const REST: u32>(self, a: Self::U) -> Self::U;
    /// The same bits as 16 lanes, the low half of a lane first.
    fn halves(self, a: Self::U) -> Self::I;

    #[inline(always)]
    fn load(self, source: &[f32; LANES]) -> Self::F {
        // SAFETY: a reference to 16 elements.
        unsafe { self.load_ptr(source.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, target: &mut [f32; LANES], value: Self::F) {
        // SAFETY: a reference to 16 elements.
        unsafe { self.store_ptr(target.as_mut_ptr(), value) }
    }

    /// *a * b + c, rounded once.
    ///
    /// # Safety
    /// `a` is valid for reads.
    #[inline(always)]
    unsafe fn fma_at(self, a: *const f32, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: valid, by this method's contract.
        self.fma(self.splat(unsafe { *a }), b, c)
    }

    /// a * b + c, rounded once, with the constant c four times.
    #[inline(always)]
    fn fma_constant(self, a: Self::F, b: Self::F, c: &'static [f32; 4]) -> Self::F {
        self.fma(a, b, self.splat(c[0]))
    }

    /// f32(a) * 2^-31 + b; f32(a) and the sum are rounded.
    #[inline(always)]
    fn fraction_plus(self, a: Self::I, b: f32) -> Self::F {
        self.fma(self.to_float(a), self.splat(UNIFORM_STEP), self.splat(b))
    }

    /// The square roots of numbers from 2^-60 to 2^60, or of zeros.
    #[inline(always)]
    fn sqrt_of_moderate(self, a: Self::F) -> Self::F {
        self.sqrt(a)
    }

    /// a, which is not negative, with the top bits of `sign`.
    #[inline(always)]
    fn with_sign(self, a: Self::F, sign: Self::I) -> Self::F {
        self.from_bits(self.xor(self.bits(a), self.and(sign, self.splat_i(i32::MIN))))
    }

    /// a and b, exchanged in the lanes of the mask.
    #[inline(always)]
    fn exchange(self, mask: Self::M, a: Self::F, b: Self::F) -> [Self::F; 2] {
        [self.select(mask, b, a), self.select(mask, a, b)]
    }

    /// The first 16 elements; zeros past the end.
    #[inline(always)]
    fn load_first(self, source: &[f32]) -> Self::F {
        self.load(&filled(source))
    }

    /// Sets the first 16 elements, or as many as there are.
    #[inline(always)]
    fn store_first(self, target: &mut [f32], value: Self::F) {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, value);
        copy_first(&lanes, target);
    }

    /// Widens the first 16 codes; zeros past the end.
    #[inline(always)]
    fn load_i8_first(self, source: &[i8]) -> Self::I {
        self.load_i8(&filled(source))
    }

    /// Widens the first 16 codes; zeros past the end.
    #[inline(always)]
    fn load_i16_first(self, source: &[i16]) -> Self::I {
        self.load_i16(&filled(source))
    }

    /// Narrows lanes that fit into the first 16 codes, or as many as there are.
    #[inline(always)]
    fn store_i8_first(self, target: &mut [i8], value: Self::I) {
        let mut lanes = [0; LANES];
        self.store_i8(&mut lanes, value);
        copy_first(&lanes, target);
    }

    /// Narrows lanes that fit into the first 16 codes, or as many as there are.
    #[inline(always)]
    fn store_i16_first(self, target: &mut [i16], value: Self::I) {
        let mut lanes = [0; LANES];
        self.store_i16(&mut lanes, value);
        copy_first(&lanes, target);
    }

    /// The first `count` lanes; zeros in the others.
    #[inline(always)]
    fn first(self, value: Self::F, count: usize) -> Self::F {
        self.select(self.mask(first_bits(count)), value, self.splat(0.0))
    }

    #[inline(always)]
    fn lanes(self, value: Self::I) -> [i32; LANES] {
        let mut lanes = [0i32; LANES];
        // SAFETY: 16 lanes of 4 bytes.
        unsafe { self.store_i_ptr(lanes.as_mut_ptr().cast(), value) };
        lanes
    }

    /// Prefetches the cache line at `address`, which may be any address: nothing is read.
    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an SSE instruction, which every x86-64 processor has; it does not fault at any address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = address;
    }

    /// The same byte everywhere.
    #[inline(always)]
    fn splat_byte(self, byte: u8) -> Self::I {
        self.splat_i(i32::from_ne_bytes([byte; 4]))
    }

    /// The bits of |a| as an integer, in the order of the numbers: infinity is above them, and NaN above that.
    #[inline(always)]
    fn magnitude(self, a: Self::F) -> Self::I {
        self.and(self.bits(a), self.splat_i(0x7FFF_FFFF))
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        self.from_bits(self.magnitude(a))
    }

    #[inline(always)]
    fn largest(self, value: Self::I) -> i32 {
        self.lanes(value).into_iter().fold(i32::MIN, i32::max)
    }

    #[inline(always)]
    fn total(self, value: Self::I) -> i32 {
        self.lanes(value).into_iter().fold(0, i32::wrapping_add)
    }
}
