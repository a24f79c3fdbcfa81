//! What the algorithms share: the blocks of a panel, the codes in them, and the products of a group.

use crate::microkernel::isa::{Isa, LANES, TileOrigin};
use crate::microkernel::panels::{BLOCK_BYTES, Storage};

/// The stored codes of group `slot` of a block, one per byte.
#[inline(always)]
fn slot<S: Isa, const BITS: u32>(isa: S, block: S::I, slot: usize) -> S::I {
    match BITS {
        8 => block,
        4 => {
            let nibbles = if slot == 0 { block } else { isa.shr::<4>(block) };
            isa.and(nibbles, isa.splat_byte(0x0F))
        }
        2 => {
            let pairs = match slot {
                0 => block,
                1 => isa.shr::<2>(block),
                2 => isa.shr::<4>(block),
                _ => isa.shr::<6>(block),
            };
            isa.and(pairs, isa.splat_byte(0x03))
        }
        _ => {
            let bits = match slot {
                0 => isa.shl::<1>(block),
                1 => block,
                2 => isa.shr::<1>(block),
                3 => isa.shr::<2>(block),
                4 => isa.shr::<3>(block),
                5 => isa.shr::<4>(block),
                6 => isa.shr::<5>(block),
                _ => isa.shr::<6>(block),
            };
            isa.and(bits, isa.splat_byte(0x02))
        }
    }
}

/// [`slot`] of each vector.
#[inline(always)]
pub(super) fn slots_of<S: Isa, const SIZE: u32, const NV: usize>(
    isa: S,
    block: &[S::I; NV],
    index: usize,
) -> [S::I; NV] {
    let mut stored = *block;
    for vector in &mut stored {
        *vector = slot::<S, SIZE>(isa, *vector, index);
    }
    stored
}

/// # Safety
/// `block` is valid for NV vectors.
#[inline(always)]
pub(super) unsafe fn load_block<S: Isa, const NV: usize>(isa: S, block: *const u8) -> [S::I; NV] {
    let mut vectors = [isa.splat_i(0); NV];
    for (v, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: one of the NV vectors.
        *vector = unsafe { isa.load_i_ptr(block.add(v * 4 * LANES)) };
    }
    vectors
}

/// Adds the products of one group of stored codes to sums of 32 bits or, if `SMALL`, to the sums of [`Isa::dot_small`].
///
/// # Safety
/// Each of the MR rows of `origin` has 4 codes at `offset`.
#[inline(always)]
pub(super) unsafe fn dot_group<S: Isa, const SMALL: bool, const MR: usize, const NV: usize>(
    isa: S,
    sums: &mut [[S::I; NV]; MR],
    stored: &[S::I; NV],
    origin: TileOrigin,
    offset: usize,
) {
    for (row, sums) in sums.iter_mut().enumerate() {
        let at = row * origin.stride + offset;
        // SAFETY: one of the rows has 4 codes there, by this function's contract.
        let a = unsafe { isa.activations(origin.codes.add(at), origin.magnitudes.add(at)) };
        for v in 0..NV {
            sums[v] = if SMALL { isa.dot_small(sums[v], stored[v], a) } else { isa.dot(sums[v], stored[v], a) };
        }
    }
}

/// Unpacks a panel of fewer than 8 bits into one with a byte per code. The codes keep their z.
#[inline(always)]
pub(crate) fn unpack_panel<S: Isa>(isa: S, storage: Storage, packed: &[u8], groups: usize, unpacked: &mut [u8]) {
    match storage.bits {
        4 => unpack_panel_of::<S, 4>(isa, packed, groups, unpacked),
        2 => unpack_panel_of::<S, 2>(isa, packed, groups, unpacked),
        _ => unpack_panel_of::<S, 1>(isa, packed, groups, unpacked),
    }
}

#[inline(always)]
fn unpack_panel_of<S: Isa, const BITS: u32>(isa: S, packed: &[u8], groups: usize, unpacked: &mut [u8]) {
    let slots = 8 / BITS as usize;
    let (blocks, _) = packed.as_chunks::<BLOCK_BYTES>();
    let (targets, _) = unpacked.as_chunks_mut::<BLOCK_BYTES>();
    let (whole, last) = targets[..groups].split_at_mut(groups / slots * slots);
    // The number of slots is constant here: if it varied, the shift of each slot would be chosen at run time.
    for (block, targets) in blocks.iter().zip(whole.chunks_exact_mut(slots)) {
        for slot in 0..slots {
            unpack_slot::<S, BITS>(isa, block, slot, &mut targets[slot]);
        }
    }
    for (slot, target) in last.iter_mut().enumerate() {
        unpack_slot::<S, BITS>(isa, &blocks[groups / slots], slot, target);
    }
}

/// Unpacks one group of a block.
#[inline(always)]
fn unpack_slot<S: Isa, const BITS: u32>(
    isa: S,
    block: &[u8; BLOCK_BYTES],
    index: usize,
    target: &mut [u8; BLOCK_BYTES],
) {
    for half in 0..2 {
        let at = half * 4 * LANES;
        // SAFETY: `block` and `target` have two halves of 64 bytes each.
        unsafe {
            let bytes = isa.load_i_ptr(block.as_ptr().add(at));
            isa.store_i_ptr(target.as_mut_ptr().add(at), slot::<S, BITS>(isa, bytes, index));
        }
    }
}
