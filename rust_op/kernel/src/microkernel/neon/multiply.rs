//! Integer tiles on `smull` and `smlal`, which multiply 8 codes with 8.
//!
//! The products of a column's 4 codes are in 4 lanes of 16 bits, which have room for 2 products of 8-bit codes (2 * 127 *
//! 127 < 2^15) and for more of smaller ones. `sadalp` adds pairs of these lanes to sums of 32 bits: each register of a
//! panel, which holds the codes of 4 columns, has two registers of those, with two sums for each column.

use std::arch::aarch64::*;
use std::arch::asm;

use super::I;
use super::blocks::{load_block, repeated, slots_of, unrolled};
use crate::microkernel::isa::TileOrigin;
use crate::microkernel::panels::BLOCK_BYTES;

/// Two sums of 32 bits for each of 16 columns.
type Sums = [[int32x4_t; 2]; 4];
/// Four sums of 16 bits for each of 16 columns.
type SmallSums = [[int16x8_t; 2]; 4];

/// The largest magnitude of a DAC code.
const LARGEST_CODE: usize = 127;

/// The products of whole steps, and of how many groups they are.
///
/// # Safety
/// As [`TileOrigin`] says, for MR rows and NV vectors.
#[inline(always)]
pub(super) unsafe fn products<const SIZE: u32, const MR: usize, const NV: usize>(
    origin: TileOrigin,
) -> ([[I; NV]; MR], usize) {
    // SAFETY: this function's contract is that of the calls; NEON is part of aarch64.
    unsafe {
        let (sums, done) = if SIZE == 8 { pair_tile(origin) } else { small_tile::<SIZE, MR, NV>(origin) };
        let mut out = [[I([vdupq_n_s32(0); 4]); NV]; MR];
        for row in 0..MR {
            for v in 0..NV {
                for register in 0..4 {
                    let [low, high] = sums[row][v][register];
                    out[row][v].0[register] = vpaddq_s32(low, high);
                }
            }
        }
        (out, done)
    }
}

/// Sums of codes of 8 bits, two groups at a time.
///
/// # Safety
/// As [`TileOrigin`] says, for MR rows and NV vectors.
#[inline(always)]
unsafe fn pair_tile<const MR: usize, const NV: usize>(origin: TileOrigin) -> ([[Sums; NV]; MR], usize) {
    // SAFETY: NEON is part of aarch64; every access is to a block that holds one of `groups` groups, and to a group of
    // `codes`.
    unsafe {
        let mut sums = [[[[vdupq_n_s32(0); 2]; 4]; NV]; MR];
        for pair in 0..origin.groups / 2 {
            let mut codes = [[vdupq_n_s8(0); 2]; MR];
            for (row, codes) in codes.iter_mut().enumerate() {
                let first = origin.codes.add(row * origin.stride + 8 * pair);
                *codes = [repeated(first), repeated(first.add(4))];
            }
            for v in 0..NV {
                unrolled!(REGISTER in 0 1 2 3 => {
                    let first = origin.panel.add(2 * pair * BLOCK_BYTES + v * 64 + 16 * REGISTER).cast::<i8>();
                    let stored = [vld1q_s8(first), vld1q_s8(first.add(BLOCK_BYTES))];
                    for row in 0..MR {
                        let sums = &mut sums[row][v][REGISTER];
                        *sums = add_pair::<MR>(*sums, stored, codes[row]);
                    }
                });
            }
        }
        (sums, origin.groups / 2 * 2)
    }
}

