//! The straight-through gradient.

use crate::error::Error;
use crate::executor::{Executor, run_each};
use crate::forward::mask_stride;
use crate::microkernel::Tier;
use crate::microkernel::buffer::Buffer;
use crate::microkernel::isa::{Isa, LANES, Vectorized};
use crate::microkernel::rows;
use crate::microkernel::tile::PANEL;
use crate::microkernel::tile::float::{Finish, FloatRows, float_panel};
use crate::microkernel::tile::target::{SharedRows, Target};
use crate::params::{BiasStage, Params};
use crate::reference::NAN;
use crate::weights::code_stride;

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

    /// Columns `column..column + PANEL` (those that there are) of row `row`, as floats; zeros elsewhere.
    #[inline(always)]
    fn widen<S: Isa>(&self, isa: S, row: usize, column: usize, k: usize, out: &mut [f32; PANEL]) {
        let (halves, _) = out.as_chunks_mut::<LANES>();
        let count = PANEL.min(k - column);
        match self {
            Operand::F32(values) => {
                let values = &values[row * k + column..row * k + column + count];
                if count < PANEL {
                    out.fill(0.0);
                }
                out[..count].copy_from_slice(values);
            }
            Operand::I8(codes) => {
                let codes = &codes[row * code_stride(k) + column..][..count];
                let mut padded = [0; PANEL];
                let codes = match codes.first_chunk::<PANEL>() {
                    Some(codes) => codes,
                    None => {
                        padded[..count].copy_from_slice(codes);
                        &padded
                    }
                };
                let (codes, _) = codes.as_chunks::<LANES>();
                for (codes, half) in codes.iter().zip(halves) {
                    isa.store(half, isa.to_float(isa.load_i8(codes)));
                }
            }
            Operand::I16(codes) => {
                let mut padded = [0; PANEL];
                padded[..count].copy_from_slice(&codes[row * code_stride(k) + column..][..count]);
                let (codes, _) = padded.as_chunks::<LANES>();
                for (codes, half) in codes.iter().zip(halves) {
                    isa.store(half, isa.to_float(isa.load_i16(codes)));
                }
            }
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
    let Outputs { x: dx, weight: dw, bias: mut db } = outputs;
    let tile_rows = tier.float_tile_rows();
    let product_ns = |wanted: bool| if wanted { (m * n * k) as u64 / 64 } else { 0 };
    let work_ns = product_ns(dx.is_some()) + product_ns(dw.is_some());

    // dY is read once: into rows of g * weight_scale for dX, and into tiles of g * s_x for dW.
    let mut for_x = Buffer::<f32>::new(if dx.is_some() { m * row_stride(n) } else { 0 });
    let mut for_weight = Buffer::<f32>::new(if dw.is_some() { n.next_multiple_of(COLUMNS) * m } else { 0 });
    {
        let shared_x = SharedRows::new(for_x.as_mut_slice(), row_stride(n));
        let weight_tiles = for_weight.as_mut_slice().chunks_mut((COLUMNS * m).max(1));
        let mut weight_tiles: Vec<_> = weight_tiles.map(Some).collect();
        weight_tiles.resize_with(n.div_ceil(COLUMNS), || None);
        let mut bias_chunks: Vec<_> =
            db.as_mut().map_or_else(Vec::new, |db| db.chunks_mut(COLUMNS).map(Some).collect());
        bias_chunks.resize_with(n.div_ceil(COLUMNS), || None);
        let tasks: Vec<_> = weight_tiles
            .into_iter()
            .zip(bias_chunks)
            .enumerate()
            .map(|(index, (tiles, bias))| Prepare {
                inputs,
                digital_bias: params.bias_stage == BiasStage::Digital,
                column: index * COLUMNS,
                tile_rows,
                rows: dx.is_some().then_some(&shared_x),
                tiles,
                bias,
            })
            .collect();
        run_each(executor, (m * n) as u64, tasks, |task| tier.vectorize(task));
    }

    let mut tasks = Vec::new();
    if let Some(dx) = &dx {
        debug_assert_eq!(dx.len(), m * k);
    }
    let shared_dx = dx.map(|dx| SharedRows::new(dx, k));
    let shared_dw = dw.map(|dw| SharedRows::new(dw, k));
    for column in (0..k).step_by(PANEL) {
        if let Some(target) = &shared_dx {
            for first in (0..m).step_by(PRODUCT_ROWS) {
                tasks.push(Gradient {
                    left: FloatRows {
                        values: &for_x.as_slice()[first * row_stride(n)..],
                        row_step: row_stride(n),
                        k_step: 1,
                        tile_step: tile_rows * row_stride(n),
                    },
                    right: inputs.weight,
                    depth: n,
                    k,
                    column,
                    rows: first..m.min(first + PRODUCT_ROWS),
                    mask: inputs.dac_mask,
                    target,
                });
            }
        }
        if let Some(target) = &shared_dw {
            for first in (0..n).step_by(PRODUCT_ROWS) {
                tasks.push(Gradient {
                    left: FloatRows {
                        values: &for_weight.as_slice()[first * m..],
                        row_step: 1,
                        k_step: tile_rows,
                        tile_step: tile_rows * m,
                    },
                    right: inputs.x,
                    depth: m,
                    k,
                    column,
                    rows: first..n.min(first + PRODUCT_ROWS),
                    mask: None,
                    target,
                });
            }
        }
    }
    run_each(executor, work_ns, tasks, |task| tier.vectorize(task));
    Ok(())
}

/// Columns of dY that a task prepares: whole tiles of 4, 6 or 12 and whole vectors.
const COLUMNS: usize = 96;
/// Rows of a gradient that a task computes: whole tiles of 4, 6 or 12.
const PRODUCT_ROWS: usize = 384;
/// Terms of a sum whose panel is widened at a time: it stays in the second-level cache.
const PRODUCT_DEPTH: usize = 1024;

/// Floats from one row of g to the next: an odd number of cache lines.
const fn row_stride(n: usize) -> usize {
    (n.div_ceil(LANES) | 1) * LANES
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

/// Reads up to [`COLUMNS`] columns of dY: masks them, scales them for both products, sums them for the bias.
struct Prepare<'a> {
    inputs: &'a Inputs<'a>,
    digital_bias: bool,
    column: usize,
    tile_rows: usize,
    rows: Option<&'a SharedRows<'a>>,
    tiles: Option<&'a mut [f32]>,
    bias: Option<&'a mut [f32]>,
}

impl Vectorized for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(mut self, isa: S) {
        const VECTORS: usize = COLUMNS / LANES;
        let inputs = self.inputs;
        let (m, n) = (inputs.x_step.len(), inputs.weight_scale.len());
        let count = COLUMNS.min(n - self.column);
        let scales = &inputs.weight_scale[self.column..self.column + count];
        let mut sums = [isa.splat(0.0); VECTORS];
        for row in 0..m {
            let dy = &inputs.dy[row * n + self.column..][..count];
            let step = isa.splat(inputs.x_step[row]);
            let mut for_weight = [0.0; COLUMNS];
            for (v, sum) in sums.iter_mut().enumerate().take(count.div_ceil(LANES)) {
                let unmasked = rows::vector(isa, dy, v);
                let mut g = unmasked;
                if let Some(mask) = inputs.adc_mask {
                    let at = row * mask_stride(n) + (self.column + v * LANES) / 8;
                    let word = u16::from_le_bytes([mask[at], mask[at + 1]]);
                    if word != 0 {
                        g = cleared(isa, g, word);
                    }
                }
                *sum = isa.add(*sum, if self.digital_bias { unmasked } else { g });
                if let Some(rows) = self.rows {
                    let scaled = isa.mul(g, rows::vector(isa, scales, v));
                    // SAFETY: this task alone has these columns; a row has room for whole vectors.
                    unsafe { isa.store_ptr(rows.at(row, self.column + v * LANES), scaled) };
                }
                rows::set_vector(isa, &mut for_weight, v, isa.mul(g, step));
            }
            if let Some(tiles) = &mut self.tiles {
                let tile = self.tile_rows;
                for (index, values) in for_weight[..count.next_multiple_of(tile)].chunks_exact(tile).enumerate() {
                    tiles[(index * m + row) * tile..][..tile].copy_from_slice(values);
                }
            }
        }
        if let Some(bias) = self.bias {
            for (v, sum) in sums.iter().enumerate().take(count.div_ceil(LANES)) {
                rows::set_vector(isa, bias, v, canonical(isa, *sum));
            }
        }
    }
}

