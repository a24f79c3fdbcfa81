//! The fused forward pass: [`dac`] -> [`product`] -> [`epilogue`] (noise and ADC). [`cut`] divides a call into tasks.

mod cut;
mod dac;
mod epilogue;
mod product;
mod staging;

use crate::cost;
use crate::error::Error;
use crate::executor::{Executor, run_each};
use crate::float_env::FloatEnv;
use crate::microkernel::Tier;
use crate::microkernel::gauss;
use crate::microkernel::isa::{Isa, Vectorized};
use crate::params::{BiasStage, Params};
use crate::quantize;
use crate::rng::{self, NoiseKey};
use crate::saved::{Saved, check_length, mask_stride};
use crate::weights::Weights;
use cut::Call;
use epilogue::{Epilogue, padded};

/// A layer: weights and bias that fit together, with the parameters of both.
#[derive(Clone, Debug)]
pub struct Layer {
    weights: Weights,
    /// The analog bias, padded to whole panels; `None` where there is none.
    product_bias: Option<Vec<f32>>,
    epilogue: Epilogue,
}

impl Layer {
    /// Combines weights and a bias.
    ///
    /// # Errors
    /// A bias that does not have N finite elements.
    pub fn new(weights: Weights, bias: Option<&[f32]>) -> Result<Self, Error> {
        let _environment = FloatEnv::canonical();
        let (params, n) = (weights.params(), weights.n());
        if let Some(bias) = bias {
            if bias.len() != n {
                return Err(Error::Length { name: "bias", length: bias.len(), allowed: format!("N = {n}") });
            }
            quantize::check_finite("bias", bias, None)?;
        }
        let analog = bias.filter(|_| params.bias_stage == BiasStage::Analog);
        let product_bias = analog.map(|bias| padded(bias.iter().copied(), 0.0));
        let epilogue = Epilogue::new(&weights, bias);
        Ok(Layer { weights, product_bias, epilogue })
    }

    /// The parameters.
    pub fn params(&self) -> &Params {
        self.weights.params()
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// About how long [`Layer::forward`] takes on one thread for `m` rows, in nanoseconds.
    #[inline]
    pub fn forward_ns(&self, m: usize) -> u64 {
        let weights = &self.weights;
        cost::forward_ns(weights.tier(), self.params(), (m, weights.n(), weights.k()), weights.bytes())
    }

    /// `y = ADC(DAC(x) . W + b + noise)`, X `[M, K]`, Y `[M, N]`, row-major.
    ///
    /// # Errors
    /// An `x` that is not a whole number of rows, or a `y` or memory in `saved` of the wrong size.
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
        let call = Call {
            weights: &self.weights,
            product_bias: self.product_bias.as_deref(),
            epilogue: &self.epilogue,
            call_key: rng::call_key(key),
            work: cost::work(self.weights.tier(), self.forward_ns(m)),
            backwards: m == 1 && key.stream % 2 == 1,
        };
        call.run(executor, x, y, saved.unwrap_or_default());
        Ok(())
    }

    fn check_saved(&self, saved: &Saved<'_>, m: usize) -> Result<(), Error> {
        let (params, n, k) = (self.params(), self.weights.n(), self.weights.k());
        if let Some(codes) = &saved.x_codes {
            codes.check("x_codes", m, k, params.input_code_bits())?;
        }
        if let Some(x_step) = &saved.x_step {
            check_length("x_step", x_step.len(), m)?;
        }
        let tiles = params.tiles(k).len();
        let masks = [
            (
                "adc_mask",
                &saved.adc_mask,
                tiles * mask_stride(n),
                params.adc_can_saturate(),
                "none where the ADC cannot saturate",
            ),
            (
                "dac_mask",
                &saved.dac_mask,
                mask_stride(k),
                params.input_range.is_some(),
                "none where the DAC cannot saturate",
            ),
        ];
        for (name, mask, row, can_saturate, allowed) in masks {
            let Some(mask) = mask else { continue };
            if !can_saturate {
                return Err(Error::value(name, format!("{} bytes", mask.len()), allowed));
            }
            check_length(name, mask.len(), m * row)?;
        }
        Ok(())
    }
}

/// The normals of one row, as [`crate::noise::fill_row`] gives them.
pub fn fill_noise_row(tier: Tier, call_key: u64, row: u64, out: &mut [f32]) {
    struct Fill<'a> {
        call_key: u64,
        row: u64,
        out: &'a mut [f32],
    }
    impl Vectorized for Fill<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Isa>(self, isa: S) {
            gauss::fill_row(isa, self.call_key, self.row, self.out);
        }
    }
    let _environment = FloatEnv::canonical();
    tier.vectorize(Fill { call_key, row, out });
}

/// Normals per task of [`fill_noise`], rounded up to whole rows: some microseconds of work.
const NORMALS_PER_TASK: usize = 32_768;

/// The normals that a call with this key draws for its rows of `columns` columns, from its first row on.
pub fn fill_noise(tier: Tier, executor: &dyn Executor, key: NoiseKey, columns: usize, out: &mut [f32]) {
    let (call_key, rows_per_task) = (rng::call_key(key), NORMALS_PER_TASK.div_ceil(columns));
    let work = cost::work(tier, cost::noise_ns(tier, out.len()));
    let tasks = out.chunks_mut(rows_per_task * columns).enumerate();
    run_each(executor, work, tasks, |(index, rows)| {
        for (row, out) in rows.chunks_exact_mut(columns).enumerate() {
            fill_noise_row(tier, call_key, (index * rows_per_task + row) as u64, out);
        }
    });
}
