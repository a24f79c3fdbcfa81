//! How a call is cut into tasks.
//!
//! Large batches are cut by rows: a task converts its rows, multiplies them with all panels and finishes them while
//! they sit in the cache. Small batches with a lot of work are cut by columns instead, in three steps: the DAC, the
//! products, and the epilogue once rows are complete. The cut depends on the layer, the number of rows and the executor
//! alone.

use super::epilogue::{Epilogue, RowLight, Rows};
use super::product::Product;
use super::staging::{CODE_ROWS, ConvertRows, Staging, StagingMut};
use crate::cost;
use crate::executor::{Executor, Work, run_each, threads_for};
use crate::microkernel::buffer::Buffer;
use crate::microkernel::isa::{Isa, Vectorized};
use crate::microkernel::output::OutputBlock;
use crate::microkernel::panels::PANEL;
use crate::saved::{Saved, mask_stride, take_first};
use crate::weights::Weights;

/// Maximum rows of a task.
const TASK_ROWS: usize = CODE_ROWS;
/// Batches up to this many rows are cut by columns.
const COLUMN_CUT_ROWS: usize = 64;
/// Multiply-adds from which cutting by columns is worth its three steps.
const COLUMN_CUT_WORK: usize = 1 << 19;
/// Maximum number of tasks that columns are cut into.
const COLUMN_TASKS: usize = 16;
/// Rows of a task in the steps before and after the products.
const STEP_ROWS: usize = 8;

/// The numbers of rows that a task may have, each with the approximate relative cost of one row in such a task. They
/// differ because each task reads the weights anew.
type RowCosts = [(usize, usize)];
/// The costs of all other products. Tiles of 12 rows are the fastest.
const ROW_COSTS: &RowCosts = &[(32, 100), (24, 102), (16, 108), (12, 106), (8, 118)];
/// Products of floats in tiles one vector wide, which read twice as much of the weights per operation.
const ROW_COSTS_OF_NARROW_FLOATS: &RowCosts = &[(96, 100), (48, 108), (24, 118), (12, 130), (6, 145)];
/// Products on matrix tiles.
const ROW_COSTS_OF_TILES: &RowCosts = &[(32, 100), (16, 150)];
/// Products on matrix tiles with weights that do not fit a core's own caches: reading them is so slow that each read
/// should serve many rows.
const ROW_COSTS_OF_TILES_AND_FAR_WEIGHTS: &RowCosts = &[(128, 100), (96, 110), (64, 122), (32, 153), (16, 250)];

const _: () = {
    assert!(ROW_COSTS[0].0 <= TASK_ROWS && ROW_COSTS_OF_NARROW_FLOATS[0].0 <= TASK_ROWS);
    assert!(ROW_COSTS_OF_TILES[0].0 <= CODE_ROWS && ROW_COSTS_OF_TILES_AND_FAR_WEIGHTS[0].0 <= CODE_ROWS);
    assert!(COLUMN_CUT_ROWS <= CODE_ROWS);
};

/// Rows of a task in a call of `m` rows: the choice with which the busiest thread finishes soonest.
fn rows_per_task(m: usize, threads: usize, costs: &RowCosts) -> usize {
    let slowest = |(rows, cost): &(usize, usize)| m.div_ceil(*rows).div_ceil(threads) * rows * cost;
    costs.iter().min_by_key(|choice| slowest(choice)).map_or(costs[0].0, |(rows, _)| *rows)
}

/// What the tasks of a forward pass have in common.
pub(super) struct Call<'a> {
    pub(super) weights: &'a Weights,
    /// Padded to whole panels; `None` where the bias is digital or absent.
    pub(super) product_bias: Option<&'a [f32]>,
    pub(super) epilogue: &'a Epilogue,
    pub(super) call_key: u64,
    /// The whole call.
    pub(super) work: Work,
    /// Whether panels are read from last to first, as every other single-row call does: reading the weights is what
    /// such a call waits for ([`Product::backwards`]).
    pub(super) backwards: bool,
}