/// `values` with 0 where a bit of `word` is set.
#[inline(always)]
fn cleared<S: Isa>(isa: S, values: S::F, word: u16) -> S::F {
    let mut lanes = [0.0; LANES];
    isa.store(&mut lanes, values);
    for (lane, value) in lanes.iter_mut().enumerate() {
        if word >> lane & 1 == 1 {
            *value = 0.0;
        }
    }
    isa.load(&lanes)
}

#[inline(always)]
fn canonical<S: Isa>(isa: S, value: S::F) -> S::F {
    isa.select(isa.is_nan(value), isa.splat(NAN), value)
}

/// Some rows of one gradient in the columns of one panel.
struct Gradient<'a> {
    /// The scaled g, from the first of `rows` on.
    left: FloatRows<'a>,
    /// `[depth, k]`.
    right: Operand<'a>,
    depth: usize,
    k: usize,
    column: usize,
    rows: std::ops::Range<usize>,
    mask: Option<&'a [u8]>,
    target: &'a SharedRows<'a>,
}

impl Vectorized for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let count = self.rows.len();
        let mut panel = Buffer::<f32>::new(self.depth.min(PRODUCT_DEPTH) * PANEL);
        // SAFETY: no other task has these rows and columns.
        let target = unsafe { Target::new(self.target.at(self.rows.start, self.column), self.k, self.k - self.column) };
        for start in (0..self.depth.max(1)).step_by(PRODUCT_DEPTH) {
            let depth = PRODUCT_DEPTH.min(self.depth - start);
            let (rows, _) = panel.as_mut_slice().as_chunks_mut::<PANEL>();
            for (index, row) in rows[..depth].iter_mut().enumerate() {
                self.right.widen(isa, start + index, self.column, self.k, row);
            }
            let left = FloatRows { values: &self.left.values[start * self.left.k_step..], ..self.left };
            let finish = Finish::Sum { continued: start > 0 };
            // SAFETY: the target has `count` rows.
            unsafe { float_panel(isa, &left, count, panel.as_slice(), depth, &finish, target) };
        }
        for row in self.rows.clone() {
            for v in 0..PANEL.min(self.k - self.column).div_ceil(LANES) {
                let column = self.column + v * LANES;
                // SAFETY: no other task has these rows and columns.
                let values = unsafe { self.target.slice(row, column, LANES.min(self.k - column)) };
                let mut value = canonical(isa, rows::vector(isa, values, 0));
                if let Some(mask) = self.mask {
                    let at = row * mask_stride(self.k) + column / 8;
                    let word = u16::from_le_bytes([mask[at], mask[at + 1]]);
                    if word != 0 {
                        value = cleared(isa, value, word);
                    }
                }
                rows::set_vector(isa, values, 0, value);
            }
        }
    }
}
