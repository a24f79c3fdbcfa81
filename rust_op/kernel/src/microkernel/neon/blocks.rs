//! What the integer tiles share: the blocks of a panel, the codes in them, and four codes of a row.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{I, Neon};
use crate::microkernel::isa::{Isa, TileOrigin};
use crate::microkernel::panels::BLOCK_BYTES;

/// The body for each of some constants. The compiler does not unroll these loops, and where the index varies, shifts take
/// their counts from registers and sums are in memory.
macro_rules! unrolled {
    ($index:ident in $($number:literal)* => $body:block) => {
        $({
            const $index: usize = $number;
            $body
        })*
    };
}
pub(super) use unrolled;

/// The four codes at `codes`, four times.
///
/// # Safety
/// `codes` is valid for reads of 4 bytes.
#[inline(always)]
pub(super) unsafe fn repeated(codes: *const i8) -> int8x16_t {
    // SAFETY: NEON is part of aarch64; 4 bytes, by this function's contract.
    let codes = unsafe { vreinterpretq_s8_s32(vdupq_n_s32(codes.cast::<i32>().read_unaligned())) };
    // If the compiler knew that both halves are equal, it would multiply the halves of what they are multiplied with
    // separately, after an instruction that moves one of them.
    opaque(codes)
}

/// `value`, of which the compiler then knows nothing.
#[inline(always)]
pub(super) fn opaque(value: int8x16_t) -> int8x16_t {
    let mut out = value;
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0:v} */", inout(vreg) out, options(pure, nomem, nostack, preserves_flags)) };
    out
}

/// The codes of 16 columns in one block.
///
/// # Safety
/// `block` is valid for reads of 64 bytes.
#[inline(always)]
pub(super) unsafe fn load_block(block: *const u8) -> [int8x16_t; 4] {
    // SAFETY: NEON is part of aarch64; 64 bytes, by this function's contract.
    unsafe {
        let block = block.cast::<i8>();
        [vld1q_s8(block), vld1q_s8(block.add(16)), vld1q_s8(block.add(32)), vld1q_s8(block.add(48))]
    }
}

/// Shifts each byte right.
#[inline(always)]
pub(super) fn shift_right(bytes: int8x16_t, count: usize) -> int8x16_t {
    // SAFETY: NEON is part of aarch64.
    unsafe { vreinterpretq_s8_u8(vshlq_u8(vreinterpretq_u8_s8(bytes), vdupq_n_s8(-(count as i8)))) }
}

/// The lowest `bits` bits of each byte.
#[inline(always)]
pub(super) fn lowest(bytes: int8x16_t, bits: u32) -> int8x16_t {
    // SAFETY: NEON is part of aarch64.
    unsafe { vandq_s8(bytes, vdupq_n_s8((1 << bits) - 1)) }
}

/// The stored codes of group `SLOT` of a block, one per byte.
#[inline(always)]
pub(super) fn slot<const BITS: u32, const SLOT: usize>(bytes: int8x16_t) -> int8x16_t {
    let shifted = shift_right(bytes, BITS as usize * SLOT);
    if SLOT + 1 == 8 / BITS as usize { shifted } else { lowest(shifted, BITS) }
}

/// [`slot`] of each register.
#[inline(always)]
pub(super) fn slots_of<const BITS: u32, const SLOT: usize>(block: [int8x16_t; 4]) -> [int8x16_t; 4] {
    let mut stored = block;
    for stored in &mut stored {
        *stored = slot::<BITS, SLOT>(*stored);
    }
    stored
}

/// Adds the products of groups `done..origin.groups`, one after another, by a shift that varies: little code for what takes
/// little time.
///
/// # Safety
/// As [`TileOrigin`] says, for MR rows and NV vectors.
#[inline(always)]
pub(super) unsafe fn add_groups<const DOT: bool, const SIZE: u32, const MR: usize, const NV: usize>(
    isa: Neon<DOT>,
    sums: &mut [[I; NV]; MR],
    origin: TileOrigin,
    done: usize,
) {
    let slots = 8 / SIZE as usize;
    for group in done..origin.groups {
        for v in 0..NV {
            // SAFETY: a block that holds one of `groups` groups.
            let mut stored = unsafe { isa.load_i_ptr(origin.panel.add(group / slots * BLOCK_BYTES + v * 64)) };
            if SIZE < 8 {
                for register in &mut stored.0 {
                    // SAFETY: NEON is part of aarch64.
                    unsafe {
                        let shifted = shift_right(vreinterpretq_s8_s32(*register), SIZE as usize * (group % slots));
                        *register = vreinterpretq_s32_s8(lowest(shifted, SIZE));
                    }
                }
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: one of the groups of one of the rows.
                let codes = unsafe { origin.codes.add(row * origin.stride + 4 * group) };
                // SAFETY: 4 codes.
                sums[v] = isa.dot(sums[v], stored, unsafe { isa.activations(codes, codes) });
            }
        }
    }
}
