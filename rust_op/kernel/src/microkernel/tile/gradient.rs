//! Tiles of a gradient: both operands packed, a sum per output.
//!
//! The terms of a sum, or of a block of it, are in `depth` lanes of 32 bits ([`Form`] says what a lane holds). The left
//! operand is in [`PackedRows`]: in tiles, `[depth][rows]` each, or row by row. The right one is in [`Panels`] of the
//! same depth.

use super::Results;
use super::int::{CodeRows, IntPanel, byte_panel};
use super::matrix::matrix_panel;
use crate::microkernel::amx::{ConfiguredTiles, TILE_ROWS, bytes_behind};
use crate::microkernel::buffer::{Buffer, cast, cast_mut};
use crate::microkernel::form::{Bytes, Floats, Form, InTiles, Pairs, join};
use crate::microkernel::isa::{Isa, LANES, Vectorized};
use crate::microkernel::output::{OutputBlock, OutputTile};
use crate::microkernel::panels::{PANEL, panel_lane};
use crate::reference::NAN;
use crate::saved::mask_word;

/// Rows of the left operand, packed.
#[derive(Clone, Copy)]
pub(crate) struct PackedRows<'a> {
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    /// What a code of each row stands for, in a fixed point.
    pub(crate) steps: &'a [f32],
    /// The sum of each row's codes where rows are packed one by one, for each plane.
    sums: [&'a [i32]; 2],
    /// Tiles, or planes of rows [`row_stride`] apart.
    lanes: &'a [f32],
}

/// The memory of [`PackedRows`].
pub(crate) struct PackedRowsMut<'a> {
    pub(crate) steps: &'a mut [f32],
    /// 1 / step of each row, to whole vectors.
    pub(crate) inverses: &'a mut [f32],
    /// To whole vectors.
    pub(crate) sums: [&'a mut [i32]; 2],
    pub(crate) lanes: &'a mut [f32],
}

impl<'a> PackedRows<'a> {
    /// Elements of memory for `rows` rows in tiles of `tile_rows` rows.
    pub(crate) fn in_tiles(tile_rows: usize, rows: usize, depth: usize) -> usize {
        4 * rows.next_multiple_of(LANES) + rows.div_ceil(tile_rows) * tile_stride(tile_rows, depth)
    }

    /// Elements of memory for `rows` rows one by one.
    pub(crate) fn by_rows(planes: usize, rows: usize, depth: usize) -> usize {
        4 * rows.next_multiple_of(LANES) + planes * plane_stride(rows, depth)
    }

    pub(crate) fn new(memory: &'a [f32], rows: usize, depth: usize) -> Self {
        let vectors = rows.next_multiple_of(LANES);
        let (steps, rest) = memory.split_at(vectors);
        let (sums, lanes) = rest[vectors..].split_at(2 * vectors);
        let (low, high) = sums.split_at(vectors);
        PackedRows { rows, depth, steps, sums: [cast(low), cast(high)], lanes }
    }

    /// The rows of a plane.
    fn plane(&self, plane: usize) -> CodeRows<'a> {
        let codes = cast(&self.lanes[plane * plane_stride(self.rows, self.depth)..]);
        CodeRows { codes, magnitudes: &[], stride: 4 * row_stride(self.depth), sums: self.sums[plane] }
    }
}

impl<'a> PackedRowsMut<'a> {
    pub(crate) fn new(memory: &'a mut [f32], rows: usize) -> Self {
        let vectors = rows.next_multiple_of(LANES);
        let (steps, rest) = memory.split_at_mut(vectors);
        let (inverses, rest) = rest.split_at_mut(vectors);
        let (low, rest) = rest.split_at_mut(vectors);
        let (high, lanes) = rest.split_at_mut(vectors);
        PackedRowsMut { steps, inverses, sums: [cast_mut(low), cast_mut(high)], lanes }
    }
}

/// Consecutive panels of the right operand.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    /// [`Panels::stride`] apart: `depth` rows, and behind them what is added to the sums of each column.
    pub(crate) memory: &'a [f32],
}

impl Panels<'_> {
    /// Elements from one panel to the next.
    pub(crate) const fn stride(depth: usize) -> usize {
        (depth + 1) * PANEL
    }

    /// Elements of memory for `count` panels, and what is read behind them.
    pub(crate) const fn elements(count: usize, depth: usize) -> usize {
        count * Panels::stride(depth) + bytes_behind(depth) / size_of::<f32>()
    }
}