/// Adds the products of two groups of 4 columns' codes with those of one of MR rows.
#[inline(always)]
fn add_pair<const MR: usize>(
    [mut low, mut high]: [int32x4_t; 2],
    stored: [int8x16_t; 2],
    codes: [int8x16_t; 2],
) -> [int32x4_t; 2] {
    // SAFETY: NEON is part of aarch64; no memory is touched.
    unsafe {
        if MR == 1 {
            let products = vmull_s8(vget_low_s8(stored[0]), vget_low_s8(codes[0]));
            low = vpadalq_s16(low, vmlal_s8(products, vget_low_s8(stored[1]), vget_low_s8(codes[1])));
            high = vpadalq_s16(high, vmlal_high_s8(vmull_high_s8(stored[0], codes[0]), stored[1], codes[1]));
        } else {
            // The compiler would compute the products of all rows before it adds the first of them, for which there are
            // too few registers.
            asm!(
                "smull {p:v}.8h, {s0:v}.8b, {c0:v}.8b",
                "smlal {p:v}.8h, {s1:v}.8b, {c1:v}.8b",
                "sadalp {low:v}.4s, {p:v}.8h",
                "smull2 {q:v}.8h, {s0:v}.16b, {c0:v}.16b",
                "smlal2 {q:v}.8h, {s1:v}.16b, {c1:v}.16b",
                "sadalp {high:v}.4s, {q:v}.8h",
                s0 = in(vreg) stored[0], s1 = in(vreg) stored[1], c0 = in(vreg) codes[0], c1 = in(vreg) codes[1],
                p = out(vreg) _, q = out(vreg) _, low = inout(vreg) low, high = inout(vreg) high,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
    }
    [low, high]
}

/// Sums of packed codes: as many in 16 bits as these have room for.
///
/// # Safety
/// As [`TileOrigin`] says, for MR rows and NV vectors.
#[inline(always)]
unsafe fn small_tile<const BITS: u32, const MR: usize, const NV: usize>(
    origin: TileOrigin,
) -> ([[Sums; NV]; MR], usize) {
    let slots = 8 / BITS as usize;
    let room = i16::MAX as usize / (((1 << BITS) - 1) * LARGEST_CODE);
    let blocks_at_once = room / slots;
    let whole = origin.groups / slots;
    let mut first = 0;
    // SAFETY: NEON is part of aarch64; every access is to a block that holds one of `groups` groups, and to a group of
    // `codes`.
    unsafe {
        let mut sums = [[[[vdupq_n_s32(0); 2]; 4]; NV]; MR];
        while first < whole {
            let mut small = [[[[vdupq_n_s16(0); 2]; 4]; NV]; MR];
            let end = whole.min(first + blocks_at_once);
            for index in first..end {
                for v in 0..NV {
                    let block = load_block(origin.panel.add(index * BLOCK_BYTES + v * 64));
                    unrolled!(SLOT in 0 1 2 3 4 5 6 7 => {
                        if const { SLOT < 8 / BITS as usize } {
                            let stored = slots_of::<BITS, SLOT>(block);
                            let group = index * slots + SLOT;
                            for (row, small) in small.iter_mut().enumerate() {
                                add_products(&mut small[v], stored, origin.codes.add(row * origin.stride + 4 * group));
                            }
                        }
                    });
                }
            }
            widen(&mut sums, &small);
            first = end;
        }
        (sums, whole * slots)
    }
}

/// Adds the products of 16 columns' codes with the 4 at `codes`.
///
/// # Safety
/// `codes` is valid for reads of 4 bytes.
#[inline(always)]
unsafe fn add_products(small: &mut SmallSums, stored: [int8x16_t; 4], codes: *const i8) {
    // SAFETY: NEON is part of aarch64; 4 bytes, by this function's contract.
    unsafe {
        let a = repeated(codes);
        for ([low, high], stored) in small.iter_mut().zip(stored) {
            *low = vmlal_s8(*low, vget_low_s8(stored), vget_low_s8(a));
            *high = vmlal_high_s8(*high, stored, a);
        }
    }
}

/// Adds sums of 16 bits to those of 32.
#[inline(always)]
fn widen<const MR: usize, const NV: usize>(sums: &mut [[Sums; NV]; MR], small: &[[SmallSums; NV]; MR]) {
    for (sums, small) in sums.as_flattened_mut().iter_mut().zip(small.as_flattened()) {
        for (sum, small) in sums.as_flattened_mut().iter_mut().zip(small.as_flattened()) {
            // SAFETY: NEON is part of aarch64.
            *sum = unsafe { vpadalq_s16(*sum, *small) };
        }
    }
}
