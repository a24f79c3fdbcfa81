//! How the backward pass is cut: a gradient into strips of rows, and a strip into blocks of terms and groups of panels.
//! Several tasks work on a strip at a time, each on a group of its own, and share the packed left operand of a block.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::left::{Bias, pack_for_weight, pack_for_x};
use super::right::{Columns, MAX_PANELS, Right};
use super::{Inputs, Tile};
use crate::microkernel::Tier;
use crate::microkernel::amx::{ConfiguredTiles, Tiles};
use crate::microkernel::buffer::Buffer;
use crate::microkernel::form::{Bytes, Floats, Pairs};
use crate::microkernel::isa::Isa;
use crate::microkernel::output::OutputBlock;
use crate::microkernel::panels::{PANEL, Storage};
use crate::microkernel::tile::gradient::{
    BlockProduct, Finish, Formed, InForm, Multiply, PackedRows, PackedRowsMut, Panels,
};
use crate::precision::Precision;
use crate::saved::{mask_stride, take_first};

/// Maximum rows of a strip. Each strip widens every panel again; its packed left operand takes 768 KiB for a block of
/// floats, and half of that for one of 16 bits.
const STRIP_ROWS: usize = 384;
/// Maximum rows of a part of a strip.
const PART_ROWS: usize = 96;
/// A whole number of tiles of 4, 6 or 12 rows, and of vectors.
const ROW_UNIT: usize = 48;
/// Terms of a block where floats are multiplied. Each block stores its sums and loads those of the one before.
const FLOAT_BLOCK: usize = 512;
/// For a gradient of 8 bits, which takes a quarter of the memory: how many times as many rows, and how many blocks of
/// terms are packed at a time.
const MORE_OF_BYTES: usize = 2;
/// The approximate minimum number of groups in a strip per task.
const GROUPS: usize = 4;
/// Tasks that work on a strip, if there are as many threads. Others have strips of their own, since the tasks of a
/// strip wait for one another while they pack it.
const USERS: usize = 4;
/// Lanes of panels that a task widens at a time: they stay in the second-level cache. Where the gradient has 16 bits,
/// panels of codes take as much memory as a part of a stage, so that these can be in each other's place.
const FLOAT_PANEL_LANES: usize = 1 << 15;
const CODE_PANEL_LANES: usize = 3 << 13;

/// Cuts `rows` into about `count` ranges of whole tiles and vectors, of similar size.
fn cut(rows: Range<usize>, count: usize) -> impl Iterator<Item = Range<usize>> {
    let rows_per_range = rows.len().div_ceil(count.max(1)).next_multiple_of(ROW_UNIT).max(1);
    rows.clone().step_by(rows_per_range).map(move |first| first..rows.end.min(first + rows_per_range))
}

/// One of `first`, one of `second`, and so on; then the rest.
pub(super) fn interleave<T>(first: Vec<T>, second: Vec<T>) -> Vec<T> {
    let mut both = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    loop {
        let before = both.len();
        both.extend(first.next());
        both.extend(second.next());
        if both.len() == before {
            return both;
        }
    }
}

/// How a product is computed.
#[derive(Clone, Copy, Debug)]
struct Arithmetic {
    tier: Tier,
    lanes: Lanes,
}

/// What a lane of packed operands holds.
#[derive(Clone, Copy, Debug)]
enum Lanes {
    Floats,
    Pairs(Pairs),
    Bytes(Bytes),
}

impl Arithmetic {
    /// How `rows` rows of g are multiplied by codes of `bits` bits (0: analog values).
    fn new(tier: Tier, precision: Precision, bits: u32, rows: usize) -> Self {
        let lanes = match precision.block(bits) {
            None => Lanes::Floats,
            Some(block) => {
                let storage = Storage::of(bits, tier.signed_codes());
                let bytes = Bytes { block, storage };
                let faster = if bytes.planes() == 1 { bits <= tier.by_fours() } else { tier.by_halves(rows) };
                if faster { Lanes::Bytes(bytes) } else { Lanes::Pairs(Pairs(block)) }
            }
        };
        Arithmetic { tier, lanes }
    }