/// Lanes from one row to the next where rows are packed one by one: whole vectors, of which the last one's end is 0.
pub(crate) const fn row_stride(depth: usize) -> usize {
    depth.next_multiple_of(LANES)
}

/// Lanes from one plane of rows to the next: matrix tiles read whole tiles of rows.
pub(crate) const fn plane_stride(rows: usize, depth: usize) -> usize {
    rows.next_multiple_of(TILE_ROWS) * row_stride(depth)
}

/// Lanes behind each tile of the left operand, since packing stores whole vectors, or halves of them.
const SLACK: usize = LANES;

/// Lanes from one tile of `tile_rows` rows of the left operand to the next.
pub(crate) const fn tile_stride(tile_rows: usize, depth: usize) -> usize {
    tile_rows * depth + SLACK
}

/// Rows of the next tile where `remaining` rows are left and tiles have at most `tile_rows` rows. The last rows get the
/// smallest tile that holds them, padded with rows of zeros.
pub(crate) const fn tile_height(tile_rows: usize, remaining: usize) -> usize {
    if remaining >= tile_rows || remaining > 8 {
        tile_rows
    } else {
        let height = remaining.next_power_of_two();
        if height > tile_rows { tile_rows } else { height }
    }
}

/// What is done with a gradient's sums.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    /// The output holds the sums of the preceding terms.
    pub(crate) continued: bool,
    /// The sums are complete: NaN becomes canonical, and masked elements become 0.
    pub(crate) last: bool,
    /// Bit k of row r is in byte `r * mask_stride + k / 8`.
    pub(crate) mask: Option<&'a [u8]>,
    pub(crate) mask_stride: usize,
    /// The first row and column of the output, as the mask counts them.
    pub(crate) origin: (usize, usize),
}

impl Finish<'_> {
    /// The finished vector at row `row` of the output and column `column` of the mask.
    #[inline(always)]
    fn apply<S: Isa>(&self, isa: S, row: usize, column: usize, sum: S::F) -> S::F {
        if !self.last {
            return sum;
        }
        let value = isa.select(isa.is_nan(sum), isa.splat(NAN), sum);
        let Some(mask) = self.mask else { return value };
        let at = (self.origin.0 + row) * self.mask_stride;
        // The panel's last vector may have no columns at all.
        match mask_word(&mask[at..at + self.mask_stride], column) {
            0 => value,
            bits => isa.select(isa.mask(bits), isa.splat(0.0), value),
        }
    }
}

/// A block of the left operand, to be multiplied with consecutive panels of the right one into `output`.
pub(crate) struct BlockProduct<'a> {
    /// The matrix tiles, if bytes are multiplied and there are any.
    pub(crate) tiles: Option<&'a ConfiguredTiles>,
    pub(crate) left: PackedRows<'a>,
    pub(crate) panels: Panels<'a>,
    pub(crate) finish: Finish<'a>,
    pub(crate) output: OutputBlock<'a>,
}

/// A form, and how it multiplies.
pub(crate) trait Multiply<S: Isa>: Form<S> {
    fn multiply(self, isa: S, product: BlockProduct<'_>);
}

impl<S: Isa> Multiply<S> for Floats {
    #[inline(always)]
    fn multiply(self, isa: S, product: BlockProduct<'_>) {
        multiply_in_tiles(isa, self, product);
    }
}

impl<S: Isa> Multiply<S> for Pairs {
    #[inline(always)]
    fn multiply(self, isa: S, product: BlockProduct<'_>) {
        multiply_in_tiles(isa, self, product);
    }
}

impl<S: Isa> Multiply<S> for Bytes {
    #[inline(always)]
    fn multiply(self, isa: S, product: BlockProduct<'_>) {
        isa.with_products(MultiplyBytes(self, product));
    }
}

/// A computation that is compiled once for each tier and form.
pub(crate) trait Formed {
    /// The computation. Implementations are `#[inline(always)]`, and so is all that they call.
    fn run<S: Isa, F: Multiply<S>>(self, isa: S, form: F);
}

/// A form on every tier.
pub(crate) trait AnyForm {
    /// Runs `op` in this form.
    fn run<S: Isa, V: Formed>(self, isa: S, op: V);
}

/// A computation in a form.
pub(crate) struct InForm<F, V>(pub(crate) F, pub(crate) V);

impl<F: AnyForm, V: Formed> Vectorized for InForm<F, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        self.0.run(isa, self.1);
    }
}

