//! The fused forward pass.
//!
//! Large batches are cut by rows: a task converts its rows, multiplies them with all panels and finishes them while
//! they sit in the cache. Small batches with much work are cut by columns instead, in three steps: DAC, products, and
//! the epilogue once whole rows are there. How a call is cut depends on its shape alone.

use crate::error::Error;
use crate::executor::{Executor, run_each, threads_for};
use crate::microkernel::buffer::Buffer;
use crate::microkernel::dac;
use crate::microkernel::epilogue::{Epilogue, padded};
use crate::float_env::FloatEnv;
use crate::microkernel::isa::{Isa, LANES, Vectorized};
use crate::microkernel::product::{Product, Staged};
use crate::microkernel::rows;
use crate::microkernel::tile::PANEL;
use crate::microkernel::tile::float::FloatRows;
use crate::microkernel::tile::int::IntRows;
use crate::params::{BiasStage, Params};
use crate::quantize;
use crate::rng::{self, NoiseKey};
use crate::weights::{CodesMut, Weights, code_stride, take_first};

/// Rows of a task at most.
const TASK_ROWS: usize = 96;
/// Batches up to this many rows are cut by columns.
const COLUMN_CUT_ROWS: usize = 64;
/// Multiply-adds from which on that is worth its steps.
const COLUMN_CUT_WORK: usize = 1 << 19;
/// Tasks that columns are cut into, at most.
const COLUMN_TASKS: usize = 16;
/// Bytes of weights that a core reads from its caches in a nanosecond, about.
const BYTES_PER_NS: u64 = 100;
/// Rows of a task of the steps before and after the columns.
const STEP_ROWS: usize = 8;

/// A layer: checked parameters, weights and bias that fit together.
#[derive(Clone, Debug)]
pub struct Layer {
    params: Params,
    weights: Weights,
    /// The analog bias, filled up to whole panels; zeros where there is none.
    product_bias: Vec<f32>,
    epilogue: Epilogue,
}

/// What a backward pass needs of a forward pass, in memory of the caller's.
#[derive(Debug)]
pub struct Saved<'a> {
    /// `[M, code_stride(K)]`: DAC codes (i8 to 8 bits, i16 above); `None` where X is analog, or nothing
    /// needs them.
    pub x_codes: Option<CodesMut<'a>>,
    /// `[M]`: s_x, NaN in rows that are NaN throughout; `None` where nothing needs it.
    pub x_step: Option<&'a mut [f32]>,
    /// `[M, mask_stride(N)]`: bit n is set where the ADC saturated; `None` where it cannot.
    pub adc_mask: Option<&'a mut [u8]>,
    /// `[M, mask_stride(K)]`: bit k is set where the DAC saturated; `None` where it cannot, or
    /// nothing needs it.
    pub dac_mask: Option<&'a mut [u8]>,
}

/// Bytes of one row of `columns` mask bits.
pub const fn mask_stride(columns: usize) -> usize {
    columns.div_ceil(16) * 2
}

/// Rows that a task may have, and what a row takes in tasks of so many, about: the weights are read anew for each.
type RowCosts = [(usize, usize); 5];
/// Tiles of 12 rows are the fastest.
const ROW_COSTS: RowCosts = [(32, 100), (24, 102), (16, 108), (12, 106), (8, 118)];
/// Products of floats in tiles one vector wide, which read twice as much of the weights for each operation.
const ROW_COSTS_OF_NARROW_FLOATS: RowCosts = [(96, 100), (48, 108), (24, 118), (12, 130), (6, 145)];

const _: () = assert!(ROW_COSTS[0].0 <= COLUMN_CUT_ROWS && ROW_COSTS_OF_NARROW_FLOATS[0].0 <= TASK_ROWS);

/// Rows of a task of a call of `m` rows: those with which the thread that has most to do is through soonest.
fn task_rows(m: usize, threads: usize, costs: &RowCosts) -> usize {
    let slowest = |(rows, cost): &(usize, usize)| m.div_ceil(*rows).div_ceil(threads) * rows * cost;
    costs.iter().min_by_key(|choice| slowest(choice)).map_or(costs[0].0, |(rows, _)| *rows)
}

impl Layer {
    /// Puts a layer together; the shape was checked when `weights` was made with the same `params`.
    ///
    /// # Errors
    /// A bias that has not N finite elements.
    pub fn new(params: Params, weights: Weights, bias: Option<Vec<f32>>) -> Result<Self, Error> {
        let _environment = FloatEnv::canonical();
        let n = weights.n();
        params.check_shape(n, weights.k())?;
        if let Some(bias) = &bias {
            if bias.len() != n {
                return Err(Error::Length { name: "bias", length: bias.len(), allowed: format!("N = {n}") });
            }
            quantize::check_finite("bias", bias, None)?;
        }
        let product_bias = match &bias {
            Some(bias) if params.bias_stage == BiasStage::Analog => padded(bias.iter().copied(), 0.0),
            _ => padded(std::iter::repeat_n(0.0, n), 0.0),
        };
        let epilogue = Epilogue::new(&params, n, bias.as_deref());
        Ok(Layer { params, weights, product_bias, epilogue })
    }

