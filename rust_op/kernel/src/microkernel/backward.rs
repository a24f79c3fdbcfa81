//! The straight-through gradient.

mod pack;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::executor::{Executor, run_each};
use crate::forward::mask_stride;
use crate::microkernel::Tier;
use crate::microkernel::buffer::Buffer;
use crate::microkernel::isa::{Isa, Vectorized};
use crate::microkernel::tile::PANEL;
use crate::microkernel::tile::gradient::{Finish, Floats, Left, gradient_panels, tile_stride};
use crate::microkernel::tile::target::SharedRows;
use crate::params::{BiasStage, Params};
use crate::weights::code_stride;
use pack::{Bias, pack_for_weight, pack_for_x};

/// One side of the product as the forward pass left it.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// Analog values, in rows of K.
    F32(&'a [f32]),
    /// Codes of up to 8 bits, in rows of [`code_stride`].
    I8(&'a [i8]),
    /// Codes of 9..16 bits, in rows of [`code_stride`].
    I16(&'a [i16]),
}

impl Operand<'_> {
    /// Elements that `rows` rows of `k` take.
    fn length(&self, rows: usize, k: usize) -> (usize, usize) {
        match self {
            Operand::F32(values) => (values.len(), rows * k),
            Operand::I8(codes) => (codes.len(), rows * code_stride(k)),
            Operand::I16(codes) => (codes.len(), rows * code_stride(k)),
        }
    }
}

/// What the gradient is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// dY `[M, N]`.
    pub dy: &'a [f32],
    /// X, or its codes, `[M, K]`.
    pub x: Operand<'a>,
    /// s_x `[M]`.
    pub x_step: &'a [f32],
    /// W, or its codes, `[N, K]`.
    pub weight: Operand<'a>,
    /// `[N]`.
    pub weight_scale: &'a [f32],
    /// As in [`crate::forward::Saved`].
    pub adc_mask: Option<&'a [u8]>,
    /// As in [`crate::forward::Saved`].
    pub dac_mask: Option<&'a [u8]>,
    /// K.
    pub k: usize,
}

/// The gradients asked for.
#[derive(Debug, Default)]
pub struct Outputs<'a> {
    /// dX `[M, K]`.
    pub x: Option<&'a mut [f32]>,
    /// dW `[N, K]`.
    pub weight: Option<&'a mut [f32]>,
    /// db `[N]`.
    pub bias: Option<&'a mut [f32]>,
}

/// The gradient of a forward pass (`docs/operator.md`, "Gradient").
///
/// # Errors
/// A length that does not fit the others.
pub fn backward(
    tier: Tier,
    executor: &dyn Executor,
    params: &Params,
    inputs: &Inputs<'_>,
    outputs: Outputs<'_>,
) -> Result<(), Error> {
    let (m, n, k) = (inputs.x_step.len(), inputs.weight_scale.len(), inputs.k);
    check(params, inputs, &outputs)?;
    let Outputs { x: dx, weight: dw, bias: db } = outputs;
    let unmasked_bias = params.bias_stage == BiasStage::Digital;
    let products = usize::from(dx.is_some()) + usize::from(dw.is_some());
    let work = products * m * n * k;

    let dx = dx.map(|dx| SharedRows::new(dx, k));
    let dw = dw.map(|dw| SharedRows::new(dw, k));
    let mut for_x = Vec::new();
    let mut for_weight = Vec::new();
    if let Some(dx) = &dx {
        for rows in strips(m) {
            for_x.extend(Strip::cut(inputs, Side::X, rows, Some(dx), work, None, unmasked_bias));
        }
    }
    if dw.is_some() || db.is_some() {
        let mut bias = db;
        for rows in strips(n) {
            let bias = bias.as_mut().map(|bias| bias.split_off_mut(..rows.len()).expect("N elements"));
            for_weight.extend(Strip::cut(inputs, Side::Weight, rows, dw.as_ref(), work, bias, unmasked_bias));
        }
    }
    // In turn, since the first task of a strip packs it and the others wait for that.
    let tasks = interleave(for_x, for_weight);
    run_each(executor, (work / 64 + m * n) as u64, tasks, |task| task.run(tier));
    Ok(())
}