impl Call<'_> {
    /// Runs the pass on arguments that have been checked against the layer.
    pub(super) fn run(&self, executor: &dyn Executor, x: &[f32], y: &mut [f32], saved: Saved<'_>) {
        let (n, k) = (self.weights.n(), self.weights.k());
        let m = x.len() / k;
        if m <= COLUMN_CUT_ROWS && m * n * k >= COLUMN_CUT_WORK && self.tiles() == 1 {
            self.by_columns(executor, x, y, saved);
        } else {
            self.by_rows(executor, x, y, saved);
        }
    }

    fn by_rows(&self, executor: &dyn Executor, x: &[f32], y: &mut [f32], mut saved: Saved<'_>) {
        let (tier, n, k) = (self.weights.tier(), self.weights.n(), self.weights.k());
        let rows_per_task = rows_per_task(x.len() / k, threads_for(executor, self.work), self.row_costs());
        let tasks = y.chunks_mut(rows_per_task * n).enumerate();
        let tiles = self.tiles();
        let tasks = tasks.map(|(index, y)| (index, y, saved.take_rows(rows_per_task, (n, k), tiles)));
        run_each(executor, self.work, tasks, |(index, y, mut saved)| {
            let (first, count) = (index * rows_per_task, y.len() / n);
            let x = &x[first * k..(first + count) * k];
            let mut x_step = [0.0; TASK_ROWS];
            let x_step = &mut x_step[..count];
            let mut staging = Staging::new(self.weights, count, self.epilogue.reads_light());
            let adc_mask = saved.adc_mask.take();
            tier.vectorize(self.convert(x, first, saved, staging.all(), &mut *x_step));
            if tiles > 1 {
                return self.by_tiles(&staging, first, y, x_step, adc_mask);
            }
            self.product(&staging, x_step, 0).into_rows(OutputBlock::new(y, (count, n)));
            let rows = self.rows(first, x_step, staging.light(0));
            tier.vectorize(FinishRows { epilogue: self.epilogue, rows, y, adc_mask });
        });
    }

    /// The parts that a row is split into.
    fn tiles(&self) -> usize {
        self.weights.params().tiles(self.weights.k()).len()
    }

    /// The tiles of a task's rows, one after another: z of each in memory that it shares with the others, and what their
    /// ADCs give added in Y.
    fn by_tiles(
        &self,
        staging: &Staging,
        first: usize,
        y: &mut [f32],
        x_step: &[f32],
        mut adc_mask: Option<&mut [u8]>,
    ) {
        let (tier, n, count) = (self.weights.tier(), self.weights.n(), x_step.len());
        let mut z = Buffer::<f32>::new(count * n);
        let mut low = Buffer::<f32>::new(if self.epilogue.has_low_sums() { count * n } else { 0 });
        let mut is_nan = [false; TASK_ROWS];
        for tile in 0..self.tiles() {
            self.product(staging, x_step, tile).into_rows(OutputBlock::new(z.as_mut_slice(), (count, n)));
            tier.vectorize(AddTile {
                epilogue: self.epilogue,
                rows: self.rows(first, x_step, staging.light(tile)),
                tile,
                z: z.as_mut_slice(),
                sums: &mut *y,
                low: low.as_mut_slice(),
                is_nan: &mut is_nan,
                adc_mask: adc_mask.as_deref_mut(),
            });
        }
        let rows = self.rows(first, x_step, &[]);
        let (low, is_nan) = (low.as_slice(), &is_nan[..]);
        tier.vectorize(FinishSums { epilogue: self.epilogue, rows, sums: y, low, is_nan, adc_mask });
    }

    fn rows<'a>(&self, first: usize, x_step: &'a [f32], light: &'a [RowLight]) -> Rows<'a> {
        Rows { call_key: self.call_key, first: first as u64, n: self.weights.n(), x_step, light }
    }

    fn by_columns(&self, executor: &dyn Executor, x: &[f32], y: &mut [f32], mut saved: Saved<'_>) {
        let (tier, n, k) = (self.weights.tier(), self.weights.n(), self.weights.k());
        let m = x.len() / k;
        let mut staging = Staging::new(self.weights, m, self.epilogue.reads_light());
        let mut x_step = [0.0; COLUMN_CUT_ROWS];
        let x_step = &mut x_step[..m];

        let mut adc_mask = saved.adc_mask.take();
        let mut staged = staging.all();
        let converted =
            x.chunks(STEP_ROWS * k).zip(x_step.chunks_mut(STEP_ROWS)).enumerate().map(|(index, (x, x_step))| {
                let saved = saved.take_rows(STEP_ROWS, (n, k), 1);
                self.convert(x, index * STEP_ROWS, saved, staged.take_rows(STEP_ROWS), x_step)
            });
        run_each(executor, cost::work(tier, cost::dac_ns(tier, m, k)), converted, |task| tier.vectorize(task));

        let product = self.product(&staging, x_step, 0);
        let threads = threads_for(executor, self.work);
        let tasks = if threads == 1 { 1 } else { COLUMN_TASKS };
        let panels_per_task = product.panels_per_task(n.div_ceil(PANEL), tasks, threads);
        product.into_columns(executor, self.work, panels_per_task, OutputBlock::new(y, (m, n)));

        let finished = y.chunks_mut(STEP_ROWS * n).zip(x_step.chunks(STEP_ROWS)).enumerate();
        let finished = finished.map(|(index, (y, x_step))| {
            let adc_mask = adc_mask.as_mut().map(|mask| take_first(mask, STEP_ROWS * mask_stride(n)));
            let first = index * STEP_ROWS;
            let light = staging.light(0).get(first..first + x_step.len()).unwrap_or_default();
            FinishRows { epilogue: self.epilogue, rows: self.rows(first, x_step, light), y, adc_mask }
        });
        run_each(executor, cost::work(tier, cost::epilogue_ns(tier, m, n)), finished, |task| tier.vectorize(task));
    }

    fn row_costs(&self) -> &'static RowCosts {
        let tier = self.weights.tier();
        if !self.weights.params().is_integer() {
            return if tier.float_tile().1 == 1 { ROW_COSTS_OF_NARROW_FLOATS } else { ROW_COSTS };
        }
        match tier.tiles() {
            None => ROW_COSTS,
            Some(_) if self.weights.fit_near_caches() => ROW_COSTS_OF_TILES,
            Some(_) => ROW_COSTS_OF_TILES_AND_FAR_WEIGHTS,
        }
    }

    /// The step before the product.
    fn convert<'a>(
        &'a self,
        x: &'a [f32],
        first_row: usize,
        saved: Saved<'a>,
        staged: StagingMut<'a>,
        x_step: &'a mut [f32],
    ) -> ConvertRows<'a> {
        let (params, k, call_key) = (self.weights.params(), self.weights.k(), self.call_key);
        ConvertRows { params, k, x, call_key, first_row, saved, staged, x_step }
    }

    /// The product of one tile. The bias enters in the first.
    fn product<'a>(&'a self, staging: &'a Staging, x_step: &'a [f32], tile: usize) -> Product<'a> {
        let rows = staging.rows(x_step.len(), tile);
        let bias = self.product_bias.filter(|_| tile == 0);
        Product { weights: self.weights, tile, bias, rows, x_step, backwards: self.backwards }
    }
}