    /// The parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// `y = ADC(DAC(x) . W + b + noise)`, X `[M, K]`, Y `[M, N]`, row-major.
    ///
    /// # Errors
    /// An `x` that is no whole number of rows, a `y` or memory in `saved` of another size.
    pub fn forward(
        &self,
        executor: &dyn Executor,
        x: &[f32],
        key: NoiseKey,
        y: &mut [f32],
        saved: Option<Saved<'_>>,
    ) -> Result<(), Error> {
        let (n, k) = (self.weights.n(), self.weights.k());
        let m = x.len() / k;
        if !x.len().is_multiple_of(k) {
            return Err(Error::Length { name: "input", length: x.len(), allowed: format!("a multiple of K = {k}") });
        }
        if y.len() != m * n {
            return Err(Error::Length { name: "out", length: y.len(), allowed: format!("M * N = {m} * {n}") });
        }
        if let Some(saved) = &saved {
            self.check_saved(saved, m)?;
        }
        let backwards = m == 1 && key.stream % 2 == 1;
        let call = Call { layer: self, call_key: rng::call_key(key), work_ns: self.work_ns(m), backwards };
        if m <= COLUMN_CUT_ROWS && m * n * k >= COLUMN_CUT_WORK {
            call.by_columns(executor, x, y, saved);
        } else {
            call.by_rows(executor, x, y, saved);
        }
        Ok(())
    }

    fn check_saved(&self, saved: &Saved<'_>, m: usize) -> Result<(), Error> {
        let (n, k) = (self.weights.n(), self.weights.k());
        let length = |name, length: usize, expected: usize| {
            if length == expected { Ok(()) } else { Err(Error::Length { name, length, allowed: expected.to_string() }) }
        };
        if let Some(codes) = &saved.x_codes {
            codes.check("x_codes", m, k, self.params.input_bits)?;
        }
        if let Some(x_step) = &saved.x_step {
            length("x_step", x_step.len(), m)?;
        }
        let masks = [
            ("adc_mask", &saved.adc_mask, n, self.params.adc_can_saturate(), "none where the ADC cannot saturate"),
            ("dac_mask", &saved.dac_mask, k, self.params.input_range.is_some(), "none where the DAC cannot saturate"),
        ];
        for (name, mask, columns, can_saturate, allowed) in masks {
            let Some(mask) = mask else { continue };
            if !can_saturate {
                return Err(Error::value(name, format!("{} bytes", mask.len()), allowed));
            }
            length(name, mask.len(), m * mask_stride(columns))?;
        }
        Ok(())
    }

    /// A rough estimate of one thread's time for `m` rows: a few rows wait for the weights to come from the caches.
    fn work_ns(&self, m: usize) -> u64 {
        let (n, k) = (self.weights.n(), self.weights.k());
        let (of_codes, of_floats) = self.weights.tier().products_per_ns();
        let products = (m * n * k) as u64 / if self.params.is_integer() { of_codes } else { of_floats };
        let reading = self.weights.bytes() as u64 / BYTES_PER_NS;
        let noise = if self.params.noise.any() { (m * n) as u64 / 2 } else { 0 };
        products.max(reading) + noise + (m * (n + k)) as u64 / 4
    }
}

/// One forward pass.
struct Call<'a> {
    layer: &'a Layer,
    call_key: u64,
    work_ns: u64,
    /// Every other call with a single row, which waits for the weights.
    backwards: bool,
}

/// Consecutive rows of a call.
struct Rows<'a> {
    x: &'a [f32],
    x_codes: Option<CodesMut<'a>>,
    x_step: Option<&'a mut [f32]>,
    adc_mask: Option<&'a mut [u8]>,
    dac_mask: Option<&'a mut [u8]>,
}

impl<'a> Rows<'a> {
    /// All of them.
    fn all(x: &'a [f32], saved: Option<Saved<'a>>) -> Self {
        match saved {
            Some(Saved { x_codes, x_step, adc_mask, dac_mask }) => Rows { x, x_codes, x_step, adc_mask, dac_mask },
            None => Rows { x, x_codes: None, x_step: None, adc_mask: None, dac_mask: None },
        }
    }

