//! Cases, executors and comparisons that the equality tests share.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod memory;

use lumina_kernel::backward::{Factor, Inputs, Operand, Outputs, Precision, Weight, backward};
use lumina_kernel::executor::{Executor, Serial};
use lumina_kernel::forward::{Saved, mask_stride};
use lumina_kernel::reference::{self, Gradients};
use lumina_kernel::weights::{CodesMut, code_stride};
use lumina_kernel::{Layer, NoiseKey, Params, Spec, Tier, WeightSource, Weights, pack};
use memory::Place;
use proptest::prelude::*;
use rayon::prelude::*;

/// Runs tasks last to first.
pub struct Reversed;

impl Executor for Reversed {
    fn run(&self, _at_most: usize, work: &(dyn Fn() + Sync)) {
        work();
    }

    /// Many, so that tasks are small.
    fn threads(&self) -> usize {
        64
    }

    fn order(&self, count: usize) -> Option<Vec<usize>> {
        Some((0..count).rev().collect())
    }
}

/// Runs tasks in an order of its own for each seed and each number of them, on a single thread.
pub struct Shuffled(pub u64);

impl Executor for Shuffled {
    fn run(&self, _at_most: usize, work: &(dyn Fn() + Sync)) {
        work();
    }

    fn threads(&self) -> usize {
        64
    }

    fn order(&self, count: usize) -> Option<Vec<usize>> {
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|index| lumina_kernel::rng::mix(self.0 ^ *index as u64));
        Some(order)
    }
}

/// Runs tasks on a pool of its own.
pub struct Threads(rayon::ThreadPool);

impl Threads {
    pub fn new(count: usize) -> Self {
        Threads(rayon::ThreadPoolBuilder::new().num_threads(count).build().expect("a pool"))
    }
}

impl Executor for Threads {
    fn run(&self, at_most: usize, work: &(dyn Fn() + Sync)) {
        self.0.install(|| (0..at_most.min(self.threads())).into_par_iter().with_max_len(1).for_each(|_| work()));
    }

    fn threads(&self) -> usize {
        self.0.current_num_threads()
    }
}

/// How weights reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    F32,
    F32WithScale,
    Codes,
    Packed,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub spec: Spec,
    pub storage: Storage,
    pub x: Vec<f32>,
    pub w: Vec<f32>,
    pub bias: Option<Vec<f32>>,
    pub key: NoiseKey,
}

/// Everything a forward pass leaves behind.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    pub y: Vec<u32>,
    pub x_step: Vec<u32>,
    pub x_codes: Vec<i32>,
    pub w_codes: Vec<i32>,
    pub w_scale: Vec<u32>,
    pub adc: Vec<bool>,
    pub dac: Vec<bool>,
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Asserts that two arrays are equal, naming the first element that is not.
pub fn assert_same<T: PartialEq + std::fmt::Debug>(name: &str, got: &[T], expected: &[T], place: &dyn Fn() -> String) {
    assert_eq!(got.len(), expected.len(), "length of {name}: {}", place());
    if let Some(bad) = got.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{name}[{bad}] = {:?}, reference {:?}: {}", got[bad], expected[bad], place());
    }
}

pub fn small_random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = lumina_kernel::rng::mix(state);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

impl Case {
    pub fn params(&self) -> Params {
        Params::new(&self.spec).expect("a valid case")
    }

    /// The weight as the reference sees it.
    pub fn reference_weight(&self) -> reference::Weight {
        let bits = self.params().weight_bits;
        match self.storage {
            Storage::F32WithScale if bits > 0 => {
                let scale: Vec<f32> = (0..self.n).map(|n| 0.01 + n as f32 * 0.003).collect();
                reference::quantize_weight(bits, self.k, &self.w, Some(&scale))
            }
            _ => reference::quantize_weight(bits, self.k, &self.w, None),
        }
    }