macro_rules! on_every_tier {
    ($($form:ty),+) => {
        $(impl AnyForm for $form {
            #[inline(always)]
            fn run<S: Isa, V: Formed>(self, isa: S, op: V) {
                op.run(isa, self);
            }
        })+
    };
}

on_every_tier!(Floats, Pairs, Bytes);

/// Multiplies a left operand in tiles.
#[inline(always)]
fn multiply_in_tiles<S: Isa, F: InTiles<S>>(isa: S, form: F, product: BlockProduct<'_>) {
    let BlockProduct { left, panels, finish, mut output, .. } = product;
    let (tile_rows, _) = S::FLOAT_TILE;
    let columns = output.columns();
    assert!(output.rows() == left.rows && left.steps.len() >= left.rows);
    assert!(left.lanes.len() >= left.rows.div_ceil(tile_rows) * tile_stride(tile_rows, left.depth));
    assert!(panels.memory.len() >= columns.div_ceil(PANEL) * Panels::stride(left.depth));
    let mut row = 0;
    while row < left.rows {
        let height = tile_height(tile_rows, left.rows - row);
        for column in (0..columns).step_by(PANEL) {
            let mut block = output.part(0..left.rows, column..columns);
            // SAFETY: the block is used for nothing else; both operands hold what the tile reads, as asserted above.
            unsafe {
                let panel = panels.memory.as_ptr().add(column / PANEL * Panels::stride(left.depth));
                let tile = Tile { left: &left, panel, finish: &finish, output: block.tile(), row, column };
                match height {
                    12 if const { S::FLOAT_TILE.0 == 12 } => tile.run::<S, F, 12>(isa, form),
                    8 if const { S::FLOAT_TILE.0 >= 8 } => tile.run::<S, F, 8>(isa, form),
                    6 if const { S::FLOAT_TILE.0 == 6 } => tile.run::<S, F, 6>(isa, form),
                    4 => tile.run::<S, F, 4>(isa, form),
                    2 => tile.run::<S, F, 2>(isa, form),
                    _ => tile.run::<S, F, 1>(isa, form),
                }
            }
        }
        row += height;
    }
}

/// Multiplies bytes, with the tiles of the forward pass.
struct MultiplyBytes<'a>(Bytes, BlockProduct<'a>);

impl Vectorized for MultiplyBytes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let MultiplyBytes(form, BlockProduct { tiles, left, panels, finish, mut output }) = self;
        let mut high = (form.planes() == 2).then(|| Buffer::<f32>::new(left.rows * PANEL));
        let tiles = tiles.filter(|_| left.rows >= TILE_ROWS && left.depth > 0);
        for column in (0..output.columns()).step_by(PANEL) {
            let memory = &panels.memory[column / PANEL * Panels::stride(left.depth)..];
            let (bytes, groups) = (cast(memory), left.depth);
            let next = bytes.as_ptr();
            let panel = IntPanel { storage: form.storage, unpacked: true, bytes, groups, fetch: false, next };
            let spoilt = memory[groups * PANEL..].first_chunk().expect("a panel ends with what is added");
            if let Some(high) = &mut high {
                let output = OutputBlock::new(high.as_mut_slice(), (left.rows, PANEL));
                multiply_plane(isa, tiles, &left.plane(1), &panel, &High { rows: left.rows }, output);
            }
            let high = high.as_ref().map(Buffer::as_slice);
            let joined = Joined { rows: left.rows, high, steps: left.steps, spoilt, finish: &finish, column };
            let columns = output.columns();
            let output = output.part(0..left.rows, column..columns);
            multiply_plane(isa, tiles, &left.plane(0), &panel, &joined, output);
        }
    }
}

/// Multiplies rows of bytes with a panel of them.
#[inline(always)]
fn multiply_plane<S: Isa, R: Results>(
    isa: S,
    tiles: Option<&ConfiguredTiles>,
    rows: &CodeRows<'_>,
    panel: &IntPanel<'_>,
    results: &R,
    output: OutputBlock<'_>,
) {
    match tiles {
        Some(tiles) => matrix_panel(isa, tiles, rows, panel, results, output),
        None => byte_panel(isa, rows, panel, results, output),
    }
}

