//! How the backward pass is cut: a gradient into strips of rows, and a strip into tasks of some panels each. The tasks
//! of a strip share its packed left operand, whose parts they pack between them.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::left::{Bias, pack_for_weight, pack_for_x};
use super::right::Right;
use super::{Inputs, Precision};
use crate::microkernel::Tier;
use crate::microkernel::buffer::Buffer;
use crate::microkernel::form::{Floats, Form, Formed};
use crate::microkernel::isa::{Isa, Vectorized};
use crate::microkernel::output::OutputBlock;
use crate::microkernel::panels::PANEL;
use crate::microkernel::tier::Bf16;
use crate::microkernel::tile::gradient::{Finish, PackedRows, gradient_panels, tile_stride};
use crate::saved::mask_stride;

/// Maximum rows of a strip. Each strip widens every panel again.
const STRIP_ROWS: usize = 768;
/// Maximum lanes of a packed strip (8 MiB), unless it has no more rows than a part.
const STRIP_LANES: usize = 1 << 21;
/// Maximum rows of a part of a strip.
const PART_ROWS: usize = 192;
/// A whole number of tiles of 4, 6 or 12 rows, and of vectors.
const ROW_UNIT: usize = 48;
/// The approximate minimum number of tasks of a gradient per thread.
const TASKS: usize = 8;
/// Lanes of terms that are packed at a time: two panels of them stay in the second-level cache.
const BLOCK_LANES: usize = 1024;
/// Lanes of panels that a task widens at a time: they stay in the second-level cache.
const PANEL_LANES: usize = 1 << 16;

/// Cuts `rows` into about `count` ranges of whole tiles and vectors, of similar size.
fn cut(rows: Range<usize>, count: usize) -> impl Iterator<Item = Range<usize>> {
    let rows_per_range = rows.len().div_ceil(count.max(1)).next_multiple_of(ROW_UNIT).max(1);
    rows.clone().step_by(rows_per_range).map(move |first| first..rows.end.min(first + rows_per_range))
}

/// The number of strips for `rows` rows of a gradient with `panels` panels and sums of `depth` terms: enough for
/// `tasks` tasks, as far as there are rows for them.
fn strips(rows: usize, panels: usize, depth: usize, tasks: usize) -> usize {
    let for_tasks = tasks.div_ceil(panels).min(rows.div_ceil(PART_ROWS));
    // Where sums are short, most of the work is storing them, and wide tasks are better than tall ones.
    let strip_rows = (4 * depth).min(STRIP_LANES / depth.max(1)).clamp(PART_ROWS, STRIP_ROWS);
    rows.div_ceil(strip_rows).max(for_tasks)
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
enum Arithmetic {
    /// As the contract defines it.
    Floats(Tier),
    /// The left operand rounded to bf16, in which codes of up to 8 bits are exact.
    Bf16(Tier, Bf16),
}

impl Arithmetic {
    fn new(tier: Tier, precision: Precision, right: Option<&Right<'_>>) -> Self {
        match (precision, right, tier.bf16()) {
            (Precision::Medium, Some(right), Some(bf16)) if right.fits_bf16() => Arithmetic::Bf16(tier, bf16),
            _ => Arithmetic::Floats(tier),
        }
    }

    /// Terms of a sum per lane.
    fn terms(self) -> usize {
        match self {
            Arithmetic::Floats(_) => 1,
            Arithmetic::Bf16(..) => 2,
        }
    }

    /// Rows of a tile.
    fn tile_rows(self) -> usize {
        let (Arithmetic::Floats(tier) | Arithmetic::Bf16(tier, _)) = self;
        tier.float_tile().0
    }

    /// Runs `op` with this arithmetic's instructions.
    fn vectorize<V: Formed>(self, op: V) {
        match self {
            Arithmetic::Floats(tier) => tier.vectorize(InFloats(op)),
            Arithmetic::Bf16(_, bf16) => bf16.vectorize(op),
        }
    }
}

/// A computation in floats.
struct InFloats<V>(V);

impl<V: Formed> Vectorized for InFloats<V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        self.0.run(isa, Floats);
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
        let panels = self.inputs.shape.2.div_ceil(PANEL);
        let depth = self.depth(side);
        let count = match product {
            Some(_) => strips(rows, panels, depth, self.tasks_wanted()),
            None => rows.div_ceil(PART_ROWS),
        };
        let (operands, mut output) = product.unzip();
        for rows in cut(0..rows, count) {
            let bias = bias.as_mut().map(|bias| bias.split_off_mut(..rows.len()).expect("an element for each row"));
            let strip = |users| Arc::new(Strip::new(self, side, rows.clone(), operands, users, bias));
            let Some(output) = &mut output else {
                tasks.push(GradientTask { strip: strip(1), product: None });
                continue;
            };
            let panels_per_task = self.panels_per_task(rows.len(), depth);
            let strip = strip(panels.div_ceil(panels_per_task));
            let mut output = output.take_rows(rows.len());
            tasks.extend((0..panels).step_by(panels_per_task).map(|first| {
                let output = output.take_columns(output.columns().min(panels_per_task * PANEL));
                let panels = first..panels.min(first + panels_per_task);
                GradientTask { strip: strip.clone(), product: Some((panels, output)) }
            }));
        }
        tasks
    }

    /// The approximate minimum number of tasks of a gradient.
    fn tasks_wanted(&self) -> usize {
        self.threads.saturating_mul(TASKS)
    }

    /// Panels per task of a strip: some 64 microseconds of work, or less where that would leave too few tasks, but at
    /// least one.
    fn panels_per_task(&self, rows: usize, depth: usize) -> usize {
        let (m, n, k) = self.inputs.shape;
        let task = (m * n * k / self.tasks_wanted()).clamp(1 << 20, 1 << 23);
        (task / (rows * depth.max(1) * PANEL)).max(1)
    }
}