    pub fn expected(&self) -> (Outcome, reference::Forward) {
        let params = self.params();
        let weight = self.reference_weight();
        let forward = reference::forward(&params, &weight, self.bias.as_deref(), &self.x, self.k, self.key);
        let codes = |values: &[f32], bits: u32| {
            if bits == 0 { Vec::new() } else { values.iter().map(|c| *c as i32).collect() }
        };
        let outcome = Outcome {
            y: bits(&forward.y),
            x_step: bits(&forward.x_step),
            x_codes: codes(&forward.x_values, params.input_bits),
            w_codes: codes(&weight.values, params.weight_bits),
            w_scale: bits(&weight.scale),
            adc: if params.adc_can_saturate() { forward.adc_saturated.clone() } else { Vec::new() },
            dac: if params.input_range.is_some() { forward.dac_saturated.clone() } else { Vec::new() },
        };
        (outcome, forward)
    }

    pub fn run(&self, tier: Tier, executor: &dyn Executor) -> Outcome {
        self.run_at(Place::Heap, tier, executor)
    }

    /// The same, with all that is read and written at a place.
    pub fn run_at(&self, place: Place, tier: Tier, executor: &dyn Executor) -> Outcome {
        let params = self.params();
        let (m, n, k) = (self.m, self.n, self.k);
        let (wb, xb) = (params.weight_bits, params.input_bits);
        let mut w8 = place.filled(77i8, if (1..=8).contains(&wb) { n * code_stride(k) } else { 0 });
        let mut w16 = place.filled(77i16, if wb > 8 { n * code_stride(k) } else { 0 });
        let mut x8 = place.filled(77i8, if (1..=8).contains(&xb) { m * code_stride(k) } else { 0 });
        let mut x16 = place.filled(77i16, if xb > 8 { m * code_stride(k) } else { 0 });

        let reference = self.reference_weight();
        let codes: Vec<i8> = reference.values.iter().map(|c| *c as i8).collect();
        let (codes, w, scale) = (place.put(&codes), place.put(&self.w), place.put(&reference.scale));
        let packed;
        let given = self.storage != Storage::F32 && wb > 0;
        let source = match self.storage {
            Storage::F32 | Storage::F32WithScale => WeightSource::F32(&w),
            Storage::Codes => WeightSource::Codes(&codes),
            Storage::Packed => {
                packed = place.put(&pack::pack_codes(wb, k, &codes));
                WeightSource::Packed(&packed)
            }
        };
        let w_codes = match wb {
            0 => None,
            1..=8 => Some(CodesMut::I8(&mut w8)),
            _ => Some(CodesMut::I16(&mut w16)),
        };
        let scale = given.then_some(&scale[..]);
        let weights = Weights::new(tier, executor, &params, (n, k), source, scale, w_codes).expect("valid weights");
        let w_scale = bits(weights.scale());
        let layer = Layer::new(params.clone(), weights, self.bias.clone()).expect("a valid layer");

        let (x, mut y) = (place.put(&self.x), place.filled(7.0f32, m * n));
        layer.forward(executor, &x, self.key, &mut y, None).expect("a valid call");
        let without_saving = bits(&y);

        let mut x_step = place.filled(7.0, m);
        let mut adc = place.filled(0xAAu8, m * mask_stride(n));
        let mut dac = place.filled(0xAAu8, m * mask_stride(k));
        let (adc_wanted, dac_wanted) = (params.adc_can_saturate(), params.input_range.is_some());
        let saved = Saved {
            x_codes: match xb {
                0 => None,
                1..=8 => Some(CodesMut::I8(&mut x8)),
                _ => Some(CodesMut::I16(&mut x16)),
            },
            x_step: Some(&mut x_step),
            adc_mask: adc_wanted.then_some(&mut adc[..]),
            dac_mask: dac_wanted.then_some(&mut dac[..]),
        };
        layer.forward(executor, &x, self.key, &mut y, Some(saved)).expect("a valid call");
        assert_eq!(without_saving, bits(&y), "saving changes nothing");

        let unpad = |rows8: &[i8], rows16: &[i16]| -> Vec<i32> {
            let stride = code_stride(k);
            let mut out = Vec::new();
            for row in rows8.chunks(stride) {
                out.extend(row[..k].iter().map(|c| i32::from(*c)));
                assert!(row[k..].iter().all(|c| *c == 0), "padding is 0");
            }
            for row in rows16.chunks(stride) {
                out.extend(row[..k].iter().map(|c| i32::from(*c)));
                assert!(row[k..].iter().all(|c| *c == 0), "padding is 0");
            }
            out
        };
        let unmask = |mask: &[u8], columns: usize, wanted: bool| -> Vec<bool> {
            if !wanted {
                return Vec::new();
            }
            let stride = mask_stride(columns);
            let bit = |i: usize| mask[i / columns * stride + i % columns / 8] >> (i % columns % 8) & 1 == 1;
            (0..m * columns).map(bit).collect()
        };
        Outcome {
            y: bits(&y),
            x_step: bits(&x_step),
            x_codes: unpad(&x8, &x16),
            w_codes: unpad(&w8, &w16),
            w_scale,
            adc: unmask(&adc, n, adc_wanted),
            dac: unmask(&dac, k, dac_wanted),
        }
    }