    /// How many times as large strips and stages are as others.
    fn times(self) -> usize {
        match self.lanes {
            Lanes::Bytes(bytes) if bytes.planes() == 1 => MORE_OF_BYTES,
            _ => 1,
        }
    }

    /// Terms of a block.
    fn block_terms(self) -> usize {
        match self.lanes {
            Lanes::Floats => FLOAT_BLOCK,
            Lanes::Pairs(Pairs(block)) | Lanes::Bytes(Bytes { block, .. }) => block.terms,
        }
    }

    /// Panels of stages of `lanes` lanes that are widened at a time.
    fn panels_at_once(self, lanes: usize) -> usize {
        let most = if matches!(self.lanes, Lanes::Floats) { FLOAT_PANEL_LANES } else { CODE_PANEL_LANES };
        (most / (lanes * PANEL).max(1)).clamp(1, MAX_PANELS)
    }

    /// Terms of a stage: of one block or several, which are packed together.
    fn stage_terms(self) -> usize {
        self.block_terms() * self.times()
    }

    /// The blocks of a stage: one without terms where there are none.
    fn blocks(self, stage: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (Range { start, end }, terms) = (stage.clone(), self.block_terms());
        let count = stage.len().div_ceil(terms).max(1);
        (0..count).map(move |index| start + index * terms..end.min(start + (index + 1) * terms))
    }

    /// Elements of memory for a block of `terms` terms of `rows` rows of the left operand.
    fn packed_elements(self, rows: usize, terms: usize) -> usize {
        let (tile_rows, _) = self.tier.float_tile();
        match self.lanes {
            Lanes::Floats => PackedRows::in_tiles(tile_rows, rows, terms),
            Lanes::Pairs(_) => PackedRows::in_tiles(tile_rows, rows, terms.div_ceil(Pairs::TERMS)),
            Lanes::Bytes(bytes) => PackedRows::by_rows(bytes.planes(), rows, terms.div_ceil(Bytes::TERMS)),
        }
    }

    /// Runs `op` with this arithmetic's instructions.
    fn vectorize<V: Formed>(self, op: V) {
        match self.lanes {
            Lanes::Floats => self.tier.vectorize(InForm(Floats, op)),
            Lanes::Pairs(pairs) => self.tier.vectorize(InForm(pairs, op)),
            Lanes::Bytes(bytes) => self.tier.vectorize(InForm(bytes, op)),
        }
    }

    /// The permission to use matrix tiles, if there are products for them.
    fn tiles(self) -> Option<Tiles> {
        self.tier.tiles().filter(|_| matches!(self.lanes, Lanes::Bytes(..)))
    }
}

/// The operands of a gradient's product: g times the scale of each term, and the right operand.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) right: Right<'a>,
    pub(super) left_scale: &'a [f32],
}

/// Which gradient is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Side {
    X,
    Weight,
}

/// What the strips of a call have in common.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) tier: Tier,
    pub(super) precision: Precision,
    pub(super) inputs: &'a Inputs<'a>,
    /// The tile whose columns are computed.
    pub(super) tile: Tile,
    /// Threads that share the work.
    pub(super) threads: usize,
    /// Whether the bias's gradient counts dY even where the ADC saturated.
    pub(super) unmasked_bias: bool,
}

impl<'a> Call<'a> {
    /// Terms of the sums.
    fn depth(&self, side: Side) -> usize {
        let (m, n, _) = self.inputs.shape;
        if side == Side::X { n } else { m }
    }

