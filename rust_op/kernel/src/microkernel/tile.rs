//! Products of a few rows with a panel of [`PANEL`] columns.
//!
//! An integer panel is `[blocks][PANEL][4]` bytes: four consecutive k of a column side by side (a *group*),
//! as a four-way dot product wants them, and in each byte the stored codes c + z of 8/b consecutive groups,
//! low bits first. Stored codes are unsigned, so that one rule serves all widths and `vpdpbusd`:
//! sum a c = sum a (c + z) - z sum a. A float panel is `[K][PANEL]`.

use std::marker::PhantomData;

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
}

impl Storage {
    /// The narrowest storage of codes of `bits` bits.
    pub(crate) const fn of(bits: u32) -> Self {
        Storage { bits: if bits <= 2 { bits } else { bits.next_power_of_two() } }
    }

    /// z. Bits are stored for the codes of a single bit, and unpacked to {0, 2}.
    pub(crate) const fn zero(self) -> i32 {
        if self.bits == 1 { 1 } else { 1 << (self.bits - 1) }
    }

    /// Groups in a block.
    pub(crate) const fn groups(self) -> usize {
        8 / self.bits as usize
    }

    /// Bytes of a panel of rows of `k`.
    pub(crate) const fn panel_bytes(self, k: usize) -> usize {
        k.div_ceil(4).div_ceil(self.groups()) * BLOCK_BYTES
    }
}

/// The stored codes of group `slot` of a block, one a byte.
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

/// # Safety
/// `block` is valid for NV vectors.
#[inline(always)]
unsafe fn load_block<S: Isa, const NV: usize>(isa: S, block: *const u8) -> [S::I; NV] {
    let mut vectors = [isa.splat_i(0); NV];
    for (v, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: one of the NV vectors.
        *vector = unsafe { isa.load_i_ptr(block.add(v * 4 * LANES)) };
    }
    vectors
}

/// Adds the products of one group.
///
/// # Safety
/// `codes` is valid for 4 codes of MR rows, `stride` apart.
#[inline(always)]
unsafe fn dot_group<S: Isa, const BITS: u32, const MR: usize, const NV: usize>(
    isa: S,
    sums: &mut [[S::I; NV]; MR],
    block: &[S::I; NV],
    slot_index: usize,
    codes: *const i8,
    stride: usize,
    zero: S::I,
) {
    let mut weights = [isa.weights(block[0], zero); NV];
    for v in 0..NV {
        weights[v] = isa.weights(slot::<S, BITS>(isa, block[v], slot_index), zero);
    }
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: 4 codes of one of the rows.
        let a = isa.splat_i(unsafe { codes.add(row * stride).cast::<i32>().read_unaligned() });
        for v in 0..NV {
            sums[v] = isa.dot(sums[v], weights[v], a);
        }
    }
}

/// Sums of MR rows of i8 codes with NV vectors of columns, in `U` chains each.
///
/// # Safety
/// `codes` is valid for `MR` rows, `stride` apart, of `4 * groups` bytes; `panel` for the blocks of `groups`
/// groups, of which the NV vectors from `panel` on are read.
#[inline(always)]
unsafe fn int_tile<S: Isa, const BITS: u32, const MR: usize, const NV: usize, const U: usize>(
    isa: S,
    codes: *const i8,
    stride: usize,
    panel: *const u8,
    groups: usize,
    zero: i32,
    start: [i32; MR],
) -> [[S::I; NV]; MR] {
    let slots = 8 / BITS as usize;
    let zero = isa.splat_byte(zero as u8);
    let mut sums = [[[isa.splat_i(0); NV]; MR]; U];
    for row in 0..MR {
        sums[0][row] = [isa.splat_i(start[row]); NV];
    }

    let blocks_at_once = if BITS == 8 { U } else { 1 };
    let mut group = 0;
    let mut block = panel;
    // SAFETY: every access below is to a block that holds one of `groups` groups, and to a group of `codes`.
    unsafe {
        while group + blocks_at_once * slots <= groups {
            for index in 0..blocks_at_once {
                let vectors = load_block::<S, NV>(isa, block.add(index * BLOCK_BYTES));
                for s in 0..slots {
                    let at = codes.add(4 * (group + index * slots + s));
                    let chain = &mut sums[(index * slots + s) % U];
                    dot_group::<S, BITS, MR, NV>(isa, chain, &vectors, s, at, stride, zero);
                }
            }
            group += blocks_at_once * slots;
            block = block.add(blocks_at_once * BLOCK_BYTES);
        }
        while group < groups {
            let vectors = load_block::<S, NV>(isa, block);
            for s in 0..slots.min(groups - group) {
                dot_group::<S, BITS, MR, NV>(isa, &mut sums[0], &vectors, s, codes.add(4 * (group + s)), stride, zero);
            }
            group += slots;
            block = block.add(BLOCK_BYTES);
        }
    }

    let mut total = sums[0];
    for chain in &sums[1..] {
        for row in 0..MR {
            for v in 0..NV {
                total[row][v] = isa.add_i(total[row][v], chain[row][v]);
            }
        }
    }
    total
}

