//! Panels of [`PANEL`] columns: how the right operand of a product is laid out, and how rows of weights become panels.
//!
//! An integer panel is `[blocks][PANEL][4]` bytes: four consecutive k of a column side by side (a *group*),
//! as a four-way dot product expects them, and in each byte the stored codes c + z of 8/b consecutive groups,
//! low bits first. Stored codes are unsigned, so that one rule serves all widths and `vpdpbusd`:
//! sum a c = sum a (c + z) - z sum a. Where a tier's dot multiplies signed bytes, z is 0 at 8 bits.
//!
//! A float panel is `[K][PANEL]` or, where float tiles are one vector wide, two halves of `[K][LANES]`, so that what a
//! tile reads is contiguous ([`panel_lane`]).

use super::isa::{Isa, LANES};

/// Columns of a panel.
pub(crate) const PANEL: usize = 32;
/// Bytes of one block of an integer panel.
pub(crate) const BLOCK_BYTES: usize = PANEL * 4;

/// How weight codes are stored in panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Storage {
    /// 1, 2, 4 or 8.
    pub(crate) bits: u32,
    /// z. Codes of a single bit are stored as bits, and unpacked to {0, 2}.
    pub(crate) zero: i32,
}

impl Storage {
    /// The narrowest storage for codes of `bits` bits. With 8 bits and `signed`, the codes are stored as they are.
    pub(crate) const fn of(bits: u32, signed: bool) -> Self {
        let bits = if bits <= 2 { bits } else { bits.next_power_of_two() };
        let zero = match bits {
            1 => 1,
            8 if signed => 0,
            _ => 1 << (bits - 1),
        };
        Storage { bits, zero }
    }

    /// Groups in a block.
    pub(crate) const fn groups(self) -> usize {
        8 / self.bits as usize
    }

    /// Bytes of a panel of columns of `k` codes.
    pub(crate) const fn panel_bytes(self, k: usize) -> usize {
        k.div_ceil(4).div_ceil(self.groups()) * BLOCK_BYTES
    }
}

/// Where vector `vector` of row `k` begins in a float panel of `depth` rows.
#[inline(always)]
pub(crate) fn panel_lane<S: Isa>(depth: usize, k: usize, vector: usize) -> usize {
    if S::FLOAT_TILE.1 == 1 { (vector * depth + k) * LANES } else { k * PANEL + vector * LANES }
}

/// Elements from one row of staged codes to the next: whole vectors of 16 groups.
pub(crate) const fn staged_stride(k: usize) -> usize {
    k.next_multiple_of(4 * LANES)
}

/// Packs [`PANEL`] rows of codes, [`staged_stride`] apart and padded with zeros, into an integer panel.
#[inline(always)]
pub(crate) fn pack_int<S: Isa>(isa: S, storage: Storage, k: usize, codes: &[i8], panel: &mut [u8]) {
    match storage.bits {
        8 => pack_int_of::<S, 8>(isa, k, codes, panel),
        4 => pack_int_of::<S, 4>(isa, k, codes, panel),
        2 => pack_int_of::<S, 2>(isa, k, codes, panel),
        _ => pack_int_of::<S, 1>(isa, k, codes, panel),
    }
}

#[inline(always)]
fn pack_int_of<S: Isa, const BITS: u32>(isa: S, k: usize, codes: &[i8], panel: &mut [u8]) {
    let stride = staged_stride(k);
    let slots = 8 / BITS as usize;
    let (blocks, _) = panel.as_chunks_mut::<BLOCK_BYTES>();
    for half in 0..2 {
        let rows = &codes[half * LANES * stride..(half + 1) * LANES * stride];
        for (step, blocks) in blocks.chunks_mut(LANES / slots).enumerate() {
            let mut vectors = [isa.splat_i(0); LANES];
            for (row, vector) in rows.chunks_exact(stride).zip(&mut vectors) {
                let (groups, _) = row.as_chunks::<{ 4 * LANES }>();
                // SAFETY: a reference to 64 bytes.
                *vector = unsafe { isa.load_i_ptr(groups[step].as_ptr().cast()) };
            }
            let groups = isa.transpose(vectors);
            for (block, groups) in blocks.iter_mut().zip(groups.chunks_exact(slots)) {
                let bytes = combine::<S, BITS>(isa, groups);
                // SAFETY: each block has two halves of 64 bytes.
                unsafe { isa.store_i_ptr(block.as_mut_ptr().add(half * 4 * LANES), bytes) };
            }
        }
    }
}

/// One vector of a block, from consecutive groups of codes.
#[inline(always)]
fn combine<S: Isa, const BITS: u32>(isa: S, groups: &[S::I]) -> S::I {
    if BITS == 8 {
        return if S::SIGNED_CODES { groups[0] } else { isa.xor(groups[0], isa.splat_byte(0x80)) };
    }
    // Neighbours are merged in pairs until one vector is left.
    let mut merged = [groups[0]; 8];
    for (merged, group) in merged.iter_mut().zip(groups) {
        *merged = narrow::<S, BITS>(isa, *group);
    }
    if BITS == 1 {
        for i in 0..4 {
            merged[i] = isa.or(merged[2 * i], isa.shl::<1>(merged[2 * i + 1]));
        }
    }
    if BITS <= 2 {
        for i in 0..2 {
            merged[i] = isa.or(merged[2 * i], isa.shl::<2>(merged[2 * i + 1]));
        }
    }
    isa.or(merged[0], isa.shl::<4>(merged[1]))
}

/// The stored form of codes, in the low bits of each byte: c + 2^(b-1) modulo 2^b flips the top one of b bits; the
/// codes -1 and +1 differ in bit 1.
#[inline(always)]
fn narrow<S: Isa, const BITS: u32>(isa: S, group: S::I) -> S::I {
    match BITS {
        4 => isa.and(isa.xor(group, isa.splat_byte(0x08)), isa.splat_byte(0x0F)),
        2 => isa.and(isa.xor(group, isa.splat_byte(0x02)), isa.splat_byte(0x03)),
        _ => isa.and(isa.xor(isa.shr::<1>(group), isa.splat_byte(0x01)), isa.splat_byte(0x01)),
    }
}

/// Packs [`PANEL`] rows of floats, `stride` (whole vectors) apart and padded with zeros, into a float panel of `depth`
/// rows.
#[inline(always)]
pub(crate) fn pack_float<S: Isa>(isa: S, depth: usize, stride: usize, rows: &[f32], panel: &mut [f32]) {
    for half in 0..2 {
        let rows = &rows[half * LANES * stride..(half + 1) * LANES * stride];
        for start in (0..depth).step_by(LANES) {
            let mut vectors = [isa.splat_i(0); LANES];
            for (row, vector) in rows.chunks_exact(stride).zip(&mut vectors) {
                let (chunks, _) = row[start..].as_chunks::<LANES>();
                *vector = isa.bits(isa.load(&chunks[0]));
            }
            let columns = isa.transpose(vectors);
            for (k, column) in (start..depth.min(start + LANES)).zip(columns) {
                let (chunks, _) = panel[panel_lane::<S>(depth, k, half)..].as_chunks_mut::<LANES>();
                isa.store(&mut chunks[0], isa.from_bits(column));
            }
        }
    }
}