/// Keeps the sums of h, times 256, as the bits of the output.
struct High {
    rows: usize,
}

impl Results for High {
    #[inline(always)]
    fn rows(&self) -> usize {
        self.rows
    }
    #[inline(always)]
    unsafe fn put<S: Isa, const MR: usize, const NV: usize>(
        &self,
        isa: S,
        output: OutputTile,
        (row, vector): (usize, usize),
        sums: [[S::I; NV]; MR],
    ) {
        for i in 0..MR {
            for v in 0..NV {
                // SAFETY: rows that are there by this method's contract.
                unsafe { output.store(isa, row + i, vector + v, isa.from_bits(isa.shl::<8>(sums[i][v]))) };
            }
        }
    }
}

/// Joins the sums of a block to those of the blocks before it.
struct Joined<'a> {
    rows: usize,
    /// What [`High`] kept, in rows of a panel.
    high: Option<&'a [f32]>,
    steps: &'a [f32],
    spoilt: &'a [f32; PANEL],
    finish: &'a Finish<'a>,
    /// The panel's first column in the output.
    column: usize,
}

impl Results for Joined<'_> {
    #[inline(always)]
    fn rows(&self) -> usize {
        self.rows
    }
    #[inline(always)]
    unsafe fn put<S: Isa, const MR: usize, const NV: usize>(
        &self,
        isa: S,
        output: OutputTile,
        (row, vector): (usize, usize),
        sums: [[S::I; NV]; MR],
    ) {
        let Joined { steps, finish, .. } = self;
        let (spoilt, _) = self.spoilt.as_chunks::<LANES>();
        let column = |v: usize| finish.origin.1 + self.column + (vector + v) * LANES;
        let mut sums = sums;
        if let Some(high) = self.high {
            for i in 0..MR {
                let (high, _) = high[(row + i) * PANEL..].as_chunks::<LANES>();
                for v in 0..NV {
                    sums[i][v] = isa.add_i(sums[i][v], isa.bits(isa.load(&high[vector + v])));
                }
            }
        }
        let mut before = [[isa.splat(0.0); NV]; MR];
        // SAFETY: rows that are there by this method's contract, and columns of them.
        unsafe {
            // Loops of a fixed length keep sums in registers.
            if output.is_whole(vector + NV) {
                if finish.continued {
                    before = output.whole(isa, row, vector);
                }
                for i in 0..MR {
                    for v in 0..NV {
                        let spoilt = isa.load(&spoilt[vector + v]);
                        let sum = join(isa, sums[i][v], steps[row + i], before[i][v], spoilt);
                        let sum = finish.apply(isa, row + i, column(v), sum);
                        output.store_whole(isa, row + i, vector + v, sum);
                    }
                }
            } else {
                for i in 0..MR {
                    for v in 0..NV {
                        let before =
                            if finish.continued { output.load(isa, row + i, vector + v) } else { isa.splat(0.0) };
                        let sum = join(isa, sums[i][v], steps[row + i], before, isa.load(&spoilt[vector + v]));
                        output.store(isa, row + i, vector + v, finish.apply(isa, row + i, column(v), sum));
                    }
                }
            }
        }
    }
}

/// Some rows of the left operand and a panel of the right one.
struct Tile<'a> {
    left: &'a PackedRows<'a>,
    panel: *const f32,
    finish: &'a Finish<'a>,
    output: OutputTile,
    row: usize,
    column: usize,
}