    /// The tasks that compute the gradient of `side`, which has `rows` rows, and the bias's gradient into `bias`.
    pub(super) fn tasks(
        self,
        side: Side,
        rows: usize,
        product: Option<(Operands<'a>, OutputBlock<'a>)>,
        mut bias: Option<&'a mut [f32]>,
    ) -> Vec<GradientTask<'a>> {
        let mut tasks = Vec::new();
        if product.is_none() && bias.is_none() {
            return tasks;
        }
        let (operands, mut output) = product.unzip();
        let bits = operands.map_or(0, |operands| operands.right.bits());
        let arithmetic = Arithmetic::new(self.tier, self.precision, bits, rows);
        let rows_per_strip = if operands.is_some() { STRIP_ROWS * arithmetic.times() } else { PART_ROWS };
        let count = rows.div_ceil(rows_per_strip);
        for rows in cut(0..rows, count) {
            let bias = bias.as_mut().map(|bias| bias.split_off_mut(..rows.len()).expect("an element for each row"));
            let output = output.as_mut().map(|output| output.take_rows(rows.len()));
            let users = USERS.max(self.threads.div_ceil(count)).min(self.threads);
            let strip = Arc::new(Strip::new(self, side, arithmetic, rows, operands.zip(output), users, bias));
            let users = users.clamp(1, strip.groups.max(1));
            tasks.extend(std::iter::repeat_with(|| GradientTask { strip: strip.clone() }).take(users));
        }
        tasks
    }
}

/// Some rows of one gradient.
struct Strip<'a> {
    call: Call<'a>,
    side: Side,
    /// `None` if the strip computes the bias's gradient alone.
    operands: Option<Operands<'a>>,
    arithmetic: Arithmetic,
    parts: Vec<Part<'a>>,
    /// The number of groups of panels; 0 if there is no product.
    groups: usize,
    progress: Mutex<Progress<'a>>,
}

/// How far the groups of a strip are.
struct Progress<'a> {
    groups: Vec<Group<'a>>,
    /// Groups that are done with each stage.
    finished: Vec<usize>,
}

/// The columns of some panels. Their sums go on from stage to stage.
struct Group<'a> {
    panels: Range<usize>,
    /// The next stage.
    stage: usize,
    /// `None` while a task works on the group.
    output: Option<OutputBlock<'a>>,
}

/// Rows of a strip whose left operand is packed by one task at a time.
struct Part<'a> {
    rows: Range<usize>,
    /// The packed rows of each stage: from its first use to its last.
    packed: Vec<Mutex<Option<Arc<Buffer<f32>>>>>,
    /// The bias's gradient of these rows.
    bias: Mutex<Option<&'a mut [f32]>>,
}

/// A stage of a group, which belongs to one task.
struct Work<'a> {
    group: usize,
    stage: usize,
    panels: Range<usize>,
    output: OutputBlock<'a>,
}

impl<'a> Strip<'a> {
    fn new(
        call: Call<'a>,
        side: Side,
        arithmetic: Arithmetic,
        rows: Range<usize>,
        product: Option<(Operands<'a>, OutputBlock<'a>)>,
        users: usize,
        mut bias: Option<&'a mut [f32]>,
    ) -> Self {
        let (operands, output) = product.unzip();
        let stages = call.depth(side).div_ceil(arithmetic.stage_terms()).max(1);
        let parts = cut(rows.clone(), rows.len().div_ceil(PART_ROWS)).map(|rows| {
            let bias = bias.as_mut().map(|bias| bias.split_off_mut(..rows.len()).expect("an element for each row"));
            let packed = std::iter::repeat_with(Mutex::default).take(stages).collect();
            Part { rows, packed, bias: Mutex::new(bias) }
        });
        let parts = parts.collect();
        let panels = call.tile.columns().div_ceil(PANEL);
        // A task that has the strip to itself takes all panels at once.
        let count = if users > 1 { GROUPS * users } else { 1 };
        let per_group = panels.div_ceil(count).max(1);
        let mut groups = Vec::new();
        if let Some(mut output) = output {
            groups.extend((0..panels).step_by(per_group).map(|first| {
                let output = output.take_columns(output.columns().min(per_group * PANEL));
                Group { panels: first..panels.min(first + per_group), stage: 0, output: Some(output) }
            }));
        }
        let count = groups.len();
        let progress = Mutex::new(Progress { groups, finished: vec![0; stages] });
        Strip { call, side, operands, arithmetic, parts, groups: count, progress }
    }

    /// The terms of stage `index`.
    fn terms(&self, index: usize) -> Range<usize> {
        let (depth, terms) = (self.call.depth(self.side), self.arithmetic.stage_terms());
        index * terms..depth.min((index + 1) * terms)
    }