/// Some rows of one gradient. The tasks that multiply them with different panels share the packed left operand:
/// whichever task first needs a block of a part packs it, and the last task to use it frees it.
struct Strip<'a> {
    call: Call<'a>,
    side: Side,
    /// `None` if the strip computes the bias's gradient alone.
    operands: Option<Operands<'a>>,
    arithmetic: Arithmetic,
    /// The number of tasks of this strip.
    users: usize,
    parts: Vec<Part<'a>>,
}

/// Rows of a strip whose left operand is packed by one task at a time.
struct Part<'a> {
    rows: Range<usize>,
    blocks: Vec<Mutex<Block>>,
    /// The bias's gradient of these rows.
    bias: Mutex<Option<&'a mut [f32]>>,
}

/// [`BLOCK_LANES`] lanes of terms of a part.
#[derive(Default)]
struct Block {
    packed: Option<Arc<Buffer<f32>>>,
    /// Tasks that are done with it.
    released: usize,
}

impl<'a> Strip<'a> {
    fn new(
        call: Call<'a>,
        side: Side,
        rows: Range<usize>,
        operands: Option<Operands<'a>>,
        users: usize,
        mut bias: Option<&'a mut [f32]>,
    ) -> Self {
        let right = operands.as_ref().map(|operands| &operands.right);
        let arithmetic = Arithmetic::new(call.tier, call.precision, right);
        let mut strip = Strip { call, side, operands, arithmetic, users, parts: Vec::new() };
        let blocks = strip.terms().count();
        let count = rows.len().div_ceil(PART_ROWS);
        strip.parts.extend(cut(rows, count).map(|rows| {
            let bias = bias.as_mut().map(|bias| bias.split_off_mut(..rows.len()).expect("an element for each row"));
            let blocks = std::iter::repeat_with(Mutex::default).take(blocks).collect();
            Part { rows, blocks, bias: Mutex::new(bias) }
        }));
        strip
    }

    /// The terms of each block; one empty block if there are no terms.
    fn terms(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (depth, block_terms) = (self.call.depth(self.side), BLOCK_LANES * self.arithmetic.terms());
        (0..depth.max(1)).step_by(block_terms).map(move |start| start..depth.min(start + block_terms))
    }

    /// The packed left operand, g times `scale`, of block `index` (which covers `terms`), for each part.
    fn acquire(&self, index: usize, terms: &Range<usize>, scale: &[f32]) -> Vec<Arc<Buffer<f32>>> {
        let packed = |part: &Part<'a>, mut block: MutexGuard<'_, Block>| {
            let packed = block.packed.get_or_insert_with(|| {
                let (rows, lanes) = (self.arithmetic.tile_rows(), terms.len().div_ceil(self.arithmetic.terms()));
                let mut packed = Buffer::new(part.rows.len().div_ceil(rows) * tile_stride(rows, lanes));
                let memory = Some((packed.as_mut_slice(), scale));
                self.arithmetic.vectorize(PackLeft { strip: self, part, terms: terms.clone(), packed: memory });
                Arc::new(packed)
            });
            packed.clone()
        };
        // A part that another task is packing is skipped while there are others to pack.
        let parts: Vec<_> = (self.parts.iter())
            .map(|part| part.blocks[index].try_lock().ok().map(|block| packed(part, block)))
            .collect();
        (parts.into_iter().zip(&self.parts))
            .map(|(done, part)| done.unwrap_or_else(|| packed(part, lock(&part.blocks[index]))))
            .collect()
    }