    /// Takes the first `count` rows off, or all where there are fewer.
    fn take_rows(&mut self, count: usize, n: usize, k: usize) -> Rows<'a> {
        let (x, rest) = self.x.split_at(self.x.len().min(count * k));
        self.x = rest;
        Rows {
            x,
            x_codes: self.x_codes.as_mut().map(|codes| codes.take_rows(count, k)),
            x_step: self.x_step.as_mut().map(|steps| take_first(steps, count)),
            adc_mask: self.adc_mask.as_mut().map(|mask| take_first(mask, count * mask_stride(n))),
            dac_mask: self.dac_mask.as_mut().map(|mask| take_first(mask, count * mask_stride(k))),
        }
    }
}

/// Memory for rows as the product reads them; of codes up to [`COLUMN_CUT_ROWS`], which no task by rows exceeds.
struct Staging {
    values: StagedValues,
    sums: [i32; COLUMN_CUT_ROWS],
}

enum StagedValues {
    /// Codes, or where the product needs those ([`Isa::SIGNS`]) their signs, and behind all of them their magnitudes where it
    /// needs them.
    Int {
        codes: Buffer<i8>,
        magnitudes: bool,
    },
    Float {
        values: Buffer<f32>,
        stride: usize,
    },
}

impl Call<'_> {
    fn by_rows(&self, executor: &dyn Executor, x: &[f32], y: &mut [f32], saved: Option<Saved<'_>>) {
        let (tier, n, k) = (self.layer.weights.tier(), self.layer.weights.n(), self.layer.weights.k());
        let mut rest = Rows::all(x, saved);
        let narrow_floats = !self.layer.params.is_integer() && tier.float_tile().1 == 1;
        let costs = if narrow_floats { &ROW_COSTS_OF_NARROW_FLOATS } else { &ROW_COSTS };
        let together = task_rows(x.len() / k, threads_for(executor, self.work_ns), costs);
        let cut = y.chunks_mut(together * n).enumerate().map(|(index, y)| (index, rest.take_rows(together, n, k), y));
        run_each(executor, self.work_ns, cut, |(index, mut rows, y)| {
            let count = rows.x.len() / k;
            let mut steps = [0.0; TASK_ROWS];
            let steps = &mut steps[..count];
            let mut staging = self.staging(count);
            let staged = staging.all();
            let mask = rows.adc_mask.take();
            tier.vectorize(ConvertTask { call: self, rows, staged, steps: &mut *steps });
            self.product(&staging, steps).into_rows(y);
            tier.vectorize(FinishTask { call: self, first: index * together, y, steps, mask });
        });
    }

    fn product<'a>(&'a self, staging: &'a Staging, x_step: &'a [f32]) -> Product<'a> {
        let layer = self.layer;
        let rows = staging.rows(x_step.len());
        Product { weights: &layer.weights, bias: &layer.product_bias, rows, x_step, backwards: self.backwards }
    }

    fn by_columns(&self, executor: &dyn Executor, x: &[f32], y: &mut [f32], saved: Option<Saved<'_>>) {
        let layer = self.layer;
        let (tier, n, k) = (layer.weights.tier(), layer.weights.n(), layer.weights.k());
        let m = x.len() / k;
        let mut staging = self.staging(m);
        let mut steps = [0.0; COLUMN_CUT_ROWS];
        let steps = &mut steps[..m];

        let mut rest = Rows::all(x, saved);
        let mut masks = rest.adc_mask.take();
        let mut staged = staging.all();
        let converted = steps.chunks_mut(STEP_ROWS).map(|steps| ConvertTask {
            call: self,
            rows: rest.take_rows(STEP_ROWS, n, k),
            staged: staged.take_rows(STEP_ROWS, k),
            steps,
        });
        run_each(executor, (m * k / 4) as u64, converted, |task| tier.vectorize(task));

        let product = self.product(&staging, steps);
        let panels = layer.product_bias.len() / PANEL;
        product.into_columns(executor, self.work_ns, panels.div_ceil(COLUMN_TASKS), y);

        let finished = y.chunks_mut(STEP_ROWS * n).zip(steps.chunks(STEP_ROWS)).enumerate();
        let finished = finished.map(|(index, (y, steps))| {
            let mask = masks.as_mut().map(|masks| take_first(masks, STEP_ROWS * mask_stride(n)));
            FinishTask { call: self, first: index * STEP_ROWS, y, steps, mask }
        });
        run_each(executor, (m * n) as u64, finished, |task| tier.vectorize(task));
    }

    fn staging(&self, rows: usize) -> Staging {
        let k = self.layer.weights.k();
        let values = if self.layer.params.is_integer() {
            let magnitudes = self.layer.weights.needs_magnitudes();
            StagedValues::Int { codes: Buffer::new((rows * code_stride(k)) << usize::from(magnitudes)), magnitudes }
        } else {
            let stride = float_stride(k);
            StagedValues::Float { values: Buffer::new(rows * stride), stride }
        };
        Staging { values, sums: [0; COLUMN_CUT_ROWS] }
    }

    /// Converts `rows` into `staged`, and into what is saved.
    #[inline(always)]
    fn convert<S: Isa>(&self, isa: S, rows: &mut Rows<'_>, staged: &mut StagedMut<'_>, steps: &mut [f32]) {
        let (params, k) = (&self.layer.params, self.layer.weights.k());
        for (row, x) in rows.x.chunks_exact(k).enumerate() {
            let mask = rows.dac_mask.as_mut().map(|mask| {
                let stride = mask_stride(k);
                &mut mask[row * stride..(row + 1) * stride]
            });
            match staged {
                StagedMut::Int { codes, magnitudes, sums } => {
                    let stride = code_stride(k);
                    let codes = &mut codes[row * stride..(row + 1) * stride];
                    steps[row] = dac::row(isa, params, x, dac::Target::Int(codes, &mut sums[row]), mask);
                    if let Some(CodesMut::I8(saved)) = &mut rows.x_codes {
                        saved[row * stride..(row + 1) * stride].copy_from_slice(codes);
                    }
                    if let Some(magnitudes) = magnitudes {
                        let magnitudes = &mut magnitudes[row * stride..(row + 1) * stride];
                        rows::magnitudes(codes, magnitudes);
                        if S::SIGNS {
                            sums[row] = rows::signs(codes, magnitudes);
                        }
                    }
                }
                StagedMut::Float { values, stride } => {
                    let values = &mut values[row * *stride..(row + 1) * *stride];
                    steps[row] = dac::row(isa, params, x, dac::Target::Float(values), mask);
                    if let Some(saved) = &mut rows.x_codes {
                        saved.store(isa, row, &values[..k]);
                    }
                }
            }
        }
        if let Some(saved) = &mut rows.x_step {
            saved.copy_from_slice(steps);
        }
    }
}