    /// Asserts that `tier` under `executor` equals the reference.
    pub fn check(&self, tier: Tier, executor: &dyn Executor) {
        self.assert_same(tier, &self.run(tier, executor), &self.expected().0);
    }

    /// Asserts that what a tier gave is what the reference gives.
    pub fn assert_same(&self, tier: Tier, got: &Outcome, expected: &Outcome) {
        let place = || format!("{} {}x{}x{} {:?} {:?}", tier.name(), self.m, self.k, self.n, self.storage, self.spec);
        if got.y != expected.y {
            let bad = got.y.iter().zip(&expected.y).position(|(a, b)| a != b).expect("they differ");
            panic!(
                "y[{}, {}] = {:e} ({:#x}), reference {:e} ({:#x}): {}",
                bad / self.n,
                bad % self.n,
                f32::from_bits(got.y[bad]),
                got.y[bad],
                f32::from_bits(expected.y[bad]),
                expected.y[bad],
                place()
            );
        }
        assert_same("x_step", &got.x_step, &expected.x_step, &place);
        assert_same("x_codes", &got.x_codes, &expected.x_codes, &place);
        assert_same("w_codes", &got.w_codes, &expected.w_codes, &place);
        assert_same("w_scale", &got.w_scale, &expected.w_scale, &place);
        assert_same("adc mask", &got.adc, &expected.adc, &place);
        assert_same("dac mask", &got.dac, &expected.dac, &place);
    }

    /// Checks every tier of this processor.
    pub fn check_all(&self) {
        for tier in Tier::available() {
            self.check(tier, &Serial);
        }
    }
}

/// A backward pass: what the forward pass of a case leaves, laid out as the kernel saves it, and dY.
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

    /// With a dY of ordinary numbers.
    pub fn seeded(case: &Case, dy_seed: u64) -> Self {
        let mut random = small_random(dy_seed);
        let dy: Vec<f32> = (0..case.m * case.n).map(|_| random()).collect();
        Backward::new(case, &dy)
    }

    pub fn expected(&self) -> Gradients {
        reference::backward(&self.params, &self.weight, &self.forward, &self.dy, self.case.k)
    }

    /// The gradients of X, of W and of the bias that are wanted; the others stay 7.
    pub fn run(&self, tier: Tier, executor: &dyn Executor, precision: Precision, wanted: [bool; 3]) -> Gradients {
        self.run_at(Place::Heap, tier, executor, precision, wanted)
    }

    /// The same, with all that is read and written at a place.
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

    /// Asserts that two outcomes are the same, bit for bit.
    pub fn assert_same(&self, what: &str, got: &Gradients, expected: &Gradients) {
        let Case { m, n, k, spec, .. } = &self.case;
        let place = || format!("{what} {m}x{k}x{n} {spec:?}");
        assert_same("dx", &bits(&got.x), &bits(&expected.x), &place);
        assert_same("dw", &bits(&got.weight), &bits(&expected.weight), &place);
        assert_same("db", &bits(&got.bias), &bits(&expected.bias), &place);
    }
}