    /// Counts a task that is done with block `index`; the last one frees the block.
    fn release(&self, index: usize) {
        for part in &self.parts {
            let mut block = lock(&part.blocks[index]);
            block.released += 1;
            if block.released == self.users {
                block.packed = None;
            }
        }
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
        if *side == Side::X {
            let (packed, scale) = self.packed.expect("the gradient of X goes with no bias");
            return pack_for_x(isa, form, call.inputs, rows, self.terms, scale, packed);
        }
        let mut bias = lock(&self.part.bias);
        let mut bias = bias.as_deref_mut().map(|sums| Bias { sums, unmasked: call.unmasked_bias });
        if let Some(bias) = &mut bias
            && self.terms.start == 0
        {
            bias.sums.fill(0.0);
        }
        pack_for_weight(isa, form, call.inputs, rows, self.terms, self.packed, bias);
    }
}

/// A task: a strip's rows of one gradient in the columns of some panels, or the bias's gradient alone.
pub(super) struct GradientTask<'a> {
    strip: Arc<Strip<'a>>,
    /// The panels, and where the gradient in their columns goes.
    product: Option<(Range<usize>, OutputBlock<'a>)>,
}

impl GradientTask<'_> {
    pub(super) fn run(self) {
        let GradientTask { strip, mut product } = self;
        for (index, terms) in strip.terms().enumerate() {
            let (Some((panels, output)), Some(operands)) = (&mut product, strip.operands) else {
                for part in &strip.parts {
                    strip.arithmetic.vectorize(PackLeft { strip: &strip, part, terms: terms.clone(), packed: None });
                }
                continue;
            };
            let left = strip.acquire(index, &terms, operands.left_scale);
            let (right, panels) = (operands.right, panels.clone());
            strip.arithmetic.vectorize(MultiplyBlock { strip: &strip, left: &left, right, terms, panels, output });
            drop(left);
            strip.release(index);
        }
    }
}

/// One block of the sums of a [`GradientTask`].
struct MultiplyBlock<'s, 'a> {
    strip: &'s Strip<'a>,
    /// The packed left operand of each part.
    left: &'s [Arc<Buffer<f32>>],
    right: Right<'a>,
    terms: Range<usize>,
    panels: Range<usize>,
    output: &'s mut OutputBlock<'a>,
}

impl Formed for MultiplyBlock<'_, '_> {
    #[inline(always)]
    fn run<S: Isa, F: Form<S>>(self, isa: S, form: F) {
        let Strip { call, side, parts, .. } = self.strip;
        let (.., k) = call.inputs.shape;
        let depth = self.terms.len().div_ceil(F::TERMS);
        let panel_lanes = depth * PANEL;
        let panels_at_once = (PANEL_LANES / panel_lanes.max(1)).clamp(1, self.panels.len());
        let mut widened = Buffer::<f32>::new(panels_at_once * panel_lanes);
        let (first_row, first_column) = (parts[0].rows.start, self.panels.start * PANEL);
        for first in self.panels.clone().step_by(panels_at_once) {
            let panels = first..self.panels.end.min(first + panels_at_once);
            for (panel, lanes) in panels.clone().zip(widened.as_mut_slice().chunks_exact_mut(panel_lanes.max(1))) {
                self.right.widen(isa, form, self.terms.clone(), panel * PANEL, k, lanes);
            }
            let columns = panels.start * PANEL..k.min(panels.end * PANEL);
            for (Part { rows, .. }, left) in parts.iter().zip(self.left) {
                let left = PackedRows { values: left.as_slice(), rows: rows.len(), depth };
                let finish = Finish {
                    continued: self.terms.start > 0,
                    last: self.terms.end == call.depth(*side),
                    mask: if *side == Side::X { call.inputs.dac_mask } else { None },
                    mask_stride: mask_stride(k),
                    origin: (rows.start, columns.start),
                };
                let output = self.output.part(
                    rows.start - first_row..rows.end - first_row,
                    columns.start - first_column..columns.end - first_column,
                );
                gradient_panels(isa, form, &left, widened.as_slice(), &finish, output);
            }
        }
    }
}
