//! How the backward pass is cut: a gradient into strips of rows, and a strip into blocks of terms and groups of panels.
//! Several tasks work on a strip at a time, each on a group of its own, and share the packed left operand of a block.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Inputs;
use super::left::{Bias, pack_for_weight, pack_for_x};
use super::right::{Columns, MAX_PANELS, Right};
use crate::microkernel::Tier;
use crate::microkernel::buffer::Buffer;
use crate::microkernel::form::{Floats, Form, Formed, Pairs};
use crate::microkernel::isa::{Isa, Vectorized};
use crate::microkernel::output::OutputBlock;
use crate::microkernel::panels::PANEL;
use crate::microkernel::tile::gradient::{Finish, PackedRows, PackedRowsMut, Panels, gradient_panels};
use crate::precision::{Block, Precision};
use crate::saved::mask_stride;

/// Maximum rows of a strip. Each strip widens every panel again; its packed left operand takes 768 KiB for a block of
/// floats, and half of that for one of 16 bits.
const STRIP_ROWS: usize = 384;
/// Maximum rows of a part of a strip.
const PART_ROWS: usize = 96;
/// A whole number of tiles of 4, 6 or 12 rows, and of vectors.
const ROW_UNIT: usize = 48;
/// Terms of a block where floats are multiplied. Each block stores its sums and loads those of the one before.
const FLOAT_BLOCK: usize = 512;
/// The approximate minimum number of groups in a strip per task.
const GROUPS: usize = 4;
/// Tasks that work on a strip, if there are as many threads. Others have strips of their own, since the tasks of a
/// strip wait for one another while they pack it.
const USERS: usize = 4;
/// Lanes of panels that a task widens at a time: they stay in the second-level cache.
const PANEL_LANES: usize = 1 << 15;

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
    /// The fixed point of the left operand, or `None` if it stays in floats.
    block: Option<Block>,
}

impl Arithmetic {
    /// Terms of a block.
    fn block_terms(self) -> usize {
        self.block.map_or(FLOAT_BLOCK, |block| block.terms)
    }

    /// Lanes for `terms` terms.
    fn depth(self, terms: usize) -> usize {
        if self.block.is_some() { terms.div_ceil(Pairs::TERMS) } else { terms }
    }

    /// Runs `op` with this arithmetic's instructions.
    fn vectorize<V: Formed>(self, op: V) {
        match self.block {
            None => self.tier.vectorize(InForm(Floats, op)),
            Some(block) => self.tier.vectorize(InForm(Pairs(block), op)),
        }
    }
}

/// A computation in a form.
struct InForm<F, V>(F, V);

impl<V: Formed> Vectorized for InForm<Floats, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        self.1.run(isa, self.0);
    }
}

impl<V: Formed> Vectorized for InForm<Pairs, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        self.1.run(isa, self.0);
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
        let rows_per_strip = if operands.is_some() { STRIP_ROWS } else { PART_ROWS };
        let count = rows.div_ceil(rows_per_strip);
        for rows in cut(0..rows, count) {
            let bias = bias.as_mut().map(|bias| bias.split_off_mut(..rows.len()).expect("an element for each row"));
            let output = output.as_mut().map(|output| output.take_rows(rows.len()));
            let users = USERS.max(self.threads.div_ceil(count)).min(self.threads);
            let strip = Arc::new(Strip::new(self, side, rows, operands.zip(output), users, bias));
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
    /// Groups that are done with each block.
    finished: Vec<usize>,
}

/// The columns of some panels. Their sums go on from block to block.
struct Group<'a> {
    panels: Range<usize>,
    /// The next block.
    block: usize,
    /// `None` while a task works on the group.
    output: Option<OutputBlock<'a>>,
}

/// Rows of a strip whose left operand is packed by one task at a time.
struct Part<'a> {
    rows: Range<usize>,
    /// The packed rows of each block: from its first use to its last.
    packed: Vec<Mutex<Option<Arc<Buffer<f32>>>>>,
    /// The bias's gradient of these rows.
    bias: Mutex<Option<&'a mut [f32]>>,
}