/// Values of X: ordinary ones, with special ones strewn in.
fn x_value() -> impl Strategy<Value = f32> {
    prop_oneof![
        200 => -3.0f32..3.0,
        10 => Just(0.0f32),
        4 => Just(-0.0f32),
        2 => Just(1e-42f32),
        2 => Just(-3e38f32),
        1 => Just(f32::NAN),
        1 => Just(f32::INFINITY),
        1 => Just(f32::NEG_INFINITY),
    ]
}

fn rows(rows: usize, columns: usize, special: bool) -> BoxedStrategy<Vec<f32>> {
    if special {
        proptest::collection::vec(x_value(), rows * columns).boxed()
    } else {
        any::<u64>()
            .prop_map(move |seed| {
                let mut random = small_random(seed);
                (0..rows * columns).map(|_| 2.0 * random()).collect()
            })
            .boxed()
    }
}

fn weights(n: usize, k: usize) -> impl Strategy<Value = Vec<f32>> {
    (any::<u64>(), any::<bool>()).prop_map(move |(seed, zero_channel)| {
        let mut random = small_random(seed);
        let mut w: Vec<f32> = (0..n * k).map(|_| 0.2 * random()).collect();
        if zero_channel {
            w[..k].fill(0.0);
            w[0] = -0.0;
        }
        w
    })
}

/// Any parameters; `x_bits` and `w_bits` as given.
pub fn spec(n: usize, input_bits: i64, weight_bits: i64) -> impl Strategy<Value = Spec> {
    let output_bits = prop_oneof![Just(0i64), 2i64..=16, Just(8)];
    let input_range =
        if input_bits == 0 { Just(0.0f32).boxed() } else { prop_oneof![Just(0.0f32), Just(1.3), Just(1e-41)].boxed() };
    let output_range = prop_oneof![
        Just(vec![0.0f32]),
        Just(vec![0.7f32]),
        Just(vec![1e-41f32]),
        Just((0..n).map(|n| 0.2 + 0.1 * n as f32).collect::<Vec<_>>()),
    ];
    let level = || prop_oneof![2 => Just(0.0f32), 1 => 0.01f32..0.3];
    let stage = prop_oneof![Just("analog"), Just("digital")];
    (output_bits, input_range, output_range, level(), level(), level(), stage).prop_map(
        move |(output_bits, input_range, output_range, noise_relative, noise_additive, noise_shot, stage)| Spec {
            input_bits,
            weight_bits,
            output_bits,
            input_range,
            output_range,
            noise_relative,
            noise_additive,
            noise_shot,
            bias_stage: stage.to_owned(),
        },
    )
}

/// Bits of a product in i32, or in f32.
pub fn any_bits() -> impl Strategy<Value = (i64, i64)> {
    let input = prop_oneof![Just(0i64), 2i64..=16, 2i64..=8];
    let weight = prop_oneof![Just(0i64), 1i64..=16, prop_oneof![Just(1i64), Just(2), Just(4), Just(8)]];
    (input, weight)
}

pub fn case(m: usize, n: usize, k: usize, special: bool) -> impl Strategy<Value = Case> {
    any_bits().prop_flat_map(move |(input_bits, weight_bits)| {
        let storage = match weight_bits {
            0 => Just(Storage::F32).boxed(),
            1 | 2 | 4 => prop_oneof![
                Just(Storage::F32),
                Just(Storage::F32WithScale),
                Just(Storage::Codes),
                Just(Storage::Packed)
            ]
            .boxed(),
            3..=8 => prop_oneof![Just(Storage::F32), Just(Storage::F32WithScale), Just(Storage::Codes)].boxed(),
            _ => prop_oneof![Just(Storage::F32), Just(Storage::F32WithScale)].boxed(),
        };
        let bias = proptest::option::of(rows(1, n, false));
        let parts = (spec(n, input_bits, weight_bits), storage, rows(m, k, special), weights(n, k), bias);
        (parts, any::<u32>(), any::<u32>()).prop_map(move |((spec, storage, x, w, bias), seed, stream)| Case {
            m,
            n,
            k,
            spec,
            storage,
            x,
            w,
            bias,
            key: NoiseKey { seed: u64::from(seed), stream: u64::from(stream) },
        })
    })
}