/// Sums of MR rows of floats with NV vectors of columns, each one chain of fused multiply-adds that continues
/// `start`.
///
/// # Safety
/// `rows` is valid for element `row * row_step + k * k_step` of MR rows and `depth` k; `panel` for `depth` rows of
/// [`PANEL`], of which the NV vectors from `panel` on are read.
#[inline(always)]
unsafe fn float_tile<S: Isa, const MR: usize, const NV: usize>(
    isa: S,
    rows: *const f32,
    row_step: usize,
    k_step: usize,
    panel: *const f32,
    depth: usize,
    start: [[S::F; NV]; MR],
) -> [[S::F; NV]; MR] {
    let mut sums = start;
    for k in 0..depth {
        // SAFETY: row k of the panel, and element k of each row.
        unsafe {
            let mut w = [isa.splat(0.0); NV];
            for (v, w) in w.iter_mut().enumerate() {
                *w = isa.load_ptr(panel.add(k * PANEL + v * LANES));
            }
            for row in 0..MR {
                let a = isa.splat(*rows.add(row * row_step + k * k_step));
                for v in 0..NV {
                    sums[row][v] = isa.fma(a, w[v], sums[row][v]);
                }
            }
        }
    }
    sums
}

/// Where a panel's results go: up to [`PANEL`] columns of rows `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pointer: *mut f32,
    stride: usize,
    columns: usize,
}

impl Target {
    /// # Safety
    /// Until the target is dropped, `pointer` is valid for reads and writes of `columns` elements of each row that
    /// a product is asked for, and nothing else reads or writes them.
    pub(crate) unsafe fn new(pointer: *mut f32, stride: usize, columns: usize) -> Self {
        Target { pointer, stride, columns: columns.min(PANEL) }
    }

    /// Elements of row `row` in `vector`, and where they start.
    #[inline(always)]
    fn at(&self, row: usize, vector: usize) -> (*mut f32, usize) {
        // SAFETY: only formed, not read; rows and columns are those of the contract of `new`.
        let pointer = unsafe { self.pointer.add(row * self.stride) }.wrapping_add(vector * LANES);
        (pointer, self.columns.saturating_sub(vector * LANES).min(LANES))
    }

    /// # Safety
    /// `row` is one of the rows of the contract of [`Target::new`].
    #[inline(always)]
    unsafe fn store<S: Isa>(&self, isa: S, row: usize, vector: usize, value: S::F) {
        let (pointer, count) = self.at(row, vector);
        // SAFETY: `count` elements from `pointer` on are ours.
        unsafe {
            if count == LANES {
                isa.store_ptr(pointer, value);
            } else if count > 0 {
                let mut lanes = [0.0; LANES];
                isa.store(&mut lanes, value);
                std::ptr::copy_nonoverlapping(lanes.as_ptr(), pointer, count);
            }
        }
    }

    /// # Safety
    /// `row` is one of the rows of the contract of [`Target::new`].
    #[inline(always)]
    unsafe fn load<S: Isa>(&self, isa: S, row: usize, vector: usize) -> S::F {
        let (pointer, count) = self.at(row, vector);
        // SAFETY: `count` elements from `pointer` on are ours.
        unsafe {
            if count == LANES {
                isa.load_ptr(pointer)
            } else {
                let mut lanes = [0.0; LANES];
                std::ptr::copy_nonoverlapping(pointer, lanes.as_mut_ptr(), count);
                isa.load(&lanes)
            }
        }
    }
}