    /// The next stage of whichever group is furthest behind and free; `None` if no group is free that has one. Then
    /// those that work on the others will finish them.
    fn take(&self) -> Option<Work<'a>> {
        let Progress { groups, finished } = &mut *lock(&self.progress);
        let free = groups.iter_mut().enumerate().filter(|(_, group)| group.output.is_some());
        let (index, group) = free.min_by_key(|(_, group)| group.stage)?;
        let stage = group.stage;
        if stage == finished.len() {
            return None;
        }
        let output = group.output.take()?;
        Some(Work { group: index, stage, panels: group.panels.clone(), output })
    }

    /// Gives back a group whose stage is done; the last one to be done with a stage frees it.
    fn give_back(&self, work: Work<'a>) {
        let Progress { groups, finished } = &mut *lock(&self.progress);
        let group = &mut groups[work.group];
        (group.stage, group.output) = (work.stage + 1, Some(work.output));
        finished[work.stage] += 1;
        if finished[work.stage] == self.groups {
            for part in &self.parts {
                *lock(&part.packed[work.stage]) = None;
            }
        }
    }

    /// Elements of memory for a block of `terms` terms of a part.
    fn packed_elements(&self, part: &Part<'a>, terms: usize) -> usize {
        self.arithmetic.packed_elements(part.rows.len(), terms)
    }

    /// The packed left operand, g times `scale`, of stage `index`, for each part.
    fn packed(&self, index: usize, scale: &[f32]) -> Vec<Arc<Buffer<f32>>> {
        let packed = |part: &Part<'a>, mut block: MutexGuard<'_, Option<Arc<Buffer<f32>>>>| {
            let packed = block.get_or_insert_with(|| {
                let terms = self.terms(index);
                let elements = self.arithmetic.blocks(&terms).map(|block| self.packed_elements(part, block.len()));
                let mut packed = Buffer::new(elements.sum());
                let memory = Some((packed.as_mut_slice(), scale));
                self.arithmetic.vectorize(PackLeft { strip: self, part, terms, packed: memory });
                Arc::new(packed)
            });
            packed.clone()
        };
        // A part that another task is packing is skipped while there are others to pack.
        let parts: Vec<_> = (self.parts.iter())
            .map(|part| part.packed[index].try_lock().ok().map(|block| packed(part, block)))
            .collect();
        (parts.into_iter().zip(&self.parts))
            .map(|(done, part)| done.unwrap_or_else(|| packed(part, lock(&part.packed[index]))))
            .collect()
    }
}

/// Locks `mutex` even if a panic has poisoned it: the whole call panics then, so nothing half done is read.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Packs a stage of a part, g times the scale of its terms, and adds g to the bias's gradient; if `packed` is `None`,
/// only the latter.
struct PackLeft<'s, 'a> {
    strip: &'s Strip<'a>,
    part: &'s Part<'a>,
    terms: Range<usize>,
    packed: Option<(&'s mut [f32], &'s [f32])>,
}

impl Formed for PackLeft<'_, '_> {
    #[inline(always)]
    fn run<S: Isa, F: Multiply<S>>(self, isa: S, form: F) {
        let Strip { call, side, arithmetic, .. } = self.strip;
        let rows = self.part.rows.clone();
        let mut bias = lock(&self.part.bias);
        if let Some(sums) = bias.as_deref_mut()
            && self.terms.start == 0
        {
            sums.fill(0.0);
        }
        let mut packed = self.packed;
        for terms in arithmetic.blocks(&self.terms) {
            let packed = packed.as_mut().map(|(memory, scale)| {
                let memory = take_first(memory, self.strip.packed_elements(self.part, terms.len()));
                (PackedRowsMut::new(memory, rows.len()), *scale)
            });
            match side {
                Side::X => {
                    let (packed, scale) = packed.expect("the gradient of X goes with no bias");
                    pack_for_x(isa, form, (call.inputs, call.tile), rows.clone(), terms, scale, packed);
                }
                Side::Weight => {
                    let bias = bias.as_deref_mut().map(|sums| Bias { sums, unmasked: call.unmasked_bias });
                    pack_for_weight(isa, form, (call.inputs, call.tile), rows.clone(), terms, packed, bias);
                }
            }
        }
    }
}

