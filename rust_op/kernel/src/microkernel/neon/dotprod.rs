//! Integer tiles on `sdot`, which adds to each lane of 32 bits the products of 4 codes of a column with 4 of a row.
//!
//! The 4 codes of a row are one of four lanes of a register, so that 16 codes are one load. Packed codes are multiplied
//! in bytes that are signed, so a byte's top slot is shifted down; for a single row the others are left where they are,
//! which multiplies their sums by a power of two.

use std::arch::aarch64::*;
use std::arch::asm;

use super::I;
use super::blocks::{load_block, opaque, shift_right, slot, unrolled};
use crate::microkernel::isa::TileOrigin;
use crate::microkernel::panels::BLOCK_BYTES;

/// The products of whole steps, and of how many groups they are.
///
/// # Safety
/// As [`TileOrigin`] says, for MR rows and NV vectors.
#[inline(always)]
pub(super) unsafe fn products<const SIZE: u32, const MR: usize, const NV: usize>(
    origin: TileOrigin,
) -> ([[I; NV]; MR], usize) {
    // SAFETY: this function's contract is that of the calls.
    unsafe { if SIZE == 8 { quad_tile(origin) } else { packed_tile::<SIZE, MR, NV>(origin) } }
}

/// `sum` plus the products of the four codes in lane `LANE` of `codes`.
#[inline(always)]
fn sdot_lane<const LANE: usize>(sum: int32x4_t, stored: int8x16_t, codes: int8x16_t) -> int32x4_t {
    let mut out = sum;
    // SAFETY: as in `sdot`.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{lane}]", inout(vreg) out, in(vreg) stored, in(vreg) codes,
            lane = const LANE, options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// Sums of codes of 8 bits, four groups at a time.
///
/// # Safety
/// As [`TileOrigin`] says, for MR rows and NV vectors.
#[inline(always)]
unsafe fn quad_tile<const MR: usize, const NV: usize>(origin: TileOrigin) -> ([[I; NV]; MR], usize) {
    // SAFETY: NEON is part of aarch64; every access is to a block that holds one of `groups` groups, and to groups of
    // `codes`.
    unsafe {
        let mut sums = [[I([vdupq_n_s32(0); 4]); NV]; MR];
        for step in 0..origin.groups / 4 {
            let codes = load_codes::<MR>(origin, 4 * step);
            unrolled!(LANE in 0 1 2 3 => {
                for v in 0..NV {
                    let block = load_block(origin.panel.add((4 * step + LANE) * BLOCK_BYTES + v * 64));
                    for row in 0..MR {
                        for register in 0..4 {
                            let sum = &mut sums[row][v].0[register];
                            *sum = sdot_lane::<LANE>(*sum, block[register], codes[row]);
                        }
                    }
                }
            });
        }
        (sums, origin.groups / 4 * 4)
    }
}

/// Sums of packed codes, four groups at a time: of two blocks, one, or half of one.
///
/// # Safety
/// As [`TileOrigin`] says, for MR rows and NV vectors.
#[inline(always)]
unsafe fn packed_tile<const BITS: u32, const MR: usize, const NV: usize>(origin: TileOrigin) -> ([[I; NV]; MR], usize) {
    let slots = 8 / BITS as usize;
    let blocks = if BITS == 4 { 2 } else { 1 };
    let whole = origin.groups / (blocks * slots);
    // SAFETY: NEON is part of aarch64; every access is to a block that holds one of `groups` groups, and to groups of
    // `codes`.
    unsafe {
        // Constants that the compiler knows it would make anew in each step, in time of the vector units.
        let mut masks = [vdupq_n_s8(0); 4];
        for (place, mask) in masks.iter_mut().enumerate() {
            *mask = opaque(vdupq_n_s8((((1u32 << BITS) - 1) << (BITS as usize * place)) as i8));
        }
        // By the place of their codes; a single place if all are shifted to the lowest one.
        let mut places = [[[I([vdupq_n_s32(0); 4]); NV]; MR]; 4];
        for step in 0..whole {
            let group = step * blocks * slots;
            let mut codes = [load_codes::<MR>(origin, group); 2];
            if BITS == 1 {
                codes[1] = load_codes::<MR>(origin, group + 4);
            }
            unrolled!(V in 0 1 => {
                if const { V < NV } {
                    // One register after the other: with more at once, sums would not fit the registers.
                    unrolled!(REGISTER in 0 1 2 3 => {
                        let at = step * blocks * BLOCK_BYTES + V * 64 + 16 * REGISTER;
                        let bytes = vld1q_s8(origin.panel.add(at).cast());
                        let next = if BITS == 4 { vld1q_s8(origin.panel.add(at + BLOCK_BYTES).cast()) } else { bytes };
                        unrolled!(LANE in 0 1 2 3 => {
                            let bytes = if BITS == 4 && LANE / 2 == 1 { next } else { bytes };
                            let stored = placed::<BITS, MR, 0, LANE>(bytes, masks);
                            add_lane::<BITS, MR, NV, LANE>(&mut places, [V % NV, REGISTER], stored, codes[0]);
                        });
                        if BITS == 1 {
                            unrolled!(LANE in 0 1 2 3 => {
                                let stored = placed::<BITS, MR, 1, LANE>(bytes, masks);
                                add_lane::<BITS, MR, NV, LANE>(&mut places, [V % NV, REGISTER], stored, codes[1]);
                            });
                        }
                    });
                }
            });
        }
        let mut sums = places[0];
        for place in 1..4 {
            for row in 0..MR {
                for v in 0..NV {
                    for register in 0..4 {
                        let shift = vdupq_n_s32(-((BITS as usize * place) as i32));
                        let sum = &mut sums[row][v].0[register];
                        *sum = vaddq_s32(*sum, vshlq_s32(places[place][row][v].0[register], shift));
                    }
                }
            }
        }
        (sums, whole * blocks * slots)
    }
}

/// Adds the products of 4 columns' codes, in register `register` of vector `v`, with lane `LANE` of each row's codes.
#[inline(always)]
fn add_lane<const BITS: u32, const MR: usize, const NV: usize, const LANE: usize>(
    places: &mut [[[I; NV]; MR]; 4],
    [v, register]: [usize; 2],
    stored: int8x16_t,
    codes: [int8x16_t; MR],
) {
    for row in 0..MR {
        let sum = &mut places[place::<BITS, MR>(LANE)][row][v].0[register];
        *sum = sdot_lane::<LANE>(*sum, stored, codes[row]);
    }
}

/// Whether codes are multiplied in their places.
const fn in_place(bits: u32, rows: usize) -> bool {
    bits < 4 && rows == 1
}

/// The place of the codes of lane `lane` of a step.
const fn place<const BITS: u32, const MR: usize>(lane: usize) -> usize {
    if !in_place(BITS, MR) || (BITS == 2 && lane == 3) { 0 } else { lane }
}

/// The codes that meet lane `LANE` of quad `QUAD` of a step, times 2^(BITS * [`place`]).
#[inline(always)]
fn placed<const BITS: u32, const MR: usize, const QUAD: usize, const LANE: usize>(
    bytes: int8x16_t,
    masks: [int8x16_t; 4],
) -> int8x16_t {
    if place::<BITS, MR>(LANE) == 0 && (BITS > 1 || MR > 1) {
        return match (BITS, QUAD, LANE) {
            (4, _, 0 | 2) => slot::<4, 0>(bytes),
            (4, _, _) => slot::<4, 1>(bytes),
            (2, _, _) => slot::<2, LANE>(bytes),
            (_, 0, _) => slot::<1, LANE>(bytes),
            (_, _, 0) => slot::<1, 4>(bytes),
            (_, _, 1) => slot::<1, 5>(bytes),
            (_, _, 2) => slot::<1, 6>(bytes),
            (_, _, _) => slot::<1, 7>(bytes),
        };
    }
    // The upper half of a byte of single bits is shifted down, which leaves fewer places than registers are left for.
    let bytes = if BITS == 1 && QUAD == 1 { shift_right(bytes, 4) } else { bytes };
    // SAFETY: NEON is part of aarch64.
    unsafe { vandq_s8(bytes, masks[LANE]) }
}

/// 16 codes of each row, from group `group` on.
///
/// # Safety
/// Each of the MR rows has the 4 groups.
#[inline(always)]
unsafe fn load_codes<const MR: usize>(origin: TileOrigin, group: usize) -> [int8x16_t; MR] {
    // SAFETY: NEON is part of aarch64; 16 codes of each row, by this function's contract.
    unsafe {
        let mut codes = [vdupq_n_s8(0); MR];
        for (row, codes) in codes.iter_mut().enumerate() {
            *codes = vld1q_s8(origin.codes.add(row * origin.stride + 4 * group));
        }
        codes
    }
}