fn check(params: &Params, inputs: &Inputs<'_>, outputs: &Outputs<'_>) -> Result<(), Error> {
    let (m, n, k) = (inputs.x_step.len(), inputs.weight_scale.len(), inputs.k);
    params.check_shape(n, k)?;
    let length = |name, (length, expected): (usize, usize)| {
        if length == expected { Ok(()) } else { Err(Error::Length { name, length, allowed: expected.to_string() }) }
    };
    length("grad_output", (inputs.dy.len(), m * n))?;
    length("x", inputs.x.length(m, k))?;
    length("weight", inputs.weight.length(n, k))?;
    if let Some(mask) = inputs.adc_mask {
        length("adc_mask", (mask.len(), m * mask_stride(n)))?;
    }
    if let Some(mask) = inputs.dac_mask {
        length("dac_mask", (mask.len(), m * mask_stride(k)))?;
    }
    if let Some(dx) = &outputs.x {
        length("grad_x", (dx.len(), m * k))?;
    }
    if let Some(dw) = &outputs.weight {
        length("grad_weight", (dw.len(), n * k))?;
    }
    if let Some(db) = &outputs.bias {
        length("grad_bias", (db.len(), n))?;
    }
    Ok(())
}

/// Rows of a strip at most.
const STRIP_ROWS: usize = 192;
/// Whole tiles of 4, 6 or 12 rows, whole vectors.
const STRIP_UNIT: usize = 48;
/// Terms of a sum whose operands are packed at a time: a panel of them stays in the second-level cache.
const BLOCK_TERMS: usize = 1024;
/// Lanes of panels that a task widens at a time: they stay in the second-level cache.
const PANEL_LANES: usize = 1 << 16;

/// Cuts `rows` rows of a gradient into strips of whole tiles and vectors, of similar size.
fn strips(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let strips = rows.div_ceil(STRIP_ROWS).max(1);
    let together = rows.div_ceil(strips).next_multiple_of(STRIP_UNIT).max(1);
    (0..rows).step_by(together).map(move |first| first..rows.min(first + together))
}

/// Panels of a task of a strip of `rows` rows and sums of `depth` terms, in a call of `work` multiply-adds: some 64
/// microseconds of it, or less where that leaves fewer than 32 tasks.
fn task_panels(rows: usize, depth: usize, work: usize) -> usize {
    let task = (work / 32).clamp(1 << 20, 1 << 23);
    (task / (rows * depth.max(1) * PANEL)).max(1)
}

/// One of `first`, one of `second`, and so on; then the rest.
fn interleave<T>(first: Vec<T>, second: Vec<T>) -> Vec<T> {
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

/// Which gradient.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    X,
    Weight,
}

/// Some rows of one gradient. The tasks that multiply them with different panels share the packed left operand: the
/// first one packs it, block by block, the last one frees it.
struct Strip<'a> {
    inputs: &'a Inputs<'a>,
    side: Side,
    rows: Range<usize>,
    /// Terms of the sums.
    depth: usize,
    /// Tasks of this strip.
    users: usize,
    blocks: Vec<Mutex<Block>>,
    /// Where the bias's gradient of these rows goes.
    bias: Mutex<Option<&'a mut [f32]>>,
    /// Whether that passes where the ADC saturated.
    unmasked_bias: bool,
}

/// [`BLOCK_TERMS`] terms of a strip.
#[derive(Default)]
struct Block {
    packed: Option<Arc<Buffer<f32>>>,
    /// Tasks that are through with it.
    released: usize,
}

impl<'a> Strip<'a> {
    /// The tasks of a strip.
    fn cut(
        inputs: &'a Inputs<'a>,
        side: Side,
        rows: Range<usize>,
        target: Option<&'a SharedRows<'a>>,
        work: usize,
        bias: Option<&'a mut [f32]>,
        unmasked_bias: bool,
    ) -> impl Iterator<Item = Gradient<'a>> {
        let depth = if side == Side::X { inputs.weight_scale.len() } else { inputs.x_step.len() };
        let panels = inputs.k.div_ceil(PANEL);
        let together = if target.is_some() { task_panels(rows.len(), depth, work) } else { panels };
        let blocks = Self::blocks(depth).map(|_| Mutex::default()).collect();
        let users = panels.div_ceil(together);
        let strip = Strip { inputs, side, rows, depth, users, blocks, bias: Mutex::new(bias), unmasked_bias };
        let strip = Arc::new(strip);
        (0..panels).step_by(together).map(move |first| Gradient {
            strip: strip.clone(),
            panels: first..panels.min(first + together),
            target,
        })
    }

    /// The terms of each block; without a term, of an empty one.
    fn blocks(depth: usize) -> impl Iterator<Item = Range<usize>> {
        (0..depth.max(1)).step_by(BLOCK_TERMS).map(move |start| start..depth.min(start + BLOCK_TERMS))
    }

    /// The packed left operand of the block `index`, of `terms`.
    fn acquire(&self, tier: Tier, index: usize, terms: &Range<usize>) -> Arc<Buffer<f32>> {
        let mut block = lock(&self.blocks[index]);
        let packed = block.packed.get_or_insert_with(|| {
            let lanes =
                self.rows.len().div_ceil(tier.float_tile_rows()) * tile_stride(tier.float_tile_rows(), terms.len());
            let mut packed = Buffer::new(lanes);
            tier.vectorize(Pack { strip: self, terms: terms.clone(), packed: Some(packed.as_mut_slice()) });
            Arc::new(packed)
        });
        packed.clone()
    }

    /// Counts a task that is through with the block `index`.
    fn release(&self, index: usize) {
        let mut block = lock(&self.blocks[index]);
        block.released += 1;
        if block.released == self.users {
            block.packed = None;
        }
    }
}