/// A task: works on a strip until there is nothing left to take, or computes the bias's gradient alone.
pub(super) struct GradientTask<'a> {
    strip: Arc<Strip<'a>>,
}

impl GradientTask<'_> {
    pub(super) fn run(self) {
        let strip = &*self.strip;
        let Some(operands) = strip.operands else {
            for index in 0..lock(&strip.progress).finished.len() {
                for part in &strip.parts {
                    strip.arithmetic.vectorize(PackLeft { strip, part, terms: strip.terms(index), packed: None });
                }
            }
            return;
        };
        let tiles = strip.arithmetic.tiles().map(Tiles::configure);
        while let Some(mut work) = strip.take() {
            let left = strip.packed(work.stage, operands.left_scale);
            strip.arithmetic.vectorize(MultiplyStage {
                strip,
                tiles: tiles.as_ref(),
                left: &left,
                right: operands.right,
                work: &mut work,
            });
            drop(left);
            strip.give_back(work);
        }
    }
}

/// The products of a stage of a group.
struct MultiplyStage<'s, 'a> {
    strip: &'s Strip<'a>,
    tiles: Option<&'s ConfiguredTiles>,
    /// The packed left operand of each part.
    left: &'s [Arc<Buffer<f32>>],
    right: Right<'a>,
    work: &'s mut Work<'a>,
}

impl Formed for MultiplyStage<'_, '_> {
    #[inline(always)]
    fn run<S: Isa, F: Multiply<S>>(self, isa: S, form: F) {
        let Strip { call, side, parts, arithmetic, .. } = self.strip;
        let Work { stage, panels, output, .. } = self.work;
        let (.., k) = call.inputs.shape;
        let blocks: Vec<_> = arithmetic.blocks(&self.strip.terms(*stage)).collect();
        let depth = |block: &Range<usize>| block.len().div_ceil(F::TERMS);
        let lanes = blocks.iter().map(depth).sum::<usize>();
        let at_once = arithmetic.panels_at_once(lanes).min(panels.len());
        let elements = blocks.iter().map(|block| Panels::elements(at_once, depth(block)));
        let mut widened = Buffer::<f32>::new(elements.sum());
        let (first_row, first_column) = (parts[0].rows.start, panels.start * PANEL);
        for first in panels.clone().step_by(at_once) {
            let panels = first..panels.end.min(first + at_once);
            let from = Columns { column: call.tile.first + first * PANEL, end: call.tile.end, k };
            let mut memory = widened.as_mut_slice();
            for block in &blocks {
                let memory = take_first(&mut memory, Panels::elements(at_once, depth(block)));
                self.right.widen(isa, form, block.clone(), from, panels.len(), memory);
            }
            let columns = panels.start * PANEL..call.tile.columns().min(panels.end * PANEL);
            for (part, left) in parts.iter().zip(self.left) {
                let rows = part.rows.clone();
                let (mut left, mut right) = (left.as_slice(), widened.as_slice());
                // The sums of a part stay in the cache from block to block.
                for block in &blocks {
                    let depth = depth(block);
                    let (memory, behind) = left.split_at(self.strip.packed_elements(part, block.len()));
                    let panels = Panels { memory: right };
                    (left, right) = (behind, &right[Panels::elements(at_once, depth)..]);
                    let finish = Finish {
                        continued: block.start > 0,
                        last: block.end == call.depth(*side),
                        mask: if *side == Side::X { call.inputs.dac_mask } else { None },
                        mask_stride: mask_stride(k),
                        origin: (rows.start, call.tile.first + columns.start),
                    };
                    let output = output.part(
                        rows.start - first_row..rows.end - first_row,
                        columns.start - first_column..columns.end - first_column,
                    );
                    let left = PackedRows::new(memory, rows.len(), depth);
                    form.multiply(isa, BlockProduct { tiles: self.tiles, left, panels, finish, output });
                }
            }
        }
    }
}