/// Rows of memory, `stride` apart, that several tasks write at disjoint places.
pub(crate) struct SharedRows<'a> {
    pointer: *mut f32,
    stride: usize,
    length: usize,
    _borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: reaching the memory is unsafe, and asks for disjoint places.
unsafe impl Send for SharedRows<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    pub(crate) fn new(memory: &'a mut [f32], stride: usize) -> Self {
        SharedRows { pointer: memory.as_mut_ptr(), stride, length: memory.len(), _borrowed: PhantomData }
    }

    /// Element `column` of row `row`.
    ///
    /// # Safety
    /// The element exists; whoever writes through the pointer writes what no other task reads or writes.
    #[inline(always)]
    pub(crate) unsafe fn at(&self, row: usize, column: usize) -> *mut f32 {
        debug_assert!(row * self.stride + column < self.length);
        // SAFETY: the element exists.
        unsafe { self.pointer.add(row * self.stride + column) }
    }

    /// `count` elements of row `row` from `column` on.
    ///
    /// # Safety
    /// The elements exist, and no other task reads or writes them while the slice lives.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "that is what is unsafe about it")]
    pub(crate) unsafe fn slice(&self, row: usize, column: usize, count: usize) -> &mut [f32] {
        debug_assert!(row * self.stride + column + count <= self.length);
        // SAFETY: the elements exist, and are this task's.
        unsafe { std::slice::from_raw_parts_mut(self.at(row, column), count) }
    }
}

/// What turns a panel's sums into z.
#[derive(Clone, Copy)]
pub(crate) struct Scaling<'a> {
    /// s_x of each row.
    pub(crate) x_step: &'a [f32],
    /// Weight scales of the panel.
    pub(crate) weight_scale: &'a [f32; PANEL],
    /// Bias of the panel.
    pub(crate) bias: &'a [f32; PANEL],
}

/// Rows of DAC codes.
#[derive(Clone, Copy)]
pub(crate) struct IntRows<'a> {
    pub(crate) codes: &'a [i8],
    pub(crate) stride: usize,
    /// Sum of the codes of each row.
    pub(crate) sums: &'a [i32],
    /// z of the weights that they meet.
    pub(crate) zero: i32,
}

/// Rows of floats: element k of row r is at `r * row_step + k * k_step`, and that of row r of tile t (of MR rows)
/// at `t * tile_step` further.
#[derive(Clone, Copy)]
pub(crate) struct FloatRows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row_step: usize,
    pub(crate) k_step: usize,
    pub(crate) tile_step: usize,
}

#[inline(always)]
fn scaled<S: Isa>(isa: S, scaling: &Scaling<'_>, row: usize, vector: usize, sum: S::F) -> S::F {
    let (scales, _) = scaling.weight_scale.as_chunks::<LANES>();
    let (biases, _) = scaling.bias.as_chunks::<LANES>();
    let scale = isa.mul(isa.splat(scaling.x_step[row]), isa.load(&scales[vector]));
    isa.fma(sum, scale, isa.load(&biases[vector]))
}

/// z of `scaling.x_step.len()` rows of codes with one integer panel of `groups` groups.
///
/// # Safety
/// `target` holds that many rows.
#[inline(always)]
pub(crate) unsafe fn int_panel<S: Isa>(
    isa: S,
    storage: Storage,
    rows: &IntRows<'_>,
    panel: &[u8],
    groups: usize,
    scaling: &Scaling<'_>,
    target: Target,
) {
    // SAFETY: passed on.
    unsafe {
        match storage.bits {
            8 => int_panel_of::<S, 8>(isa, rows, panel, groups, scaling, target),
            4 => int_panel_of::<S, 4>(isa, rows, panel, groups, scaling, target),
            2 => int_panel_of::<S, 2>(isa, rows, panel, groups, scaling, target),
            _ => int_panel_of::<S, 1>(isa, rows, panel, groups, scaling, target),
        }
    }
}