/// A task that panicked leaves nothing half done that another one reads: the call panics as a whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Packs a block of a strip and adds it to the bias's gradient.
struct Pack<'s, 'a> {
    strip: &'s Strip<'a>,
    terms: Range<usize>,
    packed: Option<&'s mut [f32]>,
}

impl Vectorized for Pack<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let Strip { inputs, rows, .. } = self.strip;
        match (self.strip.side, self.packed) {
            (Side::X, Some(packed)) => pack_for_x(isa, Floats, inputs, rows.clone(), self.terms, packed),
            (Side::X, None) => {}
            (Side::Weight, packed) => {
                let mut bias = lock(&self.strip.bias);
                if self.terms.start == 0
                    && let Some(bias) = bias.as_deref_mut()
                {
                    bias.fill(0.0);
                }
                let bias = bias.as_deref_mut().map(|sums| Bias { sums, unmasked: self.strip.unmasked_bias });
                pack_for_weight(isa, Floats, inputs, rows.clone(), self.terms, packed, bias);
            }
        }
    }
}

/// A strip's rows of one gradient in the columns of some panels; without a target its bias's gradient alone.
struct Gradient<'a> {
    strip: Arc<Strip<'a>>,
    panels: Range<usize>,
    target: Option<&'a SharedRows<'a>>,
}

impl Gradient<'_> {
    fn run(self, tier: Tier) {
        let blocks = Strip::blocks(self.strip.depth);
        let Some(target) = self.target else {
            let terms = 0..self.strip.depth;
            return tier.vectorize(Pack { strip: &self.strip, terms, packed: None });
        };
        for (index, terms) in blocks.enumerate() {
            let left = self.strip.acquire(tier, index, &terms);
            tier.vectorize(Product {
                strip: &self.strip,
                left: left.as_slice(),
                terms,
                panels: self.panels.clone(),
                target,
            });
            drop(left);
            self.strip.release(index);
        }
    }
}

/// One block of the sums of a [`Gradient`].
struct Product<'s, 'a> {
    strip: &'s Strip<'a>,
    left: &'s [f32],
    terms: Range<usize>,
    panels: Range<usize>,
    target: &'s SharedRows<'a>,
}

impl Vectorized for Product<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let Strip { inputs, side, rows, depth, .. } = self.strip;
        let k = inputs.k;
        let (right, mask) = match side {
            Side::X => (&inputs.weight, inputs.dac_mask),
            Side::Weight => (&inputs.x, None),
        };
        let steps = self.terms.len();
        let left = Left { values: self.left, rows: rows.len(), steps };
        let panel_lanes = steps * PANEL;
        let together = (PANEL_LANES / panel_lanes.max(1)).clamp(1, self.panels.len());
        let mut widened = Buffer::<f32>::new(together * panel_lanes);
        for first in self.panels.clone().step_by(together) {
            let panels = first..self.panels.end.min(first + together);
            for (panel, lanes) in panels.clone().zip(widened.as_mut_slice().chunks_exact_mut(panel_lanes.max(1))) {
                right.widen(isa, Floats, self.terms.clone(), panel * PANEL, k, lanes);
            }
            let column = panels.start * PANEL;
            let finish = Finish {
                continued: self.terms.start > 0,
                last: self.terms.end == *depth,
                mask,
                mask_stride: mask_stride(k),
                origin: (rows.start, column),
            };
            let columns = k.min(panels.end * PANEL) - column;
            // SAFETY: the target has rows of k for every row of the strip, and no other task has these columns.
            unsafe {
                let target = self.target.at(rows.start, column);
                gradient_panels(isa, Floats, &left, widened.as_slice(), columns, &finish, target, k);
            }
        }
    }
}