impl Tile<'_> {
    /// # Safety
    /// The left operand holds a tile of MR rows at `row`, the panel is of the left operand's depth, and the output has
    /// every row of the tile that the left operand has.
    #[inline(always)]
    unsafe fn run<S: Isa, F: InTiles<S>, const MR: usize>(&self, isa: S, form: F) {
        // SAFETY: this method's contract is that of the calls.
        unsafe {
            if const { S::FLOAT_TILE.1 == 2 } {
                self.vectors::<S, F, MR, 2>(isa, form, 0);
            } else {
                for vector in 0..2 {
                    self.vectors::<S, F, MR, 1>(isa, form, vector);
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::run`].
    #[inline(always)]
    unsafe fn vectors<S: Isa, F: InTiles<S>, const MR: usize, const NV: usize>(&self, isa: S, form: F, vector: usize) {
        let (tile_rows, _) = S::FLOAT_TILE;
        let depth = self.left.depth;
        let rows = MR.min(self.left.rows - self.row);
        let mut sums = [[form.start(isa, isa.splat(0.0)); NV]; MR];
        // SAFETY: only rows of the output and lanes of both operands that exist by this method's contract are used: a tile
        // of the left operand is padded to MR rows, and a panel has a row more than its depth.
        unsafe {
            let left = self.left.lanes.as_ptr().add(self.row / tile_rows * tile_stride(tile_rows, depth));
            let panel = self.panel.add(panel_lane::<S>(depth, 0, vector));
            for i in 0..MR {
                for v in 0..NV {
                    self.output.prefetch(isa, self.row + i, vector + v);
                }
            }
            // Loops of a fixed length keep sums in registers.
            if rows == MR && self.output.is_whole(vector + NV) {
                let mut before = [[isa.splat(0.0); NV]; MR];
                if F::CHAINED && self.finish.continued {
                    before = self.output.whole(isa, self.row, vector);
                }
                for i in 0..MR {
                    for v in 0..NV {
                        sums[i][v] = form.start(isa, before[i][v]);
                    }
                }
                let sums = products::<S, F, MR, NV>(isa, form, left, panel, depth, sums);
                if !F::CHAINED && self.finish.continued {
                    before = self.output.whole(isa, self.row, vector);
                }
                for i in 0..MR {
                    for v in 0..NV {
                        let spoilt = isa.load_ptr(self.spoilt(vector + v));
                        let sum = form.finish(isa, sums[i][v], self.left.steps[self.row + i], before[i][v], spoilt);
                        self.output.store_whole(isa, self.row + i, vector + v, self.finished(isa, i, vector + v, sum));
                    }
                }
            } else {
                if F::CHAINED && self.finish.continued {
                    for (i, sums) in sums.iter_mut().enumerate().take(rows) {
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = form.start(isa, self.output.load(isa, self.row + i, vector + v));
                        }
                    }
                }
                let sums = products::<S, F, MR, NV>(isa, form, left, panel, depth, sums);
                for (i, sums) in sums.iter().enumerate().take(rows) {
                    for (v, sum) in sums.iter().enumerate() {
                        let mut before = isa.splat(0.0);
                        if !F::CHAINED && self.finish.continued {
                            before = self.output.load(isa, self.row + i, vector + v);
                        }
                        let spoilt = isa.load_ptr(self.spoilt(vector + v));
                        let sum = form.finish(isa, *sum, self.left.steps[self.row + i], before, spoilt);
                        self.output.store(isa, self.row + i, vector + v, self.finished(isa, i, vector + v, sum));
                    }
                }
            }
        }
    }

    /// Where the panel holds what is added to the sums of a vector.
    #[inline(always)]
    fn spoilt(&self, vector: usize) -> *const f32 {
        self.panel.wrapping_add(self.left.depth * PANEL + vector * LANES)
    }

    /// [`Finish::apply`] to row `i` of the tile.
    #[inline(always)]
    fn finished<S: Isa>(&self, isa: S, i: usize, vector: usize, sum: S::F) -> S::F {
        self.finish.apply(isa, self.row + i, self.finish.origin.1 + self.column + vector * LANES, sum)
    }
}

/// `sums` plus the products of MR rows with NV vectors of columns.
///
/// # Safety
/// `left` is valid for `depth` times MR lanes, `panel` for NV vectors of each of `depth` rows, where [`panel_lane`]
/// places them.
#[inline(always)]
unsafe fn products<S: Isa, F: InTiles<S>, const MR: usize, const NV: usize>(
    isa: S,
    form: F,
    left: *const f32,
    panel: *const f32,
    depth: usize,
    sums: [[F::Sum; NV]; MR],
) -> [[F::Sum; NV]; MR] {
    let mut sums = sums;
    for k in 0..depth {
        // SAFETY: row k of the panel and of the tile.
        unsafe {
            let mut right = [isa.splat(0.0); NV];
            for (v, right) in right.iter_mut().enumerate() {
                *right = isa.load_ptr(panel.add(panel_lane::<S>(depth, k, 0) + v * LANES));
            }
            for row in 0..MR {
                let lane = isa.splat(*left.add(k * MR + row));
                for v in 0..NV {
                    sums[row][v] = form.multiply_add(isa, lane, right[v], sums[row][v]);
                }
            }
        }
    }
    sums
}