/// A block of a group, which belongs to one task.
struct Work<'a> {
    group: usize,
    block: usize,
    panels: Range<usize>,
    output: OutputBlock<'a>,
}

impl<'a> Strip<'a> {
    fn new(
        call: Call<'a>,
        side: Side,
        rows: Range<usize>,
        product: Option<(Operands<'a>, OutputBlock<'a>)>,
        users: usize,
        mut bias: Option<&'a mut [f32]>,
    ) -> Self {
        let (operands, output) = product.unzip();
        let block = operands.and_then(|operands| call.precision.block(operands.right.bits()));
        let arithmetic = Arithmetic { tier: call.tier, block };
        let blocks = call.depth(side).div_ceil(arithmetic.block_terms()).max(1);
        let parts = cut(rows.clone(), rows.len().div_ceil(PART_ROWS)).map(|rows| {
            let bias = bias.as_mut().map(|bias| bias.split_off_mut(..rows.len()).expect("an element for each row"));
            let packed = std::iter::repeat_with(Mutex::default).take(blocks).collect();
            Part { rows, packed, bias: Mutex::new(bias) }
        });
        let parts = parts.collect();
        let panels = call.inputs.shape.2.div_ceil(PANEL);
        // A task that has the strip to itself takes all panels at once.
        let count = if users > 1 { GROUPS * users } else { 1 };
        let per_group = panels.div_ceil(count).max(1);
        let mut groups = Vec::new();
        if let Some(mut output) = output {
            groups.extend((0..panels).step_by(per_group).map(|first| {
                let output = output.take_columns(output.columns().min(per_group * PANEL));
                Group { panels: first..panels.min(first + per_group), block: 0, output: Some(output) }
            }));
        }
        let count = groups.len();
        let progress = Mutex::new(Progress { groups, finished: vec![0; blocks] });
        Strip { call, side, operands, arithmetic, parts, groups: count, progress }
    }

    /// The terms of block `index`.
    fn terms(&self, index: usize) -> Range<usize> {
        let (depth, terms) = (self.call.depth(self.side), self.arithmetic.block_terms());
        index * terms..depth.min((index + 1) * terms)
    }