/// Floats from one row to the next: an odd number of cache lines, so that rows do not all fall into the same sets.
const fn float_stride(k: usize) -> usize {
    (k.div_ceil(LANES) | 1) * LANES
}

enum StagedMut<'a> {
    Int { codes: &'a mut [i8], magnitudes: Option<&'a mut [i8]>, sums: &'a mut [i32] },
    Float { values: &'a mut [f32], stride: usize },
}

impl StagedMut<'_> {
    /// Takes the first `count` rows off, or all where there are fewer.
    fn take_rows(&mut self, count: usize, k: usize) -> Self {
        match self {
            StagedMut::Int { codes, magnitudes, sums } => StagedMut::Int {
                codes: take_first(codes, count * code_stride(k)),
                magnitudes: magnitudes.as_mut().map(|magnitudes| take_first(magnitudes, count * code_stride(k))),
                sums: take_first(sums, count),
            },
            StagedMut::Float { values, stride } => {
                StagedMut::Float { values: take_first(values, count * *stride), stride: *stride }
            }
        }
    }
}

impl Staging {
    fn all(&mut self) -> StagedMut<'_> {
        match &mut self.values {
            StagedValues::Int { codes, magnitudes } => {
                let codes = codes.as_mut_slice();
                let (codes, behind) = codes.split_at_mut(codes.len() >> usize::from(*magnitudes));
                StagedMut::Int { codes, magnitudes: magnitudes.then_some(behind), sums: &mut self.sums }
            }
            StagedValues::Float { values, stride } => {
                StagedMut::Float { values: values.as_mut_slice(), stride: *stride }
            }
        }
    }

    fn rows(&self, rows: usize) -> Staged<'_> {
        match &self.values {
            StagedValues::Int { codes, magnitudes } => {
                let (codes, sums) = (codes.as_slice(), &self.sums[..rows]);
                let (codes, magnitudes) = codes.split_at(codes.len() >> usize::from(*magnitudes));
                Staged::Int(IntRows { codes, magnitudes, stride: codes.len() / rows, sums })
            }
            StagedValues::Float { values, stride } => {
                Staged::Float(FloatRows { values: values.as_slice(), stride: *stride })
            }
        }
    }
}

/// The step before the product.
struct ConvertTask<'a> {
    call: &'a Call<'a>,
    rows: Rows<'a>,
    staged: StagedMut<'a>,
    steps: &'a mut [f32],
}

impl Vectorized for ConvertTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(mut self, isa: S) {
        self.call.convert(isa, &mut self.rows, &mut self.staged, self.steps);
    }
}

/// The step after the product.
struct FinishTask<'a> {
    call: &'a Call<'a>,
    first: usize,
    y: &'a mut [f32],
    steps: &'a [f32],
    mask: Option<&'a mut [u8]>,
}

impl Vectorized for FinishTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let Call { layer, call_key, .. } = *self.call;
        layer.epilogue.rows(isa, call_key, self.first as u64, self.y, layer.weights.n(), self.steps, self.mask);
    }
}