/// The step after the product.
struct FinishRows<'a> {
    epilogue: &'a Epilogue,
    rows: Rows<'a>,
    y: &'a mut [f32],
    adc_mask: Option<&'a mut [u8]>,
}

impl Vectorized for FinishRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        self.epilogue.finish_rows(isa, self.rows, self.y, self.adc_mask);
    }
}

/// The same for a tile.
struct AddTile<'a> {
    epilogue: &'a Epilogue,
    rows: Rows<'a>,
    tile: usize,
    z: &'a mut [f32],
    sums: &'a mut [f32],
    low: &'a mut [f32],
    is_nan: &'a mut [bool],
    adc_mask: Option<&'a mut [u8]>,
}

impl Vectorized for AddTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let AddTile { epilogue, rows, tile, z, sums, low, is_nan, adc_mask } = self;
        epilogue.add_tile(isa, rows, tile, z, sums, low, is_nan, adc_mask);
    }
}

/// What is left once all tiles are added.
struct FinishSums<'a> {
    epilogue: &'a Epilogue,
    rows: Rows<'a>,
    sums: &'a mut [f32],
    low: &'a [f32],
    is_nan: &'a [bool],
    adc_mask: Option<&'a mut [u8]>,
}

impl Vectorized for FinishSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let FinishSums { epilogue, rows, sums, low, is_nan, adc_mask } = self;
        epilogue.finish_sums(isa, rows, sums, low, is_nan, adc_mask);
    }
}
