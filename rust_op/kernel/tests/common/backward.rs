//! A backward pass: the result of the reference, and that of a tier.

use lumina_kernel::Precision;
use lumina_kernel::backward::{Factor, Inputs, Operand, Outputs, Weight, backward};
use lumina_kernel::reference::{self, Gradients};
use lumina_kernel::saved::{code_stride, mask_stride};
use lumina_kernel::{Executor, Params, Tier};

use super::memory::Place;
use super::{Case, assert_same, bits, small_random};

pub const PRECISIONS: [Precision; 3] = [Precision::Highest, Precision::Bits16, Precision::Bits8];

/// A backward pass: what the forward pass of a case saves, laid out as the kernel does it, and dY.
pub struct Backward {
    pub case: Case,
    pub params: Params,
    pub weight: reference::Weight,
    pub forward: reference::Forward,
    pub dy: Vec<f32>,
    x8: Vec<i8>,
    x16: Vec<i16>,
    adc: Option<Vec<u8>>,
    dac: Option<Vec<u8>>,
}

impl Backward {
    pub fn new(case: &Case, dy: &[f32]) -> Self {
        let (params, weight) = (case.params(), case.reference_weight());
        let forward = reference::forward(&params, &weight, case.bias.as_deref(), &case.x, case.k, case.key);
        let mut x16 = Vec::new();
        for row in forward.x_values.chunks(case.k).filter(|_| params.input_bits > 0) {
            x16.extend(row.iter().map(|code| *code as i16));
            x16.resize(x16.len() + code_stride(case.k) - case.k, 0);
        }
        let mask = |bits: &[bool], columns: usize| {
            let mut out = Vec::new();
            for row in bits.chunks(columns) {
                let mut bytes = vec![0u8; mask_stride(columns)];
                row.iter().enumerate().for_each(|(i, bit)| bytes[i / 8] |= u8::from(*bit) << (i % 8));
                out.extend(bytes);
            }
            out
        };
        Backward {
            x8: x16.iter().map(|code| *code as i8).collect(),
            x16,
            adc: params.adc_can_saturate().then(|| mask(&forward.adc_saturated, case.n)),
            dac: params.input_range.is_some().then(|| mask(&forward.dac_saturated, case.k)),
            case: case.clone(),
            params,
            weight,
            forward,
            dy: dy.to_vec(),
        }
    }

    /// A backward pass with a dY of ordinary numbers.
    pub fn seeded(case: &Case, dy_seed: u64) -> Self {
        let mut random = small_random(dy_seed);
        let dy: Vec<f32> = (0..case.m * case.n).map(|_| random()).collect();
        Backward::new(case, &dy)
    }

    pub fn expected(&self, precision: Precision) -> Gradients {
        reference::backward(&self.params, &self.weight, &self.forward, &self.dy, self.case.k, precision)
    }

    /// The gradients of X, of W and of the bias that are wanted; the others stay 7.
    pub fn run(&self, tier: Tier, executor: &dyn Executor, precision: Precision, wanted: [bool; 3]) -> Gradients {
        self.run_at(Place::Heap, tier, executor, precision, wanted)
    }

    /// The same, with everything that is read and written at `place`.
    pub fn run_at(
        &self,
        place: Place,
        tier: Tier,
        executor: &dyn Executor,
        precision: Precision,
        wanted: [bool; 3],
    ) -> Gradients {
        let Case { m, n, k, .. } = self.case;
        let (x, x8, x16) = (place.put(&self.case.x), place.put(&self.x8), place.put(&self.x16));
        let x = match self.params.input_bits {
            0 => Operand::F32(&x),
            1..=8 => Operand::I8(&x8),
            _ => Operand::I16(&x16),
        };
        let (dy, steps) = (place.put(&self.dy), place.put(&self.forward.x_step));
        let (w, scale) = (place.put(&self.case.w), place.put(&self.weight.scale));
        let mask = |mask: &Option<Vec<u8>>| mask.as_ref().map(|mask| place.put(mask));
        let (adc, dac) = (mask(&self.adc), mask(&self.dac));
        let inputs = Inputs {
            shape: (m, n, k),
            dy: &dy,
            x: wanted[1].then_some(Factor { values: x, steps: &steps }),
            weight: wanted[0].then_some(Weight { values: &w, scale: &scale }),
            adc_mask: adc.as_deref(),
            dac_mask: dac.as_deref(),
        };
        let [mut dx, mut dw, mut db] = [m * k, n * k, n].map(|length| place.filled(7.0, length));
        let outputs = Outputs {
            x: wanted[0].then_some(&mut dx[..]),
            weight: wanted[1].then_some(&mut dw[..]),
            bias: wanted[2].then_some(&mut db[..]),
        };
        backward(tier, executor, &self.params, precision, &inputs, outputs).expect("a valid call");
        Gradients { x: dx.to_vec(), weight: dw.to_vec(), bias: db.to_vec() }
    }

    /// Asserts that two results are the same, bit for bit.
    pub fn assert_same(&self, what: &str, got: &Gradients, expected: &Gradients) {
        let Case { m, n, k, spec, .. } = &self.case;
        let place = || format!("{what} {m}x{k}x{n} {spec:?}");
        assert_same("dx", &bits(&got.x), &bits(&expected.x), &place);
        assert_same("dw", &bits(&got.weight), &bits(&expected.weight), &place);
        assert_same("db", &bits(&got.bias), &bits(&expected.bias), &place);
    }
}