    /// The next block of whichever group is furthest behind and free; `None` if no group is free that has one. Then
    /// those that work on the others will finish them.
    fn take(&self) -> Option<Work<'a>> {
        let Progress { groups, finished } = &mut *lock(&self.progress);
        let free = groups.iter_mut().enumerate().filter(|(_, group)| group.output.is_some());
        let (index, group) = free.min_by_key(|(_, group)| group.block)?;
        let block = group.block;
        if block == finished.len() {
            return None;
        }
        let output = group.output.take()?;
        Some(Work { group: index, block, panels: group.panels.clone(), output })
    }

    /// Gives back a group whose block is done; the last one to be done with a block frees it.
    fn give_back(&self, work: Work<'a>) {
        let Progress { groups, finished } = &mut *lock(&self.progress);
        let group = &mut groups[work.group];
        (group.block, group.output) = (work.block + 1, Some(work.output));
        finished[work.block] += 1;
        if finished[work.block] == self.groups {
            for part in &self.parts {
                *lock(&part.packed[work.block]) = None;
            }
        }
    }

    /// The packed left operand, g times `scale`, of block `index`, for each part.
    fn packed(&self, index: usize, scale: &[f32]) -> Vec<Arc<Buffer<f32>>> {
        let packed = |part: &Part<'a>, mut block: MutexGuard<'_, Option<Arc<Buffer<f32>>>>| {
            let packed = block.get_or_insert_with(|| {
                let (tile_rows, _) = self.call.tier.float_tile();
                let (rows, depth) = (part.rows.len(), self.arithmetic.depth(self.terms(index).len()));
                let mut packed = Buffer::new(PackedRows::elements(tile_rows, rows, depth));
                let memory = Some((packed.as_mut_slice(), scale));
                self.arithmetic.vectorize(PackLeft { strip: self, part, terms: self.terms(index), packed: memory });
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

/// Packs a block of a part, g times the scale of its terms, and adds g to the bias's gradient; if `packed` is `None`,
/// only the latter.
struct PackLeft<'s, 'a> {
    strip: &'s Strip<'a>,
    part: &'s Part<'a>,
    terms: Range<usize>,
    packed: Option<(&'s mut [f32], &'s [f32])>,
}

impl Formed for PackLeft<'_, '_> {
    #[inline(always)]
    fn run<S: Isa, F: Form<S>>(self, isa: S, form: F) {
        let Strip { call, side, .. } = self.strip;
        let rows = self.part.rows.clone();
        let packed = self.packed.map(|(memory, scale)| (PackedRowsMut::new(memory, rows.len()), scale));
        if *side == Side::X {
            let (packed, scale) = packed.expect("the gradient of X goes with no bias");
            return pack_for_x(isa, form, call.inputs, rows, self.terms, scale, packed);
        }
        let mut bias = lock(&self.part.bias);
        let mut bias = bias.as_deref_mut().map(|sums| Bias { sums, unmasked: call.unmasked_bias });
        if let Some(bias) = &mut bias
            && self.terms.start == 0
        {
            bias.sums.fill(0.0);
        }
        pack_for_weight(isa, form, call.inputs, rows, self.terms, packed, bias);
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
        while let Some(mut work) = strip.take() {
            let left = strip.packed(work.block, operands.left_scale);
            strip.arithmetic.vectorize(MultiplyBlock { strip, left: &left, right: operands.right, work: &mut work });
            drop(left);
            strip.give_back(work);
        }
    }
}

/// The products of a block of a group.
struct MultiplyBlock<'s, 'a> {
    strip: &'s Strip<'a>,
    /// The packed left operand of each part.
    left: &'s [Arc<Buffer<f32>>],
    right: Right<'a>,
    work: &'s mut Work<'a>,
}

impl Formed for MultiplyBlock<'_, '_> {
    #[inline(always)]
    fn run<S: Isa, F: Form<S>>(self, isa: S, form: F) {
        let Strip { call, side, parts, .. } = self.strip;
        let Work { block, panels, output, .. } = self.work;
        let (.., k) = call.inputs.shape;
        let terms = self.strip.terms(*block);
        let depth = terms.len().div_ceil(F::TERMS);
        let at_once = (PANEL_LANES / (depth * PANEL).max(1)).clamp(1, MAX_PANELS).min(panels.len());
        let mut widened = Buffer::<f32>::new(at_once * Panels::stride(depth));
        let (first_row, first_column) = (parts[0].rows.start, panels.start * PANEL);
        for first in panels.clone().step_by(at_once) {
            let panels = first..panels.end.min(first + at_once);
            let from = Columns { column: first * PANEL, k };
            self.right.widen(isa, form, terms.clone(), from, panels.len(), widened.as_mut_slice());
            let columns = panels.start * PANEL..k.min(panels.end * PANEL);
            for (Part { rows, .. }, left) in parts.iter().zip(self.left) {
                let left = PackedRows::new(left.as_slice(), rows.len(), depth);
                let finish = Finish {
                    continued: terms.start > 0,
                    last: terms.end == call.depth(*side),
                    mask: if *side == Side::X { call.inputs.dac_mask } else { None },
                    mask_stride: mask_stride(k),
                    origin: (rows.start, columns.start),
                };
                let output = output.part(
                    rows.start - first_row..rows.end - first_row,
                    columns.start - first_column..columns.end - first_column,
                );
                gradient_panels(isa, form, &left, Panels { memory: widened.as_slice() }, &finish, output);
            }
        }
    }
}