/// # Safety
/// As [`int_panel`].
#[inline(always)]
unsafe fn int_panel_of<S: Isa, const BITS: u32>(
    isa: S,
    rows: &IntRows<'_>,
    panel: &[u8],
    groups: usize,
    scaling: &Scaling<'_>,
    target: Target,
) {
    let count = scaling.x_step.len();
    let (most, _) = S::INT_TILE;
    let mut row = 0;
    // SAFETY: passed on; `row + MR <= count` at each call.
    unsafe {
        while row < count {
            let left = count - row;
            // Packed panels of more rows are unpacked first: only the small tiles are worth compiling for them.
            row += if BITS == 8 && most >= 12 && left >= 12 {
                int_rows::<S, BITS, 12, 1>(isa, rows, panel, groups, scaling, target, row)
            } else if BITS == 8 && most >= 8 && left >= 8 {
                int_rows::<S, BITS, 8, 1>(isa, rows, panel, groups, scaling, target, row)
            } else if left >= 4 {
                int_rows::<S, BITS, 4, 1>(isa, rows, panel, groups, scaling, target, row)
            } else if left >= 2 {
                int_rows::<S, BITS, 2, 2>(isa, rows, panel, groups, scaling, target, row)
            } else {
                int_rows::<S, BITS, 1, 4>(isa, rows, panel, groups, scaling, target, row)
            };
        }
    }
}

/// # Safety
/// As [`int_panel`]; rows `row..row + MR` exist.
#[inline(always)]
unsafe fn int_rows<S: Isa, const BITS: u32, const MR: usize, const U: usize>(
    isa: S,
    rows: &IntRows<'_>,
    panel: &[u8],
    groups: usize,
    scaling: &Scaling<'_>,
    target: Target,
    row: usize,
) -> usize {
    // SAFETY: passed on.
    unsafe {
        match S::INT_TILE.1 {
            2 => int_vectors::<S, BITS, MR, 2, U>(isa, rows, panel, groups, scaling, target, row, 0),
            _ => {
                int_vectors::<S, BITS, MR, 1, U>(isa, rows, panel, groups, scaling, target, row, 0);
                int_vectors::<S, BITS, MR, 1, U>(isa, rows, panel, groups, scaling, target, row, 1);
            }
        }
    }
    MR
}

/// # Safety
/// As [`int_panel`]; rows `row..row + MR` exist.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "an inlined part of one function")]
unsafe fn int_vectors<S: Isa, const BITS: u32, const MR: usize, const NV: usize, const U: usize>(
    isa: S,
    rows: &IntRows<'_>,
    panel: &[u8],
    groups: usize,
    scaling: &Scaling<'_>,
    target: Target,
    row: usize,
    vector: usize,
) {
    let storage = Storage { bits: BITS };
    debug_assert!(panel.len() >= groups.div_ceil(storage.groups()) * BLOCK_BYTES);
    debug_assert!(rows.codes.len() >= (row + MR - 1) * rows.stride + 4 * groups);
    let mut start = [0; MR];
    if S::OFFSET_CODES {
        for (start, sum) in start.iter_mut().zip(&rows.sums[row..row + MR]) {
            *start = -rows.zero * sum;
        }
    }
    // SAFETY: the slices hold what the assertions above say, which their makers keep; the target by contract.
    unsafe {
        let codes = rows.codes.as_ptr().add(row * rows.stride);
        let panel = panel.as_ptr().add(vector * 4 * LANES);
        let sums = int_tile::<S, BITS, MR, NV, U>(isa, codes, rows.stride, panel, groups, rows.zero, start);
        for i in 0..MR {
            for v in 0..NV {
                let z = scaled(isa, scaling, row + i, vector + v, isa.to_float(sums[i][v]));
                target.store(isa, row + i, vector + v, z);
            }
        }
    }
}

/// What becomes of a float panel's sums.
#[derive(Clone, Copy)]
pub(crate) enum Finish<'a> {
    /// z of a forward pass.
    Scale(Scaling<'a>),
    /// The sums themselves; the first of several blocks of k starts at 0, the others continue what is there.
    Sum {
        /// Whether the target holds the sums of the blocks before.
        continued: bool,
    },
}

/// Products of `count` rows of floats with one float panel of `depth` k.
///
/// # Safety
/// `target` holds that many rows.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "each is a fact of its own")]
pub(crate) unsafe fn float_panel<S: Isa>(
    isa: S,
    rows: &FloatRows<'_>,
    count: usize,
    panel: &[f32],
    depth: usize,
    finish: &Finish<'_>,
    target: Target,
) {
    let (most, _) = S::FLOAT_TILE;
    let mut row = 0;
    // SAFETY: passed on; `row + MR <= count` at each call.
    unsafe {
        while row < count {
            let left = count - row;
            row += if most >= 12 && left >= 12 {
                float_rows::<S, 12>(isa, rows, panel, depth, finish, target, row)
            } else if most >= 8 && left >= 8 {
                float_rows::<S, 8>(isa, rows, panel, depth, finish, target, row)
            } else if most == 6 && left >= 6 {
                float_rows::<S, 6>(isa, rows, panel, depth, finish, target, row)
            } else if left >= 4 {
                float_rows::<S, 4>(isa, rows, panel, depth, finish, target, row)
            } else if left >= 2 {
                float_rows::<S, 2>(isa, rows, panel, depth, finish, target, row)
            } else {
                float_rows::<S, 1>(isa, rows, panel, depth, finish, target, row)
            };
        }
    }
}

/// # Safety
/// As [`float_panel`]; rows `row..row + MR` exist.
#[inline(always)]
unsafe fn float_rows<S: Isa, const MR: usize>(
    isa: S,
    rows: &FloatRows<'_>,
    panel: &[f32],
    depth: usize,
    finish: &Finish<'_>,
    target: Target,
    row: usize,
) -> usize {
    // SAFETY: passed on.
    unsafe {
        match S::FLOAT_TILE.1 {
            2 => float_vectors::<S, MR, 2>(isa, rows, panel, depth, finish, target, row, 0),
            _ => {
                float_vectors::<S, MR, 1>(isa, rows, panel, depth, finish, target, row, 0);
                float_vectors::<S, MR, 1>(isa, rows, panel, depth, finish, target, row, 1);
            }
        }
    }
    MR
}

/// # Safety
/// As [`float_panel`]; rows `row..row + MR` exist.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "an inlined part of one function")]
unsafe fn float_vectors<S: Isa, const MR: usize, const NV: usize>(
    isa: S,
    rows: &FloatRows<'_>,
    panel: &[f32],
    depth: usize,
    finish: &Finish<'_>,
    target: Target,
    row: usize,
    vector: usize,
) {
    let tile = S::FLOAT_TILE.0;
    let first = row / tile * rows.tile_step + row % tile * rows.row_step;
    debug_assert!(panel.len() >= depth * PANEL);
    debug_assert!(depth == 0 || rows.values.len() > first + (MR - 1) * rows.row_step + (depth - 1) * rows.k_step);
    // SAFETY: the slices hold what the assertions above say, which their makers keep; the target by contract.
    unsafe {
        let mut start = [[isa.splat(0.0); NV]; MR];
        if let Finish::Sum { continued: true } = finish {
            for (i, start) in start.iter_mut().enumerate() {
                for (v, start) in start.iter_mut().enumerate() {
                    *start = target.load(isa, row + i, vector + v);
                }
            }
        }
        let values = rows.values.as_ptr().add(first);
        let panel = panel.as_ptr().add(vector * LANES);
        let sums = float_tile::<S, MR, NV>(isa, values, rows.row_step, rows.k_step, panel, depth, start);
        for i in 0..MR {
            for v in 0..NV {
                let value = match finish {
                    Finish::Scale(scaling) => scaled(isa, scaling, row + i, vector + v, sums[i][v]),
                    Finish::Sum { .. } => sums[i][v],
                };
                target.store(isa, row + i, vector + v, value);
            }
        }
    }
}

/// Unpacks a panel of fewer bits into one of 8 bits, whose codes keep their z.
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
    for (block, targets) in blocks.iter().zip(targets[..groups].chunks_mut(slots)) {
        for half in 0..2 {
            // SAFETY: each block has two halves of 64 bytes.
            let bytes = unsafe { isa.load_i_ptr(block.as_ptr().add(half * 4 * LANES)) };
            for (index, target) in targets.iter_mut().enumerate() {
                // SAFETY: as above.
                unsafe {
                    isa.store_i_ptr(target.as_mut_ptr().add(half * 4 * LANES), slot::<S, BITS>(isa, bytes, index))
                };
            }
        }
    }
}
